"""What torch.export took for granted of the sizes of a micro-batch, which no layer graph checks again."""

from typing import Any

from stagewright.document import InputError

from .symbolic import is_users

SIZES_TRIED = (*range(2, 65), 96, 100, 128, 200, 256, 500, 512, 1000, 1024, 4096)
"""Numbers of samples."""


def demand_any_size(program: Any, num_samples: int) -> None:
    """Check that an exported program holds for every number of samples, but one.

    A guard is what a branch in Python demands of sizes. That two sizes are equal, as those of two inputs are,
    holds for all; a guard with sizes that do not grow with the samples is not judged.

    Args:
        num_samples: in the example that the program was exported with.

    Raises:
        InputError: a branch goes another way for some numbers; the message has its line.
    """
    values = (node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder")
    modes = (getattr(value, "fake_mode", None) for value in values)
    environment = next((mode.shape_env for mode in modes if mode is not None), None)
    if environment is None:
        return
    for guard in environment.guards:
        hints = {s: environment.backed_var_to_val.get(s) for s in guard.expr.free_symbols}
        if None in hints.values():
            continue
        for size in SIZES_TRIED:
            grown = {symbol: hint * size / num_samples for symbol, hint in hints.items()}
            is_whole = all(value.is_integer for value in grown.values())
            if is_whole and guard.expr.subs(grown) == False:  # noqa: E712  # A value of sympy.
                raise InputError(
                    f"{_place(guard.sloc.framework_loc)}: forward goes another way for a micro-batch of "
                    f"{size} samples than for one of {num_samples}; write it without Python control flow on "
                    "sizes, or put it into an nn.Module whose class has stagewright_layer = True"
                )


def _place(frame: Any) -> str:
    file = getattr(frame, "filename", "")
    return f"{file}:{frame.lineno}" if file and is_users(file) else "the model"
