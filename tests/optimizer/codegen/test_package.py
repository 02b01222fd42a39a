"""Packages: written whole, replaced only where we wrote them, and harmless whatever a graph says."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from stagewright.document import InputError, sha256_of
from stagewright.graph import (
    AttributeOperation,
    Constructor,
    ExternalOperation,
    FunctionOperation,
    InputOperation,
    LayerCost,
    LayerGraph,
    LayerNode,
    MethodOperation,
    ModuleOperation,
    Operation,
    StoredTensor,
)
from stagewright.optimizer.codegen.package import generate
from stagewright.plan import Plan
from stagewright.value import LayerRef, TensorSpec

COST = LayerCost(batch_size=2, forward_ms=0.0, backward_ms=0.0, output_bytes=0)
SPEC = TensorSpec(shape=(2, 4), dtype="float32", requires_grad=True)


def small_graph(workshop: Any) -> LayerGraph:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    graph: LayerGraph = workshop.trace(model, lambda size: torch.rand(size, 4))
    return graph


def test_the_folder_holds_the_stages_and_the_plan_whose_hash_they_name(workshop: Any) -> None:
    result = workshop.generate(small_graph(workshop), (1, 2))
    folder = workshop.folder / "package"
    assert sorted(p.name for p in folder.iterdir()) == [
        "__init__.py", "plan.json", "stage0.py", "stage1.py", "stage2.py",
    ]  # fmt: skip
    package = workshop.load("package")
    assert package.PLAN_SHA256 == sha256_of(folder / "plan.json") == result.plan_sha256
    plan = Plan.load(folder / "plan.json")
    assert sha256_of(folder / plan.sources[0].path) == plan.sources[0].sha256
    assert sum(stage.parameter_bytes for stage in result.stages) == (16 + 4 + 8 + 2) * 4
    assert not [p for p in workshop.folder.iterdir() if p.name.startswith(".")]


def test_a_package_is_made_again_from_the_plan_inside_it(workshop: Any) -> None:
    workshop.generate(small_graph(workshop), (1, 2))
    folder = workshop.folder / "package"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    generate(folder / "plan.json", folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    workshop.generate(small_graph(workshop), ())
    assert not (folder / "stage1.py").exists()


@pytest.mark.parametrize("names", [["notes.txt"], ["plan.json"], ["plan.json", "graph.json"]])
def test_a_folder_that_we_did_not_write_is_left_alone(workshop: Any, names: list[str]) -> None:
    plan = workshop.plan(small_graph(workshop), (1,))
    folder = workshop.folder / "mine"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match=r"mine: holds .* name a new or an empty folder"):
        generate(plan, folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)


def test_a_generated_folder_to_which_a_file_was_added_is_left_alone(workshop: Any) -> None:
    plan = workshop.plan(small_graph(workshop), (1,))
    generate(plan, workshop.folder / "package")
    (workshop.folder / "package" / "weights.pt").write_text("precious")
    with pytest.raises(InputError, match=r"holds 'weights\.pt'"):
        generate(plan, workshop.folder / "package")


def test_a_file_in_place_of_the_folder_is_refused(workshop: Any) -> None:
    plan = workshop.plan(small_graph(workshop), (1,))
    with pytest.raises(InputError, match="is a file, expected a folder"):
        generate(plan, plan)


def test_a_changed_or_missing_graph_is_refused(workshop: Any) -> None:
    plan = workshop.plan(small_graph(workshop), (1,))
    graph = workshop.folder / "graph.json"
    graph.write_text(graph.read_text() + " ")
    with pytest.raises(InputError, match=r"graph\.json: has changed since .*plan\.json was made"):
        generate(plan, workshop.folder / "package")
    graph.unlink()
    with pytest.raises(InputError, match=r"graph\.json: cannot be read"):
        generate(plan, workshop.folder / "package")
    assert not (workshop.folder / "package").exists()


def layer(name: str, operation: Operation, *inputs: Any, **fields: Any) -> LayerNode:
    return LayerNode(
        name=name,
        operation=operation,
        arguments=tuple(LayerRef(name=i) if isinstance(i, str) else i for i in inputs),
        output=SPEC,
        parameter_bytes=0,
        costs=(COST,),
        **fields,
    )


def module(path: str, constructor: Constructor | None = None) -> ModuleOperation:
    return ModuleOperation(path=path, type="torch.nn.ReLU", constructor=constructor)


RELU = Constructor(type="torch.nn.ReLU")
HOSTILE = '"); import os; os.environ["PWNED"] = "1" #\n"""\nimport os; os.environ["PWNED"] = "1"\n'


