"""Plans: chooses the micro-batch size, runs a solver, checks its plan with evaluator and simulator."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stagewright.certificate import Certificate
from stagewright.document import InputError
from stagewright.plan import Plan, Proof
from stagewright.scheduling import FORWARD_ONLY, INTERLEAVED, PLANNED_SCHEDULES

from .alternatives import Fewer, Ranked, best_plans, fewer_devices, worth
from .assemble import Prediction, draft, predict
from .baselines import Baseline, baselines_of
from .borders import chain_of
from .constraints import NO_CONSTRAINTS, Constraints
from .costs.cost import Objective, Overlap, state_copies
from .costs.tables import StageTables
from .every_cut import Found, every_cut_of, solve_thinned
from .flushless import check_flushless, constraints_of
from .given import GivenStages, scored_plan
from .infeasible import explain
from .load import Inputs, check_size
from .problem import Problem
from .proofs import bound_of, certificates_of, mixed_types_of
from .solvers import brute_force, choose, hierarchical, interleaved, local_search
from .solvers.solution import NoneFoundError, Solution

RankBy = Literal["formula", "simulation"]

SOLVERS: Mapping[str, Callable[[Problem, float | None], Solution | None]] = {
    "exact": choose.solve,
    "labels": choose.solve_by_labels,
    "brute-force": lambda problem, _: brute_force.solve(problem),
    "local-search": lambda problem, _: local_search.solve(problem),
    "hierarchical": lambda problem, _: hierarchical.solve(problem),
}
"""From a problem and the seconds that the search may take; those without limit end by themselves."""
OBJECTIVES: Mapping[Objective, str] = {
    "step-time": "step_ms",
    "throughput": "steady_step_ms",
    "cost": "price_per_1000_steps",
    "latency": "latency_ms",
}
TRAINING_OBJECTIVES = tuple(name for name in OBJECTIVES if name != "latency")
SIMULATED = "simulated_step_ms"
"""What is minimised where ranks run several stages."""
RANKED_PLANS = 20
"""Plans that are simulated if the user asks for the best simulated one without saying of how many."""
IN_ORDER_SOLVERS = ("local-search", "hierarchical")
"""Those that move cuts along one order of the layers."""
PROVING_SOLVERS = ("exact", "brute-force")
"""Those that obey every constraint and know every objective."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for."""

    batch_size: int
    """Samples per step."""
    microbatch_size: int | None = None
    """None: the best of the measured sizes that divide batch_size."""
    schedule: str = "1f1b"
    objective: Objective = "step-time"
    solver: str = "exact"
    time_limit_s: float | None = None
    """The search stops after it and reports the best plan so far with its gap; None: when it is proven."""
    optimizer: str = "sgd-momentum"
    overlap: Overlap = "full"
    max_stages: int | None = None
    count_memory: bool = True
    count_update: bool = True
    given: GivenStages | None = None
    """Stages that the user fixes; None: a solver chooses them."""
    constraints: Constraints = NO_CONSTRAINTS
    top: int = 1
    """How many of the best plans to report."""
    stages_per_rank: int = 1
    """Of the interleaved schedule."""
    rank_by: RankBy = "formula"
    """Which of the best plans is taken: the best under the closed formula, or the best simulated one."""


@dataclass(frozen=True)
class Result:
    """A plan with everything that is said about it."""

    plan: Plan
    prediction: Prediction
    problem: Problem
    seconds: float
    """The search took."""
    idle: tuple[str, ...]
    """The device types of the cluster's devices that the plan leaves idle."""
    baselines: tuple[Baseline, ...]
    baselines_left_out: tuple[str, ...] = ()
    """Those whose step has too many actions to simulate."""
    fewer: Fewer | None = None
    """Fewer devices that do as well; None: there are none, or it was not looked for."""
    ranking: Sequence[Ranked] = ()
    """The best plans, best under the closed formula first; empty if they were not asked for."""
    ranking_is_whole: bool = True
    """Whether all the plans that were asked for are in it: not if time was up."""
    ranked_by: RankBy = "formula"
    chosen_rank: int = 1
    """The plan's place in the ranking."""


