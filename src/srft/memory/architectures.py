"""Sizes of well-known models, so that they can be planned without reaching the hub.

Taken from the config.json that each is published with (its licence and weights are elsewhere).
"""

from __future__ import annotations

from typing import Any

_FAMILIES: dict[str, tuple[tuple[str, ...], dict[str, Any], float]] = {
    "qwen2.5": (
        ("Qwen/Qwen2.5-{}", "Qwen/Qwen2.5-{}-Instruct"),
        {"model_type": "qwen2", "max_position_embeddings": 32768},
        1e6,
    ),
    "math": (
        ("Qwen/Qwen2.5-Math-{}",),
        {"model_type": "qwen2", "max_position_embeddings": 4096},
        1e4,
    ),
    "qwen3": (
        ("Qwen/Qwen3-{}", "Qwen/Qwen3-{}-Base"),
        {"model_type": "qwen3", "max_position_embeddings": 40960, "head_dim": 128},
        1e6,
    ),
    "llama": (
        ("meta-llama/Llama-{}",),
        {"model_type": "llama", "max_position_embeddings": 131072},
        5e5,
    ),
}
# family, size, width, layers, query heads, key/value heads, inner width, vocabulary, tied embeddings
_SIZES = """
qwen2.5 0.5B 896 24 14 2 4864 151936 tied
qwen2.5 1.5B 1536 28 12 2 8960 151936 tied
qwen2.5 3B 2048 36 16 2 11008 151936 tied
qwen2.5 7B 3584 28 28 4 18944 152064
qwen2.5 14B 5120 48 40 8 13824 152064
qwen2.5 32B 5120 64 40 8 27648 152064
qwen2.5 72B 8192 80 64 8 29568 152064
math 1.5B 1536 28 12 2 8960 151936 tied
math 7B 3584 28 28 4 18944 152064
qwen3 0.6B 1024 28 16 8 3072 151936 tied
qwen3 1.7B 2048 28 16 8 6144 151936 tied
qwen3 4B 2560 36 32 8 9728 151936 tied
qwen3 8B 4096 36 32 8 12288 151936
qwen3 14B 5120 40 40 8 17408 151936
llama 3.2-1B 2048 16 32 8 8192 128256 tied
llama 3.2-3B 3072 28 24 8 8192 128256 tied
llama 3.1-8B 4096 32 32 8 14336 128256
llama 3.1-70B 8192 80 64 8 28672 128256
"""
_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "vocab_size"),
)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    name.format(size): {
        **dict(zip(_KEYS, map(int, numbers[:6]), strict=True)),
        **_FAMILIES[family][1],
        "tie_word_embeddings": "tied" in numbers,
        "rope_parameters": {"rope_type": "default", "rope_theta": _FAMILIES[family][2]},
    }
    for family, size, *numbers in (line.split() for line in _SIZES.split("\n") if line)
    for name in _FAMILIES[family][0]
}
