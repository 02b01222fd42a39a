"""CP-SAT is judged by the programme over ideals and, for assignments of any kind, by brute force."""

import math
import sys

import pytest
from hypothesis import given, settings

from stagewright.document import InputError
from stagewright.optimizer.assignment import cp_sat, ideal_program
from stagewright.optimizer.assignment.problem import AssignmentProblem, Item

from .problems import assignment_problems, least_value

pytest.importorskip("ortools", reason="OR-tools is not installed")


@settings(max_examples=40)
@given(assignment_problems(most_items=8))
def test_cp_sat_equals_the_programme_over_ideals(problem: AssignmentProblem) -> None:
    expected = ideal_program.solve(problem)
    found = cp_sat.solve(problem)
    if expected is None or found is None:
        assert expected is None and found is None
        return
    assert found.value_ms == pytest.approx(expected.value_ms, rel=1e-12)
    assert found.value_ms - 1e-9 <= found.bound_ms <= found.value_ms


@settings(max_examples=20)
@given(assignment_problems(most_items=4))
def test_cp_sat_finds_the_best_assignment_of_any_kind(problem: AssignmentProblem) -> None:
    expected = least_value(problem, contiguous=False)
    found = cp_sat.solve(problem, contiguous=False)
    assert (math.inf if found is None else found.value_ms) == pytest.approx(expected, rel=1e-12)


def test_a_hint_changes_no_value() -> None:
    item = Item(accelerator_ms=1.5, cpu_ms=7.0, num_bytes=1, supported=True)
    problem = AssignmentProblem(
        items=(item,) * 5,
        order=((0, 1), (1, 2), (2, 3), (3, 4)),
        transfers=(),
        num_accelerators=2,
        num_cpus=1,
        accelerator_bytes=3,
    )
    first = ideal_program.solve(problem)
    assert first is not None
    second = cp_sat.solve(problem, hint=first)
    assert second is not None and second.value_ms == first.value_ms


def test_without_or_tools_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    problem = AssignmentProblem(
        items=(), order=(), transfers=(), num_accelerators=1, num_cpus=0, accelerator_bytes=1
    )
    with pytest.raises(InputError, match=r"pip install 'stagewright\[ortools\]'"):
        cp_sat.solve(problem)
