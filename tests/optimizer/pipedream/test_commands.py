"""The seed planners' command lines, started as their users start them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stagewright.cli import run
from stagewright.optimizer.pipedream import (
    hierarchical_command,
    hybrid_command,
    inference_command,
)
from stagewright.optimizer.pipedream.output import stages_of_nodes
from stagewright.pipedream_conf import Conf
from stagewright.pipedream_graph import TextGraph
from stagewright.plan import Plan

ROOT = Path(__file__).parents[3]
MakeGraph = Callable[[int, int], TextGraph]
KEYS = {"objective_ms", "bound_ms", "gap", "solver", "cost_model", "seconds", "stages", "baselines"}


def output_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def servers(tmp_path: Path, random_chain: MakeGraph) -> Path:
    for name in "ab":
        random_chain(5, 8).save(tmp_path / f"{name}.txt")
    path = tmp_path / "servers.txt"
    path.write_text("Server0\n    A 2 a.txt\n    B 1 b.txt\nServer1\n    B 2 b.txt\n")
    return path


@pytest.mark.parametrize("solver", ["pipedream", "exact"])
def test_everything_that_is_written_agrees_with_the_report(
    tmp_path: Path, random_branching: MakeGraph, capsys: pytest.CaptureFixture[str], solver: str
) -> None:
    random_branching(1, 9).save(tmp_path / "graph.txt")
    words = ["-f", str(tmp_path / "graph.txt"), "-n", "2", "2", "-b", "1e9", "1e8", "--json"]
    words += ["--activation_compression_ratio", "1", "--solver", solver, "-o", str(tmp_path / "o")]
    assert hierarchical_command.main(words) == 0
    report = output_of(capsys)
    assert report.keys() >= KEYS
    names = {Path(path).name for path in report["written"]}
    confs = {"dp_conf.json", "mp_conf.json", "hybrid_conf.json"}
    assert names == {"gpus=4.txt", "gpus=4.dot", "plan.json"} | confs
    staged = TextGraph.load(tmp_path / "o" / "gpus=4.txt")
    for number, stage in enumerate(report["stages"]):
        found = {n.name for n in staged.nodes if n.stage == number}
        assert found - {"input"} == set(stage["layers"])
    plan = Plan.load(tmp_path / "o" / "plan.json")
    assert [set(s.layers) for s in plan.stages] == [set(s["layers"]) for s in report["stages"]]
    conf = Conf.load(tmp_path / "o" / "hybrid_conf.json")
    replicas = [sum(len(r["ranks"]) for r in s["replicas"]) for s in report["stages"]]
    assert [len(ranks) for ranks in conf.ranks] == replicas
    assert plan.proof.value == report["objective_ms"]
    assert (tmp_path / "o" / "gpus=4.dot").read_text().startswith("digraph")


def test_the_hybrid_planner_takes_several_servers_and_needs_no_output(
    servers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-f", str(servers), "-b", "1e9", "1e8", "--activation_compression_ratio", "1"]
    assert hybrid_command.main([*words, "--json"]) == 0
    report = output_of(capsys)
    assert report.keys() >= KEYS and report["written"] == []
    kinds = {r["device_type"] for s in report["stages"] for r in s["replicas"]}
    assert kinds <= {"A", "B"}
    assert hybrid_command.main(words) == 0
    text = capsys.readouterr().out
    assert "Throughput increase (compared to single-stage pipeline on 1 x A" in text
    assert "Split between layers" in text


def test_the_order_of_types_in_the_server_file_does_not_change_the_value(
    servers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = []
    for lines in ("A 2 a.txt\n  B 1 b.txt", "B 1 b.txt\n  A 2 a.txt"):
        servers.write_text(f"Server0\n  {lines}\n")
        assert hybrid_command.main(["-f", str(servers), "--json"]) == 0
        values.append(output_of(capsys)["objective_ms"])
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_inference_is_planned_and_written(
    tmp_path: Path, random_chain: MakeGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    random_chain(2, 8).save(tmp_path / "graph.txt")
    words = ["-f", str(tmp_path / "graph.txt"), "-n", "4", "-t", "0.05", "-o", str(tmp_path)]
    assert inference_command.main([*words, "--json"]) == 0
    report = output_of(capsys)
    assert report.keys() >= KEYS and report["objective"] == "latency"
    assert Plan.load(tmp_path / "plan.json").num_ranks <= 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-n 2 2 -b 1e9", "-n has 2 numbers and -b 1, expected as many"),
        ("-n 0", "expected at least 1"),
        ("-n 2 -b -1", "a bandwidth is -1, expected a finite number above 0"),
        ("-n 2 -b nan", "a bandwidth is nan"),
        ("-n 2 --activation_compression_ratio 0", "expected a finite number above 0"),
        ("-n 2 --use_memory_constraint -s 1 --straight_pipeline", "no plan fits into 1 bytes"),
        ("-n 4 --solver exact --use_memory_constraint -s 1 --straight_pipeline", ""),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    tmp_path: Path,
    random_chain: MakeGraph,
    capsys: pytest.CaptureFixture[str],
    words: str,
    message: str,
) -> None:
    random_chain(2, 8).save(tmp_path / "graph.txt")
    argv = ["-f", str(tmp_path / "graph.txt"), *words.split()]
    status = run("planner", hierarchical_command.main, argv)
    found = capsys.readouterr()
    if not message:
        # One device may do everything: PipeDream charges nothing where no device comes behind.
        assert status in (0, 2)
        return
    assert (status, found.out) == (2, "")
    assert message in found.err and found.err.count("\n") == 1


def test_profiles_of_different_models_are_refused(
    servers: Path, random_chain: MakeGraph, capsys: pytest.CaptureFixture[str]
) -> None:
    random_chain(5, 9).save(servers.parent / "b.txt")
    assert run("planner", hybrid_command.main, ["-f", str(servers)]) == 2
    assert "its layers or edges are not those of" in capsys.readouterr().err


def test_profiles_of_different_microbatch_sizes_are_refused(
    servers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = TextGraph.load(servers.parent / "a.txt")
    nodes = tuple(replace(n, activation_bytes=2 * sum(n.activations)) for n in graph.nodes)
    replace(graph, nodes=nodes).save(servers.parent / "b.txt")
    assert run("planner", hybrid_command.main, ["-f", str(servers)]) == 2
    assert "at the same micro-batch size" in capsys.readouterr().err


def test_plans_do_not_depend_on_the_hash_seed(tmp_path: Path, random_branching: MakeGraph) -> None:
    random_branching(3, 14).save(tmp_path / "graph.txt")
    found = []
    for seed in ("1", "2"):
        words = ["-f", str(tmp_path / "graph.txt"), "-n", "2", "3", "-b", "1e9", "1e8"]
        words += ["--activation_compression_ratio", "1", "-o", str(tmp_path / seed)]
        subprocess.run(
            [sys.executable, "optimizer/optimizer_graph_hierarchical.py", *words],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
        files = ("gpus=6.txt", "gpus=6.dot", "hybrid_conf.json")
        found.append([(tmp_path / seed / name).read_bytes() for name in files])
    assert found[0] == found[1]


def test_unused_results_go_with_their_source(
    tmp_path: Path, random_chain: MakeGraph, text_node: Callable[..., Any]
) -> None:
    from stagewright.optimizer.pipedream.hierarchical import (
        HierarchicalRequest,
        plan_hierarchical,
    )
    from stagewright.optimizer.pipedream.problem import Level

    chain = random_chain(4, 6)
    unused = text_node("unused", 0, 0, 1, description="__getitem__(1)")
    graph = TextGraph(nodes=(*chain.nodes, unused), edges=(*chain.edges, ("n5", "unused")))
    graph.save(tmp_path / "graph.txt")
    request = HierarchicalRequest(graph_path=tmp_path / "graph.txt", levels=(Level(3, 1e12),))
    _, planned = plan_hierarchical(request)
    stages = stages_of_nodes(graph, planned.pipeline)
    assert stages["unused"] == stages["n5"]


@pytest.mark.parametrize(
    "script",
    [
        "optimizer_graph_hierarchical.py",
        "optimizer_graph_hierarchical_hybrid.py",
        "inference_optimizer_graph.py",
    ],
)
def test_scripts_run_from_the_checkouts_root(script: str) -> None:
    found = subprocess.run(
        [sys.executable, f"optimizer/{script}", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0 and "example: python optimizer/" in found.stdout