def optimize(inputs: Inputs, request: Request, plan_path: Path) -> Result:
    """Return the best plan; paths in it are relative to the file that it will be written to.

    Raises:
        InputError: the request is wrong, something needed was not measured, or nothing fits into memory.
    """
    _check(request)
    check_size(inputs)
    started = time.perf_counter()
    problems = [_problem(inputs, request, size) for size in _microbatch_sizes(inputs, request)]
    found = _solve_all(problems, request, started)
    solution, problem = min(found, key=lambda pair: worth(*pair))
    bound = min(bound_of(other, of, mixed=solution.mixes_types) for other, of in found)
    deadline = math.inf if request.time_limit_s is None else started + request.time_limit_s
    ranking, ranking_is_whole = _ranking(found, request, deadline)
    proven = solution.solver == "exact" and solution.bound_ms == solution.value_ms
    fewer = fewer_devices(solution, problem, deadline) if proven else None
    place = 0
    if request.rank_by == "simulation":
        place = min(range(len(ranking)), key=lambda index: ranking[index].simulated)
        solution, problem = ranking[place].solution, ranking[place].problem
    seconds, tables = time.perf_counter() - started, StageTables(problem)
    prediction = predict(draft(tables, solution.stages, solution.stages_per_rank), problem)
    _check_score(prediction, solution)
    value = problem.reported_value(
        prediction.value_ms, [choice.devices for choice in solution.stages]
    )
    fluid, every, proven_anyhow = 0.0, None, list[Certificate]()
    if request.given is None and request.schedule != INTERLEAVED:  # Whose value is simulated.
        fluid, every, proven_anyhow = every_cut_of(problems, solution, value, deadline)
    plan = prediction.plan.replace(
        proof=Proof(
            solver=solution.solver,
            objective=_objective(prediction, request),
            value=value,
            lower_bound=min(max(bound, fluid), value),
            space=_space(solution, [p.microbatch_size for p in problems]),
            every_cut=every,
            mixed_types=mixed_types_of(found, solution, value),
            certificates=certificates_of(found, solution) or tuple(proven_anyhow),
        ),
        sources=inputs.sources(plan_path),
    )
    baselines, left_out = baselines_of(tables)
    return Result(
        plan=plan,
        prediction=prediction,
        problem=problem,
        seconds=seconds,
        idle=_idle(plan, problem),
        baselines=baselines,
        baselines_left_out=left_out,
        fewer=fewer,
        ranking=ranking,
        ranking_is_whole=ranking_is_whole,
        ranked_by=request.rank_by,
        chosen_rank=place + 1,
    )


def _objective(prediction: Prediction, request: Request) -> str:
    several = prediction.has_ranks_of_several_stages
    return SIMULATED if several else OBJECTIVES[request.objective]


def _solve_all(
    problems: Sequence[Problem], request: Request, started: float
) -> list[tuple[Solution, Problem]]:
    """Return the solutions; the time that is left is split evenly over the problems that are.

    Raises:
        InputError: none has a solution.
    """
    found: list[tuple[Solution, Problem]] = []
    unknown: NoneFoundError | None = None
    for index, problem in enumerate(problems):
        limit_s = request.time_limit_s
        if limit_s is not None:
            limit_s = (limit_s - (time.perf_counter() - started)) / (len(problems) - index)
        try:
            better = _solve(problem, request, limit_s)
        except NoneFoundError as error:
            unknown = unknown or error
            continue
        found += [] if better is None else [better]
    if not found:
        raise unknown or _why_nothing_fits(problems[0], request)
    return found


def _ranking(
    found: Sequence[tuple[Solution, Problem]], request: Request, deadline: float
) -> tuple[Sequence[Ranked], bool]:
    """Return the best plans if the user asked for several, and whether those are all."""
    if request.top == 1 and request.rank_by == "formula":
        return (), True
    return best_plans(found, request.top if request.top > 1 else RANKED_PLANS, deadline)


