"""Builds a model's layer graph and plans of it, generates packages, and imports them."""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from torch import nn

from stagewright.document import sha256_of
from stagewright.graph import LayerCost, LayerGraph, LayerNode, ModelIdentity
from stagewright.optimizer.borders import borders_of, inputs_of, stage_layers
from stagewright.optimizer.codegen.package import GeneratedPackage, generate
from stagewright.plan import Plan, Proof, Replica, ReplicaPrediction, Source, Stage
from stagewright.profiler.trace import TracedModel, trace
from stagewright.task import Task

COST = LayerCost(batch_size=2, forward_ms=1.0, backward_ms=1.0, output_bytes=0)
PREDICTED = ReplicaPrediction(
    forward_ms=1.0, backward_ms=1.0, reduce_ms=0.0, update_ms=0.0, peak_bytes=1
)


class Workshop:
    """A folder in which graphs, plans and packages are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.imported: list[str] = []

    def trace(self, model: nn.Module, example_input: Callable[[int], Any]) -> LayerGraph:
        """Return a model's graph, all layers at one cost."""
        module = types.ModuleType("task_under_test")
        module.build = lambda: model  # type: ignore[attr-defined]
        module.example_input = example_input  # type: ignore[attr-defined]
        traced: TracedModel = trace(
            Task(name="task_under_test", factory="build", module=module), model
        )
        layers = [with_fields(layer, costs=(COST,)) for layer in traced.layers]
        return self.graph(layers, traced.output, tied=traced.tied, sha256=traced.structure_sha256)

    def graph(
        self,
        layers: Sequence[LayerNode],
        output: Any,
        *,
        tied: tuple[tuple[str, ...], ...] = (),
        sha256: str = "0" * 64,
    ) -> LayerGraph:
        return LayerGraph(
            model=ModelIdentity(task="task_under_test", factory="build", structure_sha256=sha256),
            device_type="any",
            device="cpu",
            dtype="float32",
            torch_version="2.13.0",
            batch_sizes=(2,),
            layers=tuple(layers),
            output=output,
            tied=tied,
        )

    def plan(self, graph: LayerGraph, cuts: Sequence[int]) -> Path:
        """Write the graph and a plan with these cuts; return the plan's path."""
        graph.save(self.folder / "graph.json")
        names = stage_layers(graph, cuts)
        plan = Plan(
            task=graph.model.task,
            factory=graph.model.factory,
            structure_sha256=graph.model.structure_sha256,
            dtype=graph.dtype,
            microbatch_size=2,
            num_microbatches=2,
            schedule="1f1b",
            stages=tuple(
                Stage(
                    layers=layers,
                    replicas=(
                        Replica(
                            rank=rank, server="one", device_type="any", share=1, predicted=PREDICTED
                        ),
                    ),
                )
                for rank, layers in enumerate(names)
            ),
            borders=borders_of(graph, names, 2),
            inputs=inputs_of(graph, 2),
            predicted_step_ms=1.0,
            proof=Proof(
                solver="test", objective="step_ms", value=1.0, lower_bound=0.0, space="one plan"
            ),
            sources=(
                Source(
                    role="graph:any",
                    path="graph.json",
                    sha256=sha256_of(self.folder / "graph.json"),
                ),
            ),
        )
        path = self.folder / "plan.json"
        plan.save(path)
        return path

    def generate(
        self, graph: LayerGraph, cuts: Sequence[int], name: str = "package"
    ) -> GeneratedPackage:
        return generate(self.plan(graph, cuts), self.folder / name)

    def package(self, graph: LayerGraph, cuts: Sequence[int]) -> ModuleType:
        """Generate a package and import it."""
        self.generate(graph, cuts)
        return self.load("package")

    def load(self, name: str) -> ModuleType:
        """Import a generated package under a name of its own."""
        unique = f"generated_{id(self)}_{len(self.imported)}"
        folder = self.folder / name
        spec = importlib.util.spec_from_file_location(
            unique, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        self.imported.append(unique)
        spec.loader.exec_module(module)
        return module

    def forget(self) -> None:
        for loaded in [m for m in sys.modules if m.partition(".")[0] in self.imported]:
            del sys.modules[loaded]


def with_fields(record: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(record, **fields)


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    yield made
    made.forget()
