"""Schedules whose units are slices of micro-batches, against one process that knows no slices."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from stagewright.document import InputError
from stagewright.plan import Border, NamedValue
from stagewright.runtime.execution.earlier_slices import EarlierSlices
from stagewright.runtime.execution.randomness import LayerSeeds, seed_of
from stagewright.runtime.execution.stage import StageRunner, UnitInputs
from stagewright.runtime.messages.slicing import Slicing
from stagewright.schedule import Unit, Worker
from stagewright.value import NumberSpec

from .slice_jobs import CPU, PRECISION, Tokens, attention_stages, squared_error
from .tokens_task import NUM_TOKENS

RankPool = Any
MakePackage = Any
HERE = Path(__file__).parent
TASK = str(HERE / "tokens_task.py")


def whole_attention(
    num_stages: int, num_microbatches: int, num_tokens: int
) -> tuple[float, dict[str, Any]]:
    """Return loss and gradients of one process without slices."""
    net = torch.nn.Sequential(*attention_stages(num_stages))
    data, total = Tokens(num_tokens), 0.0
    for microbatch in range(num_microbatches):
        x: Any = data.inputs_of(microbatch, ["x"])["x"]
        for stage in net:
            (x,) = stage(x)
        loss = squared_error([x], target=data.target_of(microbatch), unit=Unit(microbatch))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    found = {name: p.grad for name, p in net.named_parameters()}
    return total, {name.partition(".")[2]: g.numpy() for name, g in found.items() if g is not None}


def distance(found: Any, expected: Any) -> float:
    """Return the largest difference relative to the largest entry expected."""
    return float(abs(found - expected).max() / abs(expected).max())


ONE_EACH = [[Worker(0, 1)], [Worker(1, 1)]]


@pytest.mark.parametrize(
    ("schedule", "stages", "num_microbatches", "lengths", "recomputing"),
    [
        ("gpipe", ONE_EACH, 2, (4, 3, 5), []),
        ("1f1b", ONE_EACH, 3, (5, 4, 2, 1), [0]),
        ("1f1b", [[Worker(0, 1), Worker(1, 2)], [Worker(2, 1)]], 4, (3, 3), []),
        ("zero-bubble", [[Worker(0, 1)], [Worker(1, 1)], [Worker(2, 1)]], 3, (4, 2, 6), [1]),
        ("interleaved", [*ONE_EACH, *ONE_EACH], 4, (2, 5, 5), []),
    ],
)
def test_attention_over_slices_has_the_gradients_of_whole_sequences(
    rank_pool: RankPool,
    schedule: str,
    stages: list[list[Worker]],
    num_microbatches: int,
    lengths: tuple[int, ...],
    recomputing: list[int],
) -> None:
    num_ranks = len({worker.rank for workers in stages for worker in workers})
    results = rank_pool.run(
        "sliced_step",
        num_ranks,
        jobs="execution/slice_jobs.py",
        schedule=schedule,
        stages=stages,
        num_microbatches=num_microbatches,
        lengths=lengths,
        recomputing=recomputing,
    )
    loss, expected = whole_attention(len(stages), num_microbatches, sum(lengths))
    assert sum(own for own, *_ in results) == pytest.approx(loss, rel=1e-12)
    found = {name: g for _, gradients, _, _ in results for name, g in gradients.items()}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert distance(found[name], gradient) <= 1e-12, name
    for _, _, actions, held in results:
        assert held == 0
        assert_order_of_slices(actions, len(lengths))


def assert_order_of_slices(actions: list[str], num_slices: int) -> None:
    """Check that every micro-batch's slices go forward in order and backward in reversed order."""
    orders: dict[tuple[str, ...], list[int]] = {}
    for action in actions:
        match = re.fullmatch(r"(\d+)([FBI])(\d+)\.(\d+)|(\d+)W.*", action)
        assert match is not None
        if match[2]:
            orders.setdefault((match[1], match[2], match[3]), []).append(int(match[4]))
    forward = list(range(num_slices))
    for (_, kind, _), order in orders.items():
        assert order == (forward if kind == "F" else forward[::-1])


@pytest.mark.parametrize(
    ("schedule", "replicas", "num_ranks", "lengths"),
    [
        ("1f1b", [2, 1], None, (5, 3, 4)),
        ("zero-bubble", [1, 1, 1], None, (6, 6)),
        ("interleaved", [1, 1, 1, 1], 2, (1, 11)),
    ],
)
def test_a_plan_runs_in_slices_as_one_process_does_without(
    rank_pool: RankPool,
    make_package: MakePackage,
    schedule: str,
    replicas: list[int],
    num_ranks: int | None,
    lengths: tuple[int, ...],
) -> None:
    package = make_package(TASK, replicas, 3, schedule, num_ranks=num_ranks)
    settings = [{"dtype": "float64", "slicing": slicing} for slicing in (None, Slicing(lengths))]
    whole, sliced = (
        rank_pool.run("gradients", package.num_ranks, settings=each, **package.arguments)
        for each in settings
    )
    for (losses, gradients), (losses_again, gradients_again) in zip(whole, sliced, strict=True):
        assert losses_again == pytest.approx(losses, rel=1e-12)
        assert set(gradients_again) == set(gradients)
        for name, gradient in gradients.items():
            assert distance(gradients_again[name], gradient) <= 1e-12, name


