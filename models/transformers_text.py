"""Language models of the library transformers, with random weights: GPT-2, BERT and Llama on bytes.

The library's classes return objects of their own; `Logits` returns the tensor that the loss takes, as a user
would write it. Sizes are small: what is shown is that such models go through all four tools.
"""

import importlib
from typing import Any

from torch import Tensor, nn

from stagewright.document import InputError
from stagewright.models import gpt

example_input = gpt.example_input
dataset = gpt.dataset
loss = gpt.loss
metric = gpt.metric
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip


class Logits(nn.Module):
    """A model of the library that returns its scores alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x).logits
        return scores


def library() -> Any:
    """Return transformers.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise InputError("transformers is not installed; pip install transformers") from None


def build_gpt2() -> nn.Module:
    sizes = {"n_positions": gpt.LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = library().GPT2Config(vocab_size=gpt.NUM_TOKENS, use_cache=False, **sizes, **ends)
    return Logits(library().GPT2LMHeadModel(config)).train()


def build_bert() -> nn.Module:
    """Return a BERT that scores each position's next byte, which it sees but for the last: it copies."""
    config = library().BertConfig(
        vocab_size=gpt.NUM_TOKENS, max_position_embeddings=gpt.LENGTH, **SIZES
    )
    return Logits(library().BertForMaskedLM(config)).train()


def build_llama() -> nn.Module:
    config = library().LlamaConfig(
        vocab_size=gpt.NUM_TOKENS, use_cache=False, bos_token_id=0, eos_token_id=0, **SIZES
    )
    return Logits(library().LlamaForCausalLM(config)).train()


build = build_gpt2
