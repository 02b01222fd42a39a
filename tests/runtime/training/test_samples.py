"""Samples that are read ahead: the same training to the bit, and processes that end with their rank."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagewright.document import InputError
from stagewright.runtime.training.samples import Request, SamplesAhead, by_value, read_samples
from stagewright.task import load_task

RankPool = Any
MakePackage = Any
TASK = str(Path(__file__).parent / "augmented_task.py")
JOBS = "training/prefetch_jobs.py"


@pytest.mark.parametrize(
    ("schedule", "replicas", "num_ranks", "num_workers"),
    [
        ("pipedream", [2, 1], None, 1),  # The replicas' parts change from step to step.
        ("interleaved", [1, 1], 1, 2),  # One rank loads for both ends of the pipeline.
    ],
)
def test_losses_are_bitwise_those_of_samples_read_by_the_rank(
    rank_pool: RankPool,
    make_package: MakePackage,
    schedule: str,
    replicas: list[int],
    num_ranks: int | None,
    num_workers: int,
) -> None:
    package = make_package(TASK, replicas, 3, schedule, num_ranks=num_ranks)
    here, ahead = (
        rank_pool.run(
            "trained",
            package.num_ranks,
            jobs=JOBS,
            timeout_s=60,
            prefetch=prefetch,
            **package.arguments,
        )
        for prefetch in (0, num_workers)
    )
    assert len(here[0][0]) == 6
    assert here == ahead


@pytest.mark.parametrize(
    "second",
    [(torch.zeros(5, 3), 0), (torch.zeros(4, 3), None), ({"points": torch.zeros(4, 3)}, 0)],
    ids=["shape", "type of target", "type of input"],
)
def test_items_that_cannot_be_stacked_are_refused_in_one_line(second: Any) -> None:
    dataset: Any = {3: (torch.zeros(4, 3), 0), 7: second}
    message = r"dataset\('train'\): item 3 and the 1 others of its micro-batch cannot be stacked: .+; give"
    with pytest.raises(InputError, match=message):
        read_samples(dataset, Request("train", [3, 7], 0))


def test_small_tensors_are_sent_by_value_and_others_in_shared_memory() -> None:
    small = torch.arange(6.0).view(2, 3).T
    sent = by_value(small)
    assert isinstance(sent, np.ndarray)
    assert torch.equal(torch.from_numpy(sent), small)
    for other in (torch.zeros(2**18 + 1), small.bfloat16(), small.to_sparse()):
        assert by_value(other) is other


def test_samples_read_ahead_are_bitwise_the_same_and_errors_are_one_line() -> None:
    dataset = load_task(TASK).call("dataset", "train")
    requests = [Request("train", [3 * n, 1, 2], 100 + n) for n in range(9)]
    broken = [Request("broken", [n], 0) for n in range(2)]
    state = torch.get_rng_state()
    ahead = SamplesAhead(TASK, iter(requests + broken), 2)
    for request in requests:
        for found, expected in zip(
            ahead.read(request), read_samples(dataset, request), strict=True
        ):
            assert torch.equal(found, expected)
    ahead.read(broken[0])
    with pytest.raises(
        InputError, match=r"^dataset: item is a Tensor, expected \(input, target\)$"
    ):
        ahead.read(broken[1])
    assert torch.equal(torch.get_rng_state(), state)
    ahead.close()
    assert not multiprocessing.active_children()


RANK = """
import os, sys, time
from stagewright.runtime.training.samples import Request, SamplesAhead
requests = [Request("broken", [index], 0) for index in (0, 2)]
ahead = SamplesAhead(sys.argv[1], requests, 1)
ahead.read(requests[0])
print("ready", flush=True)
time.sleep(1000)
"""


def readers(file: Path) -> set[int]:
    return {int(line) for line in file.read_text().split()}


def is_running(process: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks at processes in /proc")
def test_a_reader_ends_with_a_killed_rank_though_its_dataset_is_stuck(tmp_path: Path) -> None:
    environment = os.environ | {"STAGEWRIGHT_TEST_READERS": str(tmp_path / "readers")}
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK, TASK], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert rank.stdout is not None
    assert rank.stdout.readline() == "ready\n"
    (reader,) = readers(tmp_path / "readers")
    assert reader != rank.pid and is_running(reader)
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    rank.stdout.close()
    until = time.monotonic() + 30
    while is_running(reader) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(reader)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks at processes in /proc")
def test_the_command_reads_ahead_and_leaves_no_process(
    make_package: MakePackage, tmp_path: Path
) -> None:
    package = make_package(TASK, [1], 2, "1f1b")
    environment = os.environ | {"STAGEWRIGHT_TEST_READERS": str(tmp_path / "readers")}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "stagewright.runtime", str(package.directory), "--task", TASK]
    with subprocess.Popen([*command, "--prefetch", "1"], env=environment) as rank:
        assert rank.wait(timeout=120) == 0
        others = readers(tmp_path / "readers") - {rank.pid}
    assert len(others) == 1
    assert not any(map(is_running, others))
