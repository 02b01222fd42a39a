"""Elastic training: when servers vanish or appear, plan for what is there and go on from the checkpoint.

A supervisor runs the torchruns of one plan at a time, a *generation*. When one fails, it ends the others,
asks which servers still answer, plans for those with the same batch and micro-batch size (so the losses
continue as if nothing had happened, up to rounding), and resumes. When a server appears, by an edit of the
cluster file or by answering again, it asks the ranks to stop after their next checkpoint, and does the same.
"""

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stagewright.cluster import Cluster
from stagewright.document import InputError, Record, read_bytes
from stagewright.plan import Plan
from stagewright.runtime.ranks.servers import ranks_by_server
from stagewright.runtime.storage.folders import STOP_REQUEST, newest_step

from .fleet import CHECK_S, Fleet, answers
from .lines import Launch, ServerLine, lines_of
from .replanning import Replanner, part_of

TRIES = 3
"""Generations on the same cluster that may end without a new checkpoint, one after the other."""
SETTLE_S = 1.0
"""How long after a failure servers are asked whether they answer: one that goes down takes a moment."""
PROBE_EVERY_S = 30.0
FINISHED = "finished"


class Generation(Record):
    """One plan's run."""

    servers: tuple[str, ...]
    num_ranks: int
    directory: str
    """Of its stage modules."""
    first_step: int
    """Steps done when it began."""
    end: str
    """Why it ended, for people; "finished" if training is done."""


@dataclass(frozen=True, kw_only=True)
class ElasticOptions:
    """What a supervisor needs beside the launch."""

    checkpoints: Path
    work_folder: Path
    """Clusters, plans and stage modules of later generations are written here; all servers must see it."""
    optimize_options: tuple[str, ...] = ()
    probe_every_s: float = PROBE_EVERY_S
    """How often servers without ranks are asked whether they answer."""
    quiet: bool = False
    """Whether what the ranks print goes to the error output."""


class Supervisor:
    """Keeps one training going."""

    def __init__(self, launch: Launch, ssh: Sequence[str], options: ElasticOptions) -> None:
        self._launch, self._ssh, self._options = launch, ssh, options
        self._read = read_bytes(launch.cluster)
        self._cluster = Cluster.load(launch.cluster)
        self._replanner = Replanner(
            launch.python, options.work_folder, launch.cluster.parent, options.optimize_options
        )
        self._request = options.checkpoints / STOP_REQUEST
        self._next_probe_s = 0.0
        self.generations: list[Generation] = []

    def run(self) -> None:
        """Train to the end.

        Raises:
            InputError: no server is left, no plan fits those that are, or training fails again and again.
        """
        present = self._present()
        directory = self._launch.directory
        plan = Plan.load(directory / "plan.json")
        if set(ranks_by_server(plan)) <= {server.name for server in present.servers}:
            self._replanner.remember(present, directory)
        tries = 0
        while True:
            directory = self._replanner.directory_for(present, plan)
            first_step = newest_step(self._options.checkpoints)
            end = self._run_generation(directory, present)
            self._note(directory, first_step, end)
            if end == FINISHED:
                return
            before, present = present, self._present()
            moved = newest_step(self._options.checkpoints) > first_step or present != before
            tries = 0 if moved else tries + 1
            if tries == TRIES:
                raise InputError(
                    f"training ended {TRIES} times on the same servers without a new checkpoint, at last as "
                    f"{end}; see what its ranks say above"
                )

    def _run_generation(self, directory: Path, present: Cluster) -> str:
        """Run one plan until it ends or what is present changes; return why, FINISHED if training is done."""
        launch = replace(
            self._launch,
            cluster=self._replanner.cluster_file(present),
            directory=directory,
            port=self._launch.port + len(self.generations) % 100,
        )
        lines = lines_of(launch, Plan.load(directory / "plan.json"))
        used = [line.server for line in lines]
        _say(
            f"generation {len(self.generations) + 1}: {sum(len(line.ranks) for line in lines)} ranks on "
            f"{', '.join(used)}, from step {newest_step(self._options.checkpoints)}"
        )
        self._request.unlink(missing_ok=True)
        fleet = Fleet(lines, self._ssh, launch.python, quiet=self._options.quiet)
        asked = False
        try:
            while not fleet.is_over:
                time.sleep(CHECK_S)
                if not asked and self._has_changed(present, used):
                    _say("the servers have changed: stopping after the next checkpoint")
                    self._request.parent.mkdir(parents=True, exist_ok=True)
                    self._request.touch()
                    asked = True
            return self._end_of(fleet, asked=asked)
        finally:
            fleet.stop()
            self._request.unlink(missing_ok=True)

    def _end_of(self, fleet: Fleet, *, asked: bool) -> str:
        failed = {server: status for server, status in fleet.ended().items() if status}
        if not failed:
            obeyed = asked and not self._request.exists()
            return "stopped as the servers have changed" if obeyed else FINISHED
        time.sleep(SETTLE_S)
        return "; ".join(
            f"server {server} ended with {status}" for server, status in failed.items()
        )

    def _has_changed(self, present: Cluster, used: Collection[str]) -> bool:
        """Return whether the file was edited or other servers answer, so that there is another cluster now.

        Servers whose ranks run are not asked.
        """
        try:
            content = read_bytes(self._launch.cluster)
        except InputError:  # An editor may put a new file in its place by deleting it first.
            content = self._read
        if content == self._read and time.monotonic() < self._next_probe_s:
            return False
        if content != self._read:
            self._read = content
            try:
                self._cluster = Cluster.load(self._launch.cluster)
            except InputError as error:
                _say(f"{error}; going on with the cluster as it was")
        return self._present(used) != present

    def _present(self, running: Collection[str] = ()) -> Cluster:
        """Return the part of the cluster that answers.

        Raises:
            InputError: no server answers.
        """
        hosts = self._launch.hosts
        found = []
        for name in (server.name for server in self._cluster.servers):
            line = ServerLine(server=name, host=hosts.get(name, name), ranks=(), command=())
            if name in running or answers(line, self._ssh):
                found.append(name)
        self._next_probe_s = time.monotonic() + self._options.probe_every_s
        if not found:
            raise InputError(
                f"{self._launch.cluster}: none of its servers answers; training stands at step "
                f"{newest_step(self._options.checkpoints)} in {self._options.checkpoints}"
            )
        return part_of(self._cluster, found)

    def _note(self, directory: Path, first_step: int, end: str) -> None:
        plan = Plan.load(directory / "plan.json")
        self.generations.append(
            Generation(
                servers=tuple(ranks_by_server(plan)),
                num_ranks=plan.num_ranks,
                directory=str(directory),
                first_step=first_step,
                end=end,
            )
        )
        last = newest_step(self._options.checkpoints)
        _say(f"generation {len(self.generations)}: {end}; newest checkpoint: step {last}")


def _say(text: str) -> None:
    print(f"stagewright launch: {text}", file=sys.stderr, flush=True)
