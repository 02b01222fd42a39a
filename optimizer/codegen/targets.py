"""What a layer graph may have called: a graph file is input, and what is not named here is refused.

Constructors are classes of torch.nn and MinkowskiEngine, and OWN_LAYERS. Functions are those of torch,
torch.nn.functional, torch.special, torch.fft, torch.linalg, math, and the arithmetic of operator and
MinkowskiEngine.cat, without what touches files, compiles, or changes the process. Methods and
attributes are those of tensors, without what leads out of tensors.
"""

import re

from stagewright.graph import OWN_LAYERS

FUNCTION_MODULES = (
    "torch", "torch.nn.functional", "torch.special", "torch.fft", "torch.linalg", "math",
)  # fmt: skip

BINARY_OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**",
    "matmul": "@", "and_": "&", "or_": "|", "xor": "^", "lshift": "<<", "rshift": ">>",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip
UNARY_OPERATORS = {"neg": "-", "pos": "+", "invert": "~"}
INPLACE_OPERATORS = {
    "iadd": "+=", "isub": "-=", "imul": "*=", "itruediv": "/=", "ifloordiv": "//=", "imod": "%=",
    "ipow": "**=", "imatmul": "@=", "iand": "&=", "ior": "|=", "ixor": "^=", "ilshift": "<<=",
    "irshift": ">>=",
}  # fmt: skip
CALLED_OPERATORS = frozenset({"abs", "concat", "index", "not_", "truth", "contains"})

READABLE_ATTRIBUTES = frozenset({
    "shape", "dtype", "device", "layout", "ndim", "T", "mT", "H", "mH", "real", "imag", "data",
    "values", "indices", "F", "itemsize", "nbytes", "requires_grad", "is_cuda",
    "eigenvalues", "eigenvectors", "Q", "R", "U", "S", "Vh", "L", "P", "LU", "pivots", "info",
    "solution", "sign", "logabsdet", "mantissa", "exponent",
})  # fmt: skip
"""Of tensors, of the named tuples that torch's functions return, and of sparse tensors (F: features)."""

NOT_MODULES = ("Function", "Base", "Network")
"""Endings of names in MinkowskiEngine that are no modules to build."""
SPARSE_FUNCTIONS = frozenset({"MinkowskiEngine.cat"})
REFUSED_FUNCTIONS = frozenset({
    "load", "save", "compile", "fork", "wait", "from_file", "from_dlpack", "to_dlpack", "frombuffer",
    "from_numpy", "seed", "manual_seed", "initial_seed", "typename", "cond", "vmap", "while_loop",
    "import_ir_module", "import_ir_module_from_buffer", "autocast", "classproperty", "export",
    "autocast_increment_nesting", "autocast_decrement_nesting", "clear_autocast_cache",
    "compiled_with_cxx11_abi", "get_file_path", "get_device_module", "prepare_multiprocessing_environment",
    "profiler_allow_cudagraph_cupti_lazy_reinit_cuda12", "init_num_threads", "thread_safe_generator",
    "merge_type_from_type_comment", "parse_ir", "parse_schema", "parse_type_comment", "unify_type_list",
    "use_deterministic_algorithms", "enable_grad", "no_grad", "inference_mode", "read_vitals",
    "set_vital", "vitals_enabled", "handle_torch_function", "has_torch_function",
    "has_torch_function_unary", "has_torch_function_variadic", "boolean_dispatch", "assert_int_or_pair",
})  # fmt: skip
OPERATOR_NAME = re.compile(
    r"torch\.ops\.aten\.(_?[a-z][a-z0-9_]*|__i?(?:and|or|xor|lshift|rshift)__)\.[A-Za-z][A-Za-z0-9_]*",
    re.ASCII,
)
"""One overload of an operator of torch, as torch.export names it, and no attribute that Python gives them."""
REFUSED_OPERATORS = frozenset({
    "from_file", "save", "set_", "set_data", "record_stream", "backward", "_backward", "resize_",
    "resize_as_", "resize_as_sparse_", "_resize_output_", "seed", "manual_seed", "initial_seed",
    "set_grad_enabled", "retain_grad", "requires_grad_", "warn", "_print", "format",
    "wait", "to_here", "local_value", "owner", "owner_name", "confirmed_by_owner", "dist_backward", "hash",
    "_cufft_clear_plan_cache", "_cufft_set_plan_cache_max_size", "has_torch_function", "get_autocast_dtype",
    "is_autocast_enabled", "is_autocast_cpu_enabled",
})  # fmt: skip
"""What touches files, the process, the generators, the memory of a tensor, or its place in autograd."""
REFUSED_PREFIXES = ("set_", "get_", "is_autocast", "is_anomaly", "sym_")

