"""Variables of a stage's forward: which values share one, and when it is let go.

A value whose last use makes the next value hands its variable on, as in x = self.conv1(x). So no local name
keeps an activation longer than the original's forward would, and code reads as people write it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from stagewright.graph import InputOperation, LayerNode
from stagewright.value import TensorSpec, tensors_of

from .names import Namespace, variable_name

CHAIN_NAMES = ("x", "y", "z")


@dataclass(frozen=True, kw_only=True)
class Variables:
    """The variables of one forward."""

    names: Mapping[str, str]
    """From each layer's name to the variable of its value; a value that nothing takes has none."""
    released: Mapping[int, tuple[str, ...]]
    """From a step to the variables that hold something dead after it and are not assigned by it."""


def variables_of(
    received: Sequence[LayerNode], steps: Sequence[LayerNode], returned: Collection[str]
) -> Variables:
    """Return the variables of a forward that receives values, runs steps 1, 2, ... and returns values."""
    last_use = _last_uses(received, steps, returned)
    chains = _chains(received, steps, last_use)
    namespace = Namespace()
    names: dict[str, str] = {}
    for chain in sorted(chains, key=lambda chain: chain.first):
        preferred: tuple[str, ...] = (variable_name(chain.values[-1].name),)
        if len(chain.values) > 1:
            preferred = (*CHAIN_NAMES, *preferred)
        name = namespace.assign(preferred, chain.first, last_use[chain.values[-1].name])
        names |= {value.name: name for value in chain.values}
    parameters = {layer.name for layer in received}
    released: dict[int, list[str]] = {}
    for chain in chains:
        value = chain.values[-1]
        end = last_use[value.name]
        holds_tensors = value.output is None or any(True for _ in tensors_of(value.output))
        if value.name in parameters or not holds_tensors or end >= len(steps):
            continue
        if names.get(steps[end - 1].name) != names[value.name]:
            released.setdefault(end, []).append(names[value.name])
    return Variables(names=names, released={step: tuple(n) for step, n in released.items()})


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """Values that hold one variable after the other."""

    first: int
    """The step that makes the first value; 0 for a received one."""
    values: list[LayerNode]


def _last_uses(
    received: Sequence[LayerNode], steps: Sequence[LayerNode], returned: Collection[str]
) -> dict[str, int]:
    """Return the last step that takes each value that the stage holds; the return is one more step."""
    last_use = {layer.name: 0 for layer in received}
    for step, layer in enumerate(steps, start=1):
        for name in layer.inputs:
            last_use[name] = step
    return last_use | dict.fromkeys(returned, len(steps) + 1)


def _chains(
    received: Sequence[LayerNode], steps: Sequence[LayerNode], last_use: Mapping[str, int]
) -> list[_Chain]:
    chains = {layer.name: _Chain(first=0, values=[layer]) for layer in received}
    made = list(chains.values())
    for step, layer in enumerate(steps, start=1):
        if layer.name not in last_use:
            continue
        ending = [
            chains[name]
            for name in layer.inputs
            if name in chains and last_use[name] == step and _continues(chains[name], layer)
        ]
        if ending:
            chain = min(
                ending, key=lambda chain: (chain.values[-1].name != layer.overwrites, chain.first)
            )
            chain.values.append(layer)
        else:
            chain = _Chain(first=step, values=[layer])
            made.append(chain)
        chains[layer.name] = chain
    return made


def _continues(chain: _Chain, layer: LayerNode) -> bool:
    """Whether a layer's value may take over a chain's variable: tensors only; inputs keep their names.

    A value without a specification (of a text graph) counts as a tensor, which it is nearly always.
    """
    value = chain.values[-1]
    both_tensors = all(v.output is None or isinstance(v.output, TensorSpec) for v in (value, layer))
    return both_tensors and not isinstance(value.operation, InputOperation)
