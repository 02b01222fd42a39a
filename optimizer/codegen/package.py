"""From a plan file to a folder with a Python package: stage0.py ... stageN.py, __init__.py, plan.json."""

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stagewright.document import InputError, read_text, reason_of, sha256_of, write_atomically
from stagewright.graph import LayerGraph, unique_parameters
from stagewright.plan import Plan, Source

from .full_model import Origin, generate_full_model
from .interfaces import MAKE_AGAIN, stage_interfaces
from .stage import StageCode, generate_stage

PLAN_FILE = "plan.json"
OWN_FILES = re.compile(r"plan\.json|__init__\.py|__pycache__|stage\d+\.py")


@dataclass(frozen=True, kw_only=True)
class GeneratedStage:
    """One stage's file and what is in it."""

    file: str
    class_name: str
    num_layers: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    needs_original: bool
    parameter_bytes: int
    num_lines: int


@dataclass(frozen=True, kw_only=True)
class GeneratedPackage:
    """A written package."""

    folder: str
    plan_sha256: str
    task: str
    stages: tuple[GeneratedStage, ...]


def generate(plan_path: Path, folder: Path) -> GeneratedPackage:
    """Write the package of a plan; it takes the place of an earlier generated one, whole or not at all.

    Raises:
        InputError: the plan or one of its files is missing, changed or does not fit, a layer cannot be
            generated, or the folder holds something that was not generated.
    """
    plan = Plan.load(plan_path)
    graph, graph_path = load_graph(plan, plan_path)
    _demand_replaceable(folder)
    stages = [
        generate_stage(interface, len(plan.stages), graph, str(graph_path))
        for interface in stage_interfaces(plan, graph, str(plan_path))
    ]
    moved = _with_sources(plan, _moved_sources(plan, plan_path, folder))
    temporary = _new_folder_beside(folder)
    try:
        moved.save(temporary / PLAN_FILE)
        plan_sha256 = sha256_of(temporary / PLAN_FILE)
        for code in stages:
            write_atomically(temporary / code.file_name, code.source.encode())
        init = generate_full_model(stages, graph, plan_sha256, Origin())
        write_atomically(temporary / "__init__.py", init.encode())
        _put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return GeneratedPackage(
        folder=str(folder),
        plan_sha256=plan_sha256,
        task=plan.task,
        stages=tuple(_summary(code, graph) for code in stages),
    )


def load_graph(plan: Plan, plan_path: Path) -> tuple[LayerGraph, Path]:
    """Return a layer graph that the plan was made from, and its path; all of them are of the same model.

    Raises:
        InputError: a file that the plan was made from is missing or has changed, or none is a graph.
    """
    for source in plan.sources:
        path = plan_path.parent / source.path
        if sha256_of(path) != source.sha256:
            raise InputError(
                f"{path}: has changed since {plan_path} was made from it; {MAKE_AGAIN}"
            )
    for source in plan.sources:
        if source.role.startswith("graph:"):
            path = plan_path.parent / source.path
            return LayerGraph.load(path), path
    raise InputError(f'{plan_path}: sources names no "graph:..." file; {MAKE_AGAIN}')


def _moved_sources(plan: Plan, plan_path: Path, folder: Path) -> tuple[Source, ...]:
    """Return the sources with their paths relative to the generated folder."""
    start = folder.resolve()
    return tuple(
        Source(
            role=source.role,
            path=os.path.relpath((plan_path.parent / source.path).resolve(), start),
            sha256=source.sha256,
        )
        for source in plan.sources
    )


def _with_sources(plan: Plan, sources: tuple[Source, ...]) -> Plan:
    fields = {name: getattr(plan, name) for name in plan.__struct_fields__}
    return Plan(**(fields | {"sources": sources}))


def _demand_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, expected a folder to write; name another")
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return
    strangers = [name for name in names if not OWN_FILES.fullmatch(name)]
    if strangers:
        raise InputError(
            f"{folder}: holds {strangers[0]!r}, which was not generated; name a new or an empty folder"
        )
    is_own = {PLAN_FILE, "__init__.py"} <= set(names)
    if not is_own or "PLAN_SHA256 = " not in read_text(folder / "__init__.py"):
        raise InputError(
            f"{folder}: holds {names[0]!r} but is no generated package; name a new or an empty folder"
        )


def _new_folder_beside(folder: Path) -> Path:
    try:
        folder.resolve().parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.resolve().parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {reason_of(error)}") from None
    return temporary


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename the new folder to its name; an old one is moved aside first and put back on failure."""
    target = folder.resolve()
    aside = temporary.with_name(f"{temporary.name}.old")
    try:
        if target.exists():
            target.rename(aside)
        try:
            temporary.rename(target)
        except OSError:
            if aside.exists():
                aside.rename(target)
            raise
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    shutil.rmtree(aside, ignore_errors=True)


def _summary(code: StageCode, graph: LayerGraph) -> GeneratedStage:
    parameters = unique_parameters(graph, code.interface.layers).values()
    return GeneratedStage(
        file=code.file_name,
        class_name=code.class_name,
        num_layers=len(code.interface.layers),
        inputs=tuple(layer.name for layer in code.interface.inputs),
        outputs=code.interface.outputs,
        needs_original=code.tree.needs_original,
        parameter_bytes=sum(parameter.spec.bytes_at(1) for parameter in parameters),
        num_lines=code.source.count("\n"),
    )
