"""The command lines: what they write and print."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagewright.cli import main
from stagewright.cluster import Cluster
from stagewright.graph import Emulation
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.simulation.simulate import simulate
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


def run_optimize(cluster: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    """Return what optimize --json prints."""
    arguments = ["optimize", str(cluster), "-o", str(cluster.parent / "p.json")]
    assert main([*arguments, "--batch-size", "8", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def set_prices(cluster: Path, **prices: float) -> None:
    made = Cluster.load(cluster)
    types = {
        kind: device.replace(price_per_hour=prices[kind])
        for kind, device in made.device_types.items()
    }
    made.replace(device_types=types).save(cluster)


def test_a_step_is_priced_and_made_cheap(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_optimize(cluster, capsys)["price_per_hour"] is None
    set_prices(cluster, fast=5.0, slow=0.1)
    fast = run_optimize(cluster, capsys)
    cheap = run_optimize(cluster, capsys, "--objective", "cost")
    assert cheap["objective"] == "price_per_1000_steps"
    assert cheap["objective_ms"] is None
    assert cheap["price_per_hour"] < fast["price_per_hour"]
    assert cheap["predicted_price_per_1000_steps"] == pytest.approx(
        cheap["price_per_hour"] * cheap["predicted_step_ms"] / 3600
    )
    late = run_optimize(
        cluster, capsys, "--objective", "cost", "--deadline-ms", str(fast["objective_ms"] * 1.0001)
    )
    assert cheap["objective_value"] <= late["objective_value"]
    within = run_optimize(cluster, capsys, "--budget", "0.2")
    assert within["price_per_hour"] <= 0.2
    assert within["constraints"] == ["--budget"]


def test_the_best_plans_are_ranked_by_formula_and_chosen_by_simulation(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = run_optimize(cluster, capsys)
    several = run_optimize(cluster, capsys, "--top", "6")
    values = [ranked["objective_value"] for ranked in several["ranking"]]
    assert values == sorted(values)
    assert len(values) == 6
    assert values[0] == pytest.approx(best["objective_ms"])
    assert several["stages"] == best["stages"]
    simulated = run_optimize(cluster, capsys, "--top", "6", "--rank-by", "simulation")
    steps = [ranked["predicted_step_ms"] for ranked in several["ranking"]]
    assert simulated["predicted_step_ms"] == min(steps)
    assert any("best of 6 plans by the simulator" in note for note in simulated["notes"])
    assert simulated["bound_ms"] == pytest.approx(best["bound_ms"])


def test_inference_has_a_latency_that_one_simulated_micro_batch_takes(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = run_optimize(cluster, capsys, "--inference")
    assert free["objective"] == "latency_ms"
    assert free["schedule"] == "forward"
    plan = Plan.load(cluster.parent / "p.json")
    single = plan.replace(num_microbatches=1)
    sharing = [[stage] for stage in range(len(plan.stages))]
    alone = simulate(single, Cluster.load(cluster), sharing)
    assert alone.step_ms <= free["objective_ms"] * (1 + 1e-9)
    period_ms = free["predicted_step_ms"] / plan.num_microbatches / 1.5
    within = run_optimize(cluster, capsys, "--inference", "--max-period", str(period_ms))
    assert within["objective_ms"] >= free["objective_ms"] * (1 - 1e-9)
    assert within["predicted_period_ms"] <= period_ms * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0.05"], "no plan obeys --budget; without --budget 0.05 the best plan has"),
        (["--inference", "--max-period", "1e-6"], "without --max-period 1e-06 the best plan has"),
        (["--deadline-ms", "5"], "--deadline-ms is for --objective cost"),
        (["--objective", "cost", "--deadline-ms", "1e-6"], "without --deadline-ms 1e-06"),
        (["--inference", "--allow-recompute"], "--allow-recompute is not for --inference"),
        (["--inference", "--objective", "cost"], "minimises latency, but --objective is cost"),
        (["--max-period", "5"], "--max-period is for --inference"),
        (["--budget", "nan"], "--budget is nan, expected a finite number above 0"),
        (["--top", "0"], "--top is 0, expected at least 1"),
        (["--top", "3", "--cuts", "l2"], "--top chooses among plans"),
        (["--solver", "local-search", "--straight"], "--solver local-search knows no --straight"),
        (["--rank-by", "simulation", "--objective", "throughput"], "compares whole steps"),
    ],
)
def test_constraints_that_do_not_go_together_are_one_line(
    cluster: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    set_prices(cluster, fast=5.0, slow=0.1)
    arguments = ["optimize", str(cluster), "-o", str(cluster.parent / "p.json")]
    assert main([*arguments, "--batch-size", "8", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_fixed_layers_are_kept(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = cluster.parent / "fix.toml"
    path.write_text(
        'format = "stagewright.fix"\nversion = 1\ntogether = [["l0", "l3"]]\n'
        '[[on]]\nlayers = ["l0"]\ndevice_type = "slow"\n'
    )
    report = run_optimize(cluster, capsys, "--fix", str(path), "--top", "3")
    for stage in report["stages"]:
        if "l0" in stage["layers"]:
            assert "l3" in stage["layers"]
            assert {r["device_type"] for r in stage["replicas"]} == {"slow"}
    assert report["constraints"] == ["--fix"]


def test_an_interleaved_plan_is_made_drawn_and_written_as_csv(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cluster.parent
    arguments = ["optimize", str(cluster), "-o", str(folder / "plan.json"), "--batch-size", "8"]
    arguments += ["--microbatch-size", "2", "--schedule", "interleaved", "--json"]
    assert main([*arguments, "--stages-per-rank", "2"]) == 2
    assert "makes 6 stages, but the model can be cut into 5" in capsys.readouterr().err
    two = Cluster.load(cluster)
    servers = tuple(
        server.replace(
            devices=tuple(group.replace(count=1) for group in server.devices if group.count)
        )
        for server in two.servers
    )
    two.replace(servers=servers).save(cluster)
    assert main([*arguments, "--stages-per-rank", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["objective"], report["solver"]) == ("simulated_step_ms", "interleaved")
    assert report["objective_ms"] == report["predicted_step_ms"] >= report["bound_ms"]
    plan = Plan.load(folder / "plan.json")
    assert [[r.rank for r in stage.replicas] for stage in plan.stages[:2]] * 2 == [
        [r.rank for r in stage.replicas] for stage in plan.stages
    ]
    csv, svg = folder / "rows.csv", folder / "rows.svg"
    assert main(["schedule", str(folder / "plan.json"), "--csv", str(csv)]) == 0
    capsys.readouterr()
    again = ["schedule", str(folder / "plan.json"), "--from-csv", str(csv), "--svg", str(svg)]
    assert main([*again, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Schedule.parse("\n".join(f"{r}: {' '.join(a)}" for r, a in found["rows"].items())) == (
        plan.rows
    )
    assert found["predicted_step_ms"] == pytest.approx(plan.predicted_step_ms)
    assert set(found["units_in_flight"]) == {"0", "1"}
    assert "rank 0: stages" in svg.read_text()
    csv.write_text(csv.read_text().replace("F0", "F9"))
    assert main(again) == 2
    assert "rows.csv: for " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--stages-per-rank", "2"], "--stages-per-rank is for --schedule interleaved"),
        (["--schedule", "interleaved", "--stages-per-rank", "0"], "expected at least 1"),
        (["--schedule", "interleaved", "--straight"], "knows no --straight"),
        (["--schedule", "interleaved", "--objective", "throughput"], "knows no --objective"),
        (["--schedule", "interleaved", "--top", "3"], "knows no --top"),
    ],
)
def test_what_interleaved_plans_do_not_know_is_refused(
    cluster: Path, capsys: pytest.CaptureFixture[str], options: list[str], problem: str
) -> None:
    arguments = ["optimize", str(cluster), "-o", str(cluster.parent / "plan.json")]
    assert main([*arguments, "--batch-size", "8", *options]) == 2
    assert problem in capsys.readouterr().err
