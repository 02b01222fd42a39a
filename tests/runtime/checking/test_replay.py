"""stagewright replay: real ranks exchange as many bytes as the plan's borders say."""

import json
from typing import Any

import pytest

from stagewright.cli import run
from stagewright.runtime.checking.replay_command import main

MakePackage = Any


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_the_traffic_is_that_of_the_borders(
    make_package: MakePackage, capfd: pytest.CaptureFixture[str]
) -> None:
    package = make_package("resnet", [2, 1, 1], 4, "1f1b")
    plan = package.plan
    arguments = (str(package.directory / "plan.json"), "--steps", "2", "--json")
    assert run("stagewright replay", main, arguments) == 0
    found = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert found["measured_step_ms"] >= 4 * 2
    size = plan.microbatch_size
    per_microbatch = sum(b.forward_bytes(size) + b.backward_bytes(size) for b in plan.borders)
    assert sum(t["num_bytes"] for t in found["traffic"]) == per_microbatch * plan.num_microbatches
    assert sum(t["messages"] for t in found["traffic"]) == 2 * len(plan.borders) * 4


def test_one_rank_replays_without_messages(
    make_package: MakePackage, capsys: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1], 3, "gpipe")
    assert run("stagewright replay", main, (str(package.directory / "plan.json"),)) == 0
    assert "computing slept" in capsys.readouterr().out


def test_a_plan_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stagewright replay", main, ("nonesuch.json",)) == 2
    assert "nonesuch.json: cannot be read" in capsys.readouterr().err


def test_without_flush_the_windows_run_on(
    make_package: MakePackage, capfd: pytest.CaptureFixture[str]
) -> None:
    """The replicas of the second stage update together; the traffic is one window's."""
    package = make_package("mlp", [1, 2], 4, "pipedream")
    arguments = (str(package.directory / "plan.json"), "--steps", "3", "--json")
    assert run("stagewright replay", main, arguments) == 0
    found = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert found["measured_step_ms"] > 0
    assert sum(t["messages"] for t in found["traffic"]) == 2 * len(package.plan.borders) * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "0"), "--steps is 0, expected at least 1"),
        (("--timeout", "nan"), "--timeout is nan, expected seconds, above 0 and up to 86400"),
    ],
)
def test_a_number_out_of_its_range_is_refused_before_ranks_are_started(
    make_package: MakePackage,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b")
    arguments = (str(package.directory / "plan.json"), *options)
    assert run("stagewright replay", main, arguments) == 2
    assert capsys.readouterr().err == f"stagewright replay: {message}\n"