REFUSED_METHODS = frozenset({
    "numpy", "storage", "untyped_storage", "typed_storage", "storage_type", "share_memory_", "apply_",
    "map_", "map2_", "backward", "register_hook", "register_post_accumulate_grad_hook", "set_", "set_data",
    "module_load", "as_subclass", "data_ptr", "const_data_ptr", "record_stream", "reinforce",
    "tofile", "dump", "dumps", "fromfile", "from_file", "write_file", "format", "format_map", "name",
    "grad_fn", "new", "retain_grad", "requires_grad_", "__class__",
})  # fmt: skip
"""Of tensors what leads out of tensors, and of other values what writes, formats or calls."""

MAY_RETURN_ITS_INPUT = frozenset({
    "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "transpose", "t", "permute",
    "movedim", "moveaxis", "swapaxes", "swapdims", "squeeze", "unsqueeze", "expand", "expand_as", "narrow",
    "select", "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind",
    "diagonal", "unfold", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16",
    "detach", "getitem", "getattr", "broadcast_to", "broadcast_tensors", "ravel", "positive", "pos",
    "as_strided", "adjoint", "real", "imag", "view_as_real", "view_as_complex", "atleast_1d", "atleast_2d",
    "atleast_3d", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout", "MinkowskiDropout", "Identity", "Flatten", "Unflatten", "Dropout", "Dropout1d",
    "Dropout2d",
    "Dropout3d", "AlphaDropout", "FeatureAlphaDropout",
})  # fmt: skip
"""Functions, methods and classes whose result may share the memory of what they receive."""


def is_constructor(path: str) -> bool:
    """Return whether a path names a class that generated code may build."""
    if path in OWN_LAYERS:
        return True
    if path.rpartition(".")[2] in ("DataParallel", "DistributedDataParallel"):
        return False
    if re.fullmatch(r"MinkowskiEngine\.Minkowski[A-Za-z0-9]+", path, flags=re.ASCII):
        return not path.endswith(NOT_MODULES)
    pattern = r"torch\.nn(\.modules\.[a-z][a-z0-9_]*|\.[a-z][a-z0-9_]*)?\.[A-Z][A-Za-z0-9_]*"
    module = path.rpartition(".")[0]
    is_class = re.fullmatch(pattern, path, flags=re.ASCII) is not None
    return is_class and module not in ("torch.nn.parallel", "torch.nn.backends")


def is_function(target: str) -> bool:
    """Return whether a target names a function that generated code may call, operators not included."""
    if target in SPARSE_FUNCTIONS:
        return True
    if found := OPERATOR_NAME.fullmatch(target):
        return found[1] not in REFUSED_OPERATORS
    module, _, name = target.rpartition(".")
    if module == "MinkowskiEngine.MinkowskiFunctional":
        return re.fullmatch(r"[a-z][a-z0-9_]*", name, re.ASCII) is not None
    known = module in FUNCTION_MODULES and re.fullmatch(r"[a-z][A-Za-z0-9_]*", name, re.ASCII)
    return bool(known) and name not in REFUSED_FUNCTIONS and not name.startswith(REFUSED_PREFIXES)


def is_method(name: str) -> bool:
    """Return whether generated code may call a method of this name."""
    plain = re.fullmatch(r"[a-zA-Z][A-Za-z0-9_]*", name, flags=re.ASCII) is not None
    return plain and name not in REFUSED_METHODS
