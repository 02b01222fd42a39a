// The least price x time of plans whose step time and whose sum of times are within intervals (charges.py).
#pragma once

#include <cmath>
#include <vector>

#include "prices.h"

struct Box {
  // Of the step time, and of the sum of times.
  double least_ms, most_ms, shortest_ms, longest_ms;
};

// A stage on some replicas, with what it is charged at least: their price, times the step time.
struct Offer {
  int64_t tail, kind, replicas;
  double charge, time;
};

struct Offers {
  const Costs& costs;
  // By the cut at their end.
  std::vector<std::vector<Offer>> behind_of;

  Offers(const Costs& costs, const Box& box) : costs(costs), behind_of(costs.num_cuts + 1) {
    const int64_t size = costs.num_cuts;
    std::vector<int64_t> behind(size + 1, UNREACHABLE);
    behind[size] = 0;
    for (int64_t last = size; last > 0; --last) {
      if (behind[last] >= UNREACHABLE) continue;
      for (int64_t kind = 0; kind < costs.type_of.size(); ++kind)
        for (int64_t first = last - 1; first >= 0; --first) {
          const int64_t least = add({kind, first, last}, box, behind[last]);
          if (least > 0) behind[first] = std::min(behind[first], behind[last] + least);
        }
    }
  }

  // Adds a stage with every number of replicas that is worth it; returns the least one, 0 if there is none. A stage
  // is busy, and the step waits for the other stages, for load + sum of times at least.
  int64_t add(const Stage& stage, const Box& box, int64_t behind) {
    const int64_t fits = costs.fits(stage.kind, stage.last, stage.first), most = costs.most[stage.kind];
    const double hourly = costs.hourly[costs.type_of[stage.kind]];
    if (fits < 1) return 0;
    int64_t least = 0;
    double cheapest = FAR;
    for (int64_t step = next_step(costs, 0, fits, behind, most); step >= 0;
         step = next_step(costs, step + 1, fits, behind, most)) {
      const int64_t replicas = costs.replicas[step];
      const Load own = load_of(costs, stage, replicas);
      const double busy = own.load + std::max(box.shortest_ms, own.time);
      if (busy > box.most_ms * SLACK || own.time > box.longest_ms * SLACK) continue;
      if (!least) least = replicas;
      const double charge = replicas * hourly * std::max(box.least_ms, busy);
      if (charge >= cheapest) continue;
      cheapest = charge;
      behind_of[stage.last].push_back({stage.first, stage.kind, replicas, charge, own.time});
    }
    return least;
  }
};

// The cheapest path at prices per device of each type, per stage, for money and for time (which may be negative).
struct ChargedPath {
  const Offers& offers;
  const Costs& costs;
  std::vector<double> least;
  std::vector<const Offer*> chosen;

  explicit ChargedPath(const Offers& offers)
      : offers(offers), costs(offers.costs), least(costs.num_cuts + 1), chosen(costs.num_cuts + 1) {}

  double find(const Prices& prices) {
    const int64_t kinds = costs.counts.size(), size = costs.num_cuts;
    std::vector<double> each(costs.type_of.size());
    for (size_t kind = 0; kind < each.size(); ++kind) {
      const int64_t type = costs.type_of[kind];
      each[kind] = prices[type] + prices[kinds + 1] * costs.hourly[type];
    }
    std::fill(least.begin(), least.end(), FAR);
    least[0] = 0.0;
    for (int64_t last = 1; last <= size; ++last)
      for (const Offer& offer : offers.behind_of[last]) {
        const double fare = offer.charge + prices[kinds] + each[offer.kind] * offer.replicas +
                            prices[kinds + 2] * offer.time;
        const double value = least[offer.tail] + fare;
        if (value < least[last]) least[last] = value, chosen[last] = &offer;
      }
    return least[size];
  }

  Prices usage() const {
    const int64_t kinds = costs.counts.size();
    Prices use(kinds + 3, 0.0);
    for (int64_t last = costs.num_cuts; last > 0; last = chosen[last]->tail) {
      const Offer& offer = *chosen[last];
      const int64_t type = costs.type_of[offer.kind];
      use[type] += offer.replicas;
      use[kinds] += 1;
      use[kinds + 1] += offer.replicas * costs.hourly[type];
      use[kinds + 2] += offer.time;
    }
    return use;
  }

  int64_t read(const Ints& rows) const {
    int64_t number = 0;
    for (int64_t last = costs.num_cuts; last > 0; last = chosen[last]->tail) {
      const int64_t row[4] = {chosen[last]->tail, last, chosen[last]->kind, chosen[last]->replicas};
      std::copy_n(row, 4, &rows(number++, 0));
    }
    return number;
  }
};

// Sub-gradient steps as in raise_time_bound; capacity of devices, stages and money (0: without limit). Fills `rows`
// with the stages of the best path, last first, and their number; returns the best bound.
inline double raise_charge(ChargedPath& path, const Box& box, const Floats& prices_out, const Floats& capacity,
                           double target, int64_t rounds, const Ints& rows, const Ints& number) {
  const size_t size = prices_out.size(), time = size - 1;
  Prices prices(prices_out.data, prices_out.data + size), slope(size), limit(capacity.data, capacity.data + size);
  double best = -FAR, ease = 1.0;
  for (int64_t turn = 0, since = 0; turn < rounds; ++turn) {
    limit[time] = prices[time] > 0 ? box.longest_ms : box.shortest_ms;
    double bound = path.find(prices);
    if (bound >= FAR) return FAR;
    for (size_t one = 0; one < size; ++one) bound -= prices[one] * limit[one];
    since = bound > best + std::abs(best) * 1e-7 ? 0 : since + 1;
    if (bound > best) {
      best = bound;
      std::copy(prices.begin(), prices.end(), prices_out.data);
      number[0] = path.read(rows);
    }
    if (best >= target) break;
    if (since > 6) {
      ease *= 0.5;
      since = 0;
      prices.assign(prices_out.data, prices_out.data + size);
      if (ease < 0.02) break;
      continue;
    }
    const Prices use = path.usage();
    double norm = 0.0;
    for (size_t one = 0; one < time; ++one) {
      slope[one] = limit[one] > 0 ? use[one] / limit[one] - 1.0 : 0.0;
      if (slope[one] < 0 && prices[one] <= 0) slope[one] = 0.0;
      norm += slope[one] * slope[one];
    }
    // Nothing is gained while the time is within its interval and has no price.
    const bool inside = use[time] <= box.longest_ms && use[time] >= box.shortest_ms && prices[time] == 0;
    const double edge = use[time] > box.longest_ms ? box.longest_ms : limit[time];
    slope[time] = inside ? 0.0 : use[time] / edge - 1.0;
    norm += slope[time] * slope[time];
    if (norm < 1e-16) break;
    const double step = ease * (target - bound) / norm;
    for (size_t one = 0; one < time; ++one)
      if (limit[one] > 0) prices[one] = std::max(0.0, prices[one] * limit[one] + step * slope[one]) / limit[one];
    prices[time] += step * slope[time] / edge;
  }
  return best;
}
