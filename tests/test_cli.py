"""The command line: one line and exit status 2 for wrong input, and only the tool asked for is imported."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

from stagewright.cli import COMMANDS, main, run
from stagewright.document import InputError


def test_the_package_can_be_run_as_the_command() -> None:
    command = [sys.executable, "-m", "stagewright", "optimise"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("stagewright: command is 'optimise', expected one of profile")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert name in printed
        assert summary in printed


def test_an_unknown_command_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["optimise"]) == 2
    printed = capsys.readouterr()
    assert "command is 'optimise', expected one of profile, links, optimize" in printed.err
    assert printed.out == ""


def test_wrong_input_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    def tool(argv: Sequence[str] | None) -> int:
        raise InputError(f"plan.json: {argv} is wrong")

    assert run("stagewright train", tool, ["a"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "stagewright train: plan.json: ['a'] is wrong\n"
    assert printed.out == ""


def test_an_interrupt_ends_with_130_and_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def tool(argv: Sequence[str] | None) -> int:
        raise KeyboardInterrupt

    assert run("stagewright train", tool, None) == 130
    assert capsys.readouterr().err == "stagewright train: interrupted\n"


def test_the_tools_status_is_the_commands_and_our_own_mistakes_are_not_hidden() -> None:
    assert run("stagewright profile", lambda _: 7, None) == 7

    def broken(argv: Sequence[str] | None) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("stagewright profile", broken, None)


def test_the_command_line_itself_imports_no_tool_and_no_torch() -> None:
    program = """
import sys
import stagewright.cli
stagewright.cli.main([])
tools = ("torch", "numpy", "stagewright.profiler", "stagewright.optimizer", "stagewright.runtime")
loaded = [name for name in tools if name in sys.modules]
assert not loaded, loaded
"""
    run_it = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run_it.returncode == 0, run_it.stderr
