"""Step counts of Metis's search beside the published ones, and the optimum under its formula.

python benchmarks/metis_table.py              # rows 1 to 3
python benchmarks/metis_table.py --long       # row 4 too: about 7 minutes
python benchmarks/metis_table.py --plot metis.png
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagewright.cli import run
from stagewright.optimizer.metis.exact import solve_exactly
from stagewright.optimizer.metis.picture import check_can_draw, draw_counts
from stagewright.optimizer.metis.plan import defects_of
from stagewright.optimizer.metis.problem import Problem, Settings, load_problem
from stagewright.optimizer.metis.search import search
from stagewright.profiler.synthetic import hostfile_text, write_profiles

ROWS = {
    1: (10, 16, 612, 562),
    2: (20, 32, 58078, 41208),
    3: (20, 64, 3734, 3482),
    4: (40, 128, 1714619, 1553492),
}
"""Layers, devices of each type, published count of Metis, and of its fork (USE_STRAT)."""
LONG_ROWS = (4,)
CLUSTERFILE = Path(__file__).resolve().parents[1] / "hete_files" / "metis" / "clusterfile.json"


def load_row(row: int, folder: Path) -> Problem:
    """Return a row's problem, read from files as the command reads them."""
    settings = Settings(
        num_layers=ROWS[row][0],
        global_batch_size=128,
        hidden_size=4096,
        sequence_length=1024,
        vocab_size=51200,
        max_tensor_parallel=128,
        max_batch_size=128,
    )
    return load_problem(settings, folder / "hostfile", CLUSTERFILE, folder / "profile")


def result_of(row: int) -> dict[str, Any]:
    """Return one row's figures; seconds are measured, costs predicted."""
    num_layers, num_devices, published, published_fork = ROWS[row]
    found: dict[str, Any] = {"row": row, "layers": num_layers, "devices": 2 * num_devices}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_profiles(num_layers, 128, folder / "profile")
        (folder / "hostfile").write_text(hostfile_text(num_devices))
        for solver, use_strat, expected in (
            ("metis", False, published),
            ("fork", True, published_fork),
        ):
            problem = load_row(row, folder)
            started = time.perf_counter()
            result = search(problem, use_strat)
            found |= {
                f"{solver}_seconds": time.perf_counter() - started,
                f"{solver}_count": result.count,
                f"{solver}_published": expected,
            }
            clean = (
                ranked.cost_ms
                for ranked in result.plans
                if set(defects_of(problem, ranked.plan)) <= {"exceeds-memory"}
            )
            found[f"{solver}_executable_ms"] = next(clean, None)
        for key, device_memory in (("exact", False), ("fitting", True)):
            started = time.perf_counter()
            exact = solve_exactly(load_row(row, folder), device_memory=device_memory)
            found |= {
                f"{key}_seconds": time.perf_counter() - started,
                f"{key}_ms": exact.best.cost_ms if exact.best else None,
                f"{key}_gap": exact.gap,
                f"{key}_proven": exact.proven,
            }
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as two tables."""
    lines = [
        "| row | layers | GPUs (V100 + A100) | steps, Metis: ours / published | seconds "
        "| steps, fork: ours / published | seconds |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        half = row["devices"] // 2
        lines.append(
            f"| {row['row']} | {row['layers']} | {half} + {half} "
            f"| {row['metis_count']} / {row['metis_published']} | {row['metis_seconds']:.2f} "
            f"| {row['fork_count']} / {row['fork_published']} | {row['fork_seconds']:.2f} |"
        )
    lines += [
        "",
        "| row | best executable plan of the search, ms | optimum, ms | gap | seconds "
        "| optimum that fits each GPU, ms | gap | seconds |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [
            cell
            for key in ("exact", "fitting")
            for cell in (
                f"{row[f'{key}_ms']:.3f}",
                f"{row[f'{key}_gap']:.2%}",
                f"{row[f'{key}_seconds']:.2f}",
            )
        ]
        lines.append(f"| {row['row']} | {row['metis_executable_ms']:.3f} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", "Seconds are measured; costs are predicted; profiles are emulated."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; the status is 1 if a step count is not the published one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--long", action="store_true", help="row 4 too")
    parser.add_argument("--plot", type=Path, help="draw the step counts (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if args.plot:
        check_can_draw(args.plot)
    warm_up()
    rows = [result_of(row) for row in ROWS if args.long or row not in LONG_ROWS]
    if args.plot:
        draw_counts(args.plot, rows)
    print(json.dumps({"rows": rows}) if args.json else markdown(rows))
    kinds = ("metis", "fork")
    same = all(row[f"{kind}_count"] == row[f"{kind}_published"] for row in rows for kind in kinds)
    return 0 if same else 1


def warm_up() -> None:
    """Solve row 1 once: the first call of everything is slower."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_profiles(ROWS[1][0], 128, folder / "profile")
        (folder / "hostfile").write_text(hostfile_text(ROWS[1][1]))
        solve_exactly(load_row(1, folder))


if __name__ == "__main__":
    sys.exit(run("metis_table", main, None))
