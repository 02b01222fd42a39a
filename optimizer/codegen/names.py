"""Names in generated code: which text may stand as an identifier, and one namespace per function."""

import builtins
import keyword
import re
from collections.abc import Sequence

RESERVED = frozenset(
    {"self", "torch", "nn", "F", "ME", "voxels", "math", "operator", "original", "device"}
    | set(keyword.kwlist)
    | set(keyword.softkwlist)
    | set(dir(builtins))
)
"""Names that a variable of generated code never shadows."""
LONGEST = 40
"""Characters of a variable's name; longer paths keep their end."""


def is_identifier(text: str) -> bool:
    """Return whether text may stand as an attribute or a keyword in generated code.

    ASCII only, as Python folds other letters together; no leading double underscore, as a class body
    changes such names.
    """
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text, flags=re.ASCII) is not None
    return plain and not text.startswith("__") and not keyword.iskeyword(text)


def variable_name(layer: str) -> str:
    """Return a variable's name made from a layer's: "layer1.0.conv1" gives "layer1_0_conv1"."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", layer, flags=re.ASCII).strip("_")[-LONGEST:].strip("_")
    if not name or name[0].isdigit():
        name = f"value_{name}".rstrip("_")
    return f"{name}_value" if name in RESERVED else name


class Namespace:
    """The variables of one function and the spans of steps in which each holds something.

    Invariants: the spans of one name do not overlap, though one may begin at the step where another ends
    (the step reads the old value and assigns the new one); no name is reserved.
    """

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[int, int]]] = {}

    def assign(self, preferred: Sequence[str], first: int, last: int) -> str:
        """Return the first preferred name that is free from step first to step last, and take it.

        If none is, the last preferred one is numbered.
        """
        number = 2
        candidates = list(preferred)
        while True:
            for name in candidates:
                if self._is_free(name, first, last):
                    self._spans.setdefault(name, []).append((first, last))
                    return name
            candidates = [f"{preferred[-1]}_{number}"]
            number += 1

    def _is_free(self, name: str, first: int, last: int) -> bool:
        spans = self._spans.get(name, [])
        return name not in RESERVED and all(last <= a or b <= first for a, b in spans)
