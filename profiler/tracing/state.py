"""What a model keeps in Python besides parameters and buffers: attributes, and globals of the user's files.

A place is a dict, list, set or deque that is reached from the model's modules, their classes and the user's
files that define these, through plain objects and containers. Not seen: closures, C extensions, files.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from .symbolic import is_users

OF_TORCH = frozenset(vars(nn.Module())) | {"_flat_weights", "_flat_weight_refs"}
"""Attributes that torch keeps in each module: tables of parameters, hooks, the mode; in recurrent ones."""
TABLES = ("_parameters", "_buffers", "_modules")
SCALARS = (bool, int, float, complex, str, bytes, type(None))
MOST_PLACES = 100_000
"""Beyond, a model's objects are not searched further."""
_MISSING = object()


class Change(NamedTuple):
    """One value that is another than it was; a missing one is None."""

    place: "_Place"
    key: Any
    before: Any
    after: Any

    @property
    def name(self) -> str:
        return f"{self.place.name}.{self.key}" if isinstance(self.key, str) else self.place.name


@dataclass
class _Place:
    """A container and what was in it."""

    name: str
    """As the user would write it: "self.blocks.0"."""
    holder: Any
    """The container itself, or the class whose attributes it holds."""
    content: dict[Any, Any]
    versions: dict[Any, int]
    """Of the tensors in it."""

    def now(self) -> dict[Any, Any]:
        return _content(self.holder)

    def changes(self) -> Iterator[Change]:
        found = self.now()
        for key in dict.fromkeys((*self.content, *found)):
            before, after = self.content.get(key, _MISSING), found.get(key, _MISSING)
            is_same = before is after or (
                type(before) is type(after) and isinstance(after, SCALARS) and before == after
            )
            if not is_same or self.versions.get(key) != _version(after):
                yield Change(self, key, *(None if v is _MISSING else v for v in (before, after)))

    def put(self, key: Any, value: Any) -> None:
        """Set one value; behind the end of a list, append it."""
        if isinstance(self.holder, type):
            setattr(self.holder, key, value)
        elif isinstance(self.holder, set):
            self.holder.add(key)
        elif isinstance(self.holder, list | deque) and key >= len(self.holder):
            self.holder.append(value)
        else:
            self.holder[key] = value

    def restore(self) -> None:
        changed = [change.key for change in self.changes()]
        if not changed:
            return
        if isinstance(self.holder, set):
            self.holder.clear()
            self.holder.update(self.content)
        elif isinstance(self.holder, list | deque):
            self.holder.clear()
            self.holder.extend(self.content.values())
        else:
            for key in changed:
                if key in self.content:
                    self.put(key, self.content[key])
                elif isinstance(self.holder, type):
                    delattr(self.holder, key)
                else:
                    del self.holder[key]


class PythonState:
    """A model's state in Python at one moment, to compare with and to return to."""

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[int, _Place] = {}
        self._tables: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for path, module in model.named_modules():
            tables = [vars(module)[name] for name in TABLES if name in vars(module)]
            self._tables += [(table, dict(table)) for table in tables]
            self._visit("self" + (f".{path}" if path else ""), vars(module))
        for kind in dict.fromkeys(type(module) for module in model.modules()):
            for each in kind.__mro__:
                self._visit_class(each)

    def changes(self) -> list[Change]:
        """Return what is another than at that moment, in order of the modules."""
        return [change for place in self._places.values() for change in place.changes()]

    def restore(self) -> None:
        """Make everything as it was, but for what was changed inside of objects that are no containers."""
        for table, content in self._tables:
            if list(table) != list(content) or any(table[k] is not content[k] for k in table):
                table.clear()
                table.update(content)
        for place in self._places.values():
            place.restore()

    def _visit(self, name: str, holder: Any) -> None:
        waiting = [(name, holder)]
        while waiting and len(self._places) < MOST_PLACES:
            name, holder = waiting.pop()
            if id(holder) in self._places:
                continue
            content = _content(holder)
            versions = {key: v for key in content if (v := _version(content[key])) is not None}
            self._places[id(holder)] = _Place(name, holder, content, versions)
            for key, value in content.items():
                inner = _container(value)
                if inner is not None:
                    step = f".{key}" if isinstance(key, str) else ""
                    waiting.append((name + step, inner))

    def _visit_class(self, kind: type) -> None:
        home = sys.modules.get(kind.__module__)
        file = str(getattr(home, "__file__", None) or "<")
        if not is_users(file) or "site-packages" in file:
            return
        self._visit(kind.__name__, kind)
        if home is not None and id(vars(home)) not in self._places:
            self._visit(home.__name__, vars(home))


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Give a model its state in Python back afterwards; also proxies that a trace leaves in attributes."""
    state = PythonState(model)
    try:
        yield
    finally:
        state.restore()


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give each module its mode, training or evaluation, back afterwards."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give a model's buffers their values back afterwards."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])


def line_of_change(has_changed: Callable[[], bool], run: Callable[[], object]) -> str | None:
    """Return file:line of the user's code that made a change while something ran; None: none was seen."""
    found: list[str] = []
    last = [""]

    def watch(frame: FrameType, event: str, _: Any) -> Any:
        if not is_users(frame.f_code.co_filename):
            return None
        if not found and event != "call" and has_changed():
            found.append(last[0])
        if event == "return":
            back = frame.f_back
            if back is not None and is_users(back.f_code.co_filename):
                last[0] = f"{back.f_code.co_filename}:{back.f_lineno}"
        elif event == "line":
            last[0] = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        run()
    finally:
        sys.settrace(before)
    return next(filter(None, found), None)


def _content(holder: Any) -> dict[Any, Any]:
    """Return what a container holds, by key; of modules and files without what is no state."""
    if isinstance(holder, type):
        return {k: v for k, v in vars(holder).items() if _is_state(k, v)}
    if isinstance(holder, dict):
        if "__builtins__" in holder:
            return {k: v for k, v in holder.items() if _is_state(k, v)}
        return {k: v for k, v in holder.items() if k not in OF_TORCH}
    if isinstance(holder, set):
        return dict.fromkeys(holder)
    return dict(enumerate(holder))


def _is_state(name: str, value: Any) -> bool:
    """Return whether a global or an attribute of a class may be state: a number, a text, a container."""
    is_own = not (name.startswith("__") or name.startswith("_abc_"))
    return is_own and isinstance(value, (*SCALARS, list, dict, set, deque))


def _container(value: Any) -> Any:
    """Return the container that a value is or has; None: it has none that is searched."""
    if isinstance(value, dict | list | set | deque):
        return value
    if isinstance(
        value, torch.Tensor | nn.Module | ModuleType | MethodType | type | torch.Generator
    ):
        return None
    home = type(value).__module__.partition(".")[0]
    is_library = home in ("torch", "numpy", "MinkowskiEngine") or home in sys.stdlib_module_names
    return None if is_library else getattr(value, "__dict__", None)


def _version(value: Any) -> int | None:
    return value._version if isinstance(value, torch.Tensor) else None


def names_of(changes: Sequence[Change]) -> str:
    """Return the names of what has changed, each once."""
    return ", ".join(dict.fromkeys(change.name for change in changes))
