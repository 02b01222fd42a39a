"""GPT-2 small, BERT-Base and a small Llama of the library transformers, with random weights, on bytes."""

from torch import nn

from stagewright.models import transformers_text
from stagewright.models.transformers_text import Logits, library

example_input = transformers_text.example_input
dataset = transformers_text.dataset
loss = transformers_text.loss
metric = transformers_text.metric


def build_gpt2() -> nn.Module:
    """Return GPT-2 small: 124 million parameters."""
    return Logits(library().GPT2LMHeadModel(library().GPT2Config(use_cache=False))).train()


def build_bert() -> nn.Module:
    """Return BERT-Base: 110 million parameters."""
    return Logits(library().BertForMaskedLM(library().BertConfig())).train()


def build_llama() -> nn.Module:
    """Return a Llama of 12 blocks of width 768: 162 million parameters."""
    sizes = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072,
    }  # fmt: skip
    config = library().LlamaConfig(use_cache=False, **sizes)
    return Logits(library().LlamaForCausalLM(config)).train()


build = build_gpt2
