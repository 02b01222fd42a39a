"""PipeDream's and SparsePipe's cases planned by us, beside the values of their planners; branching graphs.

python benchmarks/seed_planners.py --data FOLDER     # FOLDER holds pipedream/ and sparsepipe/ graphs
python benchmarks/seed_planners.py                   # branching graphs only
python benchmarks/seed_planners.py --graph resnet50.txt
"""

import argparse
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagewright.cli import run
from stagewright.optimizer.pipedream.hierarchical import HierarchicalRequest, plan_hierarchical
from stagewright.optimizer.pipedream.hybrid import HybridRequest, plan_hybrid
from stagewright.optimizer.pipedream.problem import PIPEDREAM_FACTOR, SPARSEPIPE_FACTOR, Level
from stagewright.optimizer.pipedream.report import Outcome
from stagewright.optimizer.pipedream.synthetic_graphs import GRAPHS

LEVELS = {
    "16": (Level(16, 3.125e9),),
    "8x2": (Level(8, 25e9), Level(2, 3.125e9)),
    "4x4": (Level(4, 25e9), Level(4, 3.125e9)),
}


@dataclass(frozen=True)
class LevelsCase:
    """A case of equal devices, with their planner's objective in seconds."""

    profile: str
    num_devices: int
    bandwidth: float
    factor: float
    compression: float | None
    theirs_s: float


@dataclass(frozen=True)
class ServersCase:
    """A case of a server file, with their planner's objective in seconds."""

    servers: tuple[tuple[tuple[str, int], ...], ...]
    bandwidths: tuple[float, ...]
    theirs_s: float


VGG16 = "pipedream/vgg16.graph.txt"
MINKVGG = "sparsepipe/minkvgg_b64_{}.graph.txt"
LEVELS_CASES = (
    LevelsCase(VGG16, 4, 1e9, PIPEDREAM_FACTOR, 1.0, 0.205521),
    LevelsCase(VGG16, 4, 1e9, PIPEDREAM_FACTOR, None, 0.175733),
    LevelsCase(VGG16, 4, 1e10, PIPEDREAM_FACTOR, 1.0, 0.170179),
    LevelsCase(MINKVGG.format("RTX"), 2, 1e8, SPARSEPIPE_FACTOR, 1.0, 0.458293),
    LevelsCase(MINKVGG.format("RTX"), 4, 1e8, SPARSEPIPE_FACTOR, 1.0, 0.236534),
    LevelsCase(MINKVGG.format("TitanV"), 4, 1e8, SPARSEPIPE_FACTOR, 1.0, 0.328908),
)
SERVERS_CASES = (
    ServersCase(((("TitanV", 1), ("TitanXP", 3)),), (1e8,), 0.381618),
    ServersCase(((("RTX", 2),),), (1e8,), 1.611070),
    ServersCase(((("RTX", 2),),), (1e9,), 0.473779),
    ServersCase(((("RTX", 4),),), (1e9,), 0.194789),
    ServersCase(((("RTX", 4),), (("TitanV", 1), ("TitanXP", 2))), (1e9, 1e8), 2.3671),
)


def published_rows(data: Path) -> Iterator[str]:
    """Yield a row for every published case."""
    yield "| case | B/s | transfers | theirs s | ours s | plan (cuts x replicas) | s to plan |"
    yield "|---|--:|---|--:|--:|---|--:|"
    for case in LEVELS_CASES:
        request = HierarchicalRequest(
            graph_path=data / case.profile,
            levels=(Level(case.num_devices, case.bandwidth),),
            compression=case.compression,
            reduce_factor=case.factor,
        )
        name = (
            f"{Path(case.profile).name.partition('.')[0]} x {case.num_devices}, c = {case.factor:g}"
        )
        counted = "counted" if case.compression else "not counted"
        outcome, _ = plan_hierarchical(request)
        yield row(name, f"{case.bandwidth:g}", counted, case.theirs_s, outcome)
    for servers_case in SERVERS_CASES:
        outcome = plan_servers(servers_case, data)
        name = " + ".join(
            " ".join(f"{kind} {count}" for kind, count in server) for server in servers_case.servers
        )
        bandwidths = " ".join(f"{b:g}" for b in servers_case.bandwidths)
        yield row(f"server file: {name}", bandwidths, "counted", servers_case.theirs_s, outcome)


def plan_servers(case: ServersCase, data: Path) -> Outcome:
    """Return our plan for a case of a server file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "servers.txt"
        lines = []
        for number, server in enumerate(case.servers):
            lines.append(f"Server{number}")
            lines += [f"  {k} {n} {(data / MINKVGG.format(k)).resolve()}" for k, n in server]
        path.write_text("\n".join(lines))
        request = HybridRequest(server_path=path, bandwidths=case.bandwidths, compression=1.0)
        return plan_hybrid(request)[0]


def row(name: str, bandwidth: str, counted: str, theirs_s: float, outcome: Outcome) -> str:
    """Return one row of the table."""
    stages = " ".join(f"[{s.first},{s.last})x{len(s.ranks)}" for s in outcome.pipeline.stages)
    return (
        f"| {name} | {bandwidth} | {counted} | {theirs_s:.6f} | **{outcome.pipeline.value_s:.6f}** | "
        f"{stages} | {outcome.seconds:.3f} |"
    )


def branching_rows(extra: Sequence[Path]) -> Iterator[str]:
    """Yield a row for every branching graph, cluster and solver; transfers counted."""
    yield "| graph | layers | GPUs | solver | pieces | objective s | bound s | gap | s to plan | peak MB |"
    yield "|---|--:|---|---|--:|--:|--:|--:|--:|--:|"
    with tempfile.TemporaryDirectory() as folder:
        paths = {path.stem: path for path in extra}
        for name, make in GRAPHS.items():
            paths[name] = Path(folder) / f"{name}.txt"
            make().save(paths[name])
        for name, path in paths.items():
            for cluster, levels in LEVELS.items():
                for solver in ("pipedream", "exact"):
                    request = HierarchicalRequest(
                        graph_path=path, levels=levels, solver=solver, compression=1.0
                    )
                    outcome, _ = plan_hierarchical(request)
                    yield branching_row(name, cluster, outcome)


def branching_row(name: str, cluster: str, outcome: Outcome) -> str:
    """Return one row of the table of branching graphs."""
    found = outcome.pipeline
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pieces = f"{len(found.cuts) - 1}{'' if found.cuts.complete else ' (chain)'}"
    return (
        f"| {name} | {len(found.cuts.topology.nodes)} | {cluster} | {found.solver} | {pieces} | "
        f"{found.value_s:.6f} | {found.bound_s:.6f} | {1 - found.bound_s / found.value_s:.1%} | "
        f"{outcome.seconds:.2f} | {kilobytes // 1024} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with the published graphs")
    parser.add_argument(
        "--graph", type=Path, nargs="*", default=[], help="more branching graphs to plan"
    )
    args = parser.parse_args(argv)
    if args.data is not None:
        for line in published_rows(args.data):
            print(line)
        print()
    for line in branching_rows(args.graph):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run("seed_planners", main, None))
