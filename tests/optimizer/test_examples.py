"""The example clusters plan as they are, with the profiles that they name."""

from pathlib import Path

import pytest

from stagewright.cli import run
from stagewright.optimizer.command import main
from stagewright.optimizer.load import load_inputs
from stagewright.plan import Plan

EXAMPLES = Path(__file__).parents[2] / "hete_files"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_cluster_names_profiles_of_one_model(path: Path) -> None:
    inputs = load_inputs(path)
    assert set(inputs.graphs) == set(inputs.cluster.device_types)
    assert any(graph.emulation is not None for graph in inputs.graphs.values())


def test_the_first_example_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    cluster = str(EXAMPLES / "one_fast_two_slow.toml")
    assert (
        run("stagewright optimize", main, (cluster, "-o", str(output), "--batch-size", "128")) == 0
    )
    plan = Plan.load(output)
    assert len(plan.stages) > 1
    assert plan.proof.lower_bound == plan.proof.value
    assert "emulated" in capsys.readouterr().out
