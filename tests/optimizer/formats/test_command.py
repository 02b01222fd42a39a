"""The command line: the same object for both formats, and an answer where there is no plan."""

import json
from pathlib import Path
from typing import Any

import pytest

from stagewright.cli import run
from stagewright.optimizer.assignment import ideal_program
from stagewright.optimizer.formats.command import NO_PLAN, main

from .files import dnn_file, dnn_node, piper_file, public, write_json

KEYS = {
    "file", "format", "cost_model", "objective", "feasible", "reason", "objective_ms", "bound_ms", "gap",
    "solver", "space", "seconds", "stages", "notes",
}  # fmt: skip


def report(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> dict[str, Any]:
    assert main([*argv, "--json"]) == status
    content = json.loads(capsys.readouterr().out)
    assert set(content) >= KEYS
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("solver", ["ideals", "cp-sat"])
@pytest.mark.parametrize(
    ("name", "optimum"), [("bert24_inference", 17.78990625), ("bert24_training", 41.7458125)]
)
def test_bert24_has_the_published_optimum_by_two_solvers(
    capsys: pytest.CaptureFixture[str], solver: str, name: str, optimum: float
) -> None:
    if solver == "cp-sat":
        pytest.importorskip("ortools", reason="OR-tools is not installed")
    path = public(f"dnn-partitioning/{name}.json")
    found = report(capsys, str(path), "--format", "dnn-partitioning", "--solver", solver)
    assert found["objective_ms"] == pytest.approx(optimum, rel=1e-12)
    assert found["bound_ms"] == pytest.approx(optimum, rel=1e-8)
    assert found["gap"] <= 1e-8 and found["solver"] == solver
    used = [replica["device_type"] for stage in found["stages"] for replica in stage["replicas"]]
    assert used.count("accelerator") <= 6 and used.count("cpu") <= 1


def test_cp_sat_steps_in_where_ideals_are_too_many(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ortools", reason="OR-tools is not installed")
    monkeypatch.setattr(ideal_program, "MOST_IDEALS", 4)
    path = write_json(tmp_path / "w.json", dnn_file())
    found = report(capsys, str(path), "--format", "dnn-partitioning")
    assert found["solver"] == "cp-sat" and found["objective_ms"] == 2.25
    assert "more than 4 ideals; solver cp-sat was used instead" in found["notes"][0]


def test_a_small_chain_is_cut_in_the_middle_and_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write_json(tmp_path / "w.json", dnn_file())
    output = tmp_path / "out.json"
    found = report(capsys, str(path), "--format", "dnn-partitioning", "-o", str(output))
    assert found["objective_ms"] == 2.25
    assert [stage["layers"] for stage in found["stages"]] == [
        ["node 11", "node 12"], ["node 13", "node 14"]
    ]  # fmt: skip
    ranks = [replica["ranks"] for stage in found["stages"] for replica in stage["replicas"]]
    assert ranks == [[0], [1]]
    assert json.loads(output.read_text())["maxLoad"] == 2.25


def test_any_assignment_may_beat_the_contiguous_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("ortools", reason="OR-tools is not installed")
    times = zip((11, 12, 13, 14), (3.0, 3.0, 1.0, 1.0), strict=True)
    edges = [{"sourceId": source, "destId": source + 1, "cost": 0.0} for source in (11, 12, 13)]
    nodes = [dnn_node(number, fpgaLatency=time) for number, time in times]
    path = write_json(tmp_path / "w.json", dnn_file(nodes=nodes, edges=edges))
    arguments = (str(path), "--format", "dnn-partitioning")
    assert report(capsys, *arguments)["objective_ms"] == 5.0
    assert report(capsys, *arguments, "--any-assignment")["objective_ms"] == 4.0
    assert report(capsys, *arguments, "--accelerators", "1")["objective_ms"] == 8.0


def test_piper_reports_options_degrees_and_idle_devices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write_json(tmp_path / "m.json", piper_file(mbsInBatch=1, bandwidth=0.1))
    found = report(capsys, str(path), "--format", "piper", "--devices", "3")
    assert found["objective_ms"] == 3000.0 and found["num_devices"] == 3
    assert found["stages"][0]["replicas"] == [{"device_type": "device", "ranks": [0], "share": 1}]
    assert found["notes"] == ["1 of 3 devices do as well as all; the others stay idle"]
    assert main([str(path), "--format", "piper"]) == 0
    text = capsys.readouterr().out
    assert "predicted by cost model piper" in text and "layer0 0 .. layer2 2 (3)" in text


def test_memory_that_nothing_fits_is_an_answer_with_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(public("piper/bert32a100.json"))
    arguments = (path, "--format", "piper", "--devices", "8", "--memory-gib", "2")
    found = report(capsys, *arguments, status=NO_PLAN)
    assert not found["feasible"] and found["objective_ms"] is None and found["stages"] == []
    assert "nothing fits into 2.000 GiB" in found["reason"] and "GiB more" in found["reason"]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([dnn_node(11, supportedOnFpga=0)], "does not run on an accelerator"),
        ([dnn_node(11, size=130.0)], "need 130 bytes, 30 more"),
        ([dnn_node(number, size=80.0) for number in (11, 12, 13)], "need 240 bytes"),
    ],
)
def test_no_assignment_is_an_answer_with_its_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, nodes: list[dict[str, Any]], reason: str
) -> None:
    path = write_json(tmp_path / "w.json", dnn_file(nodes=nodes, edges=[]))
    found = report(capsys, str(path), "--format", "dnn-partitioning", status=NO_PLAN)
    assert reason in found["reason"]
    assert main([str(path), "--format", "dnn-partitioning"]) == NO_PLAN
    assert capsys.readouterr().out.startswith("no plan: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "piper", "--cpus", "2"], "--cpus is for --format dnn-partitioning"),
        (["--format", "dnn-partitioning", "--devices", "2"], "--devices is for --format piper"),
        (["--format", "dnn-partitioning", "--accelerators", "0"], "at least one device"),
        (["--format", "dnn-partitioning", "--time-limit", "0"], "--time-limit is 0.0"),
        (
            ["--format", "dnn-partitioning", "--any-assignment", "--solver", "ideals"],
            "contiguous splits only",
        ),
        (["--format", "piper"], "unknown field"),
    ],
)
def test_wrong_options_end_with_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], message: str
) -> None:
    path = write_json(tmp_path / "w.json", dnn_file())
    assert run("stagewright optimize", main, [str(path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_negative_devices_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write_json(tmp_path / "m.json", piper_file())
    arguments = [str(path), "--format", "piper", "--devices", "-1"]
    assert run("stagewright optimize", main, arguments) == 2
    assert "num_devices is -1" in capsys.readouterr().err
