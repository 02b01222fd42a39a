"""The reference models: each is a task, learns, and has the names that it promises."""

import pytest
import torch

from stagewright.models.digits import digits
from stagewright.task import load_task


def test_the_digits_are_split_without_overlap() -> None:
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert torch.equal(digits("train").tensors[0], train.tensors[0])
    together = torch.cat([train.tensors[0], test.tensors[0]]).flatten(1)
    assert len(torch.unique(together, dim=0)) == len(together)


@pytest.mark.parametrize(("name", "epochs"), [("digits_cnn", 1), ("resnet", 2), ("mlp", 10)])
def test_a_digits_model_learns_to_read_held_out_digits(name: str, epochs: int) -> None:
    task = load_task(f"stagewright.models.{name}")
    torch.manual_seed(0)
    model, loss = task.build(), task.function("loss")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, targets = task.function("dataset")("train").tensors
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(inputs)), 32):
            optimizer.zero_grad()
            loss(model(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
    model.eval()
    inputs, targets = task.function("dataset")("test").tensors
    with torch.no_grad():
        assert task.function("metric")(model(inputs), targets) >= 0.9


def test_the_gpt_is_causal_and_its_targets_are_the_next_bytes() -> None:
    task = load_task("stagewright.models.gpt:build_without_dropout")
    model = task.build()
    data = task.function("dataset")("test")
    tokens, target = data[3]
    assert torch.equal(tokens[1:], target[:-1])
    changed = tokens.clone()
    changed[40:] = 7
    with torch.no_grad():
        first, second = model(torch.stack([tokens, changed]))
    assert torch.equal(first[:40], second[:40])
    assert not torch.equal(first[40:], second[40:])
    with pytest.raises(IndexError):
        data[len(data)]


@pytest.mark.parametrize(
    ("name", "num_parameters", "names"),
    [
        ("vgg16", 138_357_544, ["features.28.bias", "classifier.6.weight"]),
        ("alexnet", 61_100_840, ["features.10.weight", "classifier.6.bias"]),
        ("densenet", 7_978_856, ["features.denseblock3.denselayer24.conv2.weight", "features.norm5.bias"]),
        ("gpt:build_gpt2_small", 124_439_808, ["blocks.11.attention.qkv.weight"]),
        ("pictures_full_size:build_inception", 23_834_568, ["blocks.10.branches.0.0.weight"]),
        ("pictures_full_size:build_vit_base", 86_567_656, ["model.classifier.weight"]),
        ("transformers_full_size:build_gpt2", 124_439_808, ["model.transformer.h.11.attn.c_attn.weight"]),
        ("transformers_full_size:build_bert", 109_514_298, ["model.bert.encoder.layer.11.output.dense.bias"]),
        ("resnet50", 25_557_032, ["layer1.0.downsample.1.running_var", "layer4.2.conv3.weight", "fc.bias"]),
    ],
)  # fmt: skip
def test_a_known_model_has_its_published_size_and_names(
    name: str, num_parameters: int, names: list[str]
) -> None:
    if name.endswith(("gpt2", "bert", "vit_base")):
        pytest.importorskip("transformers", reason="transformers is not installed")
    with torch.device("meta"):
        model = load_task(f"stagewright.models.{name}").build()
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert set(names) <= set(model.state_dict())
