"""Faults at random actions and times of real runs: a handful of what make chaos does 200 times."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHAOS = Path(__file__).parents[3] / "benchmarks" / "chaos.py"


@pytest.mark.timeout(240)
def test_trainings_with_random_faults_are_resumed_and_end_bitwise_as_undisturbed(
    make_package: Any,
) -> None:
    package = make_package("mlp", [2, 1], 4, "1f1b")
    command = [sys.executable, str(CHAOS), "--kills", "4", "--seed", "3", "--json"]
    done = subprocess.run(
        [*command, "--package", str(package.directory), "--task", package.task],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] == 4
