// Lower bounds by pricing devices (prices.py says which resources there are, and why they are bounds).
#pragma once

#include <cmath>
#include <vector>

#include "arcs.h"

constexpr double FAR = 1e300;
// Relative; a bound must be exceeded by this much, so that roundings prove nothing.
constexpr double MARGIN = 1e-9;

using Prices = std::vector<double>;

inline double worth(const Prices& prices, const Floats& amounts) {
  double total = 0.0;
  for (size_t resource = 0; resource < prices.size(); ++resource) total += prices[resource] * amounts[resource];
  return total;
}

inline void set_fares(const Costs& costs, double threshold_ms, const double* prices, Fares& fares) {
  const int64_t kinds = costs.counts.size();
  const double window = prices[kinds + 1];
  for (int64_t kind = 0; kind < kinds; ++kind)
    fares.per_replica[kind] = prices[kind] - window * threshold_ms / costs.num_microbatches +
                              prices[kinds + 3] * costs.hourly[kind];
  fares.per_stage = prices[kinds];
  fares.per_ms = (adds_times(costs) ? 1.0 : 0.0) + window + prices[kinds + 2];
  fares.first_window = window * threshold_ms;
}

struct Fare {
  double fare;
  int64_t replicas;
};

// The least that an arc costs, and with how many replicas.
inline Fare arc_fare(const Costs& costs, const Arcs& arcs, int64_t arc, const Fares& fares) {
  const int64_t kind = arcs.kind[arc], replicas = arcs.replicas[arc], most = costs.most[kind];
  const double each = fares.per_replica[costs.type_of[kind]];
  const double fare = fares.per_stage + fares.per_ms * arcs.time_ms[arc];
  if (arcs.tail[arc] == 0 && fares.first_window > 0) {
    Fare best{FAR, replicas};
    for (int64_t count = replicas; count <= most; ++count) {
      const double value = each * count - fares.first_window / ceiling(costs.num_microbatches, count);
      if (value < best.fare) best = {value, count};
    }
    return {fare + best.fare, best.replicas};
  }
  const int64_t count = each < 0 ? most : replicas;
  return {fare + each * count, count};
}

inline void all_fares(const Costs& costs, const Arcs& arcs, const Fares& fares, double* fare, int64_t* replicas) {
  for (int64_t arc = 0; arc < arcs.tail.size(); ++arc) {
    const Fare found = arc_fare(costs, arcs, arc, fares);
    fare[arc] = found.fare;
    if (replicas) replicas[arc] = found.replicas;
  }
}

// The cheapest path from the first layer to every cut, and (unless null) the arcs that end them.
inline void cheapest_from_start(const Costs& costs, const Arcs& arcs, const double* fare, double* least,
                                int64_t* chosen) {
  const int64_t size = costs.num_cuts;
  std::fill_n(least, size + 1, FAR);
  least[0] = 0.0;
  for (int64_t last = 1; last <= size; ++last)
    for (int64_t arc = arcs.start[last]; arc < arcs.stop[last]; ++arc) {
      const double value = fare[arc] + least[arcs.tail[arc]];
      if (value < least[last]) {
        least[last] = value;
        if (chosen) chosen[last] = arc;
      }
    }
}

// The cheapest path from every cut to the last layer.
inline void cheapest_to_end(const Costs& costs, const Arcs& arcs, const double* fare, double* least) {
  const int64_t size = costs.num_cuts;
  std::fill_n(least, size + 1, FAR);
  least[size] = 0.0;
  for (int64_t last = size; last > 0; --last) {
    if (least[last] >= FAR) continue;
    for (int64_t arc = arcs.start[last]; arc < arcs.stop[last]; ++arc)
      least[arcs.tail[arc]] = std::min(least[arcs.tail[arc]], fare[arc] + least[last]);
  }
}

// What is used of each resource by a path that is walked from its end.
struct Usage {
  const Costs& costs;
  double threshold_ms;
  Prices use;
  int64_t used = 0;
  double first_ms = 0.0;

  Usage(const Costs& costs, double threshold_ms)
      : costs(costs), threshold_ms(threshold_ms), use(costs.counts.size() + 4, 0.0) {}

  void add(int64_t kind, int64_t count, double time_ms) {
    const int64_t kinds = costs.counts.size(), type = costs.type_of[kind];
    use[type] += count;
    use[kinds] += 1;
    use[kinds + 2] += time_ms;
    use[kinds + 3] += count * costs.hourly[type];
    used += count;
    first_ms = threshold_ms / ceiling(costs.num_microbatches, count);
  }

  void finish() {
    const int64_t kinds = costs.counts.size(), unused = sum_of(costs.counts) - used;
    use[kinds + 1] = use[kinds + 2] + threshold_ms * unused / costs.num_microbatches - first_ms;
  }
};

