"""The layer graph: a model's layers in order, each with what it is and what it costs on one device type."""

import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

from stagewright.document import Format, InputError, Record, load_record, save_record
from stagewright.value import Argument, TensorSpec, ValueSpec, references_of

GRAPH_FORMAT = Format(
    name="stagewright.graph",
    version=7,
    upgrades={
        1: dict,  # Version 2 adds autocast, null where left out, and values that depend on the data.
        2: dict,  # Version 3 adds costs[].output_spread_bytes, null where left out.
        3: dict,  # Version 4 adds costs[].forward_flops to taken_from, null where left out.
        4: dict,  # Version 5 adds costs[].working_bytes, null where left out.
        5: dict,  # Version 6 adds shared_maps, none where left out.
        6: dict,  # Version 7 adds operation.evaluated of modules, none where left out.
    },
)


class InputOperation(Record, tag_field="kind", tag="input"):
    """A value that the model receives."""

    key: int | str
    """Its position among the model's positional arguments, or the name of a keyword argument."""


OWN_LAYERS = frozenset({
    "stagewright.models.minkowski.voxels.AtPoints",
    "stagewright.models.minkowski.voxels.Voxelize",
})  # fmt: skip
"""Layers of our own models that are built from literals alone, as those of torch.nn are."""


class Constructor(Record):
    """A call that rebuilds a module; the profiler has checked that it gives back the same module."""

    type: str
    """The class, importable as written: "torch.nn.Conv2d"."""
    arguments: tuple[Argument, ...] = ()
    keyword_arguments: dict[str, Argument] = {}


class ModuleOperation(Record, tag_field="kind", tag="module"):
    """A call of one of the model's modules."""

    path: str
    """Where the module is in the original model: "layer1.0.conv1"."""
    type: str
    """The module's class, for people."""
    constructor: Constructor | None
    """None: no call rebuilds it; it is taken by path from the user's model factory."""
    training: bool = True
    """False: the model keeps this module in eval mode while it trains (a frozen part)."""
    evaluated: tuple[str, ...] = ()
    """If it trains: paths inside it of the outermost parts that stay in eval mode."""


class FunctionOperation(Record, tag_field="kind", tag="function"):
    """A call of a function: "torch.flatten", "operator.add"."""

    target: str


class MethodOperation(Record, tag_field="kind", tag="method"):
    """A call of a method of the first argument: "view"."""

    name: str


class AttributeOperation(Record, tag_field="kind", tag="attribute"):
    """A parameter or a buffer that the model uses without a module around it."""

    path: str


class ExternalOperation(Record, tag_field="kind", tag="external"):
    """A layer known only by its description, as another system profiled it; it cannot be generated."""

    description: str


Operation = (
    InputOperation | ModuleOperation | FunctionOperation | MethodOperation
    | AttributeOperation | ExternalOperation
)  # fmt: skip


class StoredTensor(Record):
    """A parameter or a buffer, by its name in the original model's state dict."""

    name: str
    spec: TensorSpec
    """Its requires_grad says whether it is trained."""
    persistent: bool = True
    """Whether the state dict holds it."""


