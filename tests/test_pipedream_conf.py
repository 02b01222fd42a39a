"""PipeDream's conf JSONs, written from a plan and read."""

from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.pipedream_conf import (
    Conf,
    data_parallel_conf,
    hybrid_conf,
    model_parallel_conf,
    save_confs,
)
from stagewright.plan import Plan

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def uneven_plan() -> Plan:
    return Plan.load(GOLDEN / "plan.v1.json")


@pytest.fixture
def plan(uneven_plan: Plan) -> Plan:
    """The golden plan with equal shares."""
    first = uneven_plan.stages[0]
    replicas = tuple(replica.replace(share=1) for replica in first.replicas)
    first = first.replace(replicas=replicas)
    return uneven_plan.replace(stages=(first, *uneven_plan.stages[1:]))


def test_the_published_hybrid_conf_of_vgg16_reads(tmp_path: Path) -> None:
    text = '{"module_to_stage_map": [0, 1, 1], "stage_to_rank_map": {"0": [0, 1, 2], "1": [3]}}'
    (tmp_path / "hybrid_conf.json").write_text(text)
    conf = Conf.load(tmp_path / "hybrid_conf.json")
    assert conf.module_to_stage_map == (0, 1, 1)
    assert conf.ranks == ((0, 1, 2), (3,))


def test_the_three_confs_of_a_plan_are_as_pipedream_defines_them(plan: Plan) -> None:
    assert data_parallel_conf(plan) == Conf(
        module_to_stage_map=(0, 0, 0, 0), stage_to_rank_map={"0": (0, 1, 2, 3)}
    )
    assert model_parallel_conf(plan) == Conf(
        module_to_stage_map=(0, 1, 2, 2), stage_to_rank_map={"0": (0,), "1": (1,), "2": (2,)}
    )
    assert hybrid_conf(plan) == Conf(
        module_to_stage_map=(0, 1, 2, 2), stage_to_rank_map={"0": (0, 2), "1": (1,), "2": (3,)}
    )


def test_what_is_saved_loads_the_same(plan: Plan, tmp_path: Path) -> None:
    paths = save_confs(plan, tmp_path)
    assert [path.name for path in paths] == ["dp_conf.json", "mp_conf.json", "hybrid_conf.json"]
    assert Conf.load(paths[2]) == hybrid_conf(plan)
    assert b"depth" not in paths[2].read_bytes()
    deep = hybrid_conf(plan).replace(stage_to_depth_map={"0": 3, "1": 1, "2": 0})
    deep.save(tmp_path / "deep.json")
    assert Conf.load(tmp_path / "deep.json") == deep


def test_unequal_shares_are_refused_before_anything_is_written(
    uneven_plan: Plan, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"stage 0 has replicas with the shares \[2, 1\]"):
        save_confs(uneven_plan, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"stage_to_rank_map": {"0": [0]}}', "module_to_stage_map"),
        ('{"module_to_stage_map": [0], "stage_to_rank_map": {"0": [0]}, "x": 1}', "unknown field"),
        ('{"module_to_stage_map": [0], "stage_to_rank_map": {}}', "names the stages"),
        ('{"module_to_stage_map": [0], "stage_to_rank_map": {"1": [0]}}', "names the stages"),
        ('{"module_to_stage_map": [1], "stage_to_rank_map": {"0": [0]}}', "module_to_stage_map is"),
        ('{"module_to_stage_map": [0], "stage_to_rank_map": {"0": [1]}}', "has the ranks [1]"),
        ('{"module_to_stage_map": [0], "stage_to_rank_map": {"0": []}}', "has the ranks []"),
        (
            '{"module_to_stage_map": [0, 1], "stage_to_rank_map": {"0": [0], "1": [0]}}',
            "has the ranks [0, 0]",
        ),
        (
            '{"module_to_stage_map": [0], "stage_to_rank_map": {"0": [0]},'
            ' "stage_to_depth_map": {"0": -1}}',
            "stage_to_depth_map is",
        ),
    ],
)
def test_a_wrong_conf_is_refused_by_file_and_field(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "conf.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        Conf.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)
