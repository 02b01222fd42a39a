"""Descriptions of PipeDream's text graphs as operations: "Linear(4, 2, bias=True)", "Add", "View(-1)".

A description is data: it is parsed to a name and literal arguments, and what is not a known class of torch.nn
or MinkowskiEngine, or a known operation, is refused. Nothing of it is ever run.
"""

import ast
import math
import re
from dataclasses import dataclass

from stagewright.graph import OWN_LAYERS, Constructor
from stagewright.pipedream_description import FEATURES
from stagewright.value import Argument, SequenceArgument

LONGEST = 1000
"""Characters of a description that is parsed; a module of torch prints in far fewer."""
DEEPEST = 4
"""Tuples inside one another in an argument."""
TORCH_CLASSES = frozenset({
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "AlphaDropout", "AvgPool1d", "AvgPool2d", "AvgPool3d",
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Bilinear", "CELU", "ChannelShuffle", "ConstantPad1d",
    "ConstantPad2d", "ConstantPad3d", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d",
    "ConvTranspose2d", "ConvTranspose3d", "CosineSimilarity", "Dropout", "Dropout1d", "Dropout2d",
    "Dropout3d", "ELU", "Embedding", "EmbeddingBag", "FeatureAlphaDropout", "Flatten", "Fold", "GELU",
    "GLU", "GRU", "GRUCell", "GroupNorm", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh",
    "Identity", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "LPPool1d", "LPPool2d", "LSTM",
    "LSTMCell", "LayerNorm", "LeakyReLU", "Linear", "LocalResponseNorm", "LogSigmoid", "LogSoftmax",
    "MaxPool1d", "MaxPool2d", "MaxPool3d", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d", "Mish", "PReLU",
    "PairwiseDistance", "PixelShuffle", "PixelUnshuffle", "RMSNorm", "RNN", "RNNCell", "RReLU", "ReLU",
    "ReLU6", "ReflectionPad1d", "ReflectionPad2d", "ReflectionPad3d", "ReplicationPad1d",
    "ReplicationPad2d", "ReplicationPad3d", "SELU", "SiLU", "Sigmoid", "Softmax", "Softmax2d",
    "Softmin", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "Threshold", "Unflatten",
    "Unfold", "Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d", "ZeroPad1d", "ZeroPad2d",
    "ZeroPad3d",
})  # fmt: skip
"""Those whose text is a call that makes them."""
SPARSE_CLASSES = frozenset({
    "MinkowskiAlphaDropout", "MinkowskiAvgPooling", "MinkowskiBatchNorm", "MinkowskiBroadcastAddition",
    "MinkowskiBroadcastConcatenation", "MinkowskiBroadcastMultiplication", "MinkowskiCELU",
    "MinkowskiChannelwiseConvolution", "MinkowskiConvolution", "MinkowskiConvolutionTranspose",
    "MinkowskiDropout", "MinkowskiELU", "MinkowskiGELU", "MinkowskiGlobalAvgPooling",
    "MinkowskiGlobalMaxPooling", "MinkowskiGlobalPooling", "MinkowskiGlobalSumPooling",
    "MinkowskiHardshrink", "MinkowskiHardsigmoid", "MinkowskiHardswish", "MinkowskiHardtanh",
    "MinkowskiInstanceNorm", "MinkowskiLeakyReLU", "MinkowskiLinear", "MinkowskiLogSigmoid",
    "MinkowskiMaxPooling", "MinkowskiPReLU", "MinkowskiPoolingTranspose", "MinkowskiRReLU",
    "MinkowskiReLU", "MinkowskiReLU6", "MinkowskiSELU", "MinkowskiSiLU", "MinkowskiSigmoid",
    "MinkowskiSoftmax", "MinkowskiSoftplus", "MinkowskiSoftshrink", "MinkowskiSoftsign",
    "MinkowskiStableInstanceNorm", "MinkowskiSumPooling", "MinkowskiSyncBatchNorm", "MinkowskiTanh",
    "MinkowskiTanhshrink", "MinkowskiThreshold", "MinkowskiUnion",
})  # fmt: skip
OWN_CLASSES = {path.rpartition(".")[2]: path for path in sorted(OWN_LAYERS)}
"""Layers of our own models, by the name that they print."""
_POOLING_MODE = re.compile(r"(, )?mode=PoolingMode\.[A-Z_]+")
"""What MinkowskiEngine prints of global pooling; the class name says as much."""


@dataclass(frozen=True, kw_only=True)
class ModuleText:
    """A module as it prints."""

    constructor: Constructor
    writes_in_place: bool
    is_random: bool


@dataclass(frozen=True, kw_only=True)
class OperationText:
    """An operation that is no module: "Add", "View", with its numbers."""

    name: str
    numbers: tuple[int, ...] = ()


