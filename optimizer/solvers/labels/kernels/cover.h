// The cheapest replicas of several types that are dealt all micro-batches of a step together (mixed/cover.py).
#pragma once

#include <algorithm>
#include <vector>

#include "stage.h"

struct Cover {
  const Floats& each;
  const int64_t* dealt = nullptr;
  std::vector<int64_t> order, count, best;
  double limit = 0.0;

  explicit Cover(const Floats& each) : each(each), count(each.size()), best(each.size()) {}

  // Branch and bound over the types, the cheapest per micro-batch first; the rest is bounded as if replicas could be
  // divided. Lowers the limit to the least price, if that is below it, and keeps its replicas; `must` is one of them.
  void search(const int64_t* most_dealt, int64_t num, int64_t must) {
    dealt = most_dealt;
    order.clear();
    for (int64_t kind = 0; kind < each.size(); ++kind)
      if (dealt[kind] > 0) order.push_back(kind);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const double first = each[a] * dealt[b], second = each[b] * dealt[a];
      return first != second ? first < second : a < b;
    });
    std::fill(count.begin(), count.end(), 0);
    count[must] = 1;
    add(0, num - dealt[must], each[must]);
  }

  void add(size_t depth, int64_t left, double price) {
    if (price >= limit) return;
    if (left <= 0) {
      limit = price;
      best = count;
      return;
    }
    if (depth == order.size()) return;
    const int64_t kind = order[depth], whole = ceiling(left, dealt[kind]);
    for (int64_t number = whole; number >= 0; --number) {
      const int64_t rest = left - number * dealt[kind];
      const double spent = price + number * each[kind];
      if (rest > 0 && depth + 1 == order.size()) return;
      const int64_t next = rest > 0 ? order[depth + 1] : kind;
      // Fewer of this type leave even more to dearer ones.
      if (rest > 0 && spent + rest * each[next] / dealt[next] >= limit) return;
      count[kind] += number;
      add(depth + 1, rest, spent);
      count[kind] -= number;
    }
  }
};
