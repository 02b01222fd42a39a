"""Tasks: named as a file or a module, beside a user's own packages, and what is missing is asked for."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.task import load_task

GOOD = "def build():\n    return 'model'\ndef tiny():\n    return 'tiny model'\nLIMIT = 3\n"


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Give each test its own working folder, module table and path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_and_a_module_are_the_same_task() -> None:
    Path("good.py").write_text(GOOD)
    assert load_task("good.py").build() == "model"
    assert load_task("good").build() == "model"
    assert load_task("good.py:tiny").build() == "tiny model"
    assert load_task("good:tiny").factory == "tiny"


def test_a_module_in_a_package_is_found_from_the_working_folder() -> None:
    Path("mine").mkdir()
    Path("mine/__init__.py").write_text("")
    Path("mine/good.py").write_text(GOOD)
    assert load_task("mine.good").build() == "model"


def test_the_users_own_models_folder_is_imported_not_ours() -> None:
    Path("project/models").mkdir(parents=True)
    Path("project/models/__init__.py").write_text("ANSWER = 42\n")
    Path("project/task.py").write_text(
        "from models import ANSWER\ndef build():\n    return ANSWER\n"
    )
    assert load_task("project/task.py").build() == 42


def test_the_tasks_folder_comes_first_even_if_the_path_has_it_later() -> None:
    for folder in ("other", "project"):
        Path(folder).mkdir()
        Path(folder, "shared_name.py").write_text(f"ANSWER = {folder!r}\n")
    sys.path[:0] = [str(Path("other").resolve()), str(Path("project").resolve())]
    text = "from shared_name import ANSWER\ndef build():\n    return ANSWER\n"
    Path("project/task.py").write_text(text)
    assert load_task("project/task.py").build() == "project"


def test_two_files_of_one_name_are_two_tasks() -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "task.py").write_text(f"def build():\n    return {folder!r}\n")
    assert [load_task(f"{folder}/task.py").build() for folder in ("a", "b")] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("none.py", "task none.py: there is no such file"),
        ("folder/none.py", "task folder/none.py: there is no such file"),
        ("no_such_module_here", "there is no module 'no_such_module_here'"),
        ("leaving.py", "leaving.py:2: SystemExit: 3; correct it"),
        ("good.py:huge", "defines no function 'huge'; add it: huge() returns the model"),
        ("good.py:LIMIT", "defines no function 'LIMIT'"),
        ("empty.py", "defines no function 'build'; add it: build() returns the model"),
        ("typo.py", "typo.py:2"),
        ("broken.py", "broken.py:2: ZeroDivisionError: division by zero"),
        ("lacking.py", "lacking.py:1: No module named 'no_such_dependency'; install or correct it"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_with_the_place(name: str, problem: str) -> None:
    Path("good.py").write_text(GOOD)
    Path("empty.py").write_text("")
    Path("leaving.py").write_text("import sys\nsys.exit(3)\n")
    Path("typo.py").write_text("\ndef build(:\n")
    Path("broken.py").write_text("\n1 / 0\n")
    Path("lacking.py").write_text("import no_such_dependency\n")
    with pytest.raises(InputError) as caught:
        load_task(name)
    assert problem in str(caught.value)
    assert str(caught.value).count("task ") == 1
    assert "\n" not in str(caught.value)


def test_a_function_that_fails_is_named_with_the_users_line() -> None:
    Path("task.py").write_text("import json\ndef build():\n    raise ValueError('two\\nlines')\n")
    with pytest.raises(InputError) as caught:
        load_task("task.py").build()
    assert re.fullmatch(
        r"task task\.py: build\(\) fails at .*task\.py:3: ValueError: two; correct it",
        str(caught.value),
    )


def test_a_missing_function_is_asked_for_by_name_and_meaning() -> None:
    Path("good.py").write_text(GOOD)
    task = load_task("good.py")
    assert not task.has("loss")
    assert not task.has("LIMIT")
    for name in ("example_input", "loss", "dataset", "metric"):
        with pytest.raises(
            InputError, match=rf"task good\.py: defines no function '{name}'; add it: {name}\("
        ):
            task.function(name)


def test_a_file_that_failed_can_be_corrected_and_loaded() -> None:
    Path("task.py").write_text("1 / 0\n")
    with pytest.raises(InputError):
        load_task("task.py")
    Path("task.py").write_text(GOOD)
    assert load_task("task.py").build() == "model"
