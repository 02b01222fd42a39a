"""Who imports whom, and how large files and functions may be."""

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
TOOLS = ("profiler", "optimizer", "runtime", "models")
TORCH_TOOLS = ("profiler", "runtime", "models")
TORCH_FREE_PACKAGES = {"msgspec", "numpy", "graphviz", "tqdm", "matplotlib", "ortools"}
TORCH_PACKAGES = {"torch", "safetensors", "sklearn", "MinkowskiEngine", "torchvision"}
SCRIPTS = tuple(
    ROOT / "optimizer" / name
    for name in (
        "inference_optimizer_graph.py",
        "convert_graph_to_model.py",
        "convert_graph_to_model_for_mink.py",
        "optimizer_graph_hierarchical.py",
        "optimizer_graph_hierarchical_hybrid.py",
    )
)
"""Started as files, as users of other systems know them: they have no package to import from."""
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def source_files(*folders: str) -> list[Path]:
    """Return the Python files of some top-level folders, each once: links are not followed."""
    return sorted(
        Path(folder) / name
        for top in folders
        for folder, _, names in os.walk(ROOT / top)
        for name in names
        if name.endswith(".py")
    )


def module_of(path: Path) -> tuple[str, ...]:
    """Return the dotted name of a source file as a tuple, its package for an __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in TOOLS:
        parts = ("stagewright", *parts)
    return parts


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and absolute module name of every import, also inside functions and conditions.

    `from a import b` counts as a.b, so that importing a tool from its package is seen as well.
    """
    package = module_of(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = [*start, *(node.module.split(".") if node.module else ())]
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def owner_of(module: str) -> str:
    """Return what an import belongs to: a tool, "noun", "standard library" or a package's name."""
    parts = module.split(".")
    if parts[0] == "stagewright":
        return parts[1] if len(parts) > 1 and parts[1] in TOOLS else "noun"
    return "standard library" if parts[0] in sys.stdlib_module_names else parts[0]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_imports_only_nouns_itself_and_allowed_packages(tool: str) -> None:
    allowed = {"noun", "standard library", tool} | TORCH_FREE_PACKAGES
    if tool in TORCH_TOOLS:
        allowed |= TORCH_PACKAGES
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in source_files(tool)
        for line, module in imports_of(path)
        if owner_of(module) not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_nouns_import_no_tool_and_neither_torch_nor_numpy() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in source_files("stagewright")
        for line, module in imports_of(path)
        if owner_of(module) not in {"noun", "standard library", "msgspec"}
    ]
    assert not wrong, "\n".join(wrong)


def test_tools_reach_the_modules_beside_them_by_relative_imports() -> None:
    """Models are left out: they are tasks too, which are imported as single files."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {node.module}"
        for path in source_files("profiler", "optimizer", "runtime")
        if path.name != "__main__.py" and path not in SCRIPTS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
        if f"{node.module}.".startswith(".".join(module_of(path)[:-1]) + ".")
    ]
    assert not wrong, "\n".join(wrong)


def test_planning_and_generating_run_without_torch() -> None:
    modules = [
        ".".join(module_of(path)).removesuffix(".__init__")
        for path in source_files("stagewright", "optimizer")
        if path.name != "__main__.py"
    ]
    program = f"""
import importlib, sys
sys.modules["torch"] = None  # importing it fails
for name in {modules!r}:
    importlib.import_module(name)
loaded = [name for name in sys.modules if name.startswith("stagewright.")]
tools = [n for n in loaded if n.split(".")[1] in ("profiler", "runtime", "models")]
assert not tools, tools
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_are_committed_as_links_to_the_top_level_folders(tool: str) -> None:
    link = ROOT / "stagewright" / tool
    assert link.is_symlink()
    assert os.readlink(link) == f"../{tool}"
    spec = importlib.util.find_spec(f"stagewright.{tool}")
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).resolve() == ROOT / tool / "__init__.py"


def test_a_wheel_holds_every_folder_of_every_tool() -> None:
    packages = set(find_packages(str(ROOT), include=["stagewright*"]))
    folders = {module_of(path)[:-1] for path in source_files("stagewright", *TOOLS)}
    assert {".".join(folder) for folder in folders} == packages


def test_files_and_functions_fit_their_limits() -> None:
    too_long = []
    for path in source_files("stagewright", *TOOLS, "benchmarks", "tests"):
        text = path.read_text()
        name = path.relative_to(ROOT)
        if len(text.splitlines()) > MAX_FILE_LINES:
            too_long.append(f"{name} has {len(text.splitlines())} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    too_long.append(
                        f"{name}:{node.lineno} {node.name} has {lines} lines, "
                        f"at most {MAX_FUNCTION_LINES}"
                    )
    assert not too_long, "\n".join(too_long)
