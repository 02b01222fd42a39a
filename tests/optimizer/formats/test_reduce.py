"""The reduction is judged by brute force over the operators themselves."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.optimizer.assignment import ideal_program
from stagewright.optimizer.formats.dnn_partitioning import Operator, Workload, load_workload
from stagewright.optimizer.formats.reduce import reduce
from stagewright.optimizer.ideals import ideals

from .files import dnn_file, dnn_node, public, write_json

TIMES = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.5])


@st.composite
def training_workloads(draw: st.DrawFn) -> Workload:
    """Draw forward operators, backward ones that follow them by colour, and edges along both."""
    num_forward = draw(st.integers(1, 4))
    num_backward = draw(st.integers(0, num_forward))
    operators = [
        Operator(
            id=number,
            name=f"operator {number}",
            accelerator_ms=draw(TIMES),
            cpu_ms=draw(TIMES),
            supported=True,
            backward=number >= num_forward,
            colour=number % num_forward,
            num_bytes=draw(st.integers(0, 3)),
            transfer_ms=draw(TIMES),
        )
        for number in range(num_forward + num_backward)
    ]
    pairs = list(itertools.combinations(range(len(operators)), 2))
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return Workload(
        operators=tuple(operators),
        edges=tuple(edges),
        num_accelerators=draw(st.integers(1, 2)),
        num_cpus=draw(st.integers(0, 1)),
        accelerator_bytes=draw(st.integers(3, 12)),
    )


def least_load(workload: Workload) -> float:
    """Return the best value over every assignment that keeps colours together and forward parts in order."""
    num_forward = sum(not operator.backward for operator in workload.operators)
    kinds = ["accelerator"] * workload.num_accelerators + ["cpu"] * workload.num_cpus
    best = math.inf
    for row in set(itertools.permutations(kinds)):
        for places in itertools.product(range(len(row)), repeat=num_forward):
            forward_edges = [edge for edge in workload.edges if edge[1] < num_forward]
            if any(places[before] > places[after] for before, after in forward_edges):
                continue
            held: list[list[int]] = [[] for _ in row]
            for position in range(len(workload.operators)):
                held[places[position % num_forward]].append(position)
            try:
                loads = [workload.load_ms(kind, own) for kind, own in zip(row, held, strict=True)]  # type: ignore[arg-type]
            except ValueError:
                continue
            best = min(best, max(loads))
    return best


@settings(max_examples=60)
@given(training_workloads())
def test_the_reduced_problem_has_the_optimum_of_the_operators(workload: Workload) -> None:
    reduction = reduce(workload)
    assert sorted(p for group in reduction.operators_of for p in group) == list(
        range(len(workload.operators))
    )
    found = ideal_program.solve(reduction.problem)
    expected = least_load(workload)
    if found is None:
        assert math.isinf(expected)
        return
    assert found.value_ms == pytest.approx(expected, rel=1e-12)
    loads = [workload.load_ms(part.kind, reduction.operators(part.items)) for part in found.parts]
    assert max(loads) == pytest.approx(found.value_ms, rel=1e-12)


@pytest.mark.parametrize("name", ["bert24_inference", "bert24_training"])
def test_bert24_has_30_ideals_as_in_the_publication(name: str) -> None:
    problem = reduce(load_workload(public(f"dnn-partitioning/{name}.json"))).problem
    assert len(ideals(len(problem.items), problem.order, 1000)) == 30


def test_forward_operators_in_a_circle_through_colours_are_one_item(tmp_path: Path) -> None:
    nodes = [dnn_node(11, colorClass=1), dnn_node(12), dnn_node(13, colorClass=1), dnn_node(14)]
    workload = load_workload(write_json(tmp_path / "w.json", dnn_file(nodes=nodes)))
    assert reduce(workload).operators_of == ((0, 1, 2), (3,))


def test_a_backward_operator_without_forward_part_is_mirrored(tmp_path: Path) -> None:
    nodes = [dnn_node(11, colorClass=1)] + [
        dnn_node(n, isBackwardNode=1, colorClass=c) for n, c in ((12, 2), (13, 1), (14, 3))
    ]
    workload = load_workload(write_json(tmp_path / "w.json", dnn_file(nodes=nodes)))
    reduction = reduce(workload)
    assert reduction.operators_of == ((0, 2), (1,), (3,))
    assert reduction.problem.order == ((0, 1), (2, 0))
