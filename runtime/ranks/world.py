"""The world: this process's rank, its device, and the process groups of the run."""

import datetime
import hashlib
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from stagewright.document import InputError
from stagewright.plan import Plan

from .faults import waiting_for
from .places import device_named, store_of_torchrun
from .whereabouts import Whereabouts

START_TIMEOUT_S = 600.0
"""How long ranks wait for one another outside the steps: rank 0 may take long to build the model."""


@dataclass(frozen=True)
class World:
    """One rank's view of the run. With one rank there are no groups."""

    rank: int
    size: int
    device: torch.device
    start: dist.ProcessGroup | None = None
    """gloo: until training starts, with the longer wait of START_TIMEOUT_S."""
    control: dist.ProcessGroup | None = None
    """gloo: small objects and host tensors."""
    messages: Mapping[tuple[bool, bool], dist.ProcessGroup] = field(default_factory=dict)
    """Of the messages by whether they go forward, and whether to a rank of a higher number. NCCL executes
    what two ranks exchange in a group one after the other, in both directions: a receive that is posted
    early would hold up a send. So each direction has a group of its own there."""
    announcements: dist.ProcessGroup | None = None
    """gloo: the shapes of ragged messages; who waits for one has its own limit."""
    checkpoints: dist.ProcessGroup | None = None
    """gloo: of its own, as checkpoints may be saved while training goes on."""
    backend: str = "gloo"
    """Of the groups for tensors on the device."""
    timeout_s: float = 60.0
    """Longest wait for another rank once training has started."""
    store: Store | None = None
    """By which the ranks found one another."""
    whereabouts: Whereabouts = field(default_factory=Whereabouts)

    def group_of(self, ranks: Sequence[int]) -> dist.ProcessGroup:
        """Return a new group of some ranks for tensors on the device; every rank calls this.

        Its ranks meet in it at once: NCCL connects at the first sum, which would wait for a rank that perhaps
        waits for another message of this one.
        """
        limit = datetime.timedelta(seconds=self.timeout_s)
        group: dist.ProcessGroup = dist.new_group(list(ranks), timeout=limit, backend=self.backend)
        if self.rank in ranks:
            dist.all_reduce(torch.zeros(1, device=self.device), group=group)
        return group


def ranks_started(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Return (rank, world size, rank on this server) as torchrun sets them; (0, 1, 0) without torchrun."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not any(name in environment for name in names):
        return 0, 1, 0
    try:
        rank, size, local = (int(environment[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"environment: RANK, WORLD_SIZE, LOCAL_RANK: {error}; start with torchrun"
        ) from None
    return rank, size, local


def check_world_size(plan: Plan, size: int) -> None:
    """Raise InputError if another number of ranks was started than the plan has."""
    if size != plan.num_ranks:
        raise InputError(
            f"{size} rank{'s were' if size > 1 else ' was'} started, but the plan has {plan.num_ranks}; "
            f"start torchrun with {plan.num_ranks} in all (on one server: --nproc-per-node {plan.num_ranks})"
        )


def choose_device(
    name: str, local_rank: int, gpu_names: Sequence[str] | None = None
) -> torch.device:
    """Return the device for "auto", "cpu", "cuda", "cuda:1"; auto and cuda take the local rank's GPU.

    gpu_names, the names of the GPUs of this server's processes, binds by type instead (places.py).
    """
    if gpu_names:
        if name not in ("auto", "cuda"):
            raise InputError(f"--gpu names GPUs, but --device is {name!r}; leave one of them out")
        present = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        device = device_named(gpu_names, local_rank, present)
        torch.cuda.set_device(device)
        return device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if device.index is None or device.index >= count:
            raise InputError(
                f"device is {name!r}, but this server has {count} CUDA devices; use --device cpu"
            )
        torch.cuda.set_device(device)
    return device


def join_world(
    rank: int,
    size: int,
    device: torch.device,
    timeout_s: float,
    whereabouts: Whereabouts | None = None,
) -> World:
    """Connect to the other ranks (torchrun's environment says where) and make the groups.

    Args:
        rank: in the plan; torchrun may have given this process another number.
        size: ranks in all.
        device: this rank's.
        timeout_s: longest wait for another rank once training has started.
        whereabouts: where this rank notes what it does.
    """
    whereabouts = Whereabouts(f"rank {rank}") if whereabouts is None else whereabouts
    if size == 1:
        return World(rank, size, device, whereabouts=whereabouts)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with waiting_for("all ranks to start"):
        store = store_of_torchrun(os.environ, rank, START_TIMEOUT_S)
        limit = datetime.timedelta(seconds=START_TIMEOUT_S)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        world = make_groups(rank, size, device, backend, timeout_s)
    return replace(world, whereabouts=whereabouts, store=store)


def make_groups(
    rank: int, size: int, device: torch.device, backend: str, timeout_s: float
) -> World:
    """Return the world of an initialised torch.distributed, with its groups."""
    limit = datetime.timedelta(seconds=timeout_s)
    start = dist.group.WORLD
    assert start is not None
    control, checkpoints = (dist.new_group(backend="gloo", timeout=limit) for _ in range(2))
    messages: dict[tuple[bool, bool], dist.ProcessGroup] = {}
    for forward in (True, False):
        messages[forward, True] = dist.new_group(backend=backend, timeout=limit)
        is_apart = backend == "nccl"
        messages[forward, False] = (
            dist.new_group(backend=backend, timeout=limit) if is_apart else messages[forward, True]
        )
    patient = datetime.timedelta(seconds=max(timeout_s, START_TIMEOUT_S))
    announcements = dist.new_group(backend="gloo", timeout=patient)
    return World(
        rank=rank,
        size=size,
        device=device,
        start=start,
        control=control,
        messages=messages,
        announcements=announcements,
        checkpoints=checkpoints,
        backend=backend,
        timeout_s=timeout_s,
    )


def shake_hands(world: World, what: Mapping[str, str]) -> None:
    """Check that all ranks have the same of everything that must agree.

    Args:
        world: this rank's.
        what: texts by name; of long ones a hash is compared and shown.

    Raises:
        InputError: two ranks differ; the message names both, what differs and both values.
    """
    if world.start is None:
        return
    mine = {name: text if len(text) <= 64 else _hash_of(text) for name, text in what.items()}
    mine["host"] = socket.gethostname()
    everyone: list[dict[str, str]] = [{} for _ in range(world.size)]
    with waiting_for("the handshake of all ranks"):
        dist.all_gather_object(everyone, mine, group=world.start)
    for rank, other in enumerate(everyone):
        for name, value in everyone[0].items():
            if name != "host" and other.get(name) != value:
                raise InputError(
                    f"rank 0 on {everyone[0]['host']} has {name} {value}, but rank {rank} on "
                    f"{other['host']} has {other.get(name)}; give all ranks the same files and options"
                )


def _hash_of(text: str) -> str:
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def leave_world() -> None:
    """Close the groups, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