@pytest.mark.parametrize(
    "operation",
    [
        FunctionOperation(target="os.system"),
        FunctionOperation(target=f"torch.relu{HOSTILE}"),
        FunctionOperation(target="torch.load"),
        MethodOperation(name="__class__"),
        MethodOperation(name=HOSTILE),
        module("relu", Constructor(type=HOSTILE)),
        module("relu", Constructor(type="torch.nn.ReLU", keyword_arguments={HOSTILE: 1})),
        module(""),
        module("a..b", RELU),
        AttributeOperation(path="nothing"),
        ExternalOperation(description="Conv2d(3, 64)"),
    ],
)
def test_an_operation_that_cannot_be_generated_is_refused_by_file_and_layer(
    workshop: Any, operation: Operation
) -> None:
    layers = [
        layer("x", InputOperation(key=0)),
        layer("first", module("first", RELU), "x"),
        layer(
            "second", operation, *(() if isinstance(operation, AttributeOperation) else ("first",))
        ),
        layer("third", FunctionOperation(target="operator.add"), "first", "second"),
    ]
    plan = workshop.plan(workshop.graph(layers, LayerRef(name="third")), (1,))
    with pytest.raises(InputError, match=r"graph\.json: layer 'second': ") as error:
        generate(plan, workshop.folder / "package")
    assert "\n" not in str(error.value)
    assert not (workshop.folder / "package").exists()


@pytest.mark.parametrize("key", [HOSTILE, "self", "class", "ﬁ", ""])
def test_a_keyword_input_that_is_no_identifier_is_refused(workshop: Any, key: str) -> None:
    layers = [layer("x", InputOperation(key=key)), layer("first", module("first", RELU), "x")]
    plan = workshop.plan(workshop.graph(layers, LayerRef(name="first")), ())
    with pytest.raises(InputError, match="an input is named"):
        generate(plan, workshop.folder / "package")


texts = st.one_of(st.text(min_size=1), st.sampled_from([HOSTILE, "class", "self", "forward", "x"]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, min_size=5, max_size=5, unique=True), texts)
def test_names_and_strings_of_any_content_are_data(
    workshop: Any, names: list[str], text: str
) -> None:
    """Layer names, paths, keys and string arguments: the code has no call but the expected ones."""
    first, bare, second, third, value = names
    path = ".".join(part for part in first.split(".") if part) or "path"
    tensor = StoredTensor(
        name=f"{path}x.y", spec=TensorSpec(shape=(4,), dtype="float32", requires_grad=True)
    )
    layers = [
        layer(value, InputOperation(key=0)),
        layer(first, module(path), value, random=True),
        layer(bare, AttributeOperation(path=tensor.name), parameters=(tensor,)),
        layer(second, FunctionOperation(target="torch.einsum"), text, first, bare),
        layer(third, MethodOperation(name="mul_"), second, overwrites=second),
    ]
    # The first argument of einsum is text, not a layer.
    fields = {name: getattr(layers[3], name) for name in layers[3].__struct_fields__}
    layers[3] = LayerNode(**(fields | {"arguments": (f"{text}!", *fields["arguments"][1:])}))
    graph = workshop.graph(layers, LayerRef(name=third), tied=((tensor.name, text),))
    workshop.generate(graph, (1, 2))
    allowed = {
        "super", "__init__", "ValueError", "get_submodule", "Parameter", "empty", "einsum", "mul_",
        "clone", "before_random", "Module", "ModuleDict", "get_buffer",
    }  # fmt: skip
    for file in (workshop.folder / "package").glob("stage*.py"):
        tree = ast.parse(file.read_bytes())
        imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        assert all(
            ast.unparse(node) in ("import torch", "from torch import nn") for node in imports
        )
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and file.name != "stage0.py":
                called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
                assert (called.id if isinstance(called, ast.Name) else called) in allowed
        assert len(tree.body) == 2 + len(imports)
    compile((workshop.folder / "package" / "__init__.py").read_bytes(), "__init__.py", "exec")


def test_a_hostile_graph_runs_nothing_when_imported(workshop: Any) -> None:
    layers = [
        layer(f"x{HOSTILE}", InputOperation(key=0)),
        layer(HOSTILE, module(HOSTILE.replace(".", ""), RELU), f"x{HOSTILE}", random=True),
        layer("out", module(f"a.{HOSTILE.replace('.', '')}", RELU), HOSTILE),
    ]
    graph = workshop.graph(layers, LayerRef(name="out"), tied=((HOSTILE, "b"),))
    package = workshop.package(graph, (1,))
    x = torch.randn(2, 4)
    assert torch.equal(package.full_model()(x), x.relu())
    assert "PWNED" not in os.environ


def test_the_generator_imports_no_torch(workshop: Any, tmp_path: Path) -> None:
    plan = workshop.plan(small_graph(workshop), (1,))
    script = (
        "import sys; from stagewright.cli import main; "
        f"assert main(['generate', {str(plan)!r}, '-o', {str(tmp_path / 'p')!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert json.loads((tmp_path / "p" / "plan.json").read_text())["format"] == "stagewright.plan"
