// What Python calls (library.py); all arrays are Python's, and every function returns at most one number.
#include "charges.h"
#include "cover.h"
#include "indexed.h"
#include "labels.h"

extern "C" {

int64_t arcs_within(const Costs* costs, double threshold_ms, const Arcs* arcs) {
  return find_arcs(*costs, threshold_ms, *arcs);
}

int64_t runs_of(const Costs* costs, const Arcs* arcs, const Ints* keys, const Ints* order, const Runs* runs) {
  return find_runs(*costs, *arcs, *keys, *order, *runs);
}

// Fills (S,) the loads without window of a plan's stages.
int64_t stage_loads(const Costs* costs, const Ints* rows, const Floats* loads) {
  for (int64_t row = 0; row < rows->size(); ++row)
    (*loads)[row] = load_of(*costs, {(*rows)(row, 2), (*rows)(row, 0), (*rows)(row, 1)}, (*rows)(row, 3)).load;
  return rows->size();
}

// Fills (2,) the largest load and the sum of times of a plan.
int64_t plan_total(const Costs* costs, const Ints* rows, const Floats* total) {
  const Load found = total_of(*costs, *rows);
  (*total)[0] = found.load;
  (*total)[1] = found.time;
  return 0;
}

// Fills (K + 3,) the fares per replica, per stage, per ms and of the first window.
int64_t fares_at(const Costs* costs, double threshold_ms, const Floats* prices, const Floats* out) {
  Fares fares{{out->data, {}}, 0.0, 0.0, 0.0};
  set_fares(*costs, threshold_ms, prices->data, fares);
  const int64_t kinds = costs->counts.size();
  (*out)[kinds] = fares.per_stage;
  (*out)[kinds + 1] = fares.per_ms;
  (*out)[kinds + 2] = fares.first_window;
  return kinds;
}

int64_t arc_fares(const Costs* costs, const Arcs* arcs, const Fares* fares, const Floats* fare) {
  all_fares(*costs, *arcs, *fares, fare->data, nullptr);
  return fare->size();
}

int64_t paths_from_start(const Costs* costs, const Arcs* arcs, const Floats* fare, const Floats* least) {
  cheapest_from_start(*costs, *arcs, fare->data, least->data, nullptr);
  return least->size();
}

int64_t paths_to_end(const Costs* costs, const Arcs* arcs, const Floats* fare, const Floats* least) {
  cheapest_to_end(*costs, *arcs, fare->data, least->data);
  return least->size();
}

int64_t indexed_paths(const Costs* costs, const Arcs* arcs, const Runs* runs, const Fares* fares,
                      const Floats* least) {
  indexed_costs(*costs, *arcs, *runs, *fares, least->data);
  return least->size();
}

double margin_by_prices(const Costs* costs, double threshold_ms, const Arcs* arcs, const Floats* prices,
                        const Floats* capacity, int64_t rounds) {
  CheapestPath path(*costs, *arcs, threshold_ms);
  return raise_margin(*costs, path, *prices, *capacity, rounds);
}

double margin_by_indexed_prices(const Costs* costs, double threshold_ms, const Arcs* arcs, const Runs* runs,
                                const Floats* prices, const Floats* capacity, int64_t rounds) {
  IndexedPath path(*costs, *arcs, *runs, threshold_ms);
  return raise_margin(*costs, path, *prices, *capacity, rounds);
}

double time_bound_by_prices(const Costs* costs, double threshold_ms, const Arcs* arcs, const Floats* prices,
                            const Floats* capacity, double target_ms, int64_t rounds) {
  CheapestPath path(*costs, *arcs, threshold_ms);
  return raise_time_bound(path, *prices, *capacity, target_ms, rounds);
}

// Fills (N,) the prices of the cheapest covers, (N,) limits where those are not below them, and (N, K) their replicas.
int64_t cheapest_covers(const Ints* dealt, const Floats* each, int64_t num, int64_t must, const Floats* prices,
                        const Ints* replicas) {
  Cover cover(*each);
  const int64_t kinds = each->size();
  for (int64_t row = 0; row < dealt->size(); ++row) {
    cover.limit = (*prices)[row];
    cover.search(dealt->data + row * kinds, num, must);
    if (cover.limit < (*prices)[row]) std::copy_n(cover.best.data(), kinds, replicas->data + row * kinds);
    (*prices)[row] = cover.limit;
  }
  return dealt->size();
}

// Raises the bound of what plans are charged within a box, given its ends; fills the prices (K + 3,), the stages of the
// cheapest path, last first, and their number (1,).
double charge_by_prices(const Costs* costs, const Floats* ends, const Floats* prices, const Floats* capacity,
                        double target, int64_t rounds, const Ints* rows, const Ints* number) {
  const Box box{(*ends)[0], (*ends)[1], (*ends)[2], (*ends)[3]};
  const Offers offers(*costs, box);
  ChargedPath path(offers);
  return raise_charge(path, box, *prices, *capacity, target, rounds, *rows, *number);
}

// Fills the labels; `best` (7,): the best plan's label (-1: none), the cut behind its first stage, that stage's kind
// and replicas, whether all labels were expanded, how many extensions windows stopped, and the number of labels (-1:
// there was no room). Returns the cut-off: the time of the best plan.
double expand(const Costs* costs, const Limits* limits, const Arcs* arcs, const Completions* completions,
              const Labels* labels, const Ints* best) {
  Search search(*costs, *limits, *arcs, *completions, *labels);
  (*best)[4] = search.run();
  std::copy_n(search.best, 4, best->data);
  (*best)[5] = search.stopped;
  (*best)[6] = search.is_full ? -1 : search.number;
  return search.cutoff_ms;
}
}
