"""Ranks, shares and look-ups."""

from dataclasses import replace
from itertools import groupby

import pytest

from stagewright.document import InputError
from stagewright.optimizer.metis.formats import ProfileFolder, ProfileKey
from stagewright.optimizer.metis.problem import Problem, Span, binary_digits

from .problems import golden, random_problem, row_problem


def test_shares_of_unequal_replicas_are_those_of_metis() -> None:
    problem = row_problem(1)
    for case in golden("golden_balancers.json")["split"]:
        span = Span(tuple((name, len(list(group))) for name, group in groupby(case["types"])))
        found = problem.shares(span, case["dp"], case["tp"], case["bs"])
        assert list(found) == case["hetero_bs"]


def test_a_part_of_a_span_holds_its_ranks_by_type() -> None:
    span = Span((("A", 3), ("B", 5), ("C", 4)))
    names = "AAABBBBBCCCC"
    for start in range(12):
        for size in range(1, 13 - start):
            part = span.part(start, size)
            assert "".join(name * count for name, count in part.counts) == names[start:][:size]


def test_replicas_are_pure_if_no_replica_has_two_types() -> None:
    span = Span((("A", 2), ("B", 6)))
    assert [span.is_pure(replicas) for replicas in (1, 2, 4, 8)] == [False, False, True, True]
    assert span.heads(2) == ("A", "B")


def test_binary_digits_add_up() -> None:
    for number in range(100):
        assert sum(binary_digits(number)) == number


def test_a_missing_profile_is_named() -> None:
    problem = random_problem(1, (2, 2), 3, 4)
    missing = ProfileKey(device_type="B", tensor_parallel=1, batch_size=4)
    profiles = {key: found for key, found in problem.folder.profiles.items() if key != missing}
    folder = ProfileFolder(path=problem.folder.path, profiles=profiles)
    with pytest.raises(InputError, match=r"profile: DeviceType.B_tp1_bs4.json is missing"):
        Problem(settings=problem.settings, devices=problem.devices, folder=folder)


def test_profiles_of_another_model_are_refused() -> None:
    problem = random_problem(1, (2, 2), 3, 4)
    settings = replace(problem.settings, num_layers=4)
    with pytest.raises(InputError, match="profiles have 3 layers, --num_layers is 4"):
        Problem(settings=settings, devices=problem.devices, folder=problem.folder)


def test_settings_are_positive() -> None:
    with pytest.raises(InputError, match="global_batch_size is 0, expected a positive number"):
        replace(row_problem(1).settings, global_batch_size=0)
