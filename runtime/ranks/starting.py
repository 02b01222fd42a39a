"""Commands that start their own ranks: one process per rank on this machine, where none were started."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from stagewright.plan import Plan

from .faults import AGENT_STORE, end_on_termination, run_rank
from .roll_call import naming_the_missing
from .whereabouts import Whereabouts
from .world import (
    World,
    check_world_size,
    choose_device,
    join_world,
    leave_world,
    ranks_started,
)

GRACE_S = 5.0
"""How long the other ranks have to say what they have lost, once one has failed."""
_PAUSE_S = 0.05


def run_on_ranks(
    program: str,
    module: str,
    arguments: Sequence[str],
    plan: Plan,
    run: Callable[[World], int],
    *,
    device: str = "cpu",
    timeout_s: float,
) -> int:
    """Run something on all ranks of a plan; return the exit status.

    Args:
        program: the command's name, for messages.
        module: what a rank is to execute, where this process is to start all of them.
        arguments: of that module.
        plan: whose ranks.
        run: what each does in its world; returns its exit status.
        device: auto, cpu, cuda or cuda:N.
        timeout_s: longest wait for another rank.

    Raises:
        InputError: another number of ranks was started than the plan has, or there is no such device.
    """
    rank, size, local_rank = ranks_started(os.environ)
    if size == 1 and plan.num_ranks > 1:
        for local in range(plan.num_ranks):
            choose_device(device, local)
        return start_ranks(module, plan.num_ranks, arguments)
    check_world_size(plan, size)
    torch.set_num_threads(1)
    whereabouts = Whereabouts(f"rank {rank}")
    chosen = choose_device(device, local_rank)
    if size > 1:
        end_on_termination(program, whereabouts)

    def joined() -> int:
        world = join_world(rank, size, chosen, timeout_s, whereabouts)
        with naming_the_missing(world):
            status = run(world)
        leave_world()
        return status

    return joined() if size == 1 else run_rank(program, whereabouts, joined)


def start_ranks(module: str, num_ranks: int, arguments: Sequence[str]) -> int:
    """Execute a module once per rank on this machine; return the status of the first that failed, or 0."""
    # The store is here, as torchrun's is: so it outlives a rank, and others can say which one is missing.
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(num_ranks)}
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    environment[AGENT_STORE] = "True"
    command = [sys.executable, "-m", module, *arguments]
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(num_ranks)
    ]
    failed, give_up_s = 0, float("inf")
    try:
        while any(process.poll() is None for process in processes):
            failed = failed or next((p.returncode for p in processes if p.returncode), 0)
            if failed:
                give_up_s = min(give_up_s, time.monotonic() + GRACE_S)
            if time.monotonic() > give_up_s:
                break
            time.sleep(_PAUSE_S)
    finally:
        for process in processes:
            process.kill()
        statuses = [process.wait() for process in processes]
    failed = failed or next((status for status in statuses if status), 0)
    return failed if failed >= 0 else 1
