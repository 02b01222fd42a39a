"""Sparse tensors between stages: any cut computes bitwise what the model computes in one piece.

The stages run in this process, one after the other, and exchange what their ranks would: messages without
the autograd graph that made them. STAGEWRIGHT_EVERY_CUT=1 (`make sparse-cuts`) tries every cut.
"""

import json
import os
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stagewright.graph import LayerGraph
from stagewright.models.minkowski.engine.installed import why_unusable
from stagewright.optimizer.borders import borders_of, chain_of, stage_layers
from stagewright.optimizer.codegen.package import generate
from stagewright.profiler.measuring.working import CpuPeakMeter
from stagewright.runtime.execution.stage import StageRunner, UnitInputs
from stagewright.runtime.messages.codecs import Packer, Unpacker, pack_border
from stagewright.runtime.messages.values import Payload, Precision, ValueMismatchError
from stagewright.runtime.storage.package import (
    StagePackage,
    build_original,
    load_package,
    make_stage,
)
from stagewright.runtime.training.memory import storage_bytes
from stagewright.schedule import Unit
from stagewright.task import load_task
from stagewright.value import VoxelsSpec, tensors_of

pytestmark = pytest.mark.skipif(why_unusable() is not None, reason=str(why_unusable()))

RankPool = Any
MakePackage = Any
Gradients = dict[str, Any]
PRECISION = Precision("float32", "float64")
BATCH_SIZE = 4
TASKS = ("minkowski/vgg:small", "minkowski/resnet", "minkowski/unet")
FEWEST_LAYERS = 30
"""That any of them has."""
EVERY_CUT = bool(os.environ.get("STAGEWRIGHT_EVERY_CUT"))


