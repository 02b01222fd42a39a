"""The arrays of the exact planner, against the cost formula stage by stage."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.optimizer.metis.cost import (
    all_reduce_ms,
    message_ms,
    outside_layers_ms,
    stage_ms,
    update_ms,
)
from stagewright.optimizer.metis.options import build_options
from stagewright.optimizer.metis.plan import StagePlan

from .problems import random_problem


@given(st.integers(0, 10**6), st.sampled_from([(2, 2), (3, 1), (1, 2, 1)]), st.sampled_from([1, 2]))
def test_every_option_costs_what_the_formula_says(
    seed: int, counts: tuple[int, ...], batches: int
) -> None:
    problem = random_problem(seed, counts, 3, 4)
    ranks = problem.span([device.name for device in problem.devices])
    options = build_options(problem, ranks, batches)
    for start in range(ranks.size):
        for block, fitting in options.at(start):
            for option in range(fitting.start, fitting.stop):
                size, degree = int(block.sizes[option]), int(block.degrees[option])
                for first, end in ((0, 2), (1, 3), (0, 3), (2, 3)):
                    stage = StagePlan(
                        span=ranks.part(start, size),
                        num_replicas=size // degree,
                        degree=degree,
                        batch_size=4 // (size // degree) // batches,
                        start=first,
                        end=end,
                    )
                    if math.isfinite(block.stage_ms[option, first, end]):
                        assert block.stage_ms[option, first, end] == pytest.approx(
                            stage_ms(problem, stage, batches)
                        )
                    found = (block.update_ms, block.all_reduce_ms)
                    assert [array[option, first, end] for array in found] == pytest.approx(
                        [update_ms(problem, stage), all_reduce_ms(problem, stage)]
                    )
                    outside_ms = batches * outside_layers_ms(problem, stage)
                    assert block.last_ms[option] == pytest.approx(outside_ms)
                if start + size < ranks.size:
                    rest = StagePlan(
                        span=ranks.part(start + size, 1), num_replicas=1, degree=1,
                        batch_size=1, start=2, end=3,
                    )  # fmt: skip
                    stage = StagePlan(
                        span=ranks.part(start, size), num_replicas=size // degree, degree=degree,
                        batch_size=4 // (size // degree) // batches, start=0, end=2,
                    )  # fmt: skip
                    end_type = ranks.types.index(rest.span.types[0])
                    assert block.message_ms[option, 2, end_type] == pytest.approx(
                        message_ms(problem, stage, rest)
                    )


def test_limits_leave_out_what_exceeds_them() -> None:
    problem = random_problem(3, (2, 2), 3, 4)
    ranks = problem.span(("A", "B"))
    options = build_options(problem, ranks, 1)
    (limit_ms,) = [float(options.blocks[0].stage_ms[0, 0, 2])]
    limited = options.limited((limit_ms, math.inf, math.inf))
    for start in range(ranks.size):
        for block, fitting in limited.at(start):
            stages = block.stage_ms[fitting]
            assert ((stages <= limit_ms) | (stages == math.inf)).all()
            assert (stages < math.inf).any(axis=(1, 2)).all()
    assert all(not list(options.limited((0.0, 0.0, 0.0)).at(start)) for start in range(ranks.size))
