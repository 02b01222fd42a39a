"""stagewright train as a user starts it: real processes, wrong input, dead and stuck peers."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stagewright.runtime.command import main
from stagewright.task import load_task

MakePackage = Any


def start_ranks(size: int, package: Any, *options: str) -> list[subprocess.Popen[str]]:
    """Start the ranks of a plan as torchrun would, each with its own error output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "stagewright.runtime", str(package.directory)]
    command += ["--task", package.task, *options]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command,
            env=os.environ
            | shared
            | {"RANK": str(r), "LOCAL_RANK": str(r), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(size)
    ]


def finish(
    ranks: Sequence[subprocess.Popen[str]], timeout_s: float = 120
) -> list[tuple[int, str, str]]:
    """Return status, output and error output of each rank; end those that are still there after timeout_s."""
    deadline = time.monotonic() + timeout_s
    results = []
    try:
        for rank in ranks:
            out, err = rank.communicate(timeout=max(1, deadline - time.monotonic()))
            results.append((rank.returncode, out, err))
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return results


def test_two_ranks_train_report_and_write_weights_of_the_original_model(
    make_package: MakePackage, tmp_path: Path
) -> None:
    package = make_package("digits_cnn", [1, 1], 4, "1f1b")
    output = (
        "--output",
        str(tmp_path / "weights.safetensors"),
        "--report",
        str(tmp_path / "report.json"),
    )
    first, second = finish(start_ranks(2, package, "--max-steps", "5", "--json", *output))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    printed = json.loads(first[1])
    assert second[1] == ""
    assert printed == json.loads((tmp_path / "report.json").read_text())
    assert len(printed["history"]["losses"]) == 5
    assert [r["rank"] for r in printed["report"]["replicas"]] == [0, 1]
    assert printed["report"]["measured_step_ms"] > 0
    model = load_task(package.task).build()
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert 0 <= printed["history"]["epochs"][0]["test_metric"] <= 1