class Whole:
    """A model in one piece, its layer graph, and what one micro-batch gives in it."""

    def __init__(self, make_package: MakePackage, task_name: str) -> None:
        package = make_package(task_name, [1], 1, "gpipe")
        self.task = load_task(package.task)
        folder = package.directory.parent
        self.folder = folder
        self.graph = LayerGraph.load(folder / "graph.json")
        self.plan = json.loads((folder / "plan.json").read_text())
        samples = [self.task.call("dataset", "train")[i] for i in range(BATCH_SIZE)]
        self.points = torch.stack([points for points, _ in samples]).double()
        self.target = torch.stack([torch.as_tensor(target) for _, target in samples])
        torch.manual_seed(0)
        self.model = self.task.build().double()
        self._no_dropout(self.model)
        self.output = self.model(self.points)
        self.task.call("loss", self.output, self.target).backward()

    @staticmethod
    def _no_dropout(model: torch.nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    def cut(self, cuts: Sequence[int], folder: Path) -> list[StageRunner]:
        """Return the runners of the stages that some cuts make, with the model's weights."""
        stages = stage_layers(self.graph, cuts)
        borders = borders_of(self.graph, stages, BATCH_SIZE)
        first = self.plan["stages"][0]
        content = self.plan | {
            "stages": [
                first | {"layers": names, "replicas": [first["replicas"][0] | {"rank": rank}]}
                for rank, names in enumerate(stages)
            ],
            "borders": json.loads(_as_json(borders)),
        }
        folder.mkdir()
        for name in ("graph.json", "plan.json"):
            (folder / name).write_bytes((self.folder / name).read_bytes())
        (folder / "plan.json").write_text(json.dumps(content))
        generate(folder / "plan.json", folder / "stages")
        package = load_package(folder / "stages")
        state = dict(self.model.state_dict())
        device = torch.device("cpu")
        runners = []
        for index in range(len(stages)):

            def original() -> torch.nn.Module:
                return build_original(self.task, package.plan.factory)

            module = make_stage(package, index, original, torch.float64, device)
            self._no_dropout(module)
            with torch.no_grad():
                for name, tensor in module.state_dict(keep_vars=True).items():
                    tensor.copy_(state[name])
            module.before_random = lambda layer: None  # type: ignore[assignment]
            runners.append(StageRunner(index, module, package.plan.borders, PRECISION, device))
        return runners


def _as_json(borders: Any) -> str:
    import msgspec

    return msgspec.json.encode(borders).decode()


def run(whole: Whole, runners: list[StageRunner]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the output and the gradients by name of one micro-batch through all stages."""
    messages: dict[tuple[int, int], Payload] = {}
    found: list[torch.Tensor] = []

    def finish(output: torch.Tensor) -> torch.Tensor:
        found.append(output.detach())
        loss: torch.Tensor = whole.task.call("loss", output, whole.target)
        return loss

    for runner in runners:
        inputs = {name: whole.points for name in runner.input_names if name == "points"}
        received = {
            border.source: messages[border.source, runner.index] for border in runner.sources
        }
        last = runner is runners[-1]
        given = UnitInputs(BATCH_SIZE, inputs, received, finish if last else None)
        for target, payload in runner.forward(Unit(0), given).items():
            messages[runner.index, target] = payload.detached()
    back: dict[tuple[int, int], list[torch.Tensor]] = {}
    for runner in reversed(runners):
        arrived = {
            b.target: back[runner.index, b.target] for b in runner.targets if b.carries_gradient
        }
        for source, gradients in runner.backward(Unit(0), arrived).items():
            back[source, runner.index] = gradients
    gradients_by_name = {
        name: parameter.grad
        for runner in runners
        for name, parameter in runner.module.named_parameters()
        if parameter.grad is not None
    }
    return found[0], gradients_by_name


@pytest.fixture(scope="module", params=TASKS)
def whole(request: pytest.FixtureRequest, make_package: MakePackage) -> Whole:
    return Whole(make_package, request.param)


def some_cuts(whole: Whole) -> list[tuple[int, ...]]:
    """Return single cuts and cuts at random in several places."""
    size, draw = len(chain_of(whole.graph)), random.Random(0)
    several = [
        tuple(sorted(draw.sample(range(1, size), draw.randint(2, 4))))
        for _ in range(50 if EVERY_CUT else 3)
    ]
    single = range(1, size) if EVERY_CUT else draw.sample(range(1, size), 3)
    return list(dict.fromkeys([(cut,) for cut in single] + several))


def test_any_cut_gives_the_same_output_and_gradients_bitwise(whole: Whole, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    expected = {name: p.grad for name, p in whole.model.named_parameters()}
    for cuts in some_cuts(whole):
        name = "_".join(map(str, cuts))
        output, gradients = run(whole, whole.cut(cuts, tmp_path / name))
        assert torch.equal(output, whole.output), cuts
        assert gradients.keys() == expected.keys(), cuts
        for key, gradient in expected.items():
            assert gradient is not None and torch.equal(gradients[key], gradient), (cuts, key)


def test_layers_in_place_and_samples_of_a_single_voxel_are_the_same_behind_any_cut(
    make_package: MakePackage, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    whole = Whole(make_package, str(Path(__file__).parent / "sparse_in_place_task.py"))
    for cut in range(1, len(chain_of(whole.graph))):
        output, gradients = run(whole, whole.cut((cut,), tmp_path / str(cut)))
        assert torch.equal(output, whole.output), cut
        for key, parameter in whole.model.named_parameters():
            assert parameter.grad is not None and torch.equal(gradients[key], parameter.grad), cut
    written = [path.read_text() for path in sorted(tmp_path.glob("*/stages/stage1.py"))]
    assert sum(".F.clone()" in text for text in written) == 2, "before each of the two layers"


def test_a_coordinate_map_reaches_a_stage_once_and_features_only_where_they_are_taken(
    make_package: MakePackage,
) -> None:
    graph = Whole(make_package, "minkowski/unet").graph
    size = len(chain_of(graph))
    for cuts in [(cut,) for cut in range(1, size)] + [(7, 18, 25), (4, 10, 24)]:
        stages = stage_layers(graph, cuts)
        for target in range(1, len(stages)):
            specs = [
                value.spec
                for border in borders_of(graph, stages, BATCH_SIZE)
                if border.target == target
                for value in border.values
                if isinstance(value.spec, VoxelsSpec)
            ]
            brought = [(s.manager, s.map) for s in specs if s.coordinates is not None]
            assert len(brought) == len(set(brought))
            assert {(s.manager, s.map) for s in specs} == set(brought)


def test_a_transposed_layer_takes_the_coordinates_that_it_returns_to(
    make_package: MakePackage,
) -> None:
    """Cut between the upsampling and the join: the first of the two gets the skip's coordinates only."""
    graph = Whole(make_package, "minkowski/unet").graph
    names = [layer.name for layer in chain_of(graph)]
    cuts = (names.index("up0.0"), names.index("up0.0") + 1)
    borders = borders_of(graph, stage_layers(graph, cuts), BATCH_SIZE)
    by_target = {
        border.target: {value.layer: value.spec for value in border.values}
        for border in borders
        if border.source == 0
    }
    skip = by_target[1]["level0.2"]
    assert isinstance(skip, VoxelsSpec) and skip.features is None and skip.coordinates is not None
    taken = by_target[2]["level0.2"]
    assert isinstance(taken, VoxelsSpec) and taken.features is not None
    assert not any(t.requires_grad for t in tensors_of(skip))


def test_a_micro_batch_without_voxels_is_refused_by_the_sender(make_package: MakePackage) -> None:
    from stagewright.models.minkowski.voxels import ME

    whole = Whole(make_package, "minkowski/unet")
    border = borders_of(whole.graph, stage_layers(whole.graph, (4,)), BATCH_SIZE)[0]
    empty = ME.SparseTensor(torch.zeros(0, 16), coordinates=torch.zeros(0, 4, dtype=torch.int32))
    with pytest.raises(ValueMismatchError, match=r"stage 0: the value of layer .* has no voxels"):
        pack_border(border, lambda layer: empty, BATCH_SIZE, PRECISION)
    with pytest.raises(ValueMismatchError, match="is a Tensor, expected a SparseTensor"):
        pack_border(border, lambda layer: torch.zeros(3, 16), BATCH_SIZE, PRECISION)


def test_coordinates_that_come_twice_are_refused_by_the_receiver() -> None:
    from stagewright.models.minkowski.voxels import ME
    from stagewright.value import PerSample, TensorSpec

    rows = (PerSample(per_sample=1), 4)
    spec = VoxelsSpec(
        map="a",
        manager="a",
        coordinates=TensorSpec(shape=rows, dtype="int32", requires_grad=False, ragged=(0,)),
        features=TensorSpec(shape=rows, dtype="float32", requires_grad=True, ragged=(0,)),
    )
    cells = torch.tensor([[0, 1, 1, 1], [0, 2, 2, 2]], dtype=torch.int32)
    packer = Packer(2, Precision("float32", "float32"))
    packer.pack(ME.SparseTensor(torch.randn(2, 4), coordinates=cells), spec)
    sent = packer.payload
    received = Unpacker(sent, 2, {}).unpack(spec)
    assert torch.equal(received.C, cells) and torch.equal(received.F, sent.tensors[1])
    sent.tensors[0] = cells[[0, 0]]
    with pytest.raises(ValueMismatchError, match="1 distinct rows of 2"):
        Unpacker(sent, 2, {}).unpack(spec)


CASES = [
    ("minkowski/unet", [1, 1, 1], "1f1b"),
    ("minkowski/resnet", [2, 1], "1f1b"),
    ("minkowski/unet", [1, [2, 1]], "zero-bubble"),
]


@pytest.mark.parametrize(("task", "replicas", "schedule"), CASES)
def test_gradients_of_a_pipeline_of_processes_equal_one_process(
    rank_pool: RankPool,
    make_package: MakePackage,
    task: str,
    replicas: list[Any],
    schedule: str,
) -> None:
    package = make_package(task, replicas, 3, schedule)
    settings = {"dtype": "float64"}
    results = rank_pool.run("gradients", package.num_ranks, settings=settings, **package.arguments)
    from stagewright.runtime.training.batches import DataOrder

    loaded = load_task(package.task)
    torch.manual_seed(0)
    model = loaded.build().double()
    data = loaded.call("dataset", "train")
    order = DataOrder(len(data), package.microbatch_size, 3, seed=0)
    total = 0.0
    for microbatch in range(3):
        samples = [data[index] for index in order.indices(0, 0, microbatch)]
        points = torch.stack([points for points, _ in samples]).double()
        target = torch.stack([torch.as_tensor(target) for _, target in samples])
        loss = loaded.call("loss", model(points), target) / 3
        loss.backward()
        total += loss.item()
    found = {name: gradient for _, named in results for name, gradient in named.items()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(
            found[name],
            parameter.grad.numpy(),
            rtol=0,
            atol=1e-12 * parameter.grad.abs().max().item(),
        )
    losses = [loss for by_unit, _ in results for loss in by_unit.values()]
    assert sum(losses) == pytest.approx(total, rel=1e-12)


def random_mixes() -> list[tuple[str, tuple[int, ...], list[int]]]:
    """Return models with cuts at random and one to three replicas for each stage, on up to seven ranks."""
    draw, found = random.Random(1), []
    for task in TASKS:
        for _ in range(50 if EVERY_CUT else 1):
            num_stages = draw.randint(2, 4)
            replicas = [draw.randint(1, 3) for _ in range(num_stages)]
            while sum(replicas) > 7:
                replicas[replicas.index(max(replicas))] -= 1
            cuts = sorted(draw.sample(range(1, FEWEST_LAYERS), num_stages - 1))
            found.append((task, tuple(cuts), replicas))
    return found


@pytest.fixture(scope="module")
def of_one_rank(rank_pool: RankPool, make_package: MakePackage) -> Callable[[str], Gradients]:
    """Return a function of a task that gives one rank's gradients: it draws dropout as all plans do."""

    @cache
    def gradients_of(task: str) -> Gradients:
        return summed_gradients(rank_pool, make_package(task, [1], 3, "1f1b"))

    return gradients_of


def summed_gradients(rank_pool: RankPool, package: Any) -> Gradients:
    settings = {"dtype": "float64"}
    results = rank_pool.run(
        "gradients", package.num_ranks, timeout_s=60, settings=settings, **package.arguments
    )
    return {name: gradient for _, named in results for name, gradient in named.items()}


@pytest.mark.parametrize(("task", "cuts", "replicas"), random_mixes(), ids=str)
def test_gradients_of_any_cuts_with_any_replicas_equal_one_rank(
    rank_pool: RankPool,
    make_package: MakePackage,
    of_one_rank: Callable[[str], Gradients],
    task: str,
    cuts: tuple[int, ...],
    replicas: list[int],
) -> None:
    expected = of_one_rank(task)
    found = summed_gradients(rank_pool, make_package(task, replicas, 3, "1f1b", cuts=cuts))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=1e-9 * scale, err_msg=name)


def test_no_more_than_a_stage_is_in_memory_while_it_is_built_though_the_engine_knows_no_meta_device(
    make_package: MakePackage,
) -> None:
    """By constructor calls, and by taking blocks of a user's class from a model of four times its size."""
    blocks = str(Path(__file__).parent / "sparse_blocks_task.py")
    for name, cuts in (("minkowski/vgg:small", (20,)), (blocks, (3, 4, 5))):
        replicas = [1] * (len(cuts) + 1)
        package = load_package(make_package(name, replicas, 4, "1f1b", cuts=cuts).directory)
        assert package.stage_class(1).needs_original == (name == blocks)
        sizes = []
        for index in range(len(replicas)):
            peak, stage = peak_while_building(package, index)
            sizes.append(storage_bytes([*stage.parameters(), *stage.buffers()]))
            assert sizes[-1] <= peak < 1.01 * sizes[-1]
        assert name != blocks or sum(sizes) > 3.9 * max(sizes)


def peak_while_building(package: StagePackage, index: int) -> tuple[int, torch.nn.Module]:
    """Build a stage; return the most bytes that were allocated meanwhile, and the stage."""
    task = load_task(package.plan.task)
    with CpuPeakMeter() as meter:
        start = meter.now()
        stage = make_stage(
            package,
            index,
            lambda: build_original(task, package.plan.factory),
            torch.float32,
            torch.device("cpu"),
        )
        end = meter.now()
        meter.settle()
    return meter.between(start, end).num_bytes, stage
