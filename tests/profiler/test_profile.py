"""Profiling: the graph of a task as a file, and what is refused before anything runs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from stagewright.document import InputError
from stagewright.graph import LayerGraph
from stagewright.profiler.measuring.measure import Repeats
from stagewright.profiler.profile import Request, profile
from stagewright.task import load_task


def request(**changes: Any) -> Request:
    usual = Request(device_type="fast", batch_sizes=(2, 1), limits=Repeats(repeats=1))
    return dataclasses.replace(usual, **changes)


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    graph = profile(load_task("stagewright.models.mlp"), request())
    graph.save(tmp_path / "graph.json")
    assert LayerGraph.load(tmp_path / "graph.json") == graph
    assert graph.batch_sizes == (1, 2)
    assert graph.emulation is None


def test_profiles_of_one_model_agree_in_all_but_costs() -> None:
    task = load_task("stagewright.models.mlp")
    first = profile(task, request())
    second = profile(task, request(device_type="slow", slowdown=2.5, seed=1))
    assert first.model == second.model
    assert second.emulation is not None and second.emulation.slowdown == 2.5
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]


def test_the_dtype_is_that_of_parameters_and_outputs() -> None:
    graph = profile(load_task("stagewright.models.mlp"), request(dtype="float64"))
    assert graph.layers[-1].output.dtype == "float64"  # type: ignore[union-attr]
    assert graph.layers[-1].cost_at(2).output_bytes == 2 * 10 * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": (0,)}, "micro-batch sizes are"),
        ({"batch_sizes": (4, 4)}, r"micro-batch sizes are \(4, 4\), expected each once"),
        ({"seed": -1}, "--seed is -1, expected an integer from 0"),
        ({"slowdown": 0.5}, "slowdown is 0.5"),
        ({"device": "cuda:99"}, "device is 'cuda:99'"),
        ({"device": "nonsense"}, "device is 'nonsense'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"limits": Repeats(repeats=0)}, "repeats is 0"),
        ({"limits": Repeats(max_seconds=float("nan"))}, "max seconds is nan"),
        ({"device_type": " "}, "the device type's name is empty"),
    ],
)
def test_a_wrong_request_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        profile(load_task("stagewright.models.mlp"), request(**changes))
