"""PipeDream's graph.txt: what is written reads back the same, and a malformed line is named."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright import pipedream_graph
from stagewright.document import InputError
from stagewright.pipedream_graph import TextGraph, TextNode, is_description, parse_graph

COSTS = (
    "forward_compute_time=1.500, backward_compute_time=2.000, activation_size=8.0, "
    "parameter_size=4.000"
)
DATA = Path(__file__).parents[2] / "shared" / "data"

identifiers = st.text(
    string.ascii_letters + string.digits + "_-.é#", min_size=1, max_size=6
).filter(lambda name: not name.startswith("#"))
numbers = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
sizes = st.floats(min_value=0, max_value=1e15)
descriptions = st.one_of(st.text(" -,ab()=[]\t\r#é", max_size=20), st.text(max_size=20)).filter(
    is_description
)


@st.composite
def text_graphs(draw: st.DrawFn) -> TextGraph:
    names = draw(st.lists(identifiers, min_size=1, max_size=6, unique=True))
    nodes = tuple(
        TextNode(
            name=name,
            description=draw(descriptions),
            forward_ms=draw(numbers),
            backward_ms=draw(numbers),
            activation_bytes=draw(sizes | st.lists(sizes, min_size=1, max_size=3).map(tuple)),
            parameter_bytes=draw(sizes),
            stage=draw(st.none() | st.integers(0, 99)),
        )
        for name in names
    )
    pairs = st.tuples(st.sampled_from(names), st.sampled_from(names))
    return TextGraph(nodes=nodes, edges=tuple(draw(st.lists(pairs, max_size=8))))


@given(text_graphs())
def test_a_written_graph_reads_back_the_same(graph: TextGraph) -> None:
    assert parse_graph(str(graph)) == graph


def test_canonical_text_is_pipedreams() -> None:
    text = f"node1 -- Input0 -- {COSTS}\nnode2 -- Linear(4, 2) -- {COSTS} -- stage_id=0\n\tnode1 -- node2\n"
    assert str(parse_graph(text)) == text.replace("8.0,", "8.000,")


def test_lists_stay_lists_and_repeated_edges_stay() -> None:
    listed = COSTS.replace("8.0", "[6291456.0; 131072.0; 0.25]")
    text = f"a -- LSTM(2, 1) -- {listed}\nb -- Mul -- {COSTS}\n\ta -- b\n\ta -- b\n"
    graph = parse_graph(text)
    assert graph.nodes[0].activation_bytes == (6291456.0, 131072.0, 0.25)
    assert graph.edges == (("a", "b"), ("a", "b"))
    assert parse_graph(str(graph)) == graph


def test_blank_lines_comments_and_carriage_returns_are_passed_over() -> None:
    plain = f"a -- A -- {COSTS}\nb -- B -- {COSTS}\n\ta -- b\n"
    dressed = plain.replace("\n", "\r\n").replace("b -- B", "\r\n# a comment\r\n  # more\r\nb -- B")
    assert parse_graph(dressed) == parse_graph(plain)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("just words", "has 1 parts"),
        (f"b -- B -- {COSTS} -- stage_id=0 -- more", "has 5 parts"),
        ("b -- B -- forward_compute_time=1.0", "has 1 costs, expected 4"),
        (
            f"b -- B -- {COSTS.replace('backward', 'sideward')}",
            "'sideward_compute_time=2.000' where",
        ),
        (f"b -- B -- {COSTS.replace('1.500', '-1.5')}", "forward_compute_time is '-1.5'"),
        (f"b -- B -- {COSTS.replace('1.500', 'nan')}", "forward_compute_time is 'nan'"),
        (f"b -- B -- {COSTS.replace('1.500', '1e999')}", "found inf"),
        (
            f"b -- B -- {COSTS.replace('8.0', '[1e308; 1e308]')}",
            "a size is 9.0072e+15 bytes or more",
        ),
        (f"b -- B -- {COSTS.replace('1.500', '1_0')}", "forward_compute_time is '1_0'"),
        (f"b -- B -- {COSTS.replace('8.0', '[]')}", "activation_size is ''"),
        (f"b -- B -- {COSTS.replace('8.0', '[1; x]')}", "activation_size is 'x'"),
        (f"b -- B -- {COSTS.replace('8.0', '[1, 2]')}", "has 5 costs"),
        (f"b -- B -- {COSTS.replace('4.000', '')}", "parameter_size is ''"),
        (f"b -- B -- {COSTS} -- stage_id=-1", "stage_id is '-1'"),
        (f"b -- B -- {COSTS} -- stage=1", "found 'stage=1' where stage_id=... is expected"),
        (f"a -- B -- {COSTS}", "node 'a' is there twice"),
        (f"two words -- B -- {COSTS}", "node identifier is 'two words'"),
        ("\ta -- z", "edge names 'z', which no earlier line describes"),
        ("\ta - a", "edge is '\\ta - a'"),
        ("\ta -- a -- a", "expected a tab and SOURCE -- TARGET"),
    ],
)
def test_a_malformed_line_is_named_with_what_is_wrong(line: str, words: str) -> None:
    text = f"# header\na -- A -- {COSTS}\n\n{line}\n"
    with pytest.raises(InputError) as caught:
        parse_graph(text, "some/graph.txt")
    message = str(caught.value)
    assert message.startswith("some/graph.txt:4: ")
    assert words in message
    assert "\n" not in message


@given(text_graphs(), st.data())
def test_a_spoilt_text_reads_or_is_refused_by_line_and_nothing_else(
    graph: TextGraph, data: st.DataObject
) -> None:
    text = str(graph)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 9)))
    spoilt = text[:start] + data.draw(st.text("\t\n -=[];#,a0.e", max_size=4)) + text[end:]
    try:
        again = parse_graph(spoilt, "graph.txt")
    except InputError as error:
        assert str(error).startswith("graph.txt:") and "\n" not in str(error)
    else:
        assert parse_graph(str(again)) == again


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_a_file_without_nodes_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="has no node line"):
        parse_graph(text)


@pytest.mark.parametrize("description", ["a -- b", "a --", "a\nb"])
def test_a_description_that_would_not_read_back_is_refused(description: str) -> None:
    with pytest.raises(ValueError, match="expected one line"):
        TextNode(
            name="a",
            description=description,
            forward_ms=0,
            backward_ms=0,
            activation_bytes=0,
            parameter_bytes=0,
        )


def test_a_graph_is_saved_and_loaded(tmp_path: Path) -> None:
    graph = parse_graph(f"a -- A -- {COSTS}\n")
    graph.save(tmp_path / "graph.txt")
    assert TextGraph.load(tmp_path / "graph.txt") == graph


@pytest.mark.parametrize(
    ("name", "num_nodes", "forward_ms", "backward_ms", "parameter_bytes"),
    [
        ("pipedream/vgg16.graph.txt", 41, 251.9, 438.6, 553.4e6),
        ("sparsepipe/minkvgg_b64_RTX.graph.txt", 53, 332, 374, 252.7e6),
        ("sparsepipe/minkvgg_b64_TitanV.graph.txt", 53, 558, 500, 252.7e6),
        ("sparsepipe/minkvgg_b64_TitanXP.graph.txt", 53, 659, 761, 252.7e6),
    ],
)
def test_published_profiles_read_with_their_known_totals(
    name: str, num_nodes: int, forward_ms: float, backward_ms: float, parameter_bytes: float
) -> None:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: published profiles are not part of the project")
    graph = TextGraph.load(path)
    assert len(graph.nodes) == num_nodes
    assert sum(node.forward_ms for node in graph.nodes) == pytest.approx(forward_ms, rel=2e-3)
    assert sum(node.backward_ms for node in graph.nodes) == pytest.approx(backward_ms, rel=2e-3)
    total = sum(node.parameter_bytes for node in graph.nodes)
    assert total == pytest.approx(parameter_bytes, rel=1e-3)
    assert parse_graph(str(graph)) == graph


def test_a_file_with_more_nodes_than_any_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipedream_graph, "MOST_NODES", 2)
    costs = ", ".join(
        f"{name}=1"
        for name in (
            "forward_compute_time",
            "backward_compute_time",
            "activation_size",
            "parameter_size",
        )
    )
    lines = [f"node{i} -- Linear -- {costs}" for i in range(3)]
    assert len(parse_graph("\n".join(lines[:2])).nodes) == 2
    with pytest.raises(InputError, match=r"graph.txt:3: there are more than 2 nodes, expected"):
        parse_graph("\n".join(lines))
