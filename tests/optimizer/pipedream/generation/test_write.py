"""Stages of a text graph compute what the model that it describes computes, wherever it is cut."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from stagewright.document import InputError
from stagewright.optimizer.pipedream.generation.command import main
from stagewright.optimizer.pipedream.generation.write import Request, write_model
from stagewright.pipedream_conf import Conf

from .conftest import IMAGE_EDGES, IMAGE_NODES, Images, graph_text

Importable = Callable[[Path], ModuleType]
DATA = Path(__file__).parents[5] / "shared" / "data"


def request(tmp_path: Path, text: str, arch: str = "images", **more: Any) -> Request:
    path = tmp_path / "gpus=2.txt"
    path.write_text(text)
    fields: dict[str, Any] = {
        "graph_path": path,
        "model_name": "Cut",
        "arch": arch,
        "folder": tmp_path / "written",
    }
    return Request(**(fields | more))


def image_text(cut: int) -> str:
    nodes = [(name, text, int(i >= cut)) for i, (name, text) in enumerate(IMAGE_NODES)]
    return graph_text(nodes, IMAGE_EDGES)


@pytest.mark.parametrize("cut", range(2, len(IMAGE_NODES)))
def test_every_cut_gives_the_output_and_gradients_of_the_described_model(
    tmp_path: Path, importable: Importable, cut: int
) -> None:
    write_model(request(tmp_path, image_text(cut)))
    torch.manual_seed(0)
    original = Images()
    full = importable(tmp_path / "written").full_model()
    full.load_state_dict(original.state_dict())
    x = torch.randn(3, 1, 8, 8)
    expected, found = original(x), full(x)
    assert torch.equal(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {n.split(".", 2)[2]: p.grad for n, p in full.named_parameters()}
    for name, parameter in original.named_parameters():
        assert parameter.grad is not None and torch.equal(gradients[name], parameter.grad)


def test_a_recurrent_layer_gives_tuples_and_takes_no_hidden_state(
    tmp_path: Path, importable: Importable
) -> None:
    nodes = [
        ("node1", "Input0", 0), ("node2", "Embedding(16, 4, padding_idx=0)", 0), ("node3", "hidden", 0),
        ("node4", "__getitem__(0)", 0), ("node5", "LSTM(4, 6)", 0), ("node6", "__getitem__(0)", 0),
        ("node7", "__getitem__(1)", 0), ("node8", "Dropout(p=0.0)", 0), ("node9", "LSTM(6, 6)", 1),
        ("node10", "__getitem__(0)", 1), ("node11", "Add(inplace)", 1), ("node12", "Linear(6, 16)", 1),
    ]  # fmt: skip
    edges = [
        ("node1", "node2"), ("node1", "node3"), ("node3", "node4"), ("node2", "node5"),
        ("node4", "node5"), ("node5", "node6"), ("node5", "node7"), ("node6", "node8"),
        ("node8", "node9"), ("node4", "node9"), ("node9", "node10"), ("node10", "node11"),
        ("node8", "node11"), ("node11", "node12"),
    ]  # fmt: skip
    write_model(request(tmp_path, graph_text(nodes, edges)))
    model = importable(tmp_path / "written").full_model()
    words = torch.randint(1, 16, (5, 3))
    first, second = model.stages[0].node5, model.stages[1].node9
    x = first(model.stages[0].node2(words))[0]
    expected = model.stages[1].node12(second(x)[0] + x)
    assert torch.equal(model(words), expected)


def test_the_list_of_modules_runs_as_pipedreams_runtime_reads_it(
    tmp_path: Path, importable: Importable
) -> None:
    write_model(request(tmp_path, image_text(6), arch="resnet50"))
    package = importable(tmp_path / "written")
    modules = package.model(nn.CrossEntropyLoss())
    tensors = {"input0": torch.randn(2, 1, 8, 8)}
    for module, inputs, outputs in modules[:-1]:
        returned = module(*(tensors[name] for name in inputs))
        returned = returned if isinstance(returned, tuple) else (returned,)
        tensors |= dict(zip(outputs, returned, strict=True))
    criterion, inputs, outputs = modules[-1]
    assert outputs == ["loss"]
    assert criterion(tensors[inputs[0]], torch.tensor([1, 2])).isfinite()
    assert package.arch() == "resnet50"


def test_weights_of_known_architectures_are_set_anew(
    tmp_path: Path, importable: Importable
) -> None:
    write_model(request(tmp_path, image_text(6), arch="vgg16"))
    model = importable(tmp_path / "written").full_model()
    assert model.stages[1].node11.bias.abs().max() == 0
    assert model.stages[1].node11.weight.std() < 0.02


def test_conf_files_are_pipedreams(tmp_path: Path) -> None:
    write_model(request(tmp_path, image_text(6), replicas=(3, 1)))
    folder = tmp_path / "written"
    assert Conf.load(folder / "hybrid_conf.json").ranks == ((0, 1, 2), (3,))
    assert Conf.load(folder / "dp_conf.json").ranks == ((0, 1, 2, 3),)
    assert Conf.load(folder / "mp_conf.json").module_to_stage_map == (0, 1, 1)


def test_an_earlier_longer_pipeline_leaves_no_stage_behind(tmp_path: Path) -> None:
    write_model(request(tmp_path, image_text(6)))
    write_model(request(tmp_path, image_text(len(IMAGE_NODES))))
    assert [p.name for p in sorted((tmp_path / "written").glob("stage*.py"))] == ["stage0.py"]


def test_a_template_takes_the_place_of_ours(tmp_path: Path) -> None:
    template = tmp_path / "stage.template"
    template.write_text("# mine\n%(import_statements)s\n%(class_definition)s\n")
    write_model(request(tmp_path, image_text(6), model_template=template))
    source = (tmp_path / "written" / "stage1.py").read_text()
    assert source.startswith("# mine\nimport torch\nfrom torch import nn\nclass Stage1(nn.Module):")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicas": (3,)}, "names 1 stages, expected the graph's 2"),
        ({"arch": "stage0"}, "--arch is 'stage0'"),
        ({"arch": "../vgg16"}, "--arch is '../vgg16'"),
        ({"model_name": "x = 1"}, "--model_name is 'x = 1'"),
        ({"model_name": "Stage1"}, "--model_name is 'Stage1'"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_model(request(tmp_path, image_text(6), **change))
    assert not (tmp_path / "written").exists()


def test_a_file_of_the_users_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "written").mkdir()
    (tmp_path / "written" / "stage1.py").write_text("mine = 1\n")
    with pytest.raises(InputError, match="was not generated"):
        write_model(request(tmp_path, image_text(6)))
    assert [p.name for p in (tmp_path / "written").iterdir()] == ["stage1.py"]


def test_a_template_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "conf.template"
    template.write_text("%(stages)s")
    with pytest.raises(InputError, match=r"the key 'stages', expected %\(module_to_stage_map\)s"):
        write_model(request(tmp_path, image_text(6), conf_template=template))


def test_an_unknown_description_is_named_with_its_line(tmp_path: Path) -> None:
    text = "# a comment\n\n" + image_text(6).replace("Mul", "Teleport")
    with pytest.raises(InputError, match=r"gpus=2.txt:9: node node12: .*'Teleport'"):
        write_model(request(tmp_path, text))


def test_the_public_vgg16_runs_on_the_meta_device(tmp_path: Path, importable: Importable) -> None:
    path = DATA / "pipedream" / "vgg16.graph.txt"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    write_model(request(tmp_path, path.read_text(), arch="public"))
    package = importable(tmp_path / "written")
    with torch.device("meta"):
        model = package.full_model()
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert sum(p.numel() for p in model.parameters()) == 138_357_544


@pytest.mark.parametrize("device", ["RTX", "TitanV", "TitanXP"])
def test_the_public_sparse_graphs_are_generated_without_edits(tmp_path: Path, device: str) -> None:
    path = DATA / "sparsepipe" / f"minkvgg_b64_{device}.graph.txt"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    write_model(request(tmp_path, path.read_text(), arch="minkvgg"))
    source = (tmp_path / "written" / "stage0.py").read_text()
    compile(source, "stage0.py", "exec")
    assert "import MinkowskiEngine as ME" in source
    assert "ME.MinkowskiDropout(p=0.5" in source
    assert "has_bias" not in source and "bias=None" not in source and "PoolingMode" not in source


@pytest.mark.parametrize("option", ["--stage_to_num_ranks_map", "--stage_to_num_ranks"])
def test_a_wrong_map_is_refused_under_the_name_that_the_user_typed(option: str) -> None:
    words = ["-f", "gpus=2.txt", "-n", "Cut", "-a", "vgg16", "-o", "written"]
    with pytest.raises(InputError, match=rf"\A{option} is '0:x', expected STAGE:RANKS"):
        main([*words, option, "0:x"])