// The path that is cheapest at some prices: its fare, and what it uses.
struct CheapestPath {
  const Costs& costs;
  const Arcs& arcs;
  double threshold_ms;
  Prices per_replica, fare, least;
  std::vector<int64_t> replicas, chosen;

  CheapestPath(const Costs& costs, const Arcs& arcs, double threshold_ms)
      : costs(costs), arcs(arcs), threshold_ms(threshold_ms), per_replica(costs.counts.size()),
        fare(arcs.tail.size()), least(costs.num_cuts + 1), replicas(arcs.tail.size()), chosen(costs.num_cuts + 1) {}

  double find(const Prices& prices) {
    Fares fares{{per_replica.data(), {}}, 0.0, 0.0, 0.0};
    set_fares(costs, threshold_ms, prices.data(), fares);
    all_fares(costs, arcs, fares, fare.data(), replicas.data());
    cheapest_from_start(costs, arcs, fare.data(), least.data(), chosen.data());
    return least[costs.num_cuts];
  }

  Prices usage() const {
    Usage usage(costs, threshold_ms);
    for (int64_t last = costs.num_cuts; last > 0; last = arcs.tail[chosen[last]])
      usage.add(arcs.kind[chosen[last]], replicas[chosen[last]], arcs.time_ms[chosen[last]]);
    usage.finish();
    return usage.use;
  }
};

// Throughput: multiplicative sub-gradient steps on prices x capacities, which sum to 1. Returns the best margin, the
// cheapest path minus that 1, and leaves its prices in `prices`; above MARGIN no plan is within the threshold.
// Resources without limit have capacity 0 and stay free.
template <class Path>
double raise_margin(const Costs& costs, Path& path, const Floats& prices_out, const Floats& capacity, int64_t rounds) {
  Prices prices(prices_out.data, prices_out.data + prices_out.size());
  const size_t window = prices.size() - 3;
  double best = -FAR;
  for (int64_t turn = 0; turn < rounds; ++turn) {
    const double cheapest = path.find(prices);
    if (cheapest >= FAR) {
      std::copy(prices.begin(), prices.end(), prices_out.data);
      return FAR;
    }
    const double constant = prices[window] * path.threshold_ms * sum_of(costs.counts) / costs.num_microbatches;
    const double margin = cheapest + constant - worth(prices, capacity);
    if (margin > best) {
      best = margin;
      std::copy(prices.begin(), prices.end(), prices_out.data);
    }
    if (margin > MARGIN) break;
    const Prices use = path.usage();
    const double step = 0.5 / (turn + 1.0);
    for (size_t resource = 0; resource < prices.size(); ++resource) {
      if (capacity[resource] <= 0) continue;
      const double excess = std::min(use[resource] / capacity[resource] - 1.0, 4.0);
      prices[resource] = std::max(1e-6 / capacity[resource], prices[resource] * std::exp(step * excess));
    }
    const double total = worth(prices, capacity);
    for (double& price : prices) price /= total;
  }
  return best;
}

// Step time: sub-gradient steps in prices x capacities, their length by Polyak's rule for a bound of target_ms; stops
// once the bound is above it. Returns the best bound of the sum of times, and leaves its prices in `prices_out`.
inline double raise_time_bound(CheapestPath& path, const Floats& prices_out, const Floats& capacity,
                               double target_ms, int64_t rounds) {
  Prices prices(prices_out.data, prices_out.data + prices_out.size());
  Prices slope(prices.size());
  double best = -FAR, ease = 1.0;
  for (int64_t turn = 0, since = 0; turn < rounds; ++turn) {
    const double cheapest = path.find(prices);
    const double bound = cheapest >= FAR ? FAR : cheapest - worth(prices, capacity);
    since = bound > best * (1 + 1e-7) ? 0 : since + 1;
    if (bound > best) {
      best = bound;
      std::copy(prices.begin(), prices.end(), prices_out.data);
    }
    if (best >= std::min(target_ms, FAR)) break;
    if (since > 8) {
      ease *= 0.5;
      since = 0;
      prices.assign(prices_out.data, prices_out.data + prices_out.size());
      if (ease < 0.004) break;
      continue;
    }
    const Prices use = path.usage();
    double norm = 0.0;
    for (size_t resource = 0; resource < prices.size(); ++resource) {
      slope[resource] = capacity[resource] > 0 ? use[resource] / capacity[resource] - 1.0 : 0.0;
      norm += slope[resource] * slope[resource];
    }
    if (norm < 1e-16) break;
    const double step = ease * (target_ms - bound) / norm;
    for (size_t resource = 0; resource < prices.size(); ++resource)
      if (capacity[resource] > 0)
        prices[resource] =
            std::max(0.0, prices[resource] * capacity[resource] + step * slope[resource]) / capacity[resource];
  }
  return best;
}
