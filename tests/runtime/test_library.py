"""The library in a user's own script: the losses of a plain loop over the original model."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stagewright.document import InputError
from stagewright.runtime.library import start, step
from stagewright.task import load_task

MakePackage = Any
SCRIPT = Path(__file__).parent / "library_script.py"


def plain_losses(task_name: str) -> list[float]:
    """Do what library_script.py does in one process, with torch alone."""
    task = load_task(task_name)
    torch.manual_seed(0)
    model = task.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(3):
        images = torch.randn(11, 1, 8, 8, generator=generator)
        digits = torch.randint(10, (11,), generator=generator)
        total = 0.0
        for part in (slice(0, 4), slice(4, 8), slice(8, 11)):
            loss = task.call("loss", model(images[part]), digits[part]) * len(digits[part]) / 11
            loss.backward()
            total += loss.item()
        losses.append(total)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_three_lines_in_a_torchrun_script_train_on_the_users_own_tensors(
    make_package: MakePackage, tmp_path: Path
) -> None:
    package = make_package("mlp", [1, 1], 3, "1f1b")
    output = tmp_path / "losses"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
    script = (str(SCRIPT), str(package.directory), package.task, str(output))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "2", *script],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = plain_losses(package.task)
    for rank in range(2):
        found = [float(word) for word in Path(f"{output}.{rank}").read_text().split()]
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_does_not_fit_the_plan_is_one_clear_line(
    make_package: MakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    package = make_package("mlp", [1], 3, "1f1b")
    session = start(package.directory, package.task, device="cpu")
    images, digits = torch.zeros(13, 1, 8, 8), torch.zeros(13, dtype=torch.long)
    with pytest.raises(InputError, match=r"has 13 samples, expected 9 to 12: the plan has 3 micro"):
        step(session, images, digits)
    with pytest.raises(InputError, match=r"has tensors of \[12, 13\] samples, expected one number"):
        step(session, images[:12], digits)
    with pytest.raises(InputError, match=r"inputs have no 0, expected them as example_input gives"):
        step(session, {"image": images[:12]}, digits[:12])
    two = make_package("mlp", [1, 1], 3, "1f1b")
    with pytest.raises(InputError, match=r"1 rank was started, but the plan has 2"):
        start(two.directory, two.task)
