"""Tiny models with the lab's tokenizer, made once for the whole folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from srft.lab.tokenizer import build_tokenizer


def tiny_model(seed: int, tie: bool = True) -> Any:
    """Two layers of width 16 over the lab's vocabulary, random weights large enough to matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tie,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """``base``, ``other`` and ``untied``: model folders with tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for name, seed, tie in (("base", 0, True), ("other", 1, True), ("untied", 2, False)):
        tiny_model(seed, tie).save_pretrained(root / name)
        build_tokenizer().save_pretrained(root / name)
    return {name: root / name for name in ("base", "other", "untied")}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()
