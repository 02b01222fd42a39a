"""What the solutions for all micro-batch sizes prove together of the plan that is chosen."""

from collections.abc import Sequence

from stagewright.certificate import Certificate
from stagewright.plan import MixedTypes

from .problem import Problem
from .solvers.solution import Solution

Found = Sequence[tuple[Solution, Problem]]
"""A solution for each micro-batch size that has plans."""


def bound_of(solution: Solution, problem: Problem, *, mixed: bool) -> float:
    """Return a solution's bound in the unit that the objective is reported in.

    Args:
        mixed: for stages of several types, too, as far as they were searched at all.
    """
    bound_ms = solution.bound_ms
    if mixed and solution.mixed_bound_ms is not None:
        bound_ms = solution.mixed_bound_ms
    elif mixed and not solution.mixes_types:
        bound_ms = 0.0
    devices = [choice.devices for choice in solution.stages]
    return problem.reported_value(bound_ms, devices)


def mixed_types_of(found: Found, chosen: Solution, value: float) -> MixedTypes | None:
    """Return a bound for stages of several types; None if the chosen plan's own holds for them or is all."""
    if chosen.mixes_types or any(solution.mixed_bound_ms is None for solution, _ in found):
        return None
    bound = min(bound_of(*pair, mixed=True) for pair in found)
    return MixedTypes(lower_bound=min(bound, value))


def certificates_of(found: Found, chosen: Solution) -> tuple[Certificate, ...]:
    """Return the certificates: of the bound, then of that for stages of several types if it is another."""
    if chosen.mixes_types:
        own = [s.certificate if s.mixes_types else s.mixed_certificate for s, _ in found]
    else:
        own = [s.certificate for s, _ in found] + [s.mixed_certificate for s, _ in found]
    return tuple(certificate for certificate in own if certificate is not None)
