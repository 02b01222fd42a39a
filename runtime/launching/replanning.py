"""Replanning: a plan and stage modules for a part of a cluster, by the commands of the other tools."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from stagewright.cluster import Cluster
from stagewright.document import InputError
from stagewright.plan import Plan


def part_of(cluster: Cluster, servers: Sequence[str]) -> Cluster:
    """Return a cluster with some of its servers, at least one, and what they use."""
    kept = tuple(server for server in cluster.servers if server.name in servers)
    used = {group.type for server in kept for group in server.devices}
    matrix = tuple(pair for pair in cluster.links.matrix if set(pair.servers) <= set(servers))
    return cluster.replace(
        servers=kept,
        device_types={n: d for n, d in cluster.device_types.items() if n in used},
        links=cluster.links.replace(matrix=matrix),
    )


class Replanner:
    """Makes a plan for each cluster once."""

    def __init__(
        self, python: str, folder: Path, profiles: Path, optimize_options: Sequence[str]
    ) -> None:
        """Write into a folder; the clusters' profiles are relative to another."""
        self._python, self._folder, self._profiles = python, folder, profiles
        self._options = tuple(optimize_options)
        self._directories: dict[str, Path] = {}

    def remember(self, cluster: Cluster, directory: Path) -> None:
        """Take stage modules that there are already for a cluster."""
        self._directories[_name_of(cluster)] = directory

    def cluster_file(self, cluster: Cluster) -> Path:
        """Return a file of a cluster, whose profiles it names relative to itself."""
        relative = os.path.relpath(self._profiles, self._folder)
        types = {
            name: device.replace(profile=os.path.normpath(os.path.join(relative, device.profile)))
            for name, device in cluster.device_types.items()
        }
        path = self._folder / f"cluster-{_name_of(cluster)}.json"
        cluster.replace(device_types=types).save(path)
        return path

    def directory_for(self, cluster: Cluster, before: Plan) -> Path:
        """Return stage modules for a cluster, with the batch and the schedule of another plan.

        The micro-batch size stays too: random layers are seeded by micro-batch, so another size would be
        another training.

        Raises:
            InputError: no plan fits; the message is the planner's.
        """
        name = _name_of(cluster)
        if name not in self._directories:
            plan, stages = self._folder / f"plan-{name}.json", self._folder / f"stages-{name}"
            self._run(
                *("optimize", str(self.cluster_file(cluster)), "-o", str(plan)),
                *("--batch-size", str(before.batch_size), "--schedule", before.schedule),
                *("--microbatch-size", str(before.microbatch_size), *self._options),
            )
            self._run("generate", str(plan), "-o", str(stages))
            self._directories[name] = stages
        return self._directories[name]

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [self._python, "-m", "stagewright.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise InputError(f"planning anew failed: {said[-1]}")


def _name_of(cluster: Cluster) -> str:
    return hashlib.sha256(msgspec.json.encode(cluster)).hexdigest()[:8]
