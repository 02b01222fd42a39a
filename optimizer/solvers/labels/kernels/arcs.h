// The stages that are possible under a threshold (arcs.py says how they are ordered).
#pragma once

#include <vector>

#include "stage.h"

constexpr int64_t UNREACHABLE = int64_t(1) << 40;

// The first index into Costs.replicas from `step` on whose units fit; -1 if there is none up to `most`.
inline int64_t next_step(const Costs& costs, int64_t step, int64_t fits, int64_t behind, int64_t most) {
  const int64_t num = costs.num_microbatches;
  if (costs.holds_all) {
    step = std::max(step, costs.replicas_for[std::min(fits, num)]);
  } else if (behind > 0 && !costs.is_latency) {
    const int64_t dealt = std::max(fits, (fits - 1) * num / behind);
    step = std::max(step, costs.replicas_for[std::min(dealt, num)]);
  }
  for (; step < costs.replicas.size() && costs.replicas[step] <= most; ++step)
    if (units_held(costs, costs.replicas[step], behind) <= fits) return step;
  return -1;
}

struct LeastStep {
  // Index into Costs.replicas of the least whose load is within the threshold; -1: none is.
  int64_t step;
  double time;
  // No longer stage can be within the threshold either.
  bool over;
};

inline LeastStep least_step(const Costs& costs, double threshold_ms, const Stage& stage) {
  const int64_t most = costs.most[stage.kind], num = costs.num_microbatches;
  if (most < 1) return {-1, 0.0, true};
  const double compute = costs.compute_ms(stage.kind, stage.last, stage.first);
  const double allowed = threshold_ms * SLACK + (costs.is_step_time ? compute : 0.0);
  if (ceiling(num, most) * compute > allowed) return {-1, 0.0, !costs.is_step_time || most < num};
  int64_t step = 0;
  if (compute > 0) {
    const int64_t dealt = int64_t(std::min(allowed / compute * (1 + 1e-9), double(num)));
    step = costs.replicas_for[dealt];
  }
  for (; step < costs.replicas.size() && costs.replicas[step] <= most; ++step) {
    const Load own = load_of(costs, stage, costs.replicas[step]);
    if (own.load <= threshold_ms * SLACK) return {step, own.time, false};
  }
  return {-1, 0.0, false};
}

// Whether a stage of at least some replicas need not run forward again, as all its units fit.
inline bool is_needless(const Costs& costs, const Stage& stage, int64_t replicas, int64_t devices) {
  const int64_t plain = costs.type_of[stage.kind];
  if (plain == stage.kind) return false;
  return units_held(costs, replicas, devices - replicas) <= costs.fits(plain, stage.last, stage.first);
}

// Fills room for arcs with every stage that some plan within a threshold may have; returns how many there are. A
// stage's replicas are raised to what its memory needs with the least replicas behind it.
inline int64_t find_arcs(const Costs& costs, double threshold_ms, const Arcs& arcs) {
  const int64_t size = costs.num_cuts, devices = sum_of(costs.counts);
  const Ints& behind = arcs.least_behind;
  std::fill_n(behind.data, size + 1, UNREACHABLE);
  behind[size] = 0;
  int64_t number = 0;
  for (int64_t last = size; last > 0; --last) {
    arcs.start[last] = arcs.stop[last] = number;
    if (behind[last] >= UNREACHABLE) continue;
    for (int64_t kind = 0; kind < costs.type_of.size(); ++kind) {
      for (int64_t first = last - 1; first >= 0; --first) {
        const Stage stage{kind, first, last};
        const int64_t fits = costs.fits(kind, last, first);
        if (fits < 1) continue;
        const LeastStep least = least_step(costs, threshold_ms, stage);
        if (least.over && costs.is_chain) break;
        if (least.step < 0) continue;
        const int64_t step = next_step(costs, least.step, fits, behind[last], costs.most[kind]);
        if (step < 0 || is_needless(costs, stage, costs.replicas[step], devices)) continue;
        arcs.tail[number] = first;
        arcs.kind[number] = kind;
        arcs.step[number] = step;
        arcs.replicas[number] = costs.replicas[step];
        arcs.time_ms[number] = least.time;
        arcs.fits[number] = fits;
        ++number;
        behind[first] = std::min(behind[first], behind[last] + costs.replicas[step]);
      }
    }
    arcs.stop[last] = number;
  }
  return number;
}