OPERATIONS = {
    "Add": (0, 0), "Mul": (0, 0), "Concat": (0, 1), "Size": (1, 1), "View": (0, 8),
    "Transpose": (2, 2), "__getitem__": (1, 1), "hidden": (0, 0), FEATURES: (0, 0),
}  # fmt: skip
"""Operations, and the fewest and most numbers that they take."""


def parse_description(text: str) -> ModuleText | OperationText:
    """Return what a description says.

    Raises:
        ValueError: it is neither the call of a known class with literal arguments nor a known operation.
    """
    found = re.fullmatch(r"(\w+)(?:\((.*)\))?", text, re.ASCII)
    if found is None or len(text) > LONGEST or not text.isascii():
        raise ValueError(f"the description is {text[:60]!r}, expected NAME or NAME(numbers)")
    name, inner = found[1], found[2] or ""
    if name in OPERATIONS:
        return _operation(name, inner, text)
    if name in TORCH_CLASSES:
        return _module(f"torch.nn.{name}", inner, text)
    if name in SPARSE_CLASSES:
        inner = _POOLING_MODE.sub("", inner)
        return _module(f"MinkowskiEngine.{name}", inner, text)
    if name in OWN_CLASSES:
        return _module(OWN_CLASSES[name], inner, text)
    raise ValueError(
        f"the description is {text[:60]!r}, expected a class of torch.nn or MinkowskiEngine or one of "
        f"{', '.join(OPERATIONS)}"
    )


def _operation(name: str, inner: str, text: str) -> OperationText:
    inner = "" if name in ("Add", "Mul") and inner == "inplace" else inner
    words = [word.strip() for word in inner.split(",")] if inner else []
    fewest, most = OPERATIONS[name]
    if not all(re.fullmatch(r"-?\d{1,9}", word, re.ASCII) for word in words) or not (
        fewest <= len(words) <= most
    ):
        wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        raise ValueError(f"the description is {text[:60]!r}, expected {wanted} numbers in {name}()")
    return OperationText(name=name, numbers=tuple(map(int, words)))


def _module(path: str, inner: str, text: str) -> ModuleText:
    positional, keywords = _literal_arguments(inner, text)
    if positional == ["inplace"]:
        # As torch 0.4 prints ReLU(inplace=True).
        positional, keywords = [], {"inplace": True}
    if path.startswith("MinkowskiEngine."):
        # In place it computes the same, but a text graph does not say that a received value is sparse.
        keywords = {k: v for k, v in keywords.items() if k != "inplace"}
        keywords = {"bias" if k == "has_bias" else k: v for k, v in keywords.items()}
        if "bias" in keywords and keywords["bias"] is None:
            keywords["bias"] = False
    name = path.rpartition(".")[2]
    return ModuleText(
        constructor=Constructor(type=path, arguments=tuple(positional), keyword_arguments=keywords),
        writes_in_place=keywords.get("inplace") is True,
        is_random="Dropout" in name or name.endswith("RReLU") or bool(keywords.get("dropout")),
    )


def _literal_arguments(inner: str, text: str) -> tuple[list[Argument], dict[str, Argument]]:
    """Return the arguments between a call's parentheses.

    Raises:
        ValueError: one is no number, string, None, True, False, or a tuple or list of those.
    """
    if inner == "inplace":
        return ["inplace"], {}
    try:
        tree = ast.parse(f"f({inner})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    # One call of f alone: text that closes the parenthesis itself does not parse to that.
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)):
        raise ValueError(f"the description is {text[:60]!r}, expected a call that can be parsed")
    keywords: dict[str, Argument] = {}
    for keyword in tree.keywords:
        if keyword.arg is None or not re.fullmatch(r"[a-z_][a-z0-9_]*", keyword.arg, re.ASCII):
            raise ValueError(f"the description is {text[:60]!r}, expected plain keyword names")
        keywords[keyword.arg] = _literal(keyword.value, text, 0)
    return [_literal(node, text, 0) for node in tree.args], keywords


def _literal(node: ast.expr, text: str, depth: int) -> Argument:
    if isinstance(node, ast.Tuple | ast.List) and depth < DEEPEST:
        items = tuple(_literal(item, text, depth + 1) for item in node.elts)
        return SequenceArgument(
            type="tuple" if isinstance(node, ast.Tuple) else "list", items=items
        )
    if isinstance(node, ast.Constant):
        value = node.value
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _literal(node.operand, text, DEEPEST)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number
    raise ValueError(
        f"the description is {text[:60]!r}, expected literal arguments only: numbers, strings, None, "
        "True, False, and tuples or lists of them"
    )
