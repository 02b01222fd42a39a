"""Peak memory: what the allocator saw, against tensors of known size."""

from typing import Any

import torch

from stagewright.runtime.training.memory import WATCHED_STEP, PeakMemory, peak_of, storage_bytes

RankPool = Any
MakePackage = Any
CPU = torch.device("cpu")


def test_the_peak_of_one_step_is_what_was_held_before_and_the_most_that_was_allocated() -> None:
    held = torch.zeros(1000)
    memory = PeakMemory(CPU, is_wanted=True)
    for step in range(WATCHED_STEP + 1):
        assert memory.measured_bytes is None
        with memory.watch(step, {"a": held, "b": held[10:]}, None):
            first = held.clone()
            second = first.clone()
            del first
            third = held.clone()
        del second, third
    assert memory.measured_bytes == 3 * 4000


def test_memory_that_nobody_wants_measured_is_not() -> None:
    memory = PeakMemory(CPU, is_wanted=False)
    for step in range(WATCHED_STEP + 2):
        with memory.watch(step, {}, None):
            torch.ones(10)
    assert memory.measured_bytes is None


def test_shared_memory_counts_once_and_releases_lower_no_peak() -> None:
    tensor = torch.zeros(100)
    assert storage_bytes([tensor, tensor[50:], torch.zeros(2)]) == 408
    assert peak_of([]) == 0
    assert peak_of([5, -5, 3, 4, -7, 6]) == 7


def test_a_rank_holds_parameters_gradients_state_and_the_units_in_flight(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("mlp", [1, 1], 4, "gpipe")
    settings = {"measure_memory": True, "optimizer": "adamw"}
    found = rank_pool.run(
        "measured_peak", 2, num_steps=WATCHED_STEP + 1, settings=settings, **package.arguments
    )
    for peak, parameters in found:
        # parameters, gradients, two tensors of state, and what the update needs besides
        assert 4 * parameters <= peak <= 6.5 * parameters
