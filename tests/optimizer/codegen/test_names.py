"""Names: identifiers are checked, variables never clash with one another or with what code uses."""

import ast
import builtins
import keyword

from hypothesis import example, given
from hypothesis import strategies as st

from stagewright.optimizer.codegen.names import Namespace, is_identifier, variable_name


@given(st.text())
@example("class")
@example("__init__")
@example("x\n")
@example("ﬁ")
def test_what_passes_as_an_identifier_is_read_back_as_that_very_name(text: str) -> None:
    if is_identifier(text):
        parsed = ast.parse(f"value.{text}", mode="eval").body
        assert isinstance(parsed, ast.Attribute) and parsed.attr == text
        assert not text.startswith("__")


@given(st.text())
@example("input")
@example("layer1.0.conv1")
@example("self")
@example("0")
def test_a_variable_is_a_name_that_hides_nothing(text: str) -> None:
    name = variable_name(text)
    assert is_identifier(name)
    assert name not in {"self", "torch", "nn", "F", "math", "operator", "original", "device"}
    assert not keyword.issoftkeyword(name) and not hasattr(builtins, name)


spans = st.tuples(st.integers(0, 12), st.integers(1, 6)).map(lambda s: (s[0], s[0] + s[1]))


@given(st.lists(st.tuples(st.lists(st.sampled_from("xyz"), min_size=1), spans), max_size=20))
def test_a_name_holds_one_thing_at_a_time(wishes: list[tuple[list[str], tuple[int, int]]]) -> None:
    namespace = Namespace()
    given_out: list[tuple[str, tuple[int, int]]] = []
    for preferred, (first, last) in wishes:
        name = namespace.assign(preferred, first, last)
        for other, (a, b) in given_out:
            assert other != name or last <= a or b <= first
        given_out.append((name, (first, last)))
