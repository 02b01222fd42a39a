"""Layers that write in place, when the value that they change came from another stage.

The profiler refuses a model in which a value is changed while other layers still need another view of it;
so what is left is to keep a stage from changing what it received, which its sender may still need.
"""

from collections.abc import Mapping, Sequence

from stagewright.graph import (
    FunctionOperation,
    LayerGraph,
    LayerNode,
    MethodOperation,
    ModuleOperation,
)
from stagewright.value import MappingSpec, SequenceSpec, TensorSpec, ValueSpec, VoxelsSpec

from .layout import Expression, Group, flat, literal
from .targets import MAY_RETURN_ITS_INPUT, OPERATOR_NAME


def owners_of(graph: LayerGraph) -> dict[str, str]:
    """Return for each layer the layer whose memory its value may share: itself, or an earlier one."""
    owners: dict[str, str] = {}
    for layer in graph.layers:
        shared = layer.overwrites
        if shared is None and layer.inputs and _may_return_its_input(layer):
            shared = layer.inputs[0]
        owners[layer.name] = owners[shared] if shared is not None else layer.name
    return owners


def overwritten_inputs(
    layers: Sequence[LayerNode], inputs: Sequence[LayerNode], owners: Mapping[str, str]
) -> list[str]:
    """Return the received values that layers of a stage change in place, in the order of the inputs.

    A value received in two parts that share memory counts with both; the model's own inputs are the
    caller's, as in the original.
    """
    changed = {owners[layer.overwrites] for layer in layers if layer.overwrites is not None}
    return [layer.name for layer in inputs if not layer.is_input and owners[layer.name] in changed]


def clone_expression(value: str, spec: ValueSpec | None) -> Expression:
    """Return the expression of a copy of a value, each of its tensors cloned; ME is MinkowskiEngine."""
    if isinstance(spec, TensorSpec) or spec is None:
        return f"{value}.clone()"
    if isinstance(spec, SequenceSpec):
        parts = [flat(clone_expression(f"{value}[{i}]", item)) for i, item in enumerate(spec.items)]
        inner = ", ".join(parts)
        return f"[{inner}]" if spec.type == "list" else f"({inner}{',' if len(parts) == 1 else ''})"
    if isinstance(spec, MappingSpec):
        pairs = [
            f"{literal(key)}: {flat(clone_expression(f'{value}[{literal(key)}]', item))}"
            for key, item in spec.items.items()
        ]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(spec, VoxelsSpec):
        kept = (f"{name}={value}.{name}" for name in ("coordinate_map_key", "coordinate_manager"))
        return Group("ME.SparseTensor(", (f"{value}.F.clone()", *kept), ")")
    return value


def _may_return_its_input(layer: LayerNode) -> bool:
    """Whether a layer's value may be a view; a module of the user's own may do anything."""
    match layer.operation:
        case FunctionOperation(target=target):
            is_operator = OPERATOR_NAME.fullmatch(target) is not None
            return is_operator or target.rpartition(".")[2] in MAY_RETURN_ITS_INPUT
        case MethodOperation(name=name):
            return name in MAY_RETURN_ITS_INPUT
        case ModuleOperation(constructor=None):
            return True
        case ModuleOperation(type=kind):
            return kind.rpartition(".")[2] in MAY_RETURN_ITS_INPUT
        case _:
            return False