class LayerCost(Record):
    """What one layer costs on the graph's device type, at one micro-batch size."""

    batch_size: int
    forward_ms: float
    backward_ms: float
    """The whole backward: gradients of the inputs and of the parameters."""
    output_bytes: int
    """Of a sparse tensor the features, and the coordinates where the layer makes their map."""
    output_spread_bytes: int | None = None
    """Standard deviation over the measured micro-batches; None: it follows from the number of samples."""
    saved_bytes: int | None = None
    """What autograd keeps for the backward; None: not measured. Memory that several layers keep counts at
    the first of them, parameters and buffers do not count: a stage keeps the sum, and what it receives."""
    input_gradient_ms: float | None = None
    """The part of the backward that makes the gradients of the layer's inputs, and of vectors with them."""
    weight_gradient_ms: float | None = None
    """The part for its matrices, run by itself (both parts may take more than the whole); else the rest."""
    forward_spread_ms: float | None = None
    """Interquartile range of the repeats."""
    backward_spread_ms: float | None = None
    repeats: int | None = None
    forward_flops: int | None = None
    """Floating-point operations of its matrix products, convolutions, attention and recurrent layers."""
    backward_flops: int | None = None
    launch_ms: float | None = None
    """What launching its operators alone takes, forward and backward: a layer cannot be faster."""
    workspace_bytes: int | None = None
    """The most memory that it uses for itself, in forward or backward, and that is free again after it."""
    taken_from: str | None = None
    """An identical layer whose costs these are; None: this layer was measured."""
    working_bytes: int | None = None
    """The most that is allocated in its forward or backward beyond what it and the layers before it saved."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"{name} is {value}, expected a finite number that is not negative"
                )


class LayerNode(Record, dict=True):
    """One layer: a module, a function or a method call, an input, or a bare parameter."""

    name: str
    """Unique; the module's path in the original model where it has one."""
    operation: Operation
    arguments: tuple[Argument, ...] = ()
    keyword_arguments: dict[str, Argument] = {}
    output: ValueSpec | None = None
    """None: not known (a graph that another system profiled)."""
    parameters: tuple[StoredTensor, ...] = ()
    buffers: tuple[StoredTensor, ...] = ()
    parameter_bytes: int
    buffer_bytes: int = 0
    random: bool = False
    """Whether its forward draws random numbers (dropout)."""
    overwrites: str | None = None
    """The layer whose value it changes in place; later layers take this layer's value instead."""
    costs: tuple[LayerCost, ...]

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The names of the layers whose values it takes, each once, in the order of the call."""
        arguments = (*self.arguments, *self.keyword_arguments.values())
        return tuple(dict.fromkeys(name for item in arguments for name in references_of(item)))

    @property
    def is_input(self) -> bool:
        return isinstance(self.operation, InputOperation)

    def cost_at(self, batch_size: int) -> LayerCost:
        """Return what it costs at a micro-batch size.

        Raises:
            InputError: that size was not measured.
        """
        for cost in self.costs:
            if cost.batch_size == batch_size:
                return cost
        raise InputError(
            f"layer {self.name!r} was not measured at a micro-batch of {batch_size} samples"
        )


class WholeStep(Record):
    """One training step of the whole model, measured in one piece, at one micro-batch size."""

    batch_size: int
    forward_ms: float
    """With the loss, if the task has one."""
    backward_ms: float
    update_ms: float
    """One step of the optimizer over all parameters."""
    update_optimizer: str
    """The torch.optim class that was measured: "SGD"."""
    peak_bytes: int | None = None
    """Peak memory of the device in the step; None: not measurable there."""


class MapCost(Record):
    """What building a map takes on the graph's device type, at one micro-batch size."""

    batch_size: int
    build_ms: float
    spread_ms: float | None = None
    """Interquartile range of the repeats."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.build_ms) and self.build_ms >= 0):
            raise ValueError(f"build_ms is {self.build_ms}, expected a finite number from 0")


class SharedMap(Record):
    """Coordinates of a sparse model, or a kernel map over them: built once in every stage that uses it."""

    kind: Literal["coordinates", "kernel"]
    layers: tuple[str, ...]
    """Those that use it, in the graph's order, at least two. The forward_ms of the first has its building."""
    costs: tuple[MapCost, ...]

    def build_ms(self, batch_size: int) -> float:
        """Return what building it takes at a measured micro-batch size."""
        return next(cost.build_ms for cost in self.costs if cost.batch_size == batch_size)


class ModelIdentity(Record):
    """Which model a graph describes."""

    task: str
    """The user's file or module, as it was named to the profiler."""
    factory: str
    """The function in it that builds the model."""
    structure_sha256: str
    """Hash of the layers without their costs; equal for profiles of the same model."""


