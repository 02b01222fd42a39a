"""The task: the user's one Python file, named to every tool as package.module or path/to/file.py[:factory].

It defines build() -> nn.Module and example_input(batch_size) -> tensor, tuple or dict; for training also
loss(output, target) and dataset(split) -> a map-style dataset of (input, target); optionally
metric(output, target) -> a number per micro-batch, averaged over samples.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from stagewright.document import InputError

MEANING = {
    "example_input": "example_input(batch_size) returns what the model takes: a tensor, a tuple or a dict",
    "loss": "loss(output, target) returns the mean loss of a micro-batch",
    "dataset": "dataset(split) returns a map-style dataset of (input, target) for 'train' and 'test'",
    "metric": "metric(output, target) returns a number, averaged over the samples",
    "grid_model": "grid_model(num_layers, width) returns the model of that size",
    "grid_input": "grid_input(model, batch_size, length, context) returns what it takes for such a slice",
}


@dataclass(frozen=True)
class Task:
    """A loaded task."""

    name: str
    """As the user gave it, without the factory."""
    factory: str
    module: ModuleType

    def build(self) -> Any:
        """Return the model that the factory builds; raises as `call` does."""
        return self.call(self.factory)

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what one of the task's functions returns.

        Raises:
            InputError: the task does not define it, or it fails; the message names the user's line.
        """
        function = self.function(name)
        try:
            return function(*arguments)
        except InputError:
            raise
        except Exception as error:
            listed = ", ".join(map(repr, arguments))
            raise InputError(
                f"task {self.name}: {name}({listed}) fails at {_place(error)}: "
                f"{type(error).__name__}: {_first_line(error)}; correct it"
            ) from error

    def has(self, name: str) -> bool:
        return callable(getattr(self.module, name, None))

    def function(self, name: str) -> Callable[..., Any]:
        """Return one of the task's functions.

        Raises:
            InputError: the task does not define it; the message says what it is for.
        """
        function = getattr(self.module, name, None)
        if not callable(function):
            meaning = MEANING.get(name, f"{name}() returns the model as an nn.Module")
            raise InputError(f"task {self.name}: defines no function {name!r}; add it: {meaning}")
        return function  # type: ignore[no-any-return]


def load_task(name: str) -> Task:
    """Import a task.

    A file is imported as Python runs a script, with its folder first on the path, and a module with the
    working folder first, so that the user's own packages are found whatever started this program.

    Raises:
        InputError: there is no such file or module, it fails when imported, or it has no factory.
    """
    target, _, factory = name.partition(":")
    factory = factory or "build"
    is_file = target.endswith(".py") or "/" in target
    folder = str(Path(target).resolve().parent if is_file else Path.cwd())
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    try:
        module = _import_file(Path(target)) if is_file else importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is not None and (target == error.name or target.startswith(f"{error.name}.")):
            raise InputError(
                f"task {target}: there is no module {error.name!r} from {folder}; "
                "name a module (package.module) or a file (path/to/file.py)"
            ) from None
        raise InputError(
            f"task {target}: {_place(error)}: {_first_line(error)}; install or correct it"
        ) from error
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"task {target}: {_place(error)}: {type(error).__name__}: {_first_line(error)}; correct it"
        ) from error
    task = Task(name=target, factory=factory, module=module)
    task.function(factory)
    return task


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(
            f"task {path}: there is no such file; name a file (path/to/file.py) or a module"
        )
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"stagewright_task_{path.stem}_{unique}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _place(error: BaseException) -> str:
    """Return file and line of the innermost user frame of an error."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    frames = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "import"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
