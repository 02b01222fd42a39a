"""The batch script: a plan's torchruns as a job for Slurm."""

import os
import shlex
from collections.abc import Sequence

from .lines import ENVIRONMENT, ServerLine

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=stagewright
#SBATCH --nodes={num_servers}
#SBATCH --ntasks-per-node=1
#SBATCH --nodelist={hosts}
#SBATCH --exclusive
# By stagewright launch --sbatch from {source}: one torchrun per server, each with its own number of ranks.
set -euo pipefail
cd {folder}
{exports}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

{steps}
for _ in {turns}; do
  wait -n  # The first that fails ends the job, and the trap ends the others.
done
"""


def batch_script(lines: Sequence[ServerLine], source: str) -> str:
    """Return a script for sbatch that runs every line on its server; hosts are Slurm's node names.

    Args:
        lines: one per server.
        source: what they were made from, for people.
    """
    steps = [
        f"# ranks {' '.join(map(str, line.ranks))} of the plan\n"
        f"srun --nodes=1 --ntasks=1 --nodelist={shlex.quote(line.host)} {shlex.join(line.command)} &\n"
        for line in lines
    ]
    return SCRIPT.format(
        num_servers=len(lines),
        hosts=",".join(line.host for line in lines),
        source=source,
        folder=shlex.quote(os.getcwd()),
        exports="\n".join(f"export {name}={value}" for name, value in ENVIRONMENT.items()),
        steps="\n".join(steps),
        turns=" ".join(line.server for line in lines),
    )
