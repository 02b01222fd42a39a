"""Places: which rank of the plan a started process is, on which device, and how ranks find one another.

torchrun numbers processes as they arrive, and may number them anew after a restart. A process that is told
the name of its server takes the plan's places on that server instead, in order, so a stage runs on the device
type that it was planned for, however torchrun numbers.
"""

import datetime
from collections.abc import Mapping, Sequence

import torch
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from stagewright.document import InputError
from stagewright.plan import Plan

from .servers import ranks_by_server


def rank_on_server(plan: Plan, server: str, local_rank: int, environment: Mapping[str, str]) -> int:
    """Return the plan's rank of one of a server's processes.

    Args:
        plan: what is trained.
        server: the server's name in the plan.
        local_rank: the process's number on the server.
        environment: in which torchrun says how many processes it started there.

    Raises:
        InputError: the plan does not use that server, or has another number of ranks on it.
    """
    ranks = ranks_by_server(plan)
    local_size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if server not in ranks:
        raise InputError(
            f"--server is {server!r}, but the plan uses the servers {', '.join(map(repr, ranks))}"
        )
    if local_size != len(ranks[server]):
        raise InputError(
            f"{local_size} processes were started on server {server!r}, but the plan has "
            f"{len(ranks[server])} ranks there; start torchrun with --nproc-per-node {len(ranks[server])}"
        )
    return ranks[server][local_rank]


def device_named(wanted: Sequence[str], local_rank: int, present: Sequence[str]) -> torch.device:
    """Return the GPU of one of a server's processes by the names of its GPUs.

    The k-th process that wants a GPU of a name gets the k-th GPU of that name, so a server with mixed GPUs
    gives each process the type that it was planned for, in whatever order CUDA lists them.

    Args:
        wanted: the GPU's name for each process of the server, as torch.cuda.get_device_name says it.
        local_rank: the process's number on the server.
        present: the names of the server's GPUs as CUDA numbers them.

    Raises:
        InputError: there are fewer GPUs of that name than processes that want one.
    """
    if local_rank >= len(wanted):
        raise InputError(
            f"--gpu was given {len(wanted)} times, but process {local_rank} of this server needs one too; "
            "give one per process"
        )
    name = wanted[local_rank]
    turn = list(wanted[:local_rank]).count(name)
    indices = [index for index, found in enumerate(present) if found == name]
    if turn >= len(indices):
        raise InputError(
            f"process {local_rank} of this server needs GPU number {turn + 1} of the name {name!r}, but CUDA "
            f"lists {list(present)}; correct the cluster file or profile this server's GPUs"
        )
    return torch.device("cuda", indices[turn])


def store_of_torchrun(environment: Mapping[str, str], rank: int, timeout_s: float) -> Store:
    """Return the store by which the started ranks find one another.

    torchrun's own store, which it shares with the ranks by default, keeps the addresses of the ranks of
    before a restart, so restarted ranks would wait for dead ones (torch 2.13). On one server a prefix per
    restart keeps them apart; on several, torchrun's restarts are not counted alike, and sharing is refused.

    Args:
        environment: as torchrun sets it.
        rank: in the plan; claimed in the store, so that no two processes take one place.
        timeout_s: longest wait for the other ranks.

    Raises:
        InputError: the environment lacks something, or two processes claim one rank.
    """
    try:
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"environment: MASTER_ADDR, MASTER_PORT: {error}; start with torchrun"
        ) from None
    shared = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if shared and restarts and int(environment.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise InputError(
            "torchrun was started on several servers with --max-restarts and shares its store with the "
            "ranks, which fails after a restart; set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, as "
            "stagewright launch does"
        )
    store: Store = TCPStore(
        address,
        port,
        int(environment["WORLD_SIZE"]),
        is_master=not shared and environment["RANK"] == "0",
        timeout=datetime.timedelta(seconds=timeout_s),
        multi_tenant=not shared,
    )
    if shared:
        restart = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"restart{restart}", store)
    if store.add(f"stagewright/claims of rank {rank}", 1) > 1:
        raise InputError(
            f"two processes claim rank {rank} of the plan; start each server of the plan once, with its own "
            "--server"
        )
    return store
