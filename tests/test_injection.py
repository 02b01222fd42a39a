"""Attacks by a text graph: nothing of a description, an identifier or a name reaches code unparsed."""

from pathlib import Path

import pytest

from stagewright.document import InputError
from stagewright.optimizer.pipedream.generation.write import Request, write_model

COSTS = (
    "forward_compute_time=1.0, backward_compute_time=1.0, activation_size=8.0, parameter_size=0.0"
)
DESCRIPTIONS = [
    # Calls.
    "Linear(__import__('os').system('touch owned'), 2)",
    "Linear(open('owned', 'w'), 2)",
    "Linear(eval('1'), 2)",
    "Linear(exec('1'), 2)",
    "Linear((lambda: 1)(), 2)",
    "Linear(print(), 2)",
    "Linear(2, 2)(print())",
    "Linear(2, 2).to('cpu')",
    "Linear(2, 2), print()",
    "Linear(2, 2) or print()",
    "Linear(2, 2); print()",
    "Linear(2, 2)) + print(",
    "Linear([x for x in (1,)][0], 2)",
    "Linear(*(2, 2))",
    "Linear(**{'in_features': 2})",
    "Linear(in_features=(yield), out_features=2)",
    "Linear((x := 2), 2)",
    # Attributes, names and operators.
    "Linear(torch.os, 2)",
    "Linear(PoolingMode.X, 2)",
    "Linear(__name__, 2)",
    "Linear(().__class__.__bases__, 2)",
    "Linear(1 if True else 2, 2)",
    "Linear(1 + 1, 2)",
    "Linear('a' 'b' % 1, 2)",
    "Linear(2, 2, lambda=1)",
    "Linear(2, 2, __init__=print)",
    # f-strings and other literals that are no plain values.
    "Linear(f'{print()}', 2)",
    "Linear(rb'x', 2)",
    "Linear({1: 2}, 2)",
    "Linear({1, 2}, 2)",
    "Linear(1j, 2)",
    "Linear(1e999, 2)",
    "Linear(" + "(" * 200 + "1" + ")" * 200 + ",)",
    "Linear(" + "[" * 20 + "1" + "]" * 20 + ", 2)",
    "Linear(" + "9" * 5000 + ", 2)",
    # Newlines, comments and strings that end early.
    "Linear(2, 2)\\nprint()",
    "Linear(2, 2)\rprint()",
    "Linear(2, 2)\u2028print()",
    "Linear(2, 2) # x",
    "Linear(2, 2)\\",
    'Linear(2, 2)"""',
    # Unicode tricks.
    "Ｌinear(2, 2)",
    "Linear(２, 2)",
    "Linear(in_ﬁeatures=2, out_features=2)",
    "Lineаr(2, 2)",
    "Linear(2, 2)\u202e",
    "Linear\u200b(2, 2)",
    # Other classes and paths.
    "os.system('touch owned')",
    "torch.nn.Linear(2, 2)",
    "Module()",
    "DataParallel(2)",
    "Sequential(2)",
    "MinkowskiNetwork(3)",
    "Function()",
    "../../Linear(2, 2)",
    "self.get_seq_lens",
    # Operations with what is no number.
    "View(print())",
    "View(self.x)",
    "Concat(dim=1)",
    "Size(0, 1)",
    "__getitem__('x')",
    "__getitem__(0)(1)",
    "__class__",
]


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_a_description_that_is_no_plain_call_is_refused(tmp_path: Path, description: str) -> None:
    text = f"node1 -- Input0 -- {COSTS}\nnode2 -- {description} -- {COSTS}\n\tnode1 -- node2\n"
    _refused(tmp_path, text)


@pytest.mark.parametrize(
    "name",
    [
        "x;import_os", "a.b..c", "node2\n", "__class__()", "../up", 'a"""b', "a'b", "x=1", "é;x", "a\\nb",
        "forward", "train", "inputs", "before_random", "__init__", "parameters", "self",
    ],
)  # fmt: skip
def test_an_identifier_is_a_name_and_nothing_else(tmp_path: Path, name: str) -> None:
    text = f"node1 -- Input0 -- {COSTS}\n{name} -- Linear(2, 2) -- {COSTS}\n\tnode1 -- {name}\n"
    _refused(tmp_path, text)


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "../../owned"}, {"arch": "a b"}, {"arch": "x\ny"}, {"arch": "ｖgg"}, {"arch": "__init__"},
        {"arch": "class"}, {"model_name": "A(B)"}, {"model_name": "A:\n  pass"}, {"model_name": "Ａ"},
        {"model_name": "object"},
    ],
)  # fmt: skip
def test_a_name_of_the_command_line_is_a_name_and_nothing_else(
    tmp_path: Path, change: dict[str, str]
) -> None:
    text = f"node1 -- Input0 -- {COSTS}\nnode2 -- Linear(2, 2) -- {COSTS}\n\tnode1 -- node2\n"
    _refused(tmp_path, text, **change)


def _refused(tmp_path: Path, text: str, arch: str = "model", model_name: str = "Model") -> None:
    graph = tmp_path / "graph.txt"
    graph.write_bytes(text.encode())
    request = Request(
        graph_path=graph, model_name=model_name, arch=arch, folder=tmp_path / "written"
    )
    with pytest.raises(InputError) as caught:
        write_model(request)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.txt"]
