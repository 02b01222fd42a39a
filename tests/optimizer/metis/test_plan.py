"""Which of Metis's plans can be executed."""

from stagewright.optimizer.metis.plan import MetisPlan, defects_of

from .problems import golden, plan_of, random_problem, row_problem

NAMES = {
    "mixed_tp_group": "mixed-tensor-parallel",
    "one_stage_costed": "stages-not-charged",
    "empty_stage": "empty-stage",
    "layers_dropped": "layers-lost",
}


def test_the_defects_of_known_plans_are_found() -> None:
    for row in (1, 2):
        for content in golden("golden_costs.json")[f"row{row}"]:
            found = set(defects_of(row_problem(row), plan_of(content)))
            assert found - {"exceeds-memory"} == {NAMES[flag] for flag in content["flags"]}


def test_a_stage_that_needs_more_than_one_device_has_exceeds_memory() -> None:
    """Metis's rule lets this pass: its group of 16 V100 has 256 GB."""
    plan = MetisPlan(
        node_sequence=("V100", "A100"),
        device_groups=(16, 16),
        strategies=((16, 1), (16, 1)),
        batches=8,
        partition=(0, 4, 10),  # 7820 + 3 * 4146 MB on 16384 MB
        stages_charged=2,
    )
    assert defects_of(row_problem(1), plan) == ("exceeds-memory",)
    assert defects_of(row_problem(1), _with_partition(plan, (0, 3, 10))) == ()


def test_a_replica_without_a_share_holds_its_layers_all_the_same() -> None:
    """B's 64 times slower replicas get no sample of 2; their memory counts."""
    problem = random_problem(0, (4, 4), 3, 4)
    plan = MetisPlan(
        node_sequence=("A", "B"),
        device_groups=(8,),
        strategies=((8, 1),),
        batches=2,
        partition=(0, 3),
        stages_charged=1,
    )
    (stage,) = plan.stages(problem)
    shares = problem.shares(stage.span, 8, 1, 2)
    assert 0 in shares and sum(shares) == 2
    defects_of(problem, plan)  # counts the replicas without samples at one sample


def _with_partition(plan: MetisPlan, partition: tuple[int, ...]) -> MetisPlan:
    return MetisPlan(
        node_sequence=plan.node_sequence,
        device_groups=plan.device_groups,
        strategies=plan.strategies,
        batches=plan.batches,
        partition=partition,
        stages_charged=plan.stages_charged,
    )