def _check(request: Request) -> None:
    state_copies(request.optimizer)
    if request.solver not in SOLVERS:
        raise InputError(f"solver is {request.solver!r}, expected one of {', '.join(SOLVERS)}")
    if request.schedule not in PLANNED_SCHEDULES:
        raise InputError(
            f"schedule is {request.schedule!r}, expected one of {', '.join(PLANNED_SCHEDULES)}"
        )
    _check_interleaved(request)
    check_flushless(
        request.schedule, request.objective, request.solver, (*PROVING_SOLVERS, "labels")
    )
    for name in ("batch_size", "microbatch_size", "max_stages", "top"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}, expected at least 1")
    if request.time_limit_s is not None and not request.time_limit_s > 0:
        raise InputError(f"--time-limit is {request.time_limit_s}, expected seconds above 0")
    _check_constraints(request)


def _check_interleaved(request: Request) -> None:
    """Check that several stages per rank go with the rest."""
    if request.schedule != INTERLEAVED:
        if request.stages_per_rank != 1:
            raise InputError("--stages-per-rank is for --schedule interleaved; add it")
        return
    if request.stages_per_rank < 1:
        raise InputError(f"--stages-per-rank is {request.stages_per_rank}, expected at least 1")
    others = list(request.constraints.named)
    others += ["--top"] if request.top > 1 else []
    others += ["--rank-by simulation"] if request.rank_by == "simulation" else []
    others += [f"--solver {request.solver}"] if request.solver != "exact" else []
    others += [f"--objective {request.objective}"] if request.objective != "step-time" else []
    if others:
        raise InputError(
            f"--schedule interleaved knows no {others[0]}: its plans are searched by simulation; leave it out"
        )


