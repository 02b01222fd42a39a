"""Source text in lines of at most 100 characters, broken the way ruff format breaks them."""

from collections.abc import Sequence
from dataclasses import dataclass

LINE_LENGTH = 100


@dataclass(frozen=True, slots=True)
class Group:
    """Items between brackets: a call, or a tuple, list or dict."""

    head: str
    """Up to and with the opening bracket: "nn.Conv2d("."""
    items: tuple["Expression", ...]
    tail: str
    is_display: bool = False
    """A tuple, list or dict: broken, it has one item on each line."""


Expression = str | Group
"""A string is a piece that is never broken."""


def flat(expression: Expression) -> str:
    """Return an expression on one line."""
    if isinstance(expression, str):
        return expression
    items = ", ".join(flat(item) for item in expression.items)
    comma = "," if _needs_comma(expression) else ""
    return f"{expression.head}{items}{comma}{expression.tail}"


def lines_of(prefix: str, expression: Expression, suffix: str, indent: int) -> list[str]:
    """Return prefix, expression and suffix as indented lines."""
    margin = " " * indent
    one_line = f"{margin}{prefix}{flat(expression)}{suffix}"
    if len(one_line) <= LINE_LENGTH or isinstance(expression, str) or not expression.items:
        return [one_line]
    inner = " " * (indent + 4)
    joined = inner + ", ".join(flat(item) for item in expression.items)
    if not expression.is_display and len(joined) <= LINE_LENGTH:
        body = [joined]
    else:
        sole_display = len(expression.items) == 1 and _is_display(expression.items[0])
        comma = "" if sole_display and not expression.is_display else ","
        body = [line for item in expression.items for line in lines_of("", item, comma, indent + 4)]
    return [f"{margin}{prefix}{expression.head}", *body, f"{margin}{expression.tail}{suffix}"]


def sequence(items: Sequence[Expression], kind: str = "tuple") -> Group:
    """Return a tuple or a list display."""
    head, tail = ("[", "]") if kind == "list" else ("(", ")")
    return Group(head, tuple(items), tail, is_display=True)


def named(name: str, value: Expression) -> Expression:
    """Return name=value, as a keyword argument."""
    if isinstance(value, str):
        return f"{name}={value}"
    return Group(f"{name}={value.head}", value.items, value.tail, value.is_display)


def literal(text: str) -> str:
    """Return a string literal that holds text, in ASCII: nothing in it can end the literal or hide."""
    quoted = ascii(text)
    return f'"{quoted[1:-1]}"' if quoted[0] == "'" and '"' not in quoted else quoted


def _needs_comma(group: Group) -> bool:
    return group.is_display and group.head.endswith("(") and len(group.items) == 1


def _is_display(expression: Expression) -> bool:
    return isinstance(expression, Group) and expression.is_display
