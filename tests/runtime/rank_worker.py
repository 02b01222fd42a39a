"""One process of the pool of ranks: runs the jobs that the test session sends it, until it is told to end.

Started as: python rank_worker.py SOCKET INDEX
"""

import ctypes
import importlib.util
import signal
import sys
import traceback
from multiprocessing.connection import Client
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from stagewright.runtime.ranks.world import World, make_groups


def load(path: str) -> ModuleType:
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_job(job: dict[str, Any]) -> Any:
    """Join the job's world, call its function, leave the world."""
    function = getattr(load(job["path"]), job["function"])
    cpu = torch.device("cpu")
    if job["size"] == 1:
        return function(World(0, 1, cpu), **job["arguments"])
    dist.init_process_group(
        "gloo", init_method=f"file://{job['store']}", rank=job["rank"], world_size=job["size"]
    )
    try:
        world = make_groups(job["rank"], job["size"], cpu, "gloo", job["timeout_s"])
        return function(world, **job["arguments"])
    finally:
        dist.destroy_process_group()


def end_with_the_session() -> None:
    """Let Linux end this process when the test session is gone, even if it is in a job."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def main() -> None:
    end_with_the_session()
    torch.set_num_threads(1)
    with Client(sys.argv[1], family="AF_UNIX") as connection:
        connection.send(int(sys.argv[2]))
        while (job := connection.recv()) is not None:
            try:
                connection.send((True, run_job(job)))
            except Exception:  # noqa: BLE001 - the test session prints what a job raised
                connection.send((False, traceback.format_exc()))


if __name__ == "__main__":
    main()
