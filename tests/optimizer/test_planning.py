"""Planning as a whole: micro-batch sizes, given stages, what cannot be planned, and what is said about it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.graph import ExternalOperation, LayerGraph, LayerNode
from stagewright.optimizer import baselines
from stagewright.optimizer.given import GivenStages
from stagewright.optimizer.load import Inputs
from stagewright.optimizer.planning import Request, Result, optimize
from stagewright.optimizer.problem import Problem
from stagewright.optimizer.report import report_of
from stagewright.optimizer.solvers import choose, exact
from stagewright.plan import Plan

MakeLayer = Callable[..., LayerNode]
MakeGraph = Callable[..., LayerGraph]
MakeInputs = Callable[..., Inputs]
RandomInputs = Callable[..., Inputs]


@pytest.fixture
def inputs(random_inputs: RandomInputs, tmp_path: Path) -> Inputs:
    """Six layers on a fast and two slow devices, with the files there for their hashes."""
    made = random_inputs(5, 6, [[("fast", 1), ("slow", 2)]], 10**9)
    return on_disk(made, tmp_path)


def on_disk(made: Inputs, folder: Path) -> Inputs:
    for kind, graph in made.graphs.items():
        graph.save(folder / f"{kind}.json")
    made.cluster.save(folder / "cluster.json")
    return Inputs(
        cluster=made.cluster,
        cluster_path=folder / "cluster.json",
        graphs=made.graphs,
        graph_paths={kind: folder / f"{kind}.json" for kind in made.graphs},
    )


def plan(inputs: Inputs, **options: object) -> Result:
    request = Request(**({"batch_size": 8} | options))  # type: ignore[arg-type]
    return optimize(inputs, request, inputs.cluster_path.parent / "plan.json")


def test_the_best_measured_micro_batch_size_is_chosen(inputs: Inputs) -> None:
    values = {}
    for size in (1, 2, 4):
        problem = Problem(inputs=inputs, microbatch_size=size, num_microbatches=8 // size)
        solution = exact.solve(problem)
        assert solution is not None
        values[size] = solution.value_ms
    found = plan(inputs).plan
    assert found.proof.value == pytest.approx(min(values.values()))
    assert found.proof.lower_bound == pytest.approx(found.proof.value)
    assert found.microbatch_size == min(values, key=lambda size: values[size])
    assert plan(inputs, microbatch_size=2).plan.num_microbatches == 4


def test_a_plan_is_the_same_when_planned_again_and_survives_its_file(
    inputs: Inputs, tmp_path: Path
) -> None:
    found = plan(inputs).plan
    assert plan(inputs).plan == found
    found.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == found
    assert {source.role for source in found.sources} == {"cluster", "graph:fast", "graph:slow"}


@pytest.mark.parametrize(
    ("cuts", "replicas", "types", "expected"),
    [
        ("l2", "2,1", "slow,fast", [["slow", "slow"], ["fast"]]),
        ("l2", "1,2", None, [["fast"], ["slow", "slow"]]),
        ("l1,l4", None, "slow,fast,slow", [["slow"], ["fast"], ["slow"]]),
        (None, "3", "slow+fast+slow", [["fast", "slow", "slow"]]),
    ],
)
def test_given_stages_are_kept(
    inputs: Inputs, cuts: str | None, replicas: str | None, types: str | None, expected: object
) -> None:
    given = GivenStages.parse(cuts, replicas, types)
    found = plan(inputs, given=given).plan
    assert [[r.device_type for r in stage.replicas] for stage in found.stages] == expected
    firsts = [next(n for n in stage.layers if n != "bare") for stage in found.stages]
    assert firsts[1:] == list(given.cuts)
    assert found.proof.solver == "given by the user"
    assert found.proof.lower_bound == 0.0
    ranks = [r.rank for stage in found.stages for r in stage.replicas]
    assert sorted(ranks) == list(range(found.num_ranks))
    assert found.proof.value >= plan(inputs).plan.proof.value * (1 - 1e-9)


@pytest.mark.parametrize(
    ("cuts", "replicas", "types", "message"),
    [
        ("nothing", None, None, "--cuts names 'nothing'"),
        ("l4,l1", None, None, "'l1' is not behind the cut before it"),
        ("l0", None, None, "'l0' is not behind"),
        ("l2", "3", None, "--replicas has 1 entries, but --cuts makes 2 stages"),
        ("l2", "1,x", None, "--replicas has 'x'"),
        ("l2", None, "fast,tpu", "--types has 'tpu', expected one of fast, slow"),
        ("l2", "1,1", "fast,fast", "too few devices of type 'fast'"),
        ("l2", "2,2", None, "too few devices for --replicas 2,2"),
        ("l2", "2,1", "slow+fast+slow,fast", "3 types for 2 replicas"),
    ],
)
def test_wrong_given_stages_are_refused(
    inputs: Inputs, cuts: str | None, replicas: str | None, types: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan(inputs, given=GivenStages.parse(cuts, replicas, types))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 7, "microbatch_size": 2}, "--batch-size 7 is no multiple"),
        ({"microbatch_size": 3}, "micro-batch size 3 was not measured, only"),
        ({"solver": "magic"}, "solver is 'magic'"),
        ({"schedule": "2f2b"}, "schedule is '2f2b'"),
        ({"batch_size": 0}, "--batch-size is 0"),
    ],
)
def test_wrong_requests_are_refused(
    inputs: Inputs, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan(inputs, **options)


def test_more_devices_than_help_stay_idle(
    make_layer: MakeLayer, make_graph: MakeGraph, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    layers = [make_layer("x", kind="input")]
    layers.append(make_layer("a", ["x"], parameters=[("w", 4_000_000)]))
    made = on_disk(make_inputs([make_graph(layers)], [[("fast", 3)]]), tmp_path)
    result = plan(made)
    assert result.plan.num_ranks == 1
    assert result.idle == ("fast", "fast")


def test_a_layer_too_large_for_every_type_is_named_with_what_is_missing(
    make_layer: MakeLayer, make_graph: MakeGraph, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    layers = [make_layer("x", kind="input"), make_layer("a", ["x"])]
    layers.append(make_layer("big", ["a"], parameters=[("w", 4000)]))
    made = make_inputs([make_graph(layers)], [[("fast", 2)]], memory_bytes=5000)
    with pytest.raises(
        InputError, match=r"layer 'big' alone needs .* on device type 'fast', .* more"
    ):
        plan(on_disk(made, tmp_path))
    assert plan(on_disk(made, tmp_path), count_memory=False).plan.num_ranks >= 1


def test_stages_too_large_together_are_named_with_what_is_missing(
    make_layer: MakeLayer,
    make_graph: MakeGraph,
    make_inputs: MakeInputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = [make_layer("x", kind="input")]
    for index in range(3):
        before = layers[-1].name
        layers.append(make_layer(f"l{index}", [before], parameters=[(f"w{index}", 4000)]))
    made = make_inputs([make_graph(layers)], [[("fast", 2)]], memory_bytes=20_000)
    with pytest.raises(
        InputError, match=r"no plan fits into memory; .* more than its memory_bytes"
    ):
        plan(on_disk(made, tmp_path))
    with pytest.raises(InputError, match=r"the given plan does not fit .*'l1' to 'l2'"):
        plan(on_disk(made, tmp_path), given=GivenStages.parse("l1", None, None))
    slow = make_graph(layers).replace(device_type="slow")
    two_types = make_inputs(
        [make_graph(layers), slow], [[("fast", 1), ("slow", 1)]], memory_bytes=20_000
    )
    with pytest.raises(InputError, match="no plan fits into memory"):
        plan(on_disk(two_types, tmp_path))
    monkeypatch.setattr(choose, "MOST_ENTRIES", 0)
    with pytest.raises(InputError, match="no plan with stages of one device type each fits"):
        plan(on_disk(two_types, tmp_path))


def test_a_graph_from_another_system_needs_the_missing_measurements_waived(
    make_layer: MakeLayer, make_graph: MakeGraph, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    layers = [
        make_layer(name, inputs, saved_bytes=None).replace(
            operation=ExternalOperation(description=name),
            output=None,
            parameter_bytes=400,
        )
        for name, inputs in (("a", []), ("b", ["a"]), ("c", ["b"]))
    ]
    made = make_inputs([make_graph(layers, update_ms=None)], [[("fast", 2)]])
    made = on_disk(made, tmp_path)
    with pytest.raises(InputError, match="--ignore-update"):
        plan(made, count_memory=False)
    with pytest.raises(InputError, match=r"saved_bytes of layer 'a' .*--ignore-memory"):
        plan(made, count_update=False)
    given = GivenStages.parse("b", None, None)
    found = plan(made, count_update=False, count_memory=False, given=given).plan
    assert found.borders[0].forward_bytes(found.microbatch_size) == 40 * found.microbatch_size


def test_baselines_with_too_many_actions_are_left_out_and_the_report_says_so(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MOST_ACTIONS", 20)
    result = optimize(inputs, Request(batch_size=16, microbatch_size=2), tmp_path / "plan.json")
    assert [baseline.name for baseline in result.baselines] == [
        "one fast",
        baselines.SPEED_SHARES,
        baselines.EQUAL_SHARES,
    ]
    notes = report_of(result, tmp_path / "plan.json")["notes"]
    assert any("left out" in note and "even split of the layers" in note for note in notes)


def test_the_proof_of_a_branching_graph_says_for_which_cuts_the_bound_holds(
    make_layer: MakeLayer, make_graph: MakeGraph, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    layers = [make_layer("x", kind="input"), make_layer("a", ["x"]), make_layer("b", ["a"])]
    for last, branches in ((["b"], False), (["a", "b"], False), (["a"], True)):
        graph = make_graph([*layers, make_layer("c", last)])
        made = on_disk(make_inputs([graph], [[("fast", 2)]]), tmp_path)
        for solver in ("exact", "labels", "local-search", "hierarchical", "brute-force"):
            request = Request(batch_size=2, microbatch_size=1, solver=solver)
            proof = optimize(made, request, tmp_path / "plan.json").plan.proof
            in_order = not branches or solver in ("local-search", "hierarchical")
            assert ("in the graph's order" if in_order else "all 5 ideals") in proof.space
            assert (proof.every_cut is not None) == (branches and in_order)
