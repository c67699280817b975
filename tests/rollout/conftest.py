"""Tiny models of several architectures and a byte-level tokenizer for the sampler's tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

torch.set_num_threads(1)

WINDOW = 6
EOS = 1


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the merged tokens "he" and "ll", so that strings span tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<eos>", *letters, "he", "ll"]
    core = Tokenizer(
        BPE({w: i for i, w in enumerate(words)}, [("h", "e"), ("l", "l")], unk_token=None)
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def tiny_model(kind: str, vocabulary: int, **changes: Any) -> Any:
    """A random model, its weights larger than usual so that attention matters to the logits."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "eos_token_id": EOS,
        "bos_token_id": None,
        "pad_token_id": 0,
    }
    kinds: dict[str, tuple[type, type, dict[str, Any]]] = {
        "llama": (LlamaConfig, LlamaForCausalLM, {}),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
        "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": WINDOW}),
        "gemma2": (
            Gemma2Config,
            Gemma2ForCausalLM,
            {
                "sliding_window": WINDOW,
                "attn_logit_softcapping": 3.0,
                "final_logit_softcapping": 20.0,
                "query_pre_attn_scalar": 8,
                "attn_implementation": "eager",
            },
        ),
        "gpt2": (
            GPT2Config,
            GPT2LMHeadModel,
            {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        ),
    }
    config_class, model_class, extra = kinds[kind]
    if kind == "gpt2":
        shape = {k: shape[k] for k in ("vocab_size", "initializer_range", "eos_token_id")}
    torch.manual_seed(7)
    return model_class(config_class(**{**shape, **extra, **changes}))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def hooked(model: Any) -> Any:
    """The model with a hook that does nothing: its own forward must be used for every step."""
    model.model.norm.register_forward_hook(lambda *_: None)
    return model


@pytest.fixture(params=["llama", "qwen3", "gemma2", "mistral", "gpt2", "qwen3-own", "mistral-own"])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> Any:
    kind, _, own = request.param.partition("-")
    built = tiny_model(kind, len(tokenizer))
    return hooked(built) if own else built


@pytest.fixture
def llama(tokenizer: PreTrainedTokenizerFast) -> Any:
    return tiny_model("llama", len(tokenizer))


@pytest.fixture
def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """``build_model(kind, **config changes)``."""
    return lambda kind, **changes: tiny_model(kind, len(tokenizer), **changes)


@pytest.fixture
def add_hook() -> Any:
    return hooked
