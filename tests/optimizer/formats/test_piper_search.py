"""The exact search under cost model piper is judged by brute force and by Piper's own values."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagewright.document import InputError
from stagewright.optimizer.formats import stage_space
from stagewright.optimizer.formats.piper import Edge, Model, Node, Option, Stage, load_model
from stagewright.optimizer.formats.piper_search import Limits, plan

from .files import public

AMOUNTS = st.integers(0, 6).map(float)


@st.composite
def models(draw: st.DrawFn) -> Model:
    size = draw(st.integers(1, 3))
    pairs = list(itertools.combinations(range(size), 2))
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []

    def option(node: int, plain: bool) -> Option:
        before = {str(a): draw(AMOUNTS) for a, b in edges if b == node}
        after = {str(b): draw(AMOUNTS) for a, b in edges if a == node}
        return Option(
            id="vanilla" if plain else "activation recomp",
            seconds_per_sample=draw(AMOUNTS),
            parameter_bytes=draw(AMOUNTS),
            bytes_per_unit=draw(AMOUNTS),
            fixed_bytes=draw(AMOUNTS),
            sync_in_bytes=before,
            sync_out_bytes=after,
        )

    nodes = []
    for node in range(size):
        degrees = draw(st.sampled_from([(1,), (1, 2), (2,)]))
        options = {
            t: tuple(option(node, o == 0) for o in range(draw(st.integers(1, 2)))) for t in degrees
        }
        nodes.append(Node(id=node, name=f"node {node}", options=options))
    return Model(
        nodes=tuple(nodes),
        edges=tuple(Edge(source=a, target=b, num_bytes=draw(AMOUNTS)) for a, b in edges),
        num_devices=draw(st.integers(1, 4)),
        memory_bytes=draw(st.integers(5, 40)),
        samples_per_batch=draw(st.sampled_from([1, 2, 4, 6])),
        bandwidth_bytes_per_s=2.0,
    )


def every_plan(
    model: Model, left: frozenset[int], devices: int, replicas: int
) -> Iterator[list[Stage]]:
    """Yield every sequence of stages that ends with what was taken, from the last stage backwards."""
    if not left:
        yield []
        return
    for size in range(1, len(left) + 1):
        for nodes in itertools.combinations(sorted(left), size):
            if any(e.source in nodes and e.target in left - set(nodes) for e in model.edges):
                continue
            for t, d in itertools.product((1, 2), range(1, replicas + 1)):
                if t * d > devices or model.samples_per_batch % d:
                    continue
                if any(t not in model.nodes[node].options for node in nodes):
                    continue
                counts = [range(len(model.nodes[node].options[t])) for node in nodes]
                for options in itertools.product(*counts):
                    own = Stage(nodes=nodes, tensor_parallel=t, replicas=d, options=options)
                    rest = every_plan(model, left - set(nodes), devices - t * d, replicas - d)
                    yield from ([*earlier, own] for earlier in rest)


def worst_bytes(model: Model, stages: list[Stage]) -> float:
    behind, most = 0, 0.0
    for stage in reversed(stages):
        most = max(most, model.stage_bytes(stage, behind))
        behind += stage.replicas
    return most


@settings(max_examples=40)
@given(models())
def test_the_search_finds_the_best_plan_and_else_the_least_memory(model: Model) -> None:
    most_replicas = min(model.num_devices, model.samples_per_batch)
    best, least_memory = math.inf, math.inf
    every = frozenset(range(len(model.nodes)))
    for stages in every_plan(model, every, model.num_devices, most_replicas):
        needed = worst_bytes(model, stages)
        least_memory = min(least_memory, needed)
        if needed <= model.memory_bytes:
            best = min(best, max(model.stage_seconds(stage) for stage in stages))
    found = plan(model)
    assert found.seconds_per_sample == pytest.approx(best, rel=1e-12)
    if found.stages:
        assert worst_bytes(model, list(found.stages)) <= model.memory_bytes
    elif math.isinf(least_memory):
        assert found.least_memory_bytes is None
    else:
        assert found.least_memory_bytes == least_memory


@pytest.mark.parametrize(
    ("devices", "memory_gib", "limits", "published"),
    [
        (8, 80, Limits(), 0.122007269),
        (8, 8, Limits(), 0.16585575),
        (32, 8, Limits(), 0.0415154504),
        (64, 8, Limits(), 0.0202005503),
        (64, 8, Limits(most_replicas=1), 0.07390625),
        (64, 8, Limits(most_tensor_parallel=1), 0.0202005503),
        (64, 8, Limits(recomputation=False), 0.0279882783),
    ],
)
def test_bert32_takes_no_longer_than_pipers_own_plan(
    devices: int, memory_gib: int, limits: Limits, published: float
) -> None:
    model = replace(
        load_model(public("piper/bert32a100.json")),
        num_devices=devices,
        memory_bytes=memory_gib * 2**30,
        bandwidth_bytes_per_s=25 * 2**30,
    )
    found = plan(model, limits)
    assert found.seconds_per_sample <= published + 5e-10
    assert sum(stage.replicas * stage.tensor_parallel for stage in found.stages) <= devices
    assert worst_bytes(model, list(found.stages)) <= model.memory_bytes
    assert sorted(node for stage in found.stages for node in stage.nodes) == list(range(37))


def test_bert32_on_eight_devices_needs_more_than_2_gib() -> None:
    model = replace(load_model(public("piper/bert32a100.json")), num_devices=8)
    found = plan(replace(model, memory_bytes=2 * 2**30))
    assert not found.stages and found.least_memory_bytes is not None
    assert plan(replace(model, memory_bytes=found.least_memory_bytes)).stages
    assert not plan(replace(model, memory_bytes=found.least_memory_bytes - 1)).stages


def test_a_graph_with_too_many_cuts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_space, "MOST_IDEALS", 10)
    with pytest.raises(InputError, match="more than 10 ideals"):
        plan(load_model(public("piper/bert32a100.json")))
