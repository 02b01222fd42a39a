"""Layout: literals hold any text harmlessly, and breaking lines never changes what code means."""

import ast

from hypothesis import example, given
from hypothesis import strategies as st

from stagewright.optimizer.codegen.layout import Expression, Group, lines_of, literal, sequence


@given(st.text())
@example("\"); import os; os.system('true') #")
@example("'''\"\"\"\\")
@example("\n\r\u2028\u202e\x00")
def test_a_literal_reads_back_as_the_text_and_is_plain_ascii(text: str) -> None:
    written = literal(text)
    assert written.isascii() and written.isprintable()
    assert ast.literal_eval(written) == text


atoms = st.sampled_from(["1", "None", '"text"', "-2.5", "x" * 30])
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=8).map(lambda items: sequence(items)),
        st.lists(inner, max_size=8).map(lambda items: sequence(items, "list")),
        st.lists(inner, max_size=8).map(lambda items: Group("call(", tuple(items), ")")),
    ),
    max_leaves=25,
)


@given(expressions, st.sampled_from([0, 8]))
def test_broken_lines_mean_the_same_as_one(expression: Expression, indent: int) -> None:
    lines = lines_of("value = ", expression, "", indent)
    source = "\n".join(line[indent:] for line in lines)
    parsed = ast.parse(source).body
    assert len(parsed) == 1 and isinstance(parsed[0], ast.Assign)
    assert ast.dump(parsed[0].value) == ast.dump(ast.parse(plain(expression), mode="eval").body)
    assert all(len(line) <= 100 for line in lines)


def plain(expression: Expression) -> str:
    """Return an expression with a comma after every item of a display."""
    if isinstance(expression, str):
        return expression
    items = ", ".join(plain(item) for item in expression.items)
    comma = "," if expression.is_display and expression.items else ""
    return f"{expression.head}{items}{comma}{expression.tail}"
