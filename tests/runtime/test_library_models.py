"""Models of other libraries in three stages on three ranks: the losses of five steps are one stage's."""

from typing import Any

import pytest

from .test_models import losses_of


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("transformers", "transformers_text.py:build_gpt2"),
        ("transformers", "transformers_text.py:build_bert"),
        ("transformers", "transformers_text.py:build_llama"),
        ("transformers", "transformers_vit"),
        ("torch_geometric", "graph_nets"),
        ("torch_geometric", "graph_nets.py:build_sage"),
    ],
)
def test_three_stages_train_as_one(
    rank_pool: Any, make_package: Any, library: str, name: str
) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    # Llama computes some values in float32 whatever the model's dtype is.
    dtype, tolerance = ("float32", 1e-5) if name.endswith("llama") else ("float64", 1e-9)
    found, expected = (
        losses_of(rank_pool, make_package(name, replicas, 2, "1f1b"), dtype)
        for replicas in ([1, 1, 1], [1])
    )
    assert found == pytest.approx(expected, rel=tolerance)
    assert found[-1] < found[0]
