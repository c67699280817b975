"""Tiny random models of several families, and random training sequences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from srft.types import TrainingSequence

VOCABULARY = 61

# What each family adds to the common sizes, and the trick of its forward pass it stands for.
FAMILIES = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},  # tied head, norms on queries and keys
    "mistral": {"sliding_window": 6},
    "gemma2": {  # soft caps on attention and logits, every other layer windowed
        "sliding_window": 6,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "cohere": {"logit_scale": 0.25},  # logits multiplied
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3},  # logits divided
    "phi": {},  # bias in the head
    "stablelm": {},  # drops unknown keywords before attention
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 6},  # attention sinks
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Larger than usual, so that a wrong mask or scale moves log-probabilities visibly.
        "initializer_range": 0.3,
        "attention_dropout": 0.0,
    }
    config = CONFIG_MAPPING[family](**{**settings, **FAMILIES.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "sinks")):
                parameter.normal_(0.0, 0.3)
    return model


def random_sequences(*lengths: tuple[int, int], seed: int = 0) -> list[TrainingSequence]:
    """One sequence for each (prompt, response) length; demonstrations alternate with rollouts."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (count,), generator=draw).tolist())

    return [
        TrainingSequence(
            tokens(p), tokens(r), group=k // 2, is_demo=k % 2 == 0, reward=float(k), correct=k > 0
        )
        for k, (p, r) in enumerate(lengths)
    ]


def tiny_tokenizer(size: int = VOCABULARY, **special: str) -> PreTrainedTokenizerFast:
    """``size`` words, each a token; ``special`` names the special ones."""
    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(size - 3))]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return tiny_tokenizer


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    return tiny_model


@pytest.fixture
def make_sequences() -> Callable[..., list[TrainingSequence]]:
    return random_sequences
