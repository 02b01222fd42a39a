"""dnn-partitioning's files: the cost model by hand, and one clear line for every wrong file."""

import json
from pathlib import Path
from typing import Any

import pytest

from stagewright.document import InputError
from stagewright.optimizer.formats.dnn_partitioning import load_workload, save_assignment

from .files import dnn_file, dnn_node, public, write_json


def test_a_file_is_read(tmp_path: Path) -> None:
    nodes = [dnn_node(11, name="first", colorClass=3), *(dnn_node(n) for n in (12, 13, 14))]
    workload = load_workload(write_json(tmp_path / "w.json", dnn_file(nodes=nodes)))
    assert [operator.name for operator in workload.operators] == [
        "first", "node 12", "node 13", "node 14"
    ]  # fmt: skip
    assert workload.edges == ((0, 1), (1, 2), (2, 3))
    assert [operator.transfer_ms for operator in workload.operators] == [0.25, 0.25, 0.25, 0.0]
    assert workload.operators[0].colour == 3


def test_a_transfer_is_paid_once_by_its_sender_and_once_by_every_receiver(tmp_path: Path) -> None:
    edges = [
        {"sourceId": 11, "destId": 13, "cost": 0.25},
        {"sourceId": 11, "destId": 14, "cost": 0.25},
        {"sourceId": 12, "destId": 13, "cost": 0.5},
    ]
    workload = load_workload(write_json(tmp_path / "w.json", dnn_file(edges=edges)))
    assert workload.load_ms("accelerator", [0, 1]) == 2 + 0.25 + 0.5
    assert workload.load_ms("accelerator", [2, 3]) == 2 + 0.25 + 0.5
    assert workload.load_ms("accelerator", [2]) == 1 + 0.25 + 0.5
    assert workload.load_ms("accelerator", [0, 1, 2, 3]) == 4
    assert workload.load_ms("cpu", [0, 1]) == 20


def test_what_an_accelerator_cannot_hold_has_no_load(tmp_path: Path) -> None:
    nodes = [dnn_node(11, supportedOnFpga=0), dnn_node(12, size=101.0), dnn_node(13), dnn_node(14)]
    workload = load_workload(write_json(tmp_path / "w.json", dnn_file(nodes=nodes)))
    with pytest.raises(ValueError, match="does not run on an accelerator"):
        workload.load_ms("accelerator", [0])
    with pytest.raises(ValueError, match="101 bytes exceed the 100"):
        workload.load_ms("accelerator", [1])


def test_an_assignment_is_written_with_the_files_own_ids(tmp_path: Path) -> None:
    workload = load_workload(write_json(tmp_path / "w.json", dnn_file(maxCPUs=1)))
    save_assignment(tmp_path / "out.json", workload, [("accelerator", (0, 1)), ("cpu", (2, 3))])
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "maxLoad": 20.0,
        "fpgas": [{"load": 2.25, "nodes": [11, 12]}],
        "cpus": [{"load": 20.0, "nodes": [13, 14]}],
    }


def test_the_public_workloads_on_one_accelerator_take_the_sum_of_their_operators() -> None:
    for name, expected in (("bert24_inference", 92.406), ("bert24_training", 217.813)):
        workload = load_workload(public(f"dnn-partitioning/{name}.json"))
        assert workload.load_ms("accelerator", range(len(workload.operators))) == pytest.approx(
            expected, rel=1e-12
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": []}, "nodes is empty"),
        ({"nodes": [dnn_node(11), dnn_node(11)]}, "node 11 is there twice"),
        ({"nodes": [dnn_node(11, fpgaLatency=-1.0)]}, "node 11: accelerator_ms is -1.0"),
        ({"nodes": [dnn_node(11, containedSubnodes=[])]}, "containedSubnodes"),
        ({"nodes": [dnn_node(11, fpgaLatency="1")]}, "Expected `float`, got `str`"),
        ({"nodes": [dnn_node(number) for number in range(5001)]}, "there are 5001 nodes"),
        ({"maxFPGAs": 0}, "at least one device"),
        (
            {"edges": [{"sourceId": 11, "destId": 9, "cost": 0.0}]},
            "edge 11 -> 9: there is no node 9",
        ),
        ({"edges": [{"sourceId": 11, "destId": 12, "cost": -0.5}]}, "cost is -0.5"),
        (
            {
                "edges": [
                    {"sourceId": 11, "destId": 12, "cost": 0.5},
                    {"sourceId": 11, "destId": 13, "cost": 0.6},
                ]
            },
            "an output has one cost",
        ),
        (
            {
                "edges": [
                    {"sourceId": 11, "destId": 12, "cost": 0.5},
                    {"sourceId": 12, "destId": 11, "cost": 0.5},
                ]
            },
            "the graph has a cycle: 11 -> 12 -> 11",
        ),
        (
            {
                "nodes": [dnn_node(11, isBackwardNode=1), dnn_node(12)],
                "edges": [{"sourceId": 11, "destId": 12, "cost": 0.5}],
            },
            "leads from a backward node to a forward node",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_json(tmp_path / "w.json", dnn_file(**changes))
    with pytest.raises(InputError) as caught:
        load_workload(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"w\.json"):
        load_workload(path)
