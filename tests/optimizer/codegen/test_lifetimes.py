"""Variables: any order of layers computes the same with few names as with one name for each value."""

from hypothesis import given
from hypothesis import strategies as st

from stagewright.graph import FunctionOperation, InputOperation, LayerCost, LayerNode
from stagewright.optimizer.codegen.lifetimes import variables_of
from stagewright.value import LayerRef, NumberSpec, TensorSpec

COST = LayerCost(batch_size=1, forward_ms=0.0, backward_ms=0.0, output_bytes=0)
TENSOR = TensorSpec(shape=(1,), dtype="float32", requires_grad=True)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[LayerNode], list[LayerNode], list[str]]:
    """Return received values, steps, and the names of what is returned."""
    count = draw(st.integers(1, 3))
    names = [f"in{i}" for i in range(count)]
    received = [
        LayerNode(
            name=name,
            operation=InputOperation(key=i)
            if draw(st.booleans())
            else FunctionOperation(target="f"),
            output=TENSOR,
            parameter_bytes=0,
            costs=(COST,),
        )
        for i, name in enumerate(names)
    ]
    steps = []
    for i in range(draw(st.integers(1, 10))):
        taken = draw(st.lists(st.sampled_from(names), max_size=3))
        steps.append(
            LayerNode(
                name=f"s{i}",
                operation=FunctionOperation(target="f"),
                arguments=tuple(LayerRef(name=name) for name in taken),
                output=TENSOR if draw(st.booleans()) else NumberSpec(value=1),
                parameter_bytes=0,
                costs=(COST,),
            )
        )
        names.append(f"s{i}")
    return received, steps, draw(st.lists(st.sampled_from(names), min_size=1, unique=True))


@given(programs())
def test_each_step_finds_the_values_that_it_takes_and_nothing_dead_is_kept(
    program: tuple[list[LayerNode], list[LayerNode], list[str]],
) -> None:
    received, steps, returned = program
    used = {name for layer in steps for name in layer.inputs} | set(returned)
    received = [layer for layer in received if layer.name in used]
    variables = variables_of(received, steps, returned)
    memory = {variables.names[layer.name]: layer.name for layer in received}
    assert len(memory) == len(received)
    tensors = {layer.name for layer in steps if isinstance(layer.output, TensorSpec)}
    for index, layer in enumerate(steps):
        for name in layer.inputs:
            assert memory[variables.names[name]] == name
        if layer.name in variables.names:
            memory[variables.names[layer.name]] = layer.name
        for variable in variables.released.get(index + 1, ()):
            del memory[variable]
        later = {n for other in steps[index + 1 :] for n in other.inputs} | set(returned)
        if index < len(steps) - 1:
            assert set(memory.values()) & tensors <= later
    for name in returned:
        assert memory[variables.names[name]] == name
