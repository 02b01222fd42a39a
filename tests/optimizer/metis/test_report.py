"""Reports: the stages of every plan and the text that is made from the objects."""

from stagewright.optimizer.metis.exact import ExactResult
from stagewright.optimizer.metis.report import (
    exact_report,
    exact_text,
    search_report,
    search_text,
    stages_of,
)
from stagewright.optimizer.metis.search import SearchResult, search

from .problems import random_problem, row_problem


def test_the_stages_of_every_plan_deal_every_rank_once() -> None:
    problem = row_problem(1)
    for ranked in search(problem).plans:
        stages = stages_of(problem, ranked.plan)
        replicas = [replica for stage in stages for replica in stage["replicas"]]
        assert [rank for replica in replicas for rank in replica["ranks"]] == list(range(32))
        samples = 128 // ranked.plan.batches
        for stage in stages:
            assert sum(replica["share"] for replica in stage["replicas"]) == samples


def test_no_plan_is_an_answer() -> None:
    problem = random_problem(1, (2,), 2, 2)
    nothing = search_report(problem, SearchResult(plans=(), count=3), False, [1.0])
    assert nothing["objective_ms"] is None and nothing["stages"] == []
    assert "no plan" in search_text(nothing)
    infeasible = ExactResult(best=None, bound_ms=float("inf"), proven=True, num_programmes=1)
    report = exact_report(problem, infeasible, 0.1, False)
    assert report["objective_ms"] is None and report["bound_ms"] is None
    assert "exceeds the memory (proven)" in exact_text(report)
