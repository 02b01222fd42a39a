// Label setting from the last layer (expand.py says what a label is, and what is proven).
#pragma once

#include <numeric>
#include <utility>
#include <vector>

#include "arcs.h"

// Labels kept at a cut, the last ones first, that a label is compared with.
constexpr int64_t MOST_COMPARED = 2000;

// One search within Limits; labels are rows of arrays, row 0 the empty plan behind the last layer.
struct Search {
  const Costs& costs;
  const Limits& limits;
  const Arcs& arcs;
  const Completions& completions;
  const Labels& labels;
  // (L + 1,) the newest label of each cut.
  std::vector<int64_t> head;
  // With a beam: the labels of each cut by rank, worst first, at most `share` of them.
  std::vector<std::vector<std::pair<double, int64_t>>> ranked;
  int64_t share;
  // Whether some were left out for that.
  bool is_thinned = false;
  // (K,) of the label in work.
  std::vector<int64_t> counts;
  bool with_time;
  double cutoff_ms;
  int64_t number = 1;
  bool is_full = false;
  // How many extensions windows stopped.
  int64_t stopped = 0;
  // The best plan: its label, the cut behind its first stage, that stage's kind and replicas.
  int64_t best[4] = {-1, 0, 0, 0};

  Search(const Costs& costs, const Limits& limits, const Arcs& arcs, const Completions& completions,
         const Labels& labels)
      : costs(costs), limits(limits), arcs(arcs), completions(completions), labels(labels),
        head(costs.num_cuts + 1, -1), ranked(limits.beam ? costs.num_cuts + 1 : 0),
        share((labels.cut.size() - 1) / costs.num_cuts), counts(costs.counts.size(), 0),
        with_time(limits.has_windows || adds_times(costs)), cutoff_ms(limits.cutoff_ms) {
    for (int64_t type = 0; type < costs.counts.size(); ++type) labels.counts(0, type) = 0;
    labels.stages[0] = labels.used[0] = 0;
    labels.cut[0] = costs.num_cuts;
    labels.parent[0] = labels.following[0] = -1;
    labels.time_ms[0] = 0.0;
    head[costs.num_cuts] = 0;
  }

  bool is_interrupted() const { return __atomic_load_n(limits.stop.data, __ATOMIC_RELAXED) != 0; }

  // Throughput ends with the first plan.
  bool has_all_it_wants() const { return best[0] >= 0 && !adds_times(costs); }

  // Whether all labels were expanded, so that there is no better plan within the limits.
  bool run() {
    bool complete = true;
    for (int64_t last = costs.num_cuts; last > 0; --last) {
      bool whole = true;
      for (int64_t label : kept_labels(last, whole)) {
        extend(label);
        if (is_interrupted() || is_full || has_all_it_wants()) return false;
      }
      complete = complete && whole;
    }
    return complete && !is_thinned;
  }

  // A bound of a label's completions.
  double value_of(int64_t which, const int64_t* own, int64_t stages, double time_ms, int64_t cut,
                  int64_t used) const {
    double value = completions.per_stage[which] * stages + completions.per_ms[which] * time_ms;
    for (int64_t type = 0; type < costs.counts.size(); ++type)
      value += completions.per_replica(which, type) * own[type];
    return value + completions.least(which, cut, completions.least.shape[2] > 1 ? used : 0);
  }

  // Whether a bound says that no completion of the label in work is within the limits.
  bool is_hopeless(int64_t stages, double time_ms, int64_t cut, int64_t used) const {
    for (int64_t which = 0; which < completions.limit.size(); ++which) {
      const double value = value_of(which, counts.data(), stages, time_ms, cut, used);
      const double limit = completions.limit[which];
      if (adds_times(costs) ? value >= (limit + cutoff_ms) * (1 - 1e-12) : value > limit + 1e-9) return true;
    }
    return false;
  }

  // Whether a label uses no more of anything than another of its cut.
  bool dominates(int64_t one, int64_t other) const {
    if (limits.strict && limits.has_windows && labels.used[one] != labels.used[other]) return false;
    if (with_time && labels.time_ms[one] > labels.time_ms[other]) return false;
    if (limits.max_stages > 0 && labels.stages[one] > labels.stages[other]) return false;
    for (int64_t type = 0; type < costs.counts.size(); ++type)
      if (labels.counts(one, type) > labels.counts(other, type)) return false;
    return true;
  }