def wait_for_a_checkpoint(folder: Path, ranks: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until training runs, or a rank has ended; end all ranks where neither happens."""
    deadline = time.monotonic() + 90
    while not any(folder.glob("step-*")) and all(rank.poll() is None for rank in ranks):
        if time.monotonic() > deadline:
            finish(ranks, 0)
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("signal_number", "timeout"), [(signal.SIGKILL, "60"), (signal.SIGSTOP, "3")]
)
def test_a_dead_or_stuck_rank_ends_all_others_with_one_clear_line(
    make_package: MakePackage, tmp_path: Path, signal_number: signal.Signals, timeout: str
) -> None:
    package = make_package("mlp", [1, 2], 4, "1f1b")
    options = (
        "--epochs",
        "1000",
        "--no-evaluation",
        "--checkpoint-every",
        "1",
        "--checkpoint",
        str(tmp_path),
    )
    ranks = start_ranks(3, package, *options, "--timeout", timeout)
    wait_for_a_checkpoint(tmp_path, ranks)
    ranks[2].send_signal(signal_number)
    started = time.monotonic()
    survivors = finish(ranks[:2])
    assert time.monotonic() - started < 30
    ranks[2].kill()
    ranks[2].communicate()
    for rank, (status, _, err) in enumerate(survivors):
        assert status == 3
        lines = [line for line in err.splitlines() if line.startswith("stagewright train:")]
        assert len(lines) == 1
        place = ("stage 0, replica 0 of 1", "stage 1, replica 0 of 2")[rank]
        # Rank 0, which holds the store, may have ended before a rank that noticed late asks it.
        gone = "|the store of the ranks does not answer.*" if rank else ""
        assert re.match(
            rf"stagewright train: rank {rank} \({place}\), in (step|the checkpoint after step) \d+"
            r"( at .*micro-batch \d+.*)?: lost a peer while waiting for .*(rank \d|all ranks).*"
            rf"; (no answer from ranks? (.*, )?2{gone})$",
            lines[0],
        )


def test_torchrun_starts_and_ends_the_ranks(make_package: MakePackage, tmp_path: Path) -> None:
    package = make_package("mlp", [1, 1], 2, "gpipe")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    command = ["-m", "stagewright.runtime", str(package.directory), "--task", package.task]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *command, "--max-steps", "4"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "measured / predicted" in done.stdout


def test_more_ranks_in_the_plan_than_started_is_refused(
    make_package: MakePackage, capsys: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b")
    results = finish(start_ranks(3, package))
    assert [status for status, _, _ in results] == [2, 2, 2]
    for rank, (_, _, err) in enumerate(results):
        assert f"rank {rank}: 3 ranks were started, but the plan has 2" in err


def one_rank(*arguments: str) -> int:
    """Run the command in this process, without torchrun."""
    from stagewright.cli import run

    return run("stagewright train", main, arguments)


@pytest.fixture
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


LOSS = "def loss(output, target): return output.mean()\n"


def write_task(folder: Path, text: str) -> str:
    path = folder / "task.py"
    path.write_text("import torch\nfrom torch import nn\n" + text)
    return str(path)


@pytest.mark.usefixtures("no_torchrun")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "stage0.py").unlink(),
            "stage0.py: is missing; run stagewright generate",
        ),
        (lambda folder: (folder / "plan.json").unlink(), "holds no plan.json"),
        (
            lambda folder: (folder / "plan.json").write_text(
                (folder / "plan.json").read_text() + " "
            ),
            "its SHA-256 is .* but the stages were generated from",
        ),
        (lambda folder: (folder / "stage0.py").write_text("class"), "cannot be imported"),
    ],
)
def test_a_damaged_package_is_refused(
    make_package: MakePackage, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    package = make_package("mlp", [1], 2, "1f1b")
    damage(package.directory)
    assert one_rank(str(package.directory), "--task", package.task) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.search(message, err)


@pytest.mark.usefixtures("no_torchrun")
def test_a_stage_that_returns_another_type_than_planned_is_one_line_on_one_rank_too(
    make_package: MakePackage, capsys: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b", num_ranks=1)
    stage = package.directory / "stage0.py"
    stage.write_text(stage.read_text().replace("return (x,)", "return (x.double(),)"))
    assert one_rank(str(package.directory), "--task", package.task, "--max-steps", "1") == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "has dtype torch.float64, expected torch.float32" in err
    assert "profile, plan and generate again" in err


@pytest.mark.usefixtures("no_torchrun")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(): return nn.Linear(2, 2)\n", "defines no function 'loss'"),
        (
            "def build(): return nn.Linear(2, 2)\ndef loss(output, target): return 0\n",
            "defines no function 'dataset'",
        ),
        ("import nonesuch\n", "No module named 'nonesuch'"),
        (
            LOSS + "def build(): return 3\ndef dataset(split): return []\n",
            "returned a int, expected nn.Module",
        ),
        (
            LOSS + "def build(): return nn.Linear(2, 2)\ndef dataset(split): return []\n",
            "the plan was made for",
        ),
    ],
)
def test_a_wrong_task_is_refused(
    make_package: MakePackage,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    package = make_package("mlp", [1], 2, "1f1b")
    task = write_task(tmp_path, text)
    assert one_rank(str(package.directory), "--task", task) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.usefixtures("no_torchrun")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lr", "nan"), "--lr is nan, expected a finite number from 0"),
        (("--lr", "-1"), "--lr is -1.0, expected a finite number from 0"),
        (("--weight-decay", "inf"), "--weight-decay is inf, expected a finite number"),
        (("--timeout", "nan"), "--timeout is nan, expected seconds"),
        (("--timeout", "0"), "--timeout is 0.0, expected seconds"),
        (("--seed", "99999999999999999999"), "expected an integer from 0 to 2**63 - 1"),
        (("--keep", "0"), "--keep is 0, expected at least 1"),
        (("--device", "abacus"), "device is 'abacus', expected auto, cpu, cuda or cuda:N"),
        (("--output", "."), ".: is a folder, expected a file to write"),
        (("--report", "task.py/report.json"), "task.py/report.json: cannot be written"),
        (("--checkpoint", "task.py"), "cannot be written"),
        (("--weights", "."), "is no readable safetensors file"),
        (("--resume",), "--resume needs --checkpoint FOLDER"),
        (("--checkpoint-every", "2"), "--checkpoint-every needs --checkpoint FOLDER"),
        (("--checkpoint-async",), "--checkpoint-async needs --checkpoint FOLDER"),
        (("--keep", "3"), "--keep needs --checkpoint FOLDER"),
        (
            ("--optimizer", "adamw", "--momentum", "0.5"),
            "--momentum is for sgd, but --optimizer is",
        ),
        (("--progress", "none", "--watch-every", "5"), "--watch-every needs something that shows"),
        (("--device", "cpu", "--gpu", "NVIDIA H200"), "--gpu names GPUs, but --device is 'cpu'"),
    ],
)
def test_a_wrong_option_is_refused_before_training(
    make_package: MakePackage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    package = make_package("mlp", [1], 2, "1f1b")
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path, "")
    monkeypatch.setattr("stagewright.runtime.command.train", None)
    assert one_rank(str(package.directory), "--task", package.task, *options) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["task.py"]


def test_an_interrupted_rank_ends_with_one_line(make_package: MakePackage, tmp_path: Path) -> None:
    package = make_package("mlp", [1, 1], 4, "1f1b")
    saved = ("--checkpoint-every", "1", "--checkpoint", str(tmp_path))
    ranks = start_ranks(2, package, "--epochs", "1000", "--no-evaluation", *saved)
    wait_for_a_checkpoint(tmp_path, ranks)
    for rank in ranks:
        rank.send_signal(signal.SIGINT)
    for number, (status, _, err) in enumerate(finish(ranks, 30)):
        last = err.splitlines()[-1]
        assert last.startswith(f"stagewright train: rank {number} (")
        assert status == 3 or (status, last.rpartition(": ")[2]) == (130, "interrupted")
        assert "Traceback" not in err


@pytest.mark.usefixtures("no_torchrun")
def test_a_loss_that_is_not_finite_is_null_in_the_output(
    make_package: MakePackage, capsys: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1], 2, "1f1b")
    options = ("--lr", "1e30", "--max-steps", "4", "--no-evaluation", "--json")
    assert one_rank(str(package.directory), "--task", package.task, *options) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed["history"]["losses"][-1] is None


@pytest.mark.usefixtures("no_torchrun")
def test_a_dataset_smaller_than_a_step_is_refused(
    make_package: MakePackage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = make_package("mlp", [1], 500, "1f1b")
    assert one_rank(str(package.directory), "--task", package.task) == 2
    assert "expected at least 2000" in capsys.readouterr().err
    assert torch.is_grad_enabled()
