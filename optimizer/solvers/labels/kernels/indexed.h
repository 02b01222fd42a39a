// Replica-indexed prices: the cheapest path with the replicas behind every cut as part of the state (indexed.py).
#pragma once

#include <vector>

#include "prices.h"

// The most replicas behind, up to `most`, with which the units still fit; they do with `behind`.
inline int64_t last_that_fits(const Costs& costs, int64_t replicas, int64_t fits, int64_t behind, int64_t most) {
  int64_t low = behind, high = most;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (units_held(costs, replicas, middle) <= fits)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// Fills r(s) of every arc, given in the order of their keys; arcs of equal keys are alike. Returns how many runs there
// are, even if there is room for fewer: those without room are left out.
inline int64_t find_runs(const Costs& costs, const Arcs& arcs, const Ints& keys, const Ints& order, const Runs& runs) {
  const int64_t devices = sum_of(costs.counts), room = runs.begin.size();
  int64_t used = 0, before = -1;
  for (int64_t place = 0; place < order.size(); ++place) {
    const int64_t arc = order[place];
    if (before >= 0 && keys[arc] == keys[before]) {
      runs.first[arc] = runs.first[before];
      runs.stop[arc] = runs.stop[before];
      continue;
    }
    before = arc;
    runs.first[arc] = used;
    const int64_t most = costs.most[arcs.kind[arc]];
    for (int64_t step = arcs.step[arc], behind = 0; behind <= devices; ++used) {
      step = next_step(costs, step, arcs.fits[arc], behind, most);
      if (step < 0) break;
      const int64_t count = costs.replicas[step], begin = behind;
      behind = 1 + last_that_fits(costs, count, arcs.fits[arc], behind, devices);
      if (used >= room) continue;
      runs.begin[used] = begin;
      runs.end[used] = behind;
      runs.replicas[used] = count;
    }
    runs.stop[arc] = used;
  }
  const Ints& front = runs.most_behind;
  std::fill_n(front.data, costs.num_cuts + 1, UNREACHABLE);
  front[0] = 0;
  for (int64_t last = 1; last <= costs.num_cuts; ++last)
    for (int64_t arc = arcs.start[last]; arc < arcs.stop[last]; ++arc)
      front[last] = std::min(front[last], front[arcs.tail[arc]] + arcs.replicas[arc]);
  for (int64_t cut = 0; cut <= costs.num_cuts; ++cut) front[cut] = devices - front[cut];
  return used;
}

struct ArcFare {
  // Does not depend on the replicas behind.
  double fixed;
  double per_replica;
};

inline ArcFare fixed_fare(const Costs& costs, const Arcs& arcs, int64_t arc, const Fares& fares) {
  const double each = fares.per_replica[costs.type_of[arcs.kind[arc]]];
  if (each < 0 || (arcs.tail[arc] == 0 && fares.first_window > 0)) return {arc_fare(costs, arcs, arc, fares).fare, 0.0};
  return {fares.per_stage + fares.per_ms * arcs.time_ms[arc], each};
}

// Fills G (L + 1, devices + 1): the cheapest stages of the layers before a cut, with s replicas behind it.
inline void indexed_costs(const Costs& costs, const Arcs& arcs, const Runs& runs, const Fares& fares, double* least) {
  const int64_t devices = sum_of(costs.counts), width = devices + 1;
  std::fill_n(least, (costs.num_cuts + 1) * width, FAR);
  std::fill_n(least, width, 0.0);
  for (int64_t last = 1; last <= costs.num_cuts; ++last) {
    double* __restrict row = least + last * width;
    const int64_t lowest = arcs.least_behind[last], highest = std::min(runs.most_behind[last], devices);
    for (int64_t arc = arcs.start[last]; arc < arcs.stop[last]; ++arc) {
      const ArcFare own = fixed_fare(costs, arcs, arc, fares);
      for (int64_t run = runs.first[arc]; run < runs.stop[arc]; ++run) {
        const int64_t count = runs.replicas[run];
        const int64_t low = std::max(runs.begin[run], lowest);
        const int64_t high = std::min({runs.end[run] - 1, highest, devices - count});
        const double fare = own.fixed + own.per_replica * count;
        const double* __restrict before = least + arcs.tail[arc] * width + count;
        for (int64_t behind = low; behind <= high; ++behind) {
          const double value = fare + before[behind];
          row[behind] = value < row[behind] ? value : row[behind];
        }
      }
    }
  }
}

// The path that is cheapest at some replica-indexed prices.
struct IndexedPath {
  const Costs& costs;
  const Arcs& arcs;
  const Runs& runs;
  double threshold_ms;
  int64_t devices;
  Prices per_replica, least;
  Fares fares;

  IndexedPath(const Costs& costs, const Arcs& arcs, const Runs& runs, double threshold_ms)
      : costs(costs), arcs(arcs), runs(runs), threshold_ms(threshold_ms), devices(sum_of(costs.counts)),
        per_replica(costs.counts.size()), least((costs.num_cuts + 1) * (devices + 1)),
        fares{{per_replica.data(), {}}, 0.0, 0.0, 0.0} {}

  double find(const Prices& prices) {
    set_fares(costs, threshold_ms, prices.data(), fares);
    indexed_costs(costs, arcs, runs, fares, least.data());
    return least[costs.num_cuts * (devices + 1)];
  }

  Prices usage() const {
    Usage usage(costs, threshold_ms);
    for (int64_t last = costs.num_cuts; last > 0;) {
      double best = FAR;
      int64_t best_arc = -1, best_count = 0;
      for (int64_t arc = arcs.start[last]; arc < arcs.stop[last]; ++arc) {
        const ArcFare own = fixed_fare(costs, arcs, arc, fares);
        for (int64_t run = runs.first[arc]; run < runs.stop[arc]; ++run) {
          const int64_t count = runs.replicas[run], after = usage.used + count;
          if (usage.used < runs.begin[run] || usage.used >= runs.end[run] || after > devices) continue;
          const double value = own.fixed + own.per_replica * count + least[arcs.tail[arc] * (devices + 1) + after];
          if (value < best) best = value, best_arc = arc, best_count = count;
        }
      }
      if (best_arc < 0) break;
      usage.add(arcs.kind[best_arc], best_count, arcs.time_ms[best_arc]);
      last = arcs.tail[best_arc];
    }
    usage.finish();
    return usage.use;
  }
};