def _check_constraints(request: Request) -> None:
    """Check that the objective, the constraints and the solver go together."""
    limits, objective = request.constraints, request.objective
    for option, value in (
        ("--budget", limits.budget_per_hour),
        ("--deadline-ms", limits.deadline_ms),
        ("--max-period", limits.period_ms),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{option} is {value}, expected a finite number above 0")
    if limits.deadline_ms is not None and objective != "cost":
        raise InputError(
            "--deadline-ms is for --objective cost: what is minimised then is the price; add it"
        )
    if limits.period_ms is not None and objective != "latency":
        raise InputError("--max-period is for --inference; add it")
    if limits.allow_recompute and objective == "latency":
        raise InputError("--allow-recompute is not for --inference, which has no backward")
    special = list(limits.named)
    if request.top > 1 or request.rank_by == "simulation":
        special.append("--top" if request.top > 1 else "--rank-by simulation")
    if special and request.given is not None:
        raise InputError(
            f"{special[0]} chooses among plans, but --cuts, --replicas and --types give one; leave one out"
        )
    special += ["--objective cost"] if objective == "cost" else []
    special += ["--inference"] if objective == "latency" else []
    known = {*choose.CONSTRAINTS_OF_LABELS, "--objective cost", "--inference"}
    allowed = (*PROVING_SOLVERS, "labels") if set(special) <= known else PROVING_SOLVERS
    if special and request.solver not in allowed:
        raise InputError(
            f"--solver {request.solver} knows no {special[0]}; use --solver {' or '.join(allowed)}"
        )
    if request.rank_by == "simulation" and objective not in ("step-time", "cost"):
        raise InputError(
            "--rank-by simulation compares whole steps; use --objective step-time or cost"
        )


def _microbatch_sizes(inputs: Inputs, request: Request) -> list[int]:
    """Return the measured micro-batch sizes to plan for, smallest first."""
    measured = sorted(inputs.model.batch_sizes)
    path = next(iter(inputs.graph_paths.values()))
    if request.microbatch_size is not None:
        if request.microbatch_size not in measured:
            raise InputError(
                f"{path}: micro-batch size {request.microbatch_size} was not measured, only {measured}; "
                f"profile with -b {request.microbatch_size} or choose a measured size"
            )
        measured = [request.microbatch_size]
    sizes = [size for size in measured if request.batch_size % size == 0]
    if not sizes:
        raise InputError(
            f"{path}: --batch-size {request.batch_size} is no multiple of the micro-batch sizes "
            f"{measured}; choose a multiple of one of them"
        )
    if request.given is not None:
        # Smaller micro-batches are more: keep the sizes that give every replica at least one.
        most = max(request.given.replicas)
        sizes = [size for size in sizes if request.batch_size // size >= most] or sizes
    return sizes


def _problem(inputs: Inputs, request: Request, microbatch_size: int) -> Problem:
    is_in_order = request.given is not None or request.solver in IN_ORDER_SOLVERS
    is_in_order = is_in_order or request.schedule == INTERLEAVED
    return Problem(
        inputs=inputs,
        microbatch_size=microbatch_size,
        num_microbatches=request.batch_size // microbatch_size,
        schedule=FORWARD_ONLY if request.objective == "latency" else request.schedule,
        objective=request.objective,
        optimizer=request.optimizer,
        overlap=request.overlap,
        count_memory=request.count_memory,
        count_update=request.count_update,
        max_stages=request.max_stages,
        equal_shares=request.given is not None and request.given.equal_shares,
        constraints=constraints_of(request.schedule, request.constraints, inputs.model),
        cutting="order" if is_in_order else "every",
        kept_cuts=_kept_cuts(inputs, request),
    )


def _kept_cuts(inputs: Inputs, request: Request) -> tuple[str, ...]:
    """Return the layers before which a cut is needed, even if a long chain is thinned."""
    if request.given is not None:
        return tuple(name for name in request.given.cuts if name in inputs.model.by_name)
    fixed = request.constraints.fixed
    return () if fixed is None else fixed.edges_in(chain_of(inputs.model))


def _solve(problem: Problem, request: Request, limit_s: float | None) -> Found:
    """Return a solver's solution, or the user's stages scored, with its problem; None if nothing fits."""
    if request.given is None and request.schedule != INTERLEAVED:
        solve = SOLVERS[request.solver]
        if problem.cuts.is_thin:
            return solve_thinned(problem, limit_s, solve)
        solution = solve(problem, limit_s)
    elif request.given is None:
        solution = interleaved.solve(problem, request.stages_per_rank, limit_s)
    elif request.schedule == INTERLEAVED:
        solution = interleaved.given(problem, request.given, request.stages_per_rank)
    else:
        solution = scored_plan(problem, request.given.choices(problem))
    return None if solution is None else (solution, problem)


def _why_nothing_fits(problem: Problem, request: Request) -> InputError:
    if request.schedule == INTERLEAVED:
        return InputError(
            f"{problem.inputs.cluster_path}: no plan of {request.stages_per_rank} stages per rank that was "
            "looked at fits into memory; use smaller micro-batches, another number of stages per rank, or "
            "--schedule 1f1b"
        )
    if request.given is None:
        return explain(problem)
    return explain(
        problem, predict(draft(StageTables(problem), request.given.choices(problem)), problem)
    )


def _check_score(prediction: Prediction, solution: Solution) -> None:
    """A solver's plan, scored by the evaluator, must have the value that the solver claims, and fit."""
    assert not prediction.score.overflows, f"{solution.solver} returned a plan that does not fit"
    assert math.isclose(prediction.value_ms, solution.value_ms, rel_tol=1e-7, abs_tol=1e-9), (
        f"{solution.solver} claims {solution.value_ms}, evaluated {prediction.value_ms}"
    )


def _space(solution: Solution, sizes: Sequence[int]) -> str:
    several = f"; micro-batch sizes {', '.join(map(str, sizes))}" if len(sizes) > 1 else ""
    return solution.space + several


def _idle(plan: Plan, problem: Problem) -> tuple[str, ...]:
    """Return the types of the devices without a rank, in the order of the cluster's slots."""
    left = Counter((slot.server, slot.device_type) for slot in problem.inputs.cluster.slots)
    used = {(r.rank, r.server, r.device_type) for stage in plan.stages for r in stage.replicas}
    left -= Counter((server, device_type) for _, server, device_type in used)
    return tuple(device_type for _, device_type in left.elements())
