"""Sizes of well-known models, so that they can be planned without reaching the hub.

Taken from the config.json that each is published with (its licence and weights are elsewhere).
"""

from __future__ import annotations

from typing import Any


def _qwen2(
    hidden: int, layers: int, heads: int, kv: int, inner: int, vocab: int, **more: Any
) -> Any:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        **more,
    }


def _qwen3(hidden: int, layers: int, heads: int, inner: int, tied: bool) -> Any:
    own = {"model_type": "qwen3", "head_dim": 128, "max_position_embeddings": 40960}
    return {**_qwen2(hidden, layers, heads, 8, inner, 151936, tie_word_embeddings=tied), **own}


def _llama(hidden: int, layers: int, heads: int, inner: int, tied: bool = False) -> Any:
    own = {"model_type": "llama", "max_position_embeddings": 131072}
    rope = {"rope_type": "default", "rope_theta": 5e5}
    shape = _qwen2(hidden, layers, heads, 8, inner, 128256, tie_word_embeddings=tied)
    return {**shape, **own, "rope_parameters": rope}


_TIED = {"tie_word_embeddings": True}
_MATH = {
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
_QWEN25 = {
    "0.5B": _qwen2(896, 24, 14, 2, 4864, 151936, **_TIED),
    "1.5B": _qwen2(1536, 28, 12, 2, 8960, 151936, **_TIED),
    "3B": _qwen2(2048, 36, 16, 2, 11008, 151936, **_TIED),
    "7B": _qwen2(3584, 28, 28, 4, 18944, 152064),
    "14B": _qwen2(5120, 48, 40, 8, 13824, 152064),
    "32B": _qwen2(5120, 64, 40, 8, 27648, 152064),
    "72B": _qwen2(8192, 80, 64, 8, 29568, 152064),
}
_QWEN3 = {
    "0.6B": _qwen3(1024, 28, 16, 3072, True),
    "1.7B": _qwen3(2048, 28, 16, 6144, True),
    "4B": _qwen3(2560, 36, 32, 9728, True),
    "8B": _qwen3(4096, 36, 32, 12288, False),
    "14B": _qwen3(5120, 40, 40, 17408, False),
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{f"Qwen/Qwen2.5-{size}": shape for size, shape in _QWEN25.items()},
    **{f"Qwen/Qwen2.5-{size}-Instruct": shape for size, shape in _QWEN25.items()},
    **{f"Qwen/Qwen2.5-Math-{s}": {**_QWEN25[s], **_MATH} for s in ("1.5B", "7B")},
    **{f"Qwen/Qwen3-{size}": shape for size, shape in _QWEN3.items()},
    **{f"Qwen/Qwen3-{size}-Base": shape for size, shape in _QWEN3.items()},
    "meta-llama/Llama-3.2-1B": _llama(2048, 16, 32, 8192, True),
    "meta-llama/Llama-3.2-3B": _llama(3072, 28, 24, 8192, True),
    "meta-llama/Llama-3.1-8B": _llama(4096, 32, 32, 14336),
    "meta-llama/Llama-3.1-70B": _llama(8192, 80, 64, 28672),
}
