"""A server file gives the plan that the cluster file with the same figures gives."""

import re
from pathlib import Path

import pytest

from stagewright.cli import main
from stagewright.plan import Plan

EXAMPLES = Path(__file__).parents[2] / "hete_files"
TEXT = """# what examples/one_fast_two_slow.toml holds
Server0
    fast 1 {0}/fast.json
    slow 2 {0}/slow.json
"""
FIGURES = ["--memory", "fast=16e6", "--memory", "slow=16e6", "--bandwidth", "1e9"]


def plan_of(path: Path, output: Path, *options: str) -> int:
    return main(["optimize", str(path), "-o", str(output), "--batch-size", "64", *options])


def test_a_server_file_is_planned_as_the_cluster_with_the_same_figures(tmp_path: Path) -> None:
    servers = tmp_path / "servers.txt"
    servers.write_text(TEXT.format(EXAMPLES / "digits_cnn"))
    (tmp_path / "plans").mkdir()
    output = tmp_path / "plans" / "plan.json"
    assert plan_of(servers, output, *FIGURES, "--latency-ms", "0.3") == 0
    cluster = EXAMPLES / "one_fast_two_slow.toml"
    assert plan_of(cluster, tmp_path / "other.json") == 0
    found, other = Plan.load(output), Plan.load(tmp_path / "other.json")
    assert [stage.layers for stage in found.stages] == [stage.layers for stage in other.stages]
    assert found.proof.value == pytest.approx(other.proof.value)
    assert main(["check", str(output)]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "a server file holds no bandwidth; give --bandwidth"),
        (["--bandwidth", "1e9", "--memory", "fast=1e9"], "the memory of slow is not given"),
        (["--bandwidth", "1e9", "--memory", "fast"], "--memory is 'fast', expected TYPE=BYTES"),
    ],
)
def test_missing_figures_are_named(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = tmp_path / "servers.txt"
    servers.write_text(TEXT.format(EXAMPLES / "digits_cnn"))
    assert plan_of(servers, tmp_path / "plan.json", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "fast=1e9"], "--memory is for server files, but .* is a cluster file"),
        (["--latency-ms", "-1"], "--latency-ms is for server files"),
        (["--between-bandwidth", "1e9"], "--between-bandwidth is for server files"),
        (["--equal-shares"], "--equal-shares is for stages given by --cuts"),
        (["--trace", "."], r"\.: is a folder, expected a file to write"),
    ],
)
def test_an_option_that_has_no_effect_on_a_cluster_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = EXAMPLES / "one_fast_two_slow.toml"
    assert plan_of(cluster, tmp_path / "plan.json", *options) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "plan.json").exists()
