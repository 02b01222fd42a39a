"""How long the exact planner takes for large clusters, and how good its plans are known to be.

Layers and clusters are synthetic (optimizer/synthetic.py); times are seconds of this process, warm, tables of
stage costs included, one thread.   python benchmarks/planner_scale.py [--long] [--plot scale.png]
"""

import argparse
import itertools
import math
import resource
import time
from dataclasses import replace
from pathlib import Path

from stagewright.flushless import FLUSHLESS
from stagewright.optimizer.constraints import NO_CONSTRAINTS, Constraints
from stagewright.optimizer.costs.cost import Objective, has_flush
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.solvers.labels.solve import solve
from stagewright.optimizer.synthetic import Synthetic, make_inputs
from stagewright.scheduling import FORWARD_ONLY


def problem_of(
    synthetic: Synthetic,
    objective: Objective = "throughput",
    constraints: Constraints = NO_CONSTRAINTS,
) -> Problem:
    """Return a throughput problem whose messages stop compute, or one of whole steps with overlap."""
    is_step = has_flush(objective)
    return Problem(
        inputs=make_inputs(synthetic),
        microbatch_size=1,
        num_microbatches=256 if is_step else max(1024, synthetic.num_devices),
        objective=objective,
        overlap="full" if is_step else "none",
        optimizer="adam",
        constraints=constraints,
    )


def row(name: str, problem: Problem, limit_s: float) -> float:
    """Print one row; return the seconds."""
    started = time.perf_counter()
    solution = solve(problem, limit_s)
    seconds = time.perf_counter() - started
    assert solution is not None
    gap = 1 - solution.bound_ms / solution.value_ms
    proof = solution.certificate
    certified = "-" if proof is None else f"{1 - proof.bound_ms / solution.value_ms:.4%}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {name} | {limit_s:.0f} | {seconds:.2f} | {solution.value_ms:.3f} | {gap:.4%} | "
        f"{certified} | {len(solution.stages)} | {peak:.2f} |",
        flush=True,
    )
    return seconds


def warm_up() -> None:
    """Compile, or load what is compiled."""
    for is_heavy in (False, True):
        small = Synthetic(num_layers=16, num_devices=16, num_types=2, is_heavy=is_heavy)
        solve(problem_of(small), 60.0)
        solve(problem_of(small, "step-time"), 5.0)


def table(is_long: bool) -> None:
    """Print the rows of proven plans at scale."""
    limits = (5.0, 60.0) if is_long else (5.0,)
    for limit_s in limits:
        for is_heavy in (False, True):
            for kinds in (1, 2, 3, 4):
                name = f"200 x 1024 x {kinds} {'heavy' if is_heavy else 'light'}"
                synthetic = Synthetic(num_types=kinds, is_heavy=is_heavy)
                row(name, problem_of(synthetic), limit_s * (3 if is_heavy else 1))
    for per_server in (0, 8):
        synthetic = Synthetic(
            num_layers=96, num_devices=256, num_types=3, devices_per_server=per_server
        )
        levels = "two link levels" if per_server else "one link level"
        row(f"step time, 96 x 256 x 3, {levels}", problem_of(synthetic, "step-time"), 10.0)
    row("step time, 200 x 1024 x 4, one link level", problem_of(Synthetic(), "step-time"), 20.0)


def table_of_choices() -> None:
    """Print the rows with recomputation as a choice, a budget, a price to minimise, and a deadline."""
    again = Constraints(allow_recompute=True)
    for kinds, is_heavy in itertools.product((2, 3), (False, True)):
        synthetic = Synthetic(num_types=kinds, is_heavy=is_heavy)
        name = f"200 x 1024 x {kinds} {'heavy' if is_heavy else 'light'}"
        row(f"{name}, recomputation allowed", problem_of(synthetic, constraints=again), 10.0)
        quarter = Constraints(budget_per_hour=synthetic.price_per_hour / 4)
        row(f"{name}, a quarter's budget", problem_of(synthetic, constraints=quarter), 10.0)
    synthetic = Synthetic(num_layers=96, num_devices=256, num_types=3)
    name = "step time, 96 x 256 x 3"
    quarter = Constraints(budget_per_hour=synthetic.price_per_hour / 4)
    deadline = Constraints(deadline_ms=6000.0)
    row(f"{name}, recomputation allowed", problem_of(synthetic, "step-time", again), 10.0)
    row(f"{name}, a quarter's budget", problem_of(synthetic, "step-time", quarter), 10.0)
    row("cost, 96 x 256 x 3", problem_of(synthetic, "cost"), 20.0)
    row("cost, 96 x 256 x 3, 6 s a step", problem_of(synthetic, "cost", deadline), 30.0)


def table_of_kinds() -> None:
    """Print the rows without flush, and of inference within a period."""
    for schedule, is_heavy, kinds in itertools.product(FLUSHLESS, (False, True), (2, 3, 4)):
        problem = problem_of(Synthetic(num_types=kinds, is_heavy=is_heavy))
        name = f"200 x 1024 x {kinds} {'heavy' if is_heavy else 'light'}, {schedule}"
        row(name, replace(problem, schedule=schedule), 15.0 if is_heavy else 5.0)
    for kinds, period_ms in ((2, 1.0), (4, 2.0), (4, 1.5)):
        problem = replace(
            problem_of(Synthetic(num_types=kinds)),
            objective="latency",
            schedule=FORWARD_ONLY,
            overlap="full",
            constraints=Constraints(period_ms=period_ms),
        )
        row(f"inference, 200 x 1024 x {kinds}, a period of {period_ms:g} ms", problem, 10.0)


def plot(path: Path) -> None:
    """Write a picture of the seconds until proven (at most 60) against devices and layers, two types."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    devices = [2**power for power in range(6, 13)]
    layers = [50, 100, 200, 500, 1000]
    for axes, sizes, what in ((left, devices, "devices"), (right, layers, "layers")):
        seconds = []
        for size in sizes:
            synthetic = Synthetic(
                num_types=2,
                num_devices=size if what == "devices" else 1024,
                num_layers=size if what == "layers" else 200,
            )
            seconds.append(row(f"{size} {what}, 2 types", problem_of(synthetic), 60.0))
        axes.loglog(sizes, seconds, "o-")
        axes.set_xlabel(
            f"{what} ({'200 layers' if what == 'devices' else '1024 devices'}, 2 types)"
        )
    left.set_ylabel("seconds")
    top = 10 ** math.ceil(math.log10(max(*left.get_ylim(), *right.get_ylim())))
    left.set_ylim(top=top)
    figure.tight_layout()
    figure.savefig(path)
    print(f"picture written to {path}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="also with a limit of a minute")
    parser.add_argument("--choices", action="store_true", help="only recomputation and money")
    parser.add_argument("--kinds", action="store_true", help="only without flush, and inference")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="time against devices and layers")
    args = parser.parse_args()
    warm_up()
    print(
        "| case | limit s | seconds | objective ms | gap | certificate's gap | stages | peak GiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    if not (args.choices or args.kinds):
        table(args.long)
    if not args.kinds:
        table_of_choices()
    if not args.choices:
        table_of_kinds()
    if args.plot:
        plot(args.plot)


if __name__ == "__main__":
    main()
