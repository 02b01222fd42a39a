"""Random problems of dealing items, and the brute force that judges their solvers."""

import itertools
import math

from hypothesis import strategies as st

from stagewright.optimizer.assignment.problem import AssignmentProblem, Item, Transfer

TIMES = st.integers(0, 20).map(lambda tenths: tenths / 10)


@st.composite
def assignment_problems(draw: st.DrawFn, most_items: int = 5) -> AssignmentProblem:
    """Draw a problem; some are too tight for any assignment."""
    size = draw(st.integers(1, most_items))
    pairs = list(itertools.combinations(range(size), 2))
    order = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    accelerators = draw(st.integers(0, 3))
    cpus = draw(st.integers(0 if accelerators else 1, 1))
    items = tuple(
        Item(
            accelerator_ms=draw(TIMES),
            cpu_ms=draw(TIMES),
            num_bytes=draw(st.integers(0, 4)),
            supported=draw(st.sampled_from([True, True, True, False])),
        )
        for _ in range(size)
    )
    transfers = tuple(
        Transfer(
            cost_ms=draw(TIMES), items=draw(st.frozensets(st.integers(0, size - 1), min_size=1))
        )
        for _ in range(draw(st.integers(0, 4)))
    )
    return AssignmentProblem(
        items=items,
        order=tuple(order),
        transfers=transfers,
        num_accelerators=accelerators,
        num_cpus=cpus,
        accelerator_bytes=draw(st.integers(2, 12)),
    )


def least_value(problem: AssignmentProblem, *, contiguous: bool) -> float:
    """Return the best value over every assignment of items to devices in every order; inf if none fits."""
    kinds = ["accelerator"] * problem.num_accelerators + ["cpu"] * problem.num_cpus
    best = math.inf
    for row in set(itertools.permutations(kinds)):
        for places in itertools.product(range(len(row)), repeat=len(problem.items)):
            if contiguous and any(places[a] > places[b] for a, b in problem.order):
                continue
            loads = [
                problem.load_ms(kind, [i for i, place in enumerate(places) if place == position])  # type: ignore[arg-type]
                for position, kind in enumerate(row)
            ]
            best = min(best, max(loads))
    return best
