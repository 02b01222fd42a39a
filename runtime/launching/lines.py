"""Lines: the torchrun command of every server of a plan."""

import os
import re
import shlex
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagewright.cluster import Cluster
from stagewright.document import InputError
from stagewright.graph import LayerGraph
from stagewright.plan import Plan
from stagewright.runtime.ranks.servers import ranks_by_server

ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""For torchrun: without it, ranks that it restarts on several servers wait for dead ones (torch 2.13)."""
HERE = ("localhost", "127.0.0.1", "::1")
SSH = (
    "ssh",
    *("-o", "BatchMode=yes"),
    *("-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=15"),
)
_PROCESSOR = re.compile(r", \d+ threads?\Z", re.ASCII)
"""How the profiler describes a device that is no GPU."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to launch and how."""

    cluster: Path
    directory: Path
    """Of the stage modules; all servers must see it under this path."""
    train_options: tuple[str, ...]
    hosts: Mapping[str, str]
    """The address of each server that is not reached by its name."""
    python: str
    port: int
    max_restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class ServerLine:
    """What one server runs."""

    server: str
    host: str
    ranks: tuple[int, ...]
    command: tuple[str, ...]

    @property
    def is_here(self) -> bool:
        """Whether the server is this machine."""
        return self.host in (*HERE, socket.gethostname())

    @property
    def text(self) -> str:
        """The command as one types it on the server, environment included."""
        settings = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        return " ".join([*settings, shlex.join(self.command)])


def lines_of(launch: Launch, plan: Plan) -> tuple[ServerLine, ...]:
    """Return the line of every server that a plan uses, in the order of its ranks.

    Every server starts as many processes as the plan has ranks there. They take the plan's ranks by the
    server's name, not by torchrun's numbers, and GPUs by the name that the server's profile was measured on.

    Raises:
        InputError: the plan is not one for this cluster.
    """
    cluster = Cluster.load(launch.cluster)
    servers = ranks_by_server(plan)
    _check_devices(launch, cluster, plan)
    gpus = _gpu_names(launch.cluster, cluster, plan)
    first = launch.hosts.get(next(iter(servers)), next(iter(servers)))
    lines = []
    for position, (server, ranks) in enumerate(servers.items()):
        host = launch.hosts.get(server, server)
        torchrun = (
            *(launch.python, "-m", "torch.distributed.run"),
            *("--nnodes", str(len(servers)), "--nproc-per-node", str(len(ranks))),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{launch.port}"),
            *("--rdzv-id", f"stagewright-{launch.port}"),
            *("--rdzv-conf", f"is_host={int(position == 0)}", "--local-addr", host),
            *("--max-restarts", str(launch.max_restarts)),
        )
        names = [gpus[rank] for rank in ranks]
        devices = [word for name in names if name is not None for word in ("--gpu", name)]
        train = ("-m", "stagewright.runtime", str(launch.directory), "--server", server)
        command = (*torchrun, *train, *devices, *launch.train_options)
        lines.append(ServerLine(server=server, host=host, ranks=tuple(ranks), command=command))
    return tuple(lines)


def _check_devices(launch: Launch, cluster: Cluster, plan: Plan) -> None:
    """Raise InputError if the plan uses devices that the cluster does not have."""
    present = Counter((slot.server, slot.device_type) for slot in cluster.slots)
    replicas = {replica.rank: replica for stage in plan.stages for replica in stage.replicas}
    used = Counter((replica.server, replica.device_type) for replica in replicas.values())
    for (server, device_type), count in used.items():
        found = present[server, device_type]
        if found < count:
            raise InputError(
                f"{launch.directory / 'plan.json'}: uses {count} of {device_type!r} on server {server!r}, "
                f"but {launch.cluster} has {found} there; plan for this cluster"
            )


def _gpu_names(path: Path, cluster: Cluster, plan: Plan) -> dict[int, str | None]:
    """Return for each rank the name of its GPU; None: it runs on a processor."""
    types = {r.rank: r.device_type for stage in plan.stages for r in stage.replicas}
    names: dict[str, str | None] = {}
    for device_type in sorted(set(types.values())):
        graph = LayerGraph.load(path.parent / cluster.device_types[device_type].profile)
        names[device_type] = None if _PROCESSOR.search(graph.device) else graph.device
    if None in names.values() and len(set(names.values())) > 1:
        raise InputError(
            f"{path}: the plan uses processors and GPUs ({', '.join(names)}), whose ranks cannot exchange "
            "messages; plan for one or the other"
        )
    return {rank: names[device_type] for rank, device_type in types.items()}


def command_on(line: ServerLine, ssh: Sequence[str], command: Sequence[str]) -> list[str]:
    """Return the command that runs another in this folder on a line's server.

    Args:
        line: of the server.
        ssh: the program, with options, that is given a host and a command line; empty: ssh for other
            machines, nothing for this one.
        command: what to run there.
    """
    if line.is_here and not ssh:
        return ["env", *(f"{name}={value}" for name, value in ENVIRONMENT.items()), *command]
    settings = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    text = f"cd {shlex.quote(os.getcwd())} && {settings} exec {shlex.join(command)}"
    return [*(ssh or SSH), line.host, text]
