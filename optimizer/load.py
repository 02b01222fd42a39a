"""Loads what the planner needs: a cluster and one layer graph per device type, checked against each other."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stagewright.cluster import Cluster
from stagewright.document import InputError, sha256_of
from stagewright.graph import LayerGraph, LayerNode
from stagewright.plan import Plan, Source

from .borders import chain_of

MOST_LAYERS = 100_000
"""A longer chain takes minutes to read."""


@dataclass(frozen=True)
class Inputs:
    """A cluster and the graphs of its device types; the graphs differ in nothing but costs."""

    cluster: Cluster
    cluster_path: Path
    graphs: dict[str, LayerGraph]
    """By device type, in the order in which the servers name them."""
    graph_paths: dict[str, Path]

    @property
    def model(self) -> LayerGraph:
        """Any of the graphs: for what does not depend on the device type."""
        return next(iter(self.graphs.values()))

    def sources(self, plan_path: Path) -> tuple[Source, ...]:
        """Return the files with their hashes, with paths relative to a plan file."""
        files = {"cluster": self.cluster_path} | {
            f"graph:{name}": path for name, path in self.graph_paths.items()
        }
        folder = plan_path.resolve().parent
        return tuple(
            Source(role=role, path=os.path.relpath(path.resolve(), folder), sha256=sha256_of(path))
            for role, path in files.items()
        )


def load_inputs(cluster_path: Path) -> Inputs:
    """Return a cluster file's cluster and the graphs that its used device types name.

    Raises:
        InputError: a file is wrong, a graph is of another device type, or two graphs are not of the same
            model, dtype and micro-batch sizes; the message names the first layer that differs.
    """
    cluster = Cluster.load(cluster_path)
    used = dict.fromkeys(slot.device_type for slot in cluster.slots)
    paths = {name: cluster_path.parent / cluster.device_types[name].profile for name in used}
    graphs = {name: LayerGraph.load(path) for name, path in paths.items()}
    for name, graph in graphs.items():
        if graph.device_type != name:
            raise InputError(
                f"{paths[name]}: device type is {graph.device_type!r}, but {cluster_path} names the file "
                f"for {name!r}; profile with --device-type {name} or name the right file"
            )
    first, *others = graphs
    for other in others:
        check_same_model(graphs[first], paths[first], graphs[other], paths[other])
    return Inputs(cluster=cluster, cluster_path=cluster_path, graphs=graphs, graph_paths=paths)


def check_size(inputs: Inputs) -> None:
    """Raise InputError if a model has more layers than can be planned."""
    if (size := len(chain_of(inputs.model))) > MOST_LAYERS:
        raise InputError(
            f"{next(iter(inputs.graph_paths.values()))}: has {size} layers, expected at most {MOST_LAYERS}; "
            "profile larger modules as one layer"
        )


def load_inputs_of_plan(plan: Plan, plan_path: Path) -> Inputs:
    """Return the inputs that a plan was made from.

    Raises:
        InputError: a file is wrong or has changed since.
    """
    for source in plan.sources:
        path = plan_path.parent / source.path
        if sha256_of(path) != source.sha256:
            raise InputError(
                f"{path}: has changed since {plan_path} was made from it; plan again with "
                "stagewright optimize"
            )
    clusters = [source for source in plan.sources if source.role == "cluster"]
    if len(clusters) != 1:
        raise InputError(
            f"{plan_path}: sources name {len(clusters)} cluster files, expected one; plan again"
        )
    return load_inputs(plan_path.parent / clusters[0].path)


def check_same_model(
    first: LayerGraph, first_path: Path, second: LayerGraph, second_path: Path
) -> None:
    """Check that two graphs differ in nothing but costs.

    Raises:
        InputError: they differ; the message names the first difference, in both files.
    """
    advice = "profile the same model in the same way on every device type"
    for what in ("dtype", "autocast", "batch_sizes"):
        found, wanted = getattr(second, what), getattr(first, what)
        if found != wanted:
            raise InputError(
                f"{second_path}: {what} is {_plain(found)}, but {first_path} has {_plain(wanted)}; "
                f"{advice}"
            )
    for index, (a, b) in enumerate(zip(first.layers, second.layers, strict=False)):
        if _structure(a) != _structure(b):
            raise InputError(
                f"{second_path}: layer {index} is {_describe(b, a)}, but {first_path} has "
                f"{_describe(a, b)} there; {advice}"
            )
    if len(first.layers) != len(second.layers):
        raise InputError(
            f"{second_path}: has {len(second.layers)} layers, but {first_path} has "
            f"{len(first.layers)}; {advice}"
        )
    for what in ("output", "tied"):
        if getattr(first, what) != getattr(second, what):
            raise InputError(f"{second_path}: {what} differs from that of {first_path}; {advice}")
    if _users_of_maps(first) != _users_of_maps(second):
        raise InputError(
            f"{second_path}: shared_maps are of other layers than in {first_path}; {advice}"
        )
    if first.model.structure_sha256 != second.model.structure_sha256:
        raise InputError(
            f"{second_path}: structure_sha256 is {second.model.structure_sha256[:12]}, but {first_path} "
            f"has {first.model.structure_sha256[:12]}; {advice}"
        )


def _structure(layer: LayerNode) -> tuple[object, ...]:
    """Return everything about a layer but its costs."""
    names = (name for name in layer.__struct_fields__ if name != "costs")
    return tuple(getattr(layer, name) for name in names)


def _users_of_maps(graph: LayerGraph) -> list[tuple[str, tuple[str, ...]]]:
    return sorted((shared.kind, shared.layers) for shared in graph.shared_maps)


def _describe(layer: LayerNode, other: LayerNode) -> str:
    """Return a layer's name, and the first field in which it differs from another of the same name."""
    if layer.name != other.name:
        return repr(layer.name)
    for name in layer.__struct_fields__:
        if name != "costs" and getattr(layer, name) != getattr(other, name):
            return f"{layer.name!r} with {name} {getattr(layer, name)}"
    return repr(layer.name)


def _plain(value: object) -> str:
    return (
        str(list(value))
        if isinstance(value, Iterable) and not isinstance(value, str)
        else repr(value)
    )
