"""The main job as a user does it: profile two device types, plan, generate, train, by commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stagewright.plan import Plan

TASK = """\
import torch
from torch import nn
from models.net import Net
from sklearn.datasets import load_digits

def build():
    return Net()

def example_input(batch_size):
    return torch.zeros(batch_size, 64)

def loss(output, target):
    return nn.functional.cross_entropy(output, target)

def metric(output, target):
    return (output.argmax(1) == target).float().mean().item()

def dataset(split):
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    half = slice(0, 1400) if split == "train" else slice(1400, None)
    return torch.utils.data.TensorDataset(x[half], y[half])
"""
NET = """\
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(128, 128)
        self.last = nn.Linear(128, 10)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x + self.second(x).relu())
"""
CLUSTER = """\
format = "stagewright.cluster"
version = 1

[device_types.fast]
memory_bytes = 100_000_000
profile = "fast.json"

[device_types.slow]
memory_bytes = 100_000_000
profile = "slow.json"

[[servers]]
name = "here"
devices = [{ type = "fast", count = 1 }, { type = "slow", count = 2 }]

[links.inside_server]
bandwidth_bytes_per_s = 2.0e9
latency_ms = 0.1
"""


def stagewright(folder: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run one command in the user's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "stagewright.cli", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a models/ of its own, a task that imports it, and both profiles."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "models").mkdir()
    (folder / "models" / "__init__.py").write_text("")
    (folder / "models" / "net.py").write_text(NET)
    (folder / "task.py").write_text(TASK)
    (folder / "cluster.toml").write_text(CLUSTER)
    common = ("profile", "task.py", "-b", "8", "16", "--repeats", "3")
    stagewright(folder, *common, "--device-type", "fast", "-o", "fast.json")
    slow = ("--device-type", "slow", "--emulate-slowdown", "2.5", "-o", "slow.json")
    said = stagewright(folder, *common, *slow)
    assert "emulated" in said.stdout
    return folder


def test_a_model_is_profiled_planned_generated_and_trained(folder: Path) -> None:
    optimize = ("optimize", "cluster.toml", "--batch-size", "64", "-o", "plan.json")
    given = ("--cuts", "second", "--replicas", "1,2", "--types", "slow,fast+slow")
    planned = stagewright(folder, *optimize, *given)
    assert "emulated" in planned.stdout
    plan = Plan.load(folder / "plan.json")
    assert [len(stage.replicas) for stage in plan.stages] == [1, 2]
    assert plan.slowdowns == {"slow": 2.5}
    stagewright(folder, "generate", "plan.json", "-o", "stages")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "3",
    ]
    train = [
        "-m",
        "stagewright.runtime",
        "stages",
        "--task",
        "task.py",
        "--epochs",
        "6",
        "--lr",
        "0.2",
    ]
    files = ["--output", "weights.safetensors", "--report", "report.json"]
    done = subprocess.run(
        [*torchrun, *train, *files],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "report.json").read_text())
    assert result["history"]["epochs"][-1]["test_metric"] >= 0.85
    assert [r["emulated_slowdown"] for r in result["report"]["replicas"]].count(2.5) == 2
    names = set(load_file(folder / "weights.safetensors"))
    assert names == {
        f"{layer}.{kind}" for layer in ("first", "second", "last") for kind in ("weight", "bias")
    }


def test_planning_and_generating_need_no_torch(folder: Path, tmp_path: Path) -> None:
    """A torch that cannot be imported stands first on the path."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    program = (
        "import sys; from stagewright.cli import main; "
        "status = main(['optimize', 'cluster.toml', '--batch-size', '64', '-o', 'laptop.json', "
        "'--trace', 'trace.json']) or main(['schedule', 'laptop.json']) "
        "or main(['generate', 'laptop.json', '-o', 'laptop_stages']); sys.exit(status)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "trace.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("profile", "nonesuch.py", "--device-type", "a", "-b", "4", "-o", "x.json"),
            "nonesuch.py",
        ),
        (
            ("profile", "no.such.module", "--device-type", "a", "-b", "4", "-o", "x.json"),
            "no.such.module",
        ),
        (
            ("optimize", "nonesuch.toml", "-o", "x.json", "--batch-size", "8"),
            "nonesuch.toml: cannot be read",
        ),
        (("generate", "nonesuch.json", "-o", "x"), "nonesuch.json: cannot be read"),
        (
            ("generate", "fast.json", "-o", "x"),
            "format is 'stagewright.graph', expected 'stagewright.plan'",
        ),
        (("train", "nonesuch", "--task", "task.py"), "nonesuch: holds no plan.json"),
        (("dance",), "command is 'dance'"),
    ],
)
def test_wrong_input_is_one_clear_line_and_status_2(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = stagewright(folder, *arguments, status=2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr


def test_profiles_of_different_models_are_refused(folder: Path) -> None:
    (folder / "other.py").write_text(TASK.replace("Net()", "nn.Sequential(nn.Linear(64, 10))"))
    common = ("--device-type", "slow", "-b", "8", "16", "--repeats", "1")
    stagewright(folder, "profile", "other.py", *common, "-o", "other.json")
    (folder / "mixed.toml").write_text(CLUSTER.replace("slow.json", "other.json"))
    done = stagewright(
        folder, "optimize", "mixed.toml", "--batch-size", "64", "-o", "x.json", status=2
    )
    assert "fast.json" in done.stderr
    assert "other.json" in done.stderr
    assert not (folder / "x.json").exists()


def test_a_model_that_depends_on_data_is_refused_with_its_line(folder: Path) -> None:
    (folder / "branching.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        if x.sum() > 0:\n"
        "            return x\n"
        "        return -x\n\n"
        "def build():\n    return Net()\n\n"
        "def example_input(batch_size):\n    return torch.zeros(batch_size, 4)\n"
    )
    arguments = ("profile", "branching.py", "--device-type", "a", "-b", "4", "-o", "x.json")
    done = stagewright(folder, *arguments, status=2)
    assert "branching.py:6" in done.stderr
    assert torch.is_grad_enabled()
