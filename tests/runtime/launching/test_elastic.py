"""Elastic training with real ranks: a server vanishes, and comes back; the training is the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stagewright.cluster import Cluster
from stagewright.runtime.launching.elastic import ElasticOptions, Supervisor
from stagewright.runtime.launching.lines import Launch
from stagewright.runtime.storage.folders import newest_step

NUM_STEPS = 70


def run_while_a_server_is_gone(
    servers: Any, processes: Any, log: Path, saved: Path, train: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Run the elastic launch, cut the small server off for a while, and return the generations."""
    options = ("--elastic", "--json", "--probe-every", "0.5", "--ssh", servers.ssh)
    command = servers.command(*options, "--optimize=--ignore-update", train=train)
    with log.open("w") as errors:
        launch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)

    def has_done(step: int) -> bool:
        assert launch.poll() is None, log.read_text()
        return newest_step(saved) >= step

    try:
        processes.wait(lambda: has_done(3), 120, "generation 1")
        servers.down("small").touch()
        processes.end([pid for pid, words in processes.of(launch.pid) if "--server small" in words])
        done = newest_step(saved)
        processes.wait(lambda: has_done(done + 3), 120, "generation 2")
        servers.down("small").unlink()
        out, _ = launch.communicate(timeout=150)
    finally:
        started = [pid for pid, _ in processes.of(launch.pid)]
        launch.kill()
        processes.end(started)
        launch.communicate()
    assert launch.returncode == 0, log.read_text()
    generations: list[dict[str, Any]] = json.loads(out)["generations"]
    return generations


@pytest.mark.timeout(280)
def test_training_goes_on_when_a_server_vanishes_and_when_it_comes_back(
    rank_pool: Any, servers: Any, processes: Any, tmp_path: Path
) -> None:
    expected, output = tmp_path / "expected.safetensors", tmp_path / "weights.safetensors"
    losses, *_ = rank_pool.run(
        "trained_weights",
        3,
        settings={"dtype": "float64"},
        options={"epochs": 3, "max_steps": NUM_STEPS, "evaluate": False},
        output=str(expected),
        **servers.package.arguments,
    )
    saved, log, metrics = (tmp_path / name for name in ("checkpoints", "log", "metrics.jsonl"))
    train: tuple[str, ...] = (
        "--max-steps",
        str(NUM_STEPS),
        "--epochs",
        "3",
        "--no-evaluation",
        "--dtype",
        "float64",
    )
    train += ("--output", str(output), "--checkpoint", str(saved), "--checkpoint-every", "1")
    generations = run_while_a_server_is_gone(
        servers, processes, log, saved, (*train, "--timeout", "20", "--metrics", str(metrics))
    )
    assert [g["num_ranks"] for g in generations] == [3, 2, 3], log.read_text()
    assert [g["servers"] for g in generations] == [["big", "small"], ["big"], ["big", "small"]]
    assert generations[1]["first_step"] >= 3
    assert generations[2]["end"] == "finished"
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [(event["step"], event["loss"]) for event in events if event["event"] == "step"]
    assert [step for step, _ in steps] == list(range(1, NUM_STEPS + 1))
    assert [loss for _, loss in steps] == pytest.approx(losses, rel=1e-9)
    found, wanted = load_file(output), load_file(expected)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() <= 1e-9 * tensor.abs().max()


def test_a_cluster_file_that_is_gone_for_a_moment_is_no_change(
    servers: Any, tmp_path: Path
) -> None:
    launch = Launch(
        cluster=servers.cluster,
        directory=servers.package.directory,
        train_options=(),
        hosts={},
        python=sys.executable,
        port=29400,
    )
    options = ElasticOptions(checkpoints=tmp_path, work_folder=tmp_path / "elastic")
    supervisor = Supervisor(launch, ("true",), options)
    present, used = Cluster.load(servers.cluster), ("big", "small")
    servers.cluster.unlink()
    assert not supervisor._has_changed(present, used)
