"""Piper's files: the cost model by hand, and one clear line for every wrong file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stagewright.document import InputError
from stagewright.optimizer.formats.piper import Stage, load_model, units_in_flight

from .files import piper_file, piper_option, public, write_json


def stage(*nodes: int, replicas: int = 1, options: tuple[int, ...] | None = None) -> Stage:
    return Stage(
        nodes=nodes, tensor_parallel=1, replicas=replicas, options=options or (0,) * len(nodes)
    )


def test_a_stages_time_is_compute_and_cut_edges_shared_by_its_replicas_and_the_gradient_sum(
    tmp_path: Path,
) -> None:
    model = load_model(write_json(tmp_path / "m.json", piper_file()))
    assert model.stage_seconds(stage(0, 1, 2)) == 3.0
    assert model.stage_seconds(stage(1)) == 1.0 + 2 * (2 + 2) / 8
    assert model.stage_seconds(stage(0, 1, replicas=2)) == pytest.approx(
        2 / 2 + 2 * 2 / (2 * 8) + 4 * (1 / 2) * 8 / 4 / 8
    )
    assert model.stage_seconds(stage(0, 1, 2, options=(1, 0, 1))) == 4.0


def test_synchronised_bytes_count_at_cut_edges_only(tmp_path: Path) -> None:
    content = piper_file()
    for option in content["nodes"][1]["TMPCs"]["1"]:
        option["syncTimeFw"] = {"0": 4.0}
        option["syncTimeBw"] = {"2": 6.0}
    model = load_model(write_json(tmp_path / "m.json", content))
    assert model.stage_seconds(stage(0, 1, 2)) == 3.0
    assert model.stage_seconds(stage(0, 1)) == 2.0 + 2 * (2 + 6) / 8
    assert model.stage_seconds(stage(1, 2)) == 2.0 + 2 * (2 + 4) / 8
    assert model.stage_seconds(stage(2)) == 1.0 + 2 * 2 / 8


def test_memory_grows_with_the_units_that_later_stages_keep_in_flight(tmp_path: Path) -> None:
    model = load_model(write_json(tmp_path / "m.json", piper_file()))
    assert model.stage_bytes(stage(0, 1), replicas_behind=0) == 2 * (3 * 1 + 2)
    assert model.stage_bytes(stage(0, 1), replicas_behind=2) == 2 * (3 * 3 + 2)
    assert model.stage_bytes(stage(0, 1, options=(1, 0)), replicas_behind=2) == 16
    assert units_in_flight(4, 0) == 1
    assert units_in_flight(2, 3) == 3


def test_data_parallel_bert_on_eight_devices_scores_to_its_published_value() -> None:
    model = replace(load_model(public("piper/bert32a100.json")), bandwidth_bytes_per_s=25 * 2**30)
    everything = stage(*range(37), replicas=8)
    assert model.stage_seconds(everything) == pytest.approx(0.122007269, abs=5e-10)


ENDS: tuple[list[int], list[int]] = ([], [1])


def one_node(*options: dict[str, Any], degree: str = "1") -> dict[str, Any]:
    return {"nodes": [{"id": 0, "name": "a", "TMPCs": {degree: list(options)}}], "edges": []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": []}, "nodes is empty"),
        ({"nodes": piper_file()["nodes"] * 2}, "node 0 is there twice"),
        ({"maxDevices": 0}, "num_devices is 0"),
        ({"mbsInBatch": 0}, "samples_per_batch is 0"),
        ({"bandwidth": 0.0}, "bandwidth_bytes_per_s is 0.0"),
        ({"maxBatchSize": 3}, "maxBatchSize"),
        ({"edges": []}, "syncTimeBw lists nodes ['1'], but its edges there are with []"),
        ({"edges": piper_file()["edges"] * 2}, "an edge is there twice"),
        (
            {"edges": [{"sourceId": 0, "destId": 9, "communicationCost": 1.0}]},
            "edge 0 -> 9: there is no node 9",
        ),
        (
            {"edges": [{"sourceId": 0, "destId": 1, "communicationCost": -1.0}]},
            "communicationCost is -1.0",
        ),
        (
            {
                "edges": [
                    {"sourceId": s, "destId": d, "communicationCost": 1.0}
                    for s, d in ((0, 1), (1, 2), (2, 0))
                ]
            },
            "the graph has a cycle",
        ),
        (one_node(piper_option([], []), degree="half"), "tensor-parallel degrees from 1"),
        (one_node(), "with 0 options"),
        (one_node(piper_option([], [], timePerSample=-1.0)), "timePerSample is -1.0"),
        ({"nodes": [{"id": 0, "name": "a", "TMPCs": {}}], "edges": []}, "TMPCs is empty"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_json(tmp_path / "m.json", piper_file(**changes))
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
