"""The plan refuses what contradicts itself, and gives schedules what they need."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stagewright.document import InputError
from stagewright.plan import Plan
from stagewright.schedule import Edge, Worker

GOLDEN = Path(__file__).parent / "golden" / "plan.v2.json"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.load(GOLDEN)


def set_in(*place: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets one field."""

    def spoil(content: Any) -> None:
        for step in place[:-1]:
            content = content[step]
        content[place[-1]] = value

    return spoil


def repeat_border(content: dict[str, Any]) -> None:
    content["borders"].append(content["borders"][0])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (
            set_in("microbatch_size", value=0),
            "microbatch_size and num_microbatches must be at least",
        ),
        (set_in("num_microbatches", value=0), "must be at least 1"),
        (set_in("schedule", value="zigzag"), "schedule is 'zigzag', expected one of gpipe, 1f1b"),
        (set_in("stages", value=[]), "stages is empty"),
        (set_in("stages", 0, "layers", value=[]), "a stage needs at least one layer"),
        (set_in("stages", 0, "replicas", value=[]), "a stage needs at least one layer"),
        (
            set_in("stages", 0, "replicas", 0, "rank", value=2),
            "ranks [2, 2], expected each rank once",
        ),
        (
            set_in("stages", 0, "replicas", 0, "rank", value=7),
            "the ranks [1, 2, 3, 7], expected 0 to 3",
        ),
        (set_in("stages", 0, "replicas", 0, "rank", value=-1), "expected rank >= 0 and share >= 1"),
        (set_in("stages", 0, "replicas", 0, "share", value=0), "expected rank >= 0 and share >= 1"),
        (
            set_in("borders", 0, "target", value=0),
            "from stage 0 to stage 0, expected an earlier to",
        ),
        (
            set_in("borders", 0, "target", value=3),
            "from stage 0 to stage 3, expected an earlier to",
        ),
        (set_in("borders", 0, "source", value=-1), "from stage -1 to stage 1"),
        (repeat_border, "expected each pair once"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(
    spoil: Callable[[dict[str, Any]], None], problem: str, tmp_path: Path
) -> None:
    content = msgspec.json.decode(GOLDEN.read_bytes())
    spoil(content)
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(InputError) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_a_border_counts_all_bytes_forward_and_gradients_backward(plan: Plan) -> None:
    lstm, tokens, add = plan.borders
    assert lstm.forward_bytes(4) == 4 * (6 * 8 + 8) * 4
    assert lstm.backward_bytes(4) == 4 * 6 * 8 * 4
    assert (tokens.forward_bytes(4), tokens.backward_bytes(4)) == (4 * 6 * 8, 0)
    assert [border.carries_gradient for border in (lstm, tokens, add)] == [True, False, True]


def test_the_pipeline_of_a_plan_has_its_replicas_and_borders(plan: Plan) -> None:
    pipeline = plan.pipeline()
    assert pipeline.stages == ((Worker(0, 2), Worker(2, 1)), (Worker(1, 1),), (Worker(3, 1),))
    assert pipeline.edges == (Edge(0, 1), Edge(0, 2, carries_gradient=False), Edge(1, 2))
    assert pipeline.num_microbatches == plan.num_microbatches == 6
    assert plan.pipeline(2).num_microbatches == 2
    assert pipeline.routes[0] == (0, 2, 0, 0, 2, 0)


def test_the_rows_of_a_plan_cover_all_its_ranks(plan: Plan) -> None:
    assert plan.num_ranks == 4
    assert plan.batch_size == 24
    assert sorted(plan.rows.rows) == [0, 1, 2, 3]
    assert sum(map(len, plan.rows.rows.values())) == 2 * 3 * 6


def test_the_gap_is_the_distance_to_the_bound_as_a_fraction(plan: Plan) -> None:
    assert plan.proof.gap == pytest.approx(2.5 / 42.5)
    assert plan.proof.replace(lower_bound=42.5).gap == 0
