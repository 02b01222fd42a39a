"""Sizes that depend on the data: means over many micro-batches."""

import numpy as np
import pytest
import torch

from stagewright.models.minkowski.engine.installed import why_unusable
from stagewright.profiler.measuring.batches import NUM_BATCHES, batches_of
from stagewright.profiler.measuring.measure import Repeats
from stagewright.profiler.profile import Request, profile
from stagewright.profiler.tracing.trace import trace
from stagewright.task import load_task
from stagewright.value import PerSample, VoxelsSpec

pytestmark = pytest.mark.skipif(why_unusable() is not None, reason=str(why_unusable()))


def test_bytes_are_means_over_the_datasets_micro_batches_with_coordinates_where_they_are_made() -> (
    None
):
    task = load_task("stagewright.models.minkowski.unet")
    request = Request(device_type="cpu", batch_sizes=(2,), limits=Repeats(repeats=1))
    graph = profile(task, request)
    torch.manual_seed(0)
    model = task.build()
    batches = batches_of(trace(task, model), task, 2)
    assert len(batches) == NUM_BATCHES
    fine = [len(model.voxelize(batch.inputs[0]).F) for batch in batches]
    coarse = [len(model.down1(model.level0(model.voxelize(b.inputs[0]))).F) for b in batches]
    assert len(set(fine)) > 8
    for name, rows, row_bytes in (
        ("voxelize", fine, 4 * 4 + 4),
        ("level0.0", fine, 16 * 4),
        ("down1.0", coarse, 4 * 4 + 32 * 4),
        ("up1.0", coarse, 32 * 4),
        ("cat_1", fine, 32 * 4),
    ):
        cost, spec = graph.by_name[name].costs[0], graph.by_name[name].output
        assert cost.output_bytes == round(float(np.mean(rows)) * row_bytes)
        assert cost.output_spread_bytes == round(float(np.std(rows)) * row_bytes)
        assert isinstance(spec, VoxelsSpec) and spec.features is not None
        assert spec.features.shape[0] == PerSample(per_sample=round(float(np.mean(rows)) / 2))
    assert graph.by_name["at_points"].costs[0].output_spread_bytes is None


def test_the_structure_hash_is_that_of_the_trace_whatever_was_measured() -> None:
    task = load_task("stagewright.models.minkowski.unet")
    request = Request(device_type="cpu", batch_sizes=(2, 3), limits=Repeats(repeats=1))
    hashes = {profile(task, request).model.structure_sha256 for _ in range(2)}
    torch.manual_seed(5)
    assert hashes == {trace(task, task.build()).structure_sha256}
