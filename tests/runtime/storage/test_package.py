"""What a generated package must not be."""

from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.plan import Plan
from stagewright.runtime.storage.package import load_package

GOLDEN = Path(__file__).parents[2] / "golden" / "plan.v2.json"


def test_a_plan_for_inference_is_not_trained(tmp_path: Path) -> None:
    Plan.load(GOLDEN).replace(schedule="forward").save(tmp_path / "plan.json")
    with pytest.raises(InputError, match=r"is a plan for inference .*; plan without --inference"):
        load_package(tmp_path)
