"""Models of the library transformers, random weights: their stages compute what they do, in both modes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagewright.optimizer.borders import chain_of

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


class Logits(nn.Module):
    """What a user writes to train such a model: the tensor that the loss takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits  # type: ignore[no-any-return]


def gpt2() -> nn.Module:
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=32, use_cache=False, **sizes, **ends)
    return Logits(transformers.GPT2LMHeadModel(config))


def bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=32, max_position_embeddings=16, **SIZES)
    return Logits(transformers.BertForSequenceClassification(config))


def llama() -> nn.Module:
    config = transformers.LlamaConfig(vocab_size=32, use_cache=False, **SIZES)
    return Logits(transformers.LlamaForCausalLM(config))


def vit() -> nn.Module:
    config = transformers.ViTConfig(image_size=16, patch_size=8, **SIZES)
    return Logits(transformers.ViTForImageClassification(config))


def words(size: int) -> Tensor:
    return torch.arange(size * 6).reshape(size, 6) % 32


def images(size: int) -> Tensor:
    return torch.linspace(-1, 1, size * 3 * 16 * 16).reshape(size, 3, 16, 16)


@pytest.mark.parametrize(
    ("build", "example_input"), [(gpt2, words), (bert, words), (llama, words), (vit, images)]
)
def test_stages_compute_what_the_model_does_in_training_and_evaluation(
    build: Callable[[], nn.Module], example_input: Callable[[int], Tensor], workshop: Any
) -> None:
    torch.manual_seed(0)
    original = build().train()
    graph = workshop.trace(original, example_input)
    length = len(chain_of(graph))
    for cuts in [(length // 3, 2 * length // 3), tuple(range(1, length, 9))]:
        package = workshop.package(graph, cuts)
        full = package.full_model(copy.deepcopy(original))
        full.load_state_dict(original.state_dict())
        x = example_input(3)
        for is_training in (True, False):
            sides = []
            for model in (copy.deepcopy(original), full):
                model.train(is_training)
                model.zero_grad()
                torch.manual_seed(1)
                output = model(x)
                output.square().sum().backward()
                gradients = [
                    parameter.grad for _, parameter in sorted(_by_original_name(model).items())
                ]
                sides.append((output, gradients))
            torch.testing.assert_close(sides[1], sides[0], rtol=0, atol=0)


def _by_original_name(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name.split(".", 2)[2] if name.startswith("stages.") else name: parameter
        for name, parameter in model.named_parameters()
    }
