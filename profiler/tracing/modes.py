"""What a model does otherwise in evaluation: literals, as in dropout(x, 0.1, training=self.training)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import fx, nn

from stagewright.document import InputError
from stagewright.value import Argument, MappingArgument, ModeArgument, SequenceArgument

from .describe import Undescribable
from .symbolic import place_of_node

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments and keyword arguments."""


def evaluation_calls(training: fx.Graph, evaluation: fx.Graph) -> dict[fx.Node, Call]:
    """Return what each call of a training graph receives in evaluation, with the training graph's nodes.

    A call of contiguous may be in one graph only: torch.export leaves it out where it does nothing.

    Raises:
        InputError: the calls are not the same ones; the first that differs is named by its line.
    """
    nodes, others = list(training.nodes), list(evaluation.nodes)
    same: dict[fx.Node, fx.Node] = {}
    copies: dict[fx.Node, fx.Node] = {}
    """Values that are made contiguous in training only, and what comes of it."""
    found: dict[fx.Node, Call] = {}
    position = 0
    for node in nodes:
        while position < len(others) and _is_extra(others[position], node):
            same[others[position]] = same[others[position].all_input_nodes[0]]
            position += 1
        other = others[position] if position < len(others) else None
        if other is not None and (node.op, node.target) == (other.op, other.target):
            stand_in = partial(_in_training, node=node, same=same, copies=copies)
            found[node] = fx.node.map_arg((other.args, other.kwargs), stand_in)
            same[other] = node
            position += 1
        elif other is not None and _is_extra(node, other):
            found[node] = (node.args, node.kwargs)
            copies[node.all_input_nodes[0]] = node
        else:
            raise _difference(node)
    if position < len(others):
        raise _difference(nodes[-1])
    return found


def _is_extra(node: fx.Node, other: fx.Node) -> bool:
    """Return whether a node only makes a value contiguous, and the other does something else."""
    does_nothing = (node.op, node.target) == ("call_method", "contiguous")
    return does_nothing and (node.op, node.target) != (other.op, other.target)


def _in_training(
    other: fx.Node,
    node: fx.Node,
    same: Mapping[fx.Node, fx.Node],
    copies: Mapping[fx.Node, fx.Node],
) -> fx.Node:
    """Return what a training call takes where the call in evaluation takes other."""
    source = same[other]
    copy = copies.get(source)
    taken = node.all_input_nodes
    return copy if copy is not None and copy in taken and source not in taken else source


def evaluated_parts(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of the outermost parts in eval mode of a module that trains; none of one in eval mode.

    Raises:
        Undescribable: a part trains inside of one in eval mode.
    """
    found: list[str] = []
    for path, part in module.named_modules():
        outer = next((one for one in found if not one or path.startswith(f"{one}.")), None)
        if outer is None and not part.training:
            found.append(path)
        elif outer is not None and part.training:
            raise Undescribable(
                f"its part {path!r} is in training inside of {outer or 'a module'!r} in eval mode; put both "
                "into one mode, or make them layers of their own by a finer --granularity"
            )
    return tuple(filter(None, found))


def by_mode(training: Argument, evaluation: Argument) -> Argument:
    """Return one argument for both modes: itself where they are equal.

    Raises:
        ValueError: they differ in more than literals: they take different layers, or more of them.
    """
    if training == evaluation and type(training) is type(evaluation):
        return training
    match training, evaluation:
        case SequenceArgument(type=kind, items=items), SequenceArgument(type=other, items=others):
            if kind == other and len(items) == len(others):
                pairs = zip(items, others, strict=True)
                return training.replace(items=tuple(by_mode(a, b) for a, b in pairs))
        case MappingArgument(items=named), MappingArgument(items=other_named):
            if named.keys() == other_named.keys():
                return MappingArgument(
                    items={key: by_mode(a, other_named[key]) for key, a in named.items()}
                )
        case bool() | int() | float() | str() | None, bool() | int() | float() | str() | None:
            return ModeArgument(training=training, evaluation=evaluation)
    raise ValueError("it takes other values in training than in evaluation")


def _difference(node: fx.Node) -> InputError:
    return InputError(
        f"{place_of_node(node)}: layer {node.name!r} is called differently in training and in "
        "evaluation; use a module that knows its mode (nn.Dropout instead of `if self.training`)"
    )
