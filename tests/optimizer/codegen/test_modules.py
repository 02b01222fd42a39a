"""Module trees: built as written, they have the original's names and the accesses reach them."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stagewright.graph import (
    AttributeOperation,
    Constructor,
    LayerCost,
    LayerNode,
    ModuleOperation,
    Operation,
    StoredTensor,
)
from stagewright.optimizer.codegen.expressions import Scope
from stagewright.optimizer.codegen.modules import ModuleTree
from stagewright.value import TensorSpec

COST = LayerCost(batch_size=1, forward_ms=0.0, backward_ms=0.0, output_bytes=0)
part = st.sampled_from(
    ["0", "1", "12", "conv", "class", "a-b", "__x", "keys", "inputs", "_p", "0x"]
)
paths = st.lists(part, min_size=1, max_size=3).map(".".join)


def layer(path: str, kind: str) -> LayerNode:
    tensor = StoredTensor(
        name=path, spec=TensorSpec(shape=(2,), dtype="float64", requires_grad=kind == "parameter")
    )
    call = Constructor(type="torch.nn.Bilinear", arguments=(2, 3, 4))
    operation: Operation = AttributeOperation(path=path)
    if kind == "module":
        operation = ModuleOperation(path=path, type="torch.nn.Bilinear", constructor=call)
    return LayerNode(
        name=f"{path} {kind}",
        operation=operation,
        parameters=(tensor,) if kind == "parameter" else (),
        buffers=(tensor,) if kind == "buffer" else (),
        parameter_bytes=0,
        costs=(COST,),
    )


def build(tree: ModuleTree) -> Any:
    """Return a module whose __init__ has the tree's statements."""
    body = "\n".join(tree.statements(Scope(place="graph.json"))) or "        pass"
    source = (
        f"class Built(nn.Module):\n    def __init__(self):\n        super().__init__()\n{body}\n"
    )
    names: dict[str, Any] = {"nn": nn, "torch": torch}
    exec(source, names)  # noqa: S102
    return names["Built"]()


def without_overlaps(items: dict[str, str]) -> dict[str, str]:
    """Leave out what is inside another path, as a model cannot hold it."""
    kept: dict[str, str] = {}
    for path, kind in sorted(items.items()):
        if not any(path.startswith(f"{other}.") for other in kept):
            kept[path] = kind
    return kept


@given(st.dictionaries(paths, st.sampled_from(["module", "parameter", "buffer"]), max_size=6))
def test_state_dict_names_are_the_original_s_and_accesses_reach_what_they_name(
    items: dict[str, str],
) -> None:
    items = without_overlaps(items)
    tree = ModuleTree([layer(path, kind) for path, kind in items.items()], "graph.json")
    built = build(tree)
    expected = {p for p, kind in items.items() if kind != "module"}
    expected |= {f"{p}.{n}" for p, k in items.items() if k == "module" for n in ("weight", "bias")}
    assert set(built.state_dict()) == expected
    for path, kind in items.items():
        if kind == "module":
            found = eval(tree.access(path), {"self": built})  # noqa: S307
            assert isinstance(found, nn.Bilinear)
            assert found.weight is dict(built.named_parameters())[f"{path}.weight"]
        else:
            found = eval(tree.tensor_access(path), {"self": built})  # noqa: S307
            named = dict(built.named_parameters()) | dict(built.named_buffers())
            assert found is named[path] and found.dtype == torch.float64


def test_a_bare_parameter_of_a_called_module_is_read_from_it() -> None:
    tree = ModuleTree(
        [layer("body.0", "module"), layer("body.0.weight", "parameter")], "graph.json"
    )
    assert tree.tensor_access("body.0.weight") == 'self.body["0"].weight'
    assert set(build(tree).state_dict()) == {"body.0.weight", "body.0.bias"}