def test_dropout_depends_on_the_slice_and_on_no_plan(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    losses = []
    for slicing, replicas in [((7, 5), [1]), ((7, 5), [1, 2]), ((5, 7), [1])]:
        package = make_package(f"{TASK}:build_with_dropout", replicas, 3, "1f1b")
        settings = {"dtype": "float64", "slicing": Slicing(slicing)}
        results = rank_pool.run(
            "gradients", package.num_ranks, settings=settings, **package.arguments
        )
        losses.append(sum(sum(own.values()) for own, _ in results))
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)


def test_seeds_of_whole_microbatches_are_those_of_units_without_slice() -> None:
    def drawn(unit: Unit, per_step: int | None = None) -> float:
        seeds = LayerSeeds(3, per_step)
        seeds.begin(2, unit)
        seeds("layer")
        return float(torch.rand(()))

    torch.default_generator.manual_seed(seed_of(3, 2, 5, "layer"))
    expected = float(torch.rand(()))
    assert drawn(Unit(5)) == expected
    assert drawn(Unit(5)) != drawn(Unit(5, 0)) != drawn(Unit(5, 1))
    assert drawn(Unit(5, 1), 4) == drawn(Unit(5, 1), 4) != drawn(Unit(5, 1))


def run_alone(slicing: Slicing, *, forgets_earlier: bool = False) -> Any:
    """Run a micro-batch through one stage slice by slice; return the gradient of its first weights."""
    (stage,) = attention_stages(1)
    runner = StageRunner(0, stage, (), PRECISION, CPU, slicing)
    if forgets_earlier:
        vars(stage)["with_earlier"] = lambda name, value, dim: value
    x, target = (d for d in (Tokens(12).inputs_of(0, ["x"])["x"], Tokens(12).target_of(0)))
    units = [Unit(0, piece) for piece in range(slicing.num_slices)]
    for piece, unit in enumerate(units):
        parts = slicing.cut((x, target), piece)

        def finish(output: Any, target: Any = parts[1], unit: Unit = unit) -> torch.Tensor:
            return squared_error(output, target=target, unit=unit)

        runner.forward(unit, UnitInputs(2, {"x": parts[0]}, {}, finish))
    for unit in reversed(units):
        runner.backward(unit, {})
    gradient = dict(stage.named_parameters())["layers.layer0.qkv.weight"].grad
    assert gradient is not None
    return gradient.numpy()


def test_without_earlier_slices_attention_would_be_another_function() -> None:
    kept, forgotten = (run_alone(Slicing((7, 5)), forgets_earlier=f) for f in (False, True))
    whole = whole_attention(1, 1, 12)[1]["layers.layer0.qkv.weight"]
    assert distance(kept, whole) <= 1e-12
    assert distance(forgotten, whole) > 1e-2


def test_an_evaluation_in_slices_keeps_nothing() -> None:
    slicing = Slicing((7, 5))
    (stage,) = attention_stages(1)
    runner = StageRunner(0, stage, (), PRECISION, CPU, slicing)
    x = Tokens(12).inputs_of(0, ["x"])["x"]
    outputs: list[torch.Tensor] = []

    def finish(output: Any) -> torch.Tensor:
        outputs.append(output[0])
        return outputs[-1].sum()

    with torch.no_grad():
        for unit in (Unit(0, 0), Unit(0, 1), Unit(1)):
            part = x if unit.slice is None else slicing.cut(x, unit.slice)
            runner.forward(unit, UnitInputs(2, {"x": part}, {}, finish))
    assert distance(torch.cat(outputs[:2], 1).numpy(), outputs[2].numpy()) <= 1e-12
    assert runner.units_held == runner.earlier.num_held == 0


def test_slices_cut_what_has_all_positions() -> None:
    slicing = Slicing((2, 3), dimension=1)
    tokens, vector = torch.arange(10).view(2, 5), torch.zeros(2)
    cut = slicing.cut({"tokens": tokens, "rest": (vector, 7, None)}, 1)
    assert cut["tokens"].tolist() == [[2, 3, 4], [7, 8, 9]]
    assert cut["rest"][0] is vector
    assert slicing.part_of(1) == 3 / 5
    assert slicing.part_of(None) == 1


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(InputError, match="slices have the lengths"):
        Slicing((12,))
    value = NamedValue(layer="size", spec=NumberSpec(value=NUM_TOKENS))
    border = Border(source=0, target=1, values=(value,))
    with pytest.raises(InputError, match="'size' to stage 1, which is no dense tensor"):
        Slicing((6, 6)).cut_border(border, 0)


def test_earlier_slices_are_forgotten_from_the_last_on() -> None:
    earlier = EarlierSlices()
    for piece in range(3):
        earlier.begin(Unit(4, piece))
        earlier("k", torch.ones(1), 0)
    for piece in (2, 1):
        earlier.forget(Unit(4, piece))
        assert earlier.num_held == 1
    earlier.forget(Unit(4, 0))
    assert earlier.num_held == 0
