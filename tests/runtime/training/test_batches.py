"""Loading micro-batches: together where they are small, and then the same as one by one."""

from functools import partial

import pytest
import torch
from torch.utils.data import Dataset

from stagewright.plan import ModelInput
from stagewright.runtime.training.batches import TOGETHER_BYTES, MicrobatchData
from stagewright.runtime.training.samples import Request, read_samples
from stagewright.value import PerSample, TensorSpec

MICROBATCHES = ((0, 1), (2, 3), (4, 5), (6, 7))


class Noisy(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples that are drawn at random, and a note of which were read."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.read: list[int] = []

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.read.append(index)
        return torch.rand(self.size), torch.tensor(index)


def data_of(dataset: Noisy, *, together: bool = True) -> MicrobatchData:
    spec = TensorSpec(
        shape=(PerSample(per_sample=1), dataset.size), dtype="float32", requires_grad=False
    )
    inputs = (ModelInput(layer="x", key=0, spec=spec),)
    requests = [Request("train", indices, seed) for seed, indices in enumerate(MICROBATCHES)]
    read, device = partial(read_samples, dataset), torch.device("cpu")
    return MicrobatchData(read, requests, inputs, torch.float32, device, together=together)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(8, [0, 1, 4, 5, 6, 7]), (TOGETHER_BYTES, [0, 1])],
    ids=["small", "large"],
)
def test_small_micro_batches_are_read_together_and_are_the_same(
    size: int, expected: list[int]
) -> None:
    dataset = Noisy(size)
    data, alone = data_of(dataset), data_of(Noisy(size))
    data.prepare([0, 2, 3], ("x",), with_target=True)
    assert dataset.read == expected
    for microbatch in (0, 2, 3):
        data.prepare([microbatch], ("x",), with_target=True)
        torch.testing.assert_close(
            data.inputs_of(microbatch, ("x",)), alone.inputs_of(microbatch, ("x",)), rtol=0, atol=0
        )
        assert torch.equal(data.target_of(microbatch), alone.target_of(microbatch))
    assert sorted(dataset.read) == [0, 1, 4, 5, 6, 7], "each was read once"


def test_a_rank_that_takes_no_data_reads_none() -> None:
    dataset = Noisy(8)
    data_of(dataset).prepare([0, 1], ("other",), with_target=False)
    assert dataset.read == []


def test_what_other_processes_read_ahead_is_taken_one_by_one() -> None:
    dataset = Noisy(8)
    data_of(dataset, together=False).prepare([0, 2, 3], ("x",), with_target=True)
    assert dataset.read == [0, 1]