  // The labels of a cut to expand, the most promising first; whole is set to false if there are more. A label that
  // uses no more than another is no less promising, so looking back suffices.
  std::vector<int64_t> kept_labels(int64_t cut, bool& whole) const {
    std::vector<int64_t> found, kept;
    std::vector<double> keys;
    for (int64_t label = head[cut]; label >= 0; label = labels.following[label]) {
      found.push_back(label);
      keys.push_back(value_of(0, &labels.counts(label, 0), labels.stages[label], labels.time_ms[label], cut,
                              labels.used[label]));
    }
    std::vector<int64_t> order(found.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
    for (int64_t index : order) {
      if (adds_times(costs) && keys[index] >= completions.limit[0] + cutoff_ms) break;
      if (is_dominated(found[index], kept)) continue;
      if (limits.beam && int64_t(kept.size()) == limits.beam) {
        whole = false;
        break;
      }
      kept.push_back(found[index]);
    }
    return kept;
  }

  bool is_dominated(int64_t label, const std::vector<int64_t>& kept) const {
    const int64_t size = kept.size(), end = std::max<int64_t>(0, size - MOST_COMPARED);
    for (int64_t back = size - 1; back >= end; --back)
      if (dominates(kept[back], label)) return true;
    return false;
  }

  // The next number of replicas above `current` that a stage may have; 0 if there is none.
  int64_t next_replicas(int64_t arc, const Stage& stage, int64_t used, int64_t current) const {
    const int64_t most = costs.most[stage.kind], fits = arcs.fits[arc];
    const double allowed = limits.threshold_ms * SLACK;
    if (limits.strict) {
      for (int64_t count = std::max(current + 1, arcs.replicas[arc]); count <= most; ++count)
        if (units_held(costs, count, used) <= fits && load_of(costs, stage, count).load <= allowed) return count;
      return 0;
    }
    if (current > 0) return 0;
    for (int64_t step = next_step(costs, arcs.step[arc], fits, used, most); step >= 0;
         step = next_step(costs, step + 1, fits, used, most))
      if (load_of(costs, stage, costs.replicas[step]).load <= allowed) return costs.replicas[step];
    return 0;
  }

  // Whether there are as many devices as the label in work uses, and they cost at most the budget.
  bool is_affordable(int64_t type) const {
    if (counts[type] > costs.counts[type]) return false;
    double price = 0.0;
    for (int64_t one = 0; one < costs.counts.size(); ++one) price += counts[one] * costs.hourly[one];
    return price <= costs.budget * (1 + 1e-12);
  }

  // Adds a label's extensions; a plan of less time than the cut-off becomes the best.
  void extend(int64_t label) {
    if (limits.max_stages > 0 && labels.stages[label] + 1 > limits.max_stages) return;
    const int64_t last = labels.cut[label];
    for (int64_t arc = arcs.start[last]; arc < arcs.stop[last] && !is_full; ++arc) {
      const Stage stage{arcs.kind[arc], arcs.tail[arc], last};
      for (int64_t count = next_replicas(arc, stage, labels.used[label], 0); count > 0;
           count = next_replicas(arc, stage, labels.used[label], count))
        if (!add(label, stage, count)) break;
    }
  }

  // Adds one extension if it may be part of a better plan; whether more replicas are worth trying.
  bool add(int64_t label, const Stage& stage, int64_t count) {
    const int64_t type = costs.type_of[stage.kind], used = labels.used[label], stages = labels.stages[label] + 1;
    std::copy_n(&labels.counts(label, 0), counts.size(), counts.data());
    counts[type] += count;
    if (!is_affordable(type)) return false;
    const double behind_ms = labels.time_ms[label], time = behind_ms + load_of(costs, stage, count).time;
    if (time >= cutoff_ms) return false;
    if (stage.first > 0 && is_hopeless(stages, time, stage.first, used + count)) return true;
    if (limits.has_windows &&
        window_ms(costs, stage, count, used, behind_ms) > limits.threshold_ms * SLACK) {
      ++stopped;
      return true;
    }
    if (stage.first == 0) {
      best[0] = label, best[1] = stage.last, best[2] = stage.kind, best[3] = count;
      cutoff_ms = time;
      return true;
    }
    const int64_t row = row_for(stage.first, stages, time, used + count);
    if (row < 0) return !is_full;
    std::copy(counts.begin(), counts.end(), &labels.counts(row, 0));
    labels.stages[row] = stages;
    labels.time_ms[row] = time;
    labels.parent[row] = label;
    labels.kind[row] = stage.kind;
    labels.replicas[row] = count;
    labels.used[row] = used + count;
    return true;
  }

  // A row for the label in work: a new one, or that of the worst label of its cut; -1 if there is none.
  int64_t row_for(int64_t cut, int64_t stages, double time, int64_t used) {
    if (limits.beam) {
      auto& own = ranked[cut];
      const double rank = value_of(0, counts.data(), stages, time, cut, used);
      if (int64_t(own.size()) >= share) {
        is_thinned = true;
        if (own.empty() || rank >= own.front().first) return -1;
        std::pop_heap(own.begin(), own.end());
        own.back().first = rank;
        const int64_t row = own.back().second;
        std::push_heap(own.begin(), own.end());
        return row;
      }
      own.emplace_back(rank, number);
      std::push_heap(own.begin(), own.end());
    }
    is_full = number == labels.cut.size();
    if (is_full) return -1;
    labels.cut[number] = cut;
    labels.following[number] = head[cut];
    head[cut] = number;
    return number++;
  }
};
