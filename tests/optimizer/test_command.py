"""The command lines: what they write and print."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from stagewright.cli import main
from stagewright.graph import Emulation
from stagewright.optimizer.load import Inputs
from stagewright.plan import Plan
from stagewright.schedule import Schedule

RandomInputs = Callable[..., Inputs]


@pytest.fixture
def cluster(random_inputs: RandomInputs, tmp_path: Path) -> Path:
    made = random_inputs(7, 5, [[("fast", 1), ("slow", 2)]], 10**9)
    for kind, graph in made.graphs.items():
        emulation = Emulation(slowdown=2.5) if kind == "slow" else None
        graph.replace(emulation=emulation).save(tmp_path / f"{kind}.json")
    made.cluster.save(tmp_path / "cluster.json")
    return tmp_path / "cluster.json"


def test_json_is_one_object_that_agrees_with_the_plan(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cluster.parent / "plan.json"
    assert main(["optimize", str(cluster), "-o", str(path), "--batch-size", "12", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    plan = Plan.load(path)
    assert report["objective_ms"] == plan.proof.value
    assert report["bound_ms"] == plan.proof.lower_bound
    assert (report["gap"], report["solver"], report["cost_model"]) == (0.0, "exact", "stagewright")
    assert [stage["layers"] for stage in report["stages"]] == [list(s.layers) for s in plan.stages]
    ranks = [r["ranks"] for stage in report["stages"] for r in stage["replicas"]]
    assert ranks == [[r.rank] for stage in plan.stages for r in stage.replicas]
    assert report["emulated"] == plan.slowdowns
    names = [baseline["name"] for baseline in report["baselines"]]
    assert [name.split()[0] for name in names] == ["one", "data", "data", "even"]


def test_every_solver_and_objective_agree_on_the_command_line(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for objective in ("step-time", "throughput"):
        for solver in ("exact", "brute-force"):
            arguments = ["optimize", str(cluster), "-o", str(cluster.parent / "p.json")]
            arguments += ["--batch-size", "4", "--microbatch-size", "2", "--json"]
            assert main([*arguments, "--objective", objective, "--solver", solver]) == 0
            found[objective, solver] = json.loads(capsys.readouterr().out)["objective_ms"]
    assert found["step-time", "exact"] == pytest.approx(found["step-time", "brute-force"])
    assert found["throughput", "exact"] == pytest.approx(found["throughput", "brute-force"])


def test_the_text_says_what_is_predicted_and_what_is_emulated(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["optimize", str(cluster), "-o", str(cluster.parent / "plan.json")]
    arguments += ["--batch-size", "8", "--cuts", "l2", "--replicas", "1,2", "--types", "fast,slow"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "predicted by the simulator" in text
    assert "slow is emulated: another device slowed down x2.5" in text
    assert "given by the user" in text


def test_the_schedule_prints_its_rows_and_draws_every_action(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cluster.parent
    arguments = ["optimize", str(cluster), "-o", str(folder / "plan.json"), "--batch-size", "8"]
    arguments += ["--microbatch-size", "2", "--cuts", "l2", "--replicas", "1,2", "--trace"]
    assert main([*arguments, str(folder / "trace.json")]) == 0
    capsys.readouterr()
    written = ["--svg", str(folder / "s.svg"), "--trace", str(folder / "again.json")]
    assert main(["schedule", str(folder / "plan.json"), *written]) == 0
    plan = Plan.load(folder / "plan.json")
    assert Schedule.parse(capsys.readouterr().out) == plan.rows
    num_actions = sum(map(len, plan.rows.rows.values()))
    picture = ElementTree.parse(folder / "s.svg")
    titles = [str(t.text) for t in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert len([t for t in titles if not t.startswith(("reduce", "update"))]) == num_actions
    trace = json.loads((folder / "trace.json").read_text())
    assert trace == json.loads((folder / "again.json").read_text())
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    last_ms = max(event["ts"] + event["dur"] for event in complete) / 1e3
    assert last_ms == pytest.approx(plan.predicted_step_ms)
    assert main(["schedule", str(folder / "plan.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]["0"][0] == "0F0"


def test_a_wrong_input_is_one_line_and_status_2(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster.parent / "slow.json").unlink()
    arguments = ["optimize", str(cluster), "-o", str(cluster.parent / "p.json")]
    assert main([*arguments, "--batch-size", "8"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "slow.json: cannot be read" in error
