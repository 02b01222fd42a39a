"""A pool of rank processes for the whole session (importing torch takes seconds), and generated plans."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from stagewright.document import sha256_of
from stagewright.graph import LayerCost, LayerGraph, ModelIdentity
from stagewright.optimizer.borders import borders_of, chain_of, inputs_of, stage_layers
from stagewright.optimizer.codegen.package import generate
from stagewright.plan import Plan, Proof, Replica, ReplicaPrediction, Source, Stage
from stagewright.profiler.measuring.step import Autocast
from stagewright.profiler.tracing.trace import trace
from stagewright.task import load_task

HERE = Path(__file__).parent
MODELS = HERE.parent.parent / "models"


class RankPool:
    """Runs a function of rank_jobs.py, or of another file, on several ranks at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []

    def run(
        self,
        function: str,
        size: int,
        timeout_s: float = 30.0,
        jobs: str = "rank_jobs.py",
        **arguments: Any,
    ) -> list[Any]:
        """Return what the function of a file in this folder returned on each rank.

        Raises:
            AssertionError: it raised on a rank; the message has that rank's traceback.
        """
        self._grow(size)
        self._jobs += 1
        for rank in range(size):
            self._connections[rank].send(
                {
                    "path": str(HERE / jobs),
                    "function": function,
                    "rank": rank,
                    "size": size,
                    "store": str(self._folder / f"store{self._jobs}"),
                    "timeout_s": timeout_s,
                    "arguments": arguments,
                }
            )
        replies = []
        for rank in range(size):
            assert self._connections[rank].poll(timeout_s + 60), f"rank {rank} does not answer"
            replies.append(self._connections[rank].recv())
        failures = [f"rank {rank}: {text}" for rank, (good, text) in enumerate(replies) if not good]
        assert not failures, "\n".join(failures)
        return [value for _, value in replies]

    def _grow(self, size: int) -> None:
        missing = range(len(self._processes), size)
        if not missing:
            return
        address = str(self._folder / f"pool{len(self._processes)}")
        with Listener(address, family="AF_UNIX") as listener:
            for index in missing:
                command = [sys.executable, str(HERE / "rank_worker.py"), address, str(index)]
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                self._processes.append(subprocess.Popen(command, env=environment))
            arrived = {}
            for _ in missing:
                connection = listener.accept()
                arrived[connection.recv()] = connection
        self._connections += [arrived[index] for index in missing]

    def close(self) -> None:
        for connection in self._connections:
            connection.send(None)
            connection.close()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def rank_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    pool = RankPool(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()


@dataclass(frozen=True)
class Package:
    """A generated package and what a job needs to run it."""

    directory: Path
    plan: Plan
    task: str

    @property
    def num_ranks(self) -> int:
        return self.plan.num_ranks

    @property
    def microbatch_size(self) -> int:
        return self.plan.microbatch_size

    @property
    def arguments(self) -> dict[str, str]:
        return {"directory": str(self.directory), "task": self.task}


MICROBATCH_SIZE = 4


class MakePackage(Protocol):
    """Makes a package of one of our models; autocast is torch's name of a dtype.

    With num_ranks, fewer than replicas, these are dealt to the ranks in turn.
    """

    def __call__(
        self,
        task_name: str,
        replicas: Sequence[int | Sequence[int]],
        num_microbatches: int,
        schedule: str,
        autocast: str | None = None,
        num_ranks: int | None = None,
        servers: Sequence[str] = (),
        cuts: Sequence[int] | None = None,
    ) -> Package: ...


@pytest.fixture(scope="session")
def make_package(tmp_path_factory: pytest.TempPathFactory) -> MakePackage:
    """Return what traces one of our models, cuts it (evenly by count, or as told), and generates its stages.

    Nothing is measured: every cost in the graph is one, which the runtime does not read.
    """
    graphs: dict[tuple[str, str | None], LayerGraph] = {}

    def make(
        task_name: str,
        replicas: Sequence[int | Sequence[int]],
        num_microbatches: int,
        schedule: str,
        autocast: str | None = None,
        num_ranks: int | None = None,
        servers: Sequence[str] = (),
        cuts: Sequence[int] | None = None,
    ) -> Package:
        if (task_name, autocast) not in graphs:
            graphs[task_name, autocast] = unmeasured_graph(task_name, autocast)
        folder = tmp_path_factory.mktemp("package")
        graph = graphs[task_name, autocast]
        graph.save(folder / "graph.json")
        num_layers, num_stages = len(chain_of(graph)), len(replicas)
        if cuts is None:
            cuts = [num_layers * stage // num_stages for stage in range(1, num_stages)]
        plan = plan_of(graph, cuts, replicas, num_microbatches, schedule, folder / "graph.json")
        if num_ranks is not None:
            plan = dealt(plan, num_ranks)
        plan = on_servers(plan, servers) if servers else plan
        plan.save(folder / "plan.json")
        generate(folder / "plan.json", folder / "stages")
        return Package(folder / "stages", plan, path_of(task_name))

    return make


def dealt(plan: Plan, num_ranks: int) -> Plan:
    """Return a plan with its replicas dealt to the ranks in turn."""
    stages = (
        stage.replace(replicas=tuple(r.replace(rank=r.rank % num_ranks) for r in stage.replicas))
        for stage in plan.stages
    )
    return plan.replace(stages=tuple(stages))


def on_servers(plan: Plan, servers: Sequence[str]) -> Plan:
    """Return a plan whose ranks are on the given servers, one name per rank."""
    stages = (
        stage.replace(
            replicas=tuple(
                replica.replace(server=servers[replica.rank]) for replica in stage.replicas
            )
        )
        for stage in plan.stages
    )
    return plan.replace(stages=tuple(stages))


def path_of(task_name: str) -> str:
    """Return a task's name from the name of a file in models/, with or without a factory."""
    file_name, colon, factory = task_name.partition(":")
    return f"{MODELS / file_name.removesuffix('.py')}.py{colon}{factory}"


def unmeasured_graph(task_name: str, autocast: str | None = None) -> LayerGraph:
    """Return a task's layer graph with costs of one."""
    task = load_task(path_of(task_name))
    torch.manual_seed(0)
    with Autocast("cpu", getattr(torch, autocast) if autocast else None).context():
        traced = trace(task, task.build())
    one = LayerCost(
        batch_size=MICROBATCH_SIZE, forward_ms=1, backward_ms=1, output_bytes=1, saved_bytes=1
    )
    return LayerGraph(
        model=ModelIdentity(
            task=task.name, factory=task.factory, structure_sha256=traced.structure_sha256
        ),
        device_type="cpu",
        device="not measured, 1 thread",
        dtype="float32",
        autocast=autocast,
        torch_version=str(torch.__version__),
        batch_sizes=(MICROBATCH_SIZE,),
        layers=tuple(layer.replace(costs=(one,)) for layer in traced.layers),
        output=traced.output,
        tied=traced.tied,
    )


def plan_of(
    graph: LayerGraph,
    cuts: Sequence[int],
    replicas: Sequence[int | Sequence[int]],
    num_microbatches: int,
    schedule: str,
    graph_path: Path,
) -> Plan:
    """Return the plan with given cuts and replicas (a number, or their shares)."""
    layers = stage_layers(graph, cuts)
    shares = [[1] * group if isinstance(group, int) else list(group) for group in replicas]
    ranks = itertools.count()
    nothing = ReplicaPrediction(forward_ms=1, backward_ms=1, reduce_ms=0, update_ms=0, peak_bytes=1)
    stages = tuple(
        Stage(
            layers=names,
            replicas=tuple(
                Replica(
                    rank=next(ranks), server="a", device_type="cpu", share=share, predicted=nothing
                )
                for share in stage_shares
            ),
        )
        for names, stage_shares in zip(layers, shares, strict=True)
    )
    return Plan(
        task=graph.model.task,
        factory=graph.model.factory,
        structure_sha256=graph.model.structure_sha256,
        dtype=graph.dtype,
        autocast=graph.autocast,
        microbatch_size=MICROBATCH_SIZE,
        num_microbatches=num_microbatches,
        schedule=schedule,
        stages=stages,
        borders=borders_of(graph, layers, MICROBATCH_SIZE),
        inputs=inputs_of(graph, MICROBATCH_SIZE),
        predicted_step_ms=1,
        proof=Proof(solver="none", objective="none", value=1, lower_bound=0, space="given"),
        sources=(Source(role="graph:cpu", path=graph_path.name, sha256=sha256_of(graph_path)),),
    )
