"""Layer graphs as text, and the server file that ships."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stagewright.graph import Emulation
from stagewright.optimizer.pipedream import convert_command, hybrid_command
from stagewright.optimizer.pipedream.hybrid import HybridRequest, plan_hybrid
from stagewright.pipedream_conversion import to_layer_graph
from stagewright.pipedream_graph import TextGraph

HETE_FILES = Path(__file__).parents[3] / "hete_files"


def test_the_first_line_says_that_times_are_emulated(
    tmp_path: Path,
    random_chain: Callable[[int, int], TextGraph],
    capsys: pytest.CaptureFixture[str],
) -> None:
    graph = to_layer_graph(random_chain(0, 4), "slow", 8)
    graph = graph.replace(emulation=Emulation(slowdown=2.5))
    graph.save(tmp_path / "graph.json")
    words = [str(tmp_path / "graph.json"), "-o", str(tmp_path / "graph.txt"), "--json"]
    assert convert_command.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["batch_size"] == 8
    first = (tmp_path / "graph.txt").read_text().split("\n", 1)[0]
    assert first.startswith("# ") and "EMULATED: times measured and multiplied by 2.5" in first
    times = [node.forward_ms for node in TextGraph.load(tmp_path / "graph.txt").nodes]
    assert times == [node.forward_ms for node in random_chain(0, 4).nodes]


def test_the_server_file_that_ships_is_planned_and_says_what_is_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # profiles are found beside the server file
    words = ["-f", str(HETE_FILES / "test_server.txt"), "-b", "100000000"]
    words += ["--activation_compression_ratio", "1", "-o", "minkvgg16bn", "--json"]
    assert hybrid_command.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum("EMULATED" in note for note in report["notes"]) == 2
    assert report["gap"] == 0.0
    assert Path("minkvgg16bn/gpus=4.txt").exists()
    alone = [b["predicted_ms"] for b in report["baselines"] if "1 x fast" in b["name"]]
    assert report["objective_ms"] < alone[0]


def test_more_bandwidth_never_makes_a_plan_slower() -> None:
    values = [
        plan_hybrid(
            HybridRequest(
                server_path=HETE_FILES / "test_server.txt", bandwidths=(b,), compression=1.0
            )
        )[0].pipeline.value_s
        for b in (1e7, 1e8, 1e9, 1e10)
    ]
    assert values == sorted(values, reverse=True)
