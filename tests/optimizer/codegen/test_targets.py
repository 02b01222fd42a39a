"""What a graph may call: all that computes, and nothing that touches the process or its files."""

import operator

import pytest
import torch
from torch import nn

from stagewright.optimizer.codegen import targets
from stagewright.optimizer.codegen.targets import is_constructor, is_function, is_method

COMPUTING_PYTHON_FUNCTIONS = {
    "eig", "solve", "symeig", "lstsq", "matrix_rank", "lobpcg", "quantized_gru", "quantized_lstm",
    "broadcast_shapes", "is_tensor", "is_storage", "is_grad_enabled", "is_inference_mode_enabled",
    "is_warn_always_enabled", "is_deterministic_algorithms_warn_only_enabled",
    "are_deterministic_algorithms_enabled",
    "device", "dtype", "layout", "memory_format", "qscheme", "finfo", "iinfo",
}  # fmt: skip
"""Of torch, written in Python or harmless types and questions; reviewed one by one."""


def test_each_function_of_torch_that_passes_is_one_on_tensors_or_was_reviewed() -> None:
    on_tensors = set(dir(torch._C._VariableFunctions)) | set(torch.functional.__all__)
    passing = {
        name
        for name in dir(torch)
        if is_function(f"torch.{name}") and callable(getattr(torch, name))
    }
    assert passing - on_tensors <= COMPUTING_PYTHON_FUNCTIONS
    assert {"flatten", "cat", "arange", "where", "einsum", "relu", "full", "stack"} <= passing


@pytest.mark.parametrize(
    "target",
    [
        "torch.load", "torch.save", "torch.compile", "torch.from_file", "torch.hub.load",
        "torch.os.system", "torch.sys.exit", "torch.jit.load", "torch.ops.load_library",
        "torch.serialization.load", "torch._C._cuda_init", "torch.set_default_device",
        "torch.nn.functional.importlib.import_module", "torch.distributed.init_process_group",
        "os.system", "subprocess.run", "builtins.eval", "builtins.exec", "builtins.__import__",
        "builtins.open", "builtins.getattr", "operator.attrgetter", "operator.methodcaller",
        "math.__loader__", "torch.flatten()", "torch.flatten\n", "torch. flatten", "", "torch", ".",
        "torch.ﬂatten",
        "torch.ops.aten.save.default", "torch.ops.aten.from_file.default",
        "torch.ops.aten.manual_seed.default",
        "torch.ops.aten.set_grad_enabled.default", "torch.ops.aten._print.default",
        "torch.ops.aten.warn.default", "torch.ops.aten.__class__.mro", "torch.ops.aten.__dict__.clear",
        "torch.ops.aten.__dict__.setdefault", "torch.ops.aten.add.__call__", "torch.ops.aten.add._dispatch",
        "torch.ops.aten.__getattr__.x", "torch.ops.prim.Print.default", "torch.ops.aten.add",
    ],
)  # fmt: skip
def test_no_function_that_leads_out_passes(target: str) -> None:
    assert not is_function(target)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.add.Tensor", "torch.ops.aten.add_.Tensor", "torch.ops.aten._to_copy.default",
        "torch.ops.aten.__and__.Tensor", "torch.ops.aten.native_layer_norm.default",
    ],
)  # fmt: skip
def test_operators_that_torch_export_writes_pass(target: str) -> None:
    assert is_function(target)


@pytest.mark.parametrize(
    "path",
    [
        "os.system", "torch.nn.Module()", "torch.nn._Conv", "torch.nn.parallel.DistributedDataParallel",
        "torch.nn.DataParallel", "torch.nn.init.zeros_", "torch.nn.Linear\n", "torch.nn.modules",
        "torch.nn.modules.os.system", "torch.Tensor", "torch.nn.Línear", "nn.Linear",
    ],
)  # fmt: skip
def test_no_constructor_but_of_classes_of_torch_nn_passes(path: str) -> None:
    assert not is_constructor(path)


def test_every_module_class_of_torch_nn_but_the_parallel_one_passes() -> None:
    classes = {
        name
        for name in dir(nn)
        if isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), nn.Module)
    }
    assert {name for name in classes if not is_constructor(f"torch.nn.{name}")} == {"DataParallel"}
    assert is_constructor("torch.nn.modules.linear.NonDynamicallyQuantizableLinear")


@pytest.mark.parametrize(
    "name",
    ["__class__", "_write", "numpy", "tofile", "apply_", "format", "view()", "a b", "", "x\n"],
)
def test_no_method_that_leads_out_of_tensors_passes(name: str) -> None:
    assert not is_method(name)


def test_operators_are_python_s_own() -> None:
    for name, sign in (targets.BINARY_OPERATORS | targets.UNARY_OPERATORS).items():
        assert callable(getattr(operator, name)), sign
    for name, sign in targets.INPLACE_OPERATORS.items():
        plain = name.removeprefix("i")
        signs = targets.BINARY_OPERATORS
        assert sign == f"{signs.get(plain) or signs[f'{plain}_']}="
    assert all(callable(getattr(operator, name)) for name in targets.CALLED_OPERATORS)
