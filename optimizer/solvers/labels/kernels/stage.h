// What one stage costs; the equations are those of optimizer/costs/cost.py. Cuts are numbered 0 to L, and entry
// (kind, last, first) of a table is for the layers between the cuts first and last.
#pragma once

#include <algorithm>
#include <cstdint>

#include "structs.h"

// Loads within a threshold up to rounding are within it (stage.py has the same number).
constexpr double SLACK = 1 + 1e-12;
// In inference: the one in work and the one that arrives or leaves (optimizer/costs/cost.py has the same number).
constexpr int64_t FORWARD_UNITS = 2;

struct Stage {
  int64_t kind, first, last;
};

struct Load {
  // Without the window.
  double load;
  // One micro-batch with its messages.
  double time;
};

inline int64_t ceiling(int64_t number, int64_t parts) { return (number + parts - 1) / parts; }

inline int64_t sum_of(const Ints& counts) {
  int64_t total = 0;
  for (int64_t kind = 0; kind < counts.size(); ++kind) total += counts[kind];
  return total;
}

// Whether the objective has the sum of times.
inline bool adds_times(const Costs& costs) { return costs.is_step_time || costs.is_latency; }

// The most units that a replica holds that is dealt some micro-batches; `behind` are the replicas of later stages.
inline int64_t units_of(const Costs& costs, int64_t dealt, int64_t replicas, int64_t behind) {
  if (costs.holds_all) return dealt;
  if (costs.is_latency) return std::min(dealt, FORWARD_UNITS);
  const int64_t allowed = ceiling((behind + replicas) * dealt, costs.num_microbatches);
  return costs.is_flushless ? allowed : std::min(dealt, allowed);
}

inline int64_t units_held(const Costs& costs, int64_t replicas, int64_t behind) {
  return units_of(costs, ceiling(costs.num_microbatches, replicas), replicas, behind);
}

struct Messages {
  double forward, backward;
};

inline Messages messages_of(const Costs& costs, const Stage& stage, int64_t replicas) {
  const int64_t far = replicas > costs.near[stage.kind];
  return {costs.forward_ms(far, stage.last, stage.first), costs.backward_ms(far, stage.last, stage.first)};
}

// The ring all-reduce over a stage's replicas.
inline double gradient_sum_ms(const Costs& costs, int64_t kind, double num_bytes, int64_t replicas) {
  if (num_bytes <= 0 || replicas == 1) return 0.0;
  const int64_t level = replicas > costs.inside[kind];
  const double part = num_bytes / replicas;
  double slowest = 0.0;
  for (int link = 0; link < 2; ++link)
    slowest = std::max(slowest, costs.sum_latency_ms(level, link) + part * costs.sum_ms_per_byte(level, link));
  return 2 * (replicas - 1) * slowest;
}

inline Load load_of(const Costs& costs, const Stage& stage, int64_t replicas) {
  const auto [forward, backward] = messages_of(costs, stage, replicas);
  double compute = costs.compute_ms(stage.kind, stage.last, stage.first);
  if (costs.waits) compute += forward + backward;
  const int64_t dealt = ceiling(costs.num_microbatches, replicas);
  double end = costs.end_ms(stage.kind, stage.last, stage.first);
  end += gradient_sum_ms(costs, stage.kind, costs.own_bytes(stage.last, stage.first), replicas);
  double load = dealt * compute + end;
  if (costs.is_step_time) load -= compute;
  if (costs.waits) return {load, compute};
  const int64_t messages = costs.is_step_time ? dealt - 1 : dealt;
  return {std::max(load, messages * std::max(forward, backward)), compute + forward + backward};
}

// The window load; behind_ms is a micro-batch through all later stages and back.
inline double window_ms(const Costs& costs, const Stage& stage, int64_t replicas, int64_t behind, double behind_ms) {
  if (costs.is_latency) return 0.0;
  double compute = costs.compute_ms(stage.kind, stage.last, stage.first);
  if (costs.waits) {
    const auto [forward, backward] = messages_of(costs, stage, replicas);
    compute += forward + backward;
  }
  double worst = 0.0;
  for (int64_t dealt : {costs.num_microbatches / replicas, ceiling(costs.num_microbatches, replicas)}) {
    const int64_t held = units_of(costs, dealt, replicas, behind);
    const double rounds = double(dealt) / double(std::max<int64_t>(held, 1));
    worst = std::max(worst, (costs.is_step_time ? rounds - 1 : rounds) * (compute + behind_ms));
  }
  return worst;
}

// The largest load of a plan, windows too, and the sum of times; rows (first, last, kind, replicas) of each stage.
inline Load total_of(const Costs& costs, const Ints& rows) {
  Load total{0.0, 0.0};
  int64_t behind = 0;
  for (int64_t row = rows.size() - 1; row >= 0; --row) {
    const Stage stage{rows(row, 2), rows(row, 0), rows(row, 1)};
    const int64_t replicas = rows(row, 3);
    const Load own = load_of(costs, stage, replicas);
    const double window = window_ms(costs, stage, replicas, behind, total.time);
    total = {std::max({total.load, own.load, window}), total.time + own.time};
    behind += replicas;
  }
  return total;
}
