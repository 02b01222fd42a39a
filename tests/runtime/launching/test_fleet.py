"""Real torchruns of two servers: printed lines train the plan, and restart it when a rank is killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stagewright.runtime.storage.folders import newest_step

NUM_STEPS = 30


@pytest.mark.timeout(240)
def test_printed_lines_train_a_plan_on_two_servers_and_survive_a_kill(
    rank_pool: Any, servers: Any, processes: Any, tmp_path: Path
) -> None:
    package = servers.package
    expected = tmp_path / "expected.safetensors"
    options = {"epochs": 1, "max_steps": NUM_STEPS, "evaluate": False}
    rank_pool.run(
        "trained_weights",
        3,
        settings={},
        options=options,
        output=str(expected),
        **package.arguments,
    )
    saved, output = tmp_path / "checkpoints", tmp_path / "weights.safetensors"
    train: tuple[str, ...] = (
        "--max-steps",
        str(NUM_STEPS),
        "--no-evaluation",
        "--output",
        str(output),
    )
    train += ("--checkpoint", str(saved), "--checkpoint-every", "1", "--resume", "--timeout", "20")
    printed = subprocess.run(
        servers.command("--json", "--max-restarts", "3", train=train),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = json.loads(printed.stdout)["lines"]
    assert [(line["server"], line["ranks"]) for line in lines] == [("big", [0, 1]), ("small", [2])]
    running = [
        subprocess.Popen(
            ["sh", "-c", f"exec env {line['text']}"], stderr=subprocess.PIPE, text=True
        )
        for line in lines
    ]
    try:
        processes.wait(lambda: newest_step(saved) >= 2, 90, "the first checkpoints")
        ranks = [pid for pid, _ in processes.of(running[0].pid)]
        assert len(ranks) == 2
        processes.end(ranks[-1:])
        for server in running:
            _, err = server.communicate(timeout=120)
            assert server.returncode == 0, err
            assert "lost a peer" in err or "told to stop" in err
    finally:
        processes.end([pid for server in running for pid, _ in processes.of(server.pid)])
        for server in running:
            server.kill()
            server.wait()
    found, wanted = load_file(output), load_file(expected)
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_a_server_ends_its_command_when_the_launcher_is_gone(processes: Any) -> None:
    command = [sys.executable, "-m", "stagewright.runtime.launching.node"]
    wrapped = subprocess.Popen([*command, "sleep", "100"], stdin=subprocess.PIPE)
    processes.wait(lambda: len(list(processes.of(wrapped.pid))) == 1, 20, "the command to start")
    assert wrapped.stdin is not None
    wrapped.stdin.close()
    assert wrapped.wait(20) == 128 + signal.SIGTERM


def test_a_server_passes_the_exit_status_on() -> None:
    command = [sys.executable, "-m", "stagewright.runtime.launching.node", "sh", "-c", "exit 7"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as wrapped:
        assert wrapped.wait(20) == 7
