"""Mistakes and oddities that real ranks meet: differing options, buffers, modes, errors of one's own."""

import re
from typing import Any

import pytest

from stagewright.runtime.arguments import make_parser
from stagewright.runtime.training.settings import OPTION_OF, Settings
from stagewright.runtime.training.trainer import TrainingOptions

MakePackage = Any
RankPool = Any
JOBS = "mistake_jobs.py"


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"epochs": 2}, "rank 0 on .* has --epochs 1, but rank 1 on .* has 2; give all ranks"),
        ({}, {"max_steps": 5}, "has --max-steps None, but rank 1 on .* has 5"),
        ({}, {"evaluate": False}, "has --no-evaluation False, but rank 1 on .* has True"),
        ({"seed": 3}, {}, "has --seed 0, but rank 1 on .* has 3"),
        ({"learning_rate": 3.0}, {}, r"has --lr 0\.01, but rank 1 on .* has 3\.0"),
        ({"schedule": "gpipe"}, {}, "has --schedule None, but rank 1 on .* has 'gpipe'"),
    ],
)
def test_an_option_that_differs_between_ranks_is_named_with_both_ranks(
    rank_pool: RankPool,
    make_package: MakePackage,
    settings: dict[str, Any],
    options: dict[str, Any],
    message: str,
) -> None:
    package = make_package("mlp", [1, 1], 2, "1f1b")
    told = rank_pool.run(
        "training_with_options_of_each_rank",
        2,
        jobs=JOBS,
        settings=[{}, settings],
        options=[{"epochs": 1}, {"epochs": 1, **options}],
        **package.arguments,
    )
    for text in told:
        assert re.search(message, text), text


def test_every_setting_that_ranks_compare_is_named_as_an_option_of_the_command() -> None:
    known = {word for action in make_parser()._actions for word in action.option_strings}
    fields = [*Settings.__dataclass_fields__, *TrainingOptions.__dataclass_fields__]
    of_scripts = ("watch", "slicing")
    named = {
        OPTION_OF.get(name, f"--{name.replace('_', '-')}")
        for name in fields
        if name not in of_scripts
    }
    assert named <= known


def test_buffers_that_changed_without_a_microbatch_become_their_plain_mean(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("digits_cnn", [2], 2, "1f1b")
    first, second = rank_pool.run(
        "buffers_changed_without_a_unit", 2, jobs=JOBS, **package.arguments
    )
    assert first == second
    assert {value for tensor in first for value in tensor} == {0.5}


def test_an_evaluation_leaves_every_layer_in_the_mode_that_it_had(
    rank_pool: RankPool, make_package: MakePackage
) -> None:
    package = make_package("mlp", [1], 2, "1f1b")
    (modes,) = rank_pool.run("modes_after_an_evaluation", 1, jobs=JOBS, **package.arguments)
    assert modes == (False, True)


@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        ("shapes", "RuntimeError", "The size of tensor a"),
        ("sparse", "NotImplementedError", "SparseCsr"),
        ("silence", "PeerLostError", "lost a peer while waiting for the others ("),
    ],
)
def test_an_error_in_a_wait_is_a_lost_peer_only_if_the_backend_says_so(
    rank_pool: RankPool, case: str, kind: str, message: str
) -> None:
    found, text = rank_pool.run("error_in_a_wait", 2, jobs=JOBS, timeout_s=1.0, case=case)[0]
    assert found == kind, text
    assert message in text