class Emulation(Record):
    """A device type that another device stands for."""

    slowdown: float
    """Each measured time is the real device's multiplied by this; the runtime keeps it."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slowdown) and self.slowdown >= 1):
            raise ValueError(f"slowdown is {self.slowdown}, expected a finite number of at least 1")


class LayerGraph(Record, dict=True):
    """A model's layers in topological order, measured on one device type."""

    model: ModelIdentity
    device_type: str
    device: str
    """The real device that was measured, for people."""
    emulation: Emulation | None = None
    dtype: str
    """Of the parameters."""
    autocast: str | None = None
    """The dtype of mixed precision that the model ran in (torch.autocast); None: all in `dtype`."""
    torch_version: str
    batch_sizes: tuple[int, ...]
    layers: tuple[LayerNode, ...]
    output: Argument
    """What the model returns, as references to layers."""
    tied: tuple[tuple[str, ...], ...] = ()
    """Groups of names of the original state dict that are one parameter or one buffer."""
    loss: tuple[LayerCost, ...] = ()
    """The task's loss on the model's output, per micro-batch size; empty: the task has none."""
    whole: tuple[WholeStep, ...] = ()
    shared_maps: tuple[SharedMap, ...] = ()
    """Empty where the model has no sparse tensors, and in graphs made before they were measured."""

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError("batch_sizes must name at least one micro-batch size, each at least 1")
        seen: set[str] = set()
        for layer in self.layers:
            if layer.name in seen:
                raise ValueError(f"layer {layer.name!r} is there twice; names must be unique")
            for name in layer.inputs:
                if name not in seen:
                    raise ValueError(
                        f"layer {layer.name!r} takes {name!r}, which is no earlier layer; "
                        "layers must be in topological order"
                    )
            if tuple(cost.batch_size for cost in layer.costs) != self.batch_sizes:
                raise ValueError(
                    f"layer {layer.name!r} has costs for the micro-batch sizes "
                    f"{[cost.batch_size for cost in layer.costs]}, expected {list(self.batch_sizes)}"
                )
            seen.add(layer.name)
        for name in references_of(self.output):
            if name not in seen:
                raise ValueError(f"the output refers to {name!r}, which is no layer")
        self._check_maps()

    def _check_maps(self) -> None:
        """Raise ValueError if shared maps are of no layers or sizes, or take longer than their layers."""
        computes = [s for s in self.steps if not isinstance(s.operation, AttributeOperation)]
        order = {layer.name: index for index, layer in enumerate(computes)}
        left = {
            (layer.name, cost.batch_size): cost.forward_ms
            for layer in self.layers
            for cost in layer.costs
        }
        for index, shared in enumerate(self.shared_maps):
            where = f"shared_maps[{index}]"
            places = [order.get(name, -1) for name in shared.layers]
            if len(places) < 2 or min(places) < 0 or places != sorted(set(places)):
                raise ValueError(
                    f"{where} is of {list(shared.layers)}, expected two layers or more in the graph's order"
                )
            if tuple(cost.batch_size for cost in shared.costs) != self.batch_sizes:
                raise ValueError(f"{where} lacks costs, expected them for {list(self.batch_sizes)}")
            for cost in shared.costs:
                key = (shared.layers[0], cost.batch_size)
                left[key] -= cost.build_ms
                if left[key] < -1e-9:
                    raise ValueError(
                        f"{where}: building takes longer than the forward of {key[0]!r}, which has it"
                    )

    @classmethod
    def load(cls, path: Path) -> "LayerGraph":
        return load_record(path, GRAPH_FORMAT, cls)

    def save(self, path: Path) -> None:
        save_record(path, GRAPH_FORMAT, self)

    @cached_property
    def by_name(self) -> dict[str, LayerNode]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """The names of the layers whose values the model returns, each once."""
        return tuple(dict.fromkeys(references_of(self.output)))

    @cached_property
    def steps(self) -> tuple[LayerNode, ...]:
        """The layers that a stage can hold: all but the model's inputs."""
        return tuple(layer for layer in self.layers if not layer.is_input)

    @cached_property
    def canonical_names(self) -> dict[str, str]:
        """From each tied parameter's name to the first name of its group."""
        return {name: group[0] for group in self.tied for name in group}

    def built_again_ms(self, names: Iterable[str], batch_size: int) -> float:
        """Return what a stage of some layers takes longer, as it builds maps again that another one built."""
        held = frozenset(names)
        return sum(
            shared.build_ms(batch_size)
            for shared in self.shared_maps
            if shared.layers[0] not in held and not held.isdisjoint(shared.layers)
        )

    def whole_at(self, batch_size: int) -> WholeStep | None:
        """Return the whole step measured at a micro-batch size; None if it was not."""
        return next((step for step in self.whole if step.batch_size == batch_size), None)


def unique_parameters(graph: LayerGraph, layers: Iterable[LayerNode]) -> dict[str, StoredTensor]:
    """Return the parameters of some layers by canonical name: tied and shared ones once."""
    names = graph.canonical_names
    return {names.get(p.name, p.name): p for layer in layers for p in layer.parameters}
