"""Our attention function, and the context in which the trainer's model runs it.

The function is registered with transformers under a name of its own, without a mask function: the
models then build no mask and hand through the one given to them. The cache decides what is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from srft.errors import RolloutError
from srft.model.experts import without_router_logits
from srft.model.fast import uncompiled
from srft.model.output_head import attention_configs

ATTENTION_NAME = "srft_rollout"

CURRENT_SLOT: ContextVar[int] = ContextVar("slot the current decoding step writes")

# Arguments some models pass that change nothing here: masks and packing come from the cache.
_HARMLESS = frozenset(
    {"is_causal", "position_ids", "output_attentions", "output_router_logits", "use_cache"}
)


def rollout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of [A, heads, Q, size] queries over [A, kv heads, S, size] keys.

    With one query its key is at ``CURRENT_SLOT``, and ``attention_mask`` (additive, [A, 1, 1, S])
    says what else is seen. With more, a pass over prompts, keys and queries are the same tokens, and
    the mask is additive, [A, 1, Q, Q] or a ``causal_mask``. Raises RolloutError for arguments it does
    not know, because a term left out would be a silent error.
    """
    unknown = [k for k, v in kwargs.items() if v is not None and k not in _HARMLESS]
    if unknown:
        raise RolloutError(
            f"the attention of {type(module).__name__} takes {', '.join(unknown)}, which the "
            "embedded sampler does not implement; set rollout.engine=generate"
        )
    rows, heads, length, size = query.shape
    if attention_mask is None and length > 1:
        raise RolloutError(
            f"{type(module).__name__} hides the attention mask from the embedded sampler; set "
            "rollout.engine=generate"
        )
    if _windowed_layers is not None and sliding_window is not None:
        _windowed_layers.add(id(module))
    if sliding_window is not None and key.shape[2] > sliding_window:
        key, value, attention_mask = _within_window(
            query, key, value, attention_mask, sliding_window
        )
    query = query.to(key.dtype)  # under autocast the cache is rounded already
    plain = getattr(attention_mask, "plain_causal", False)
    if attention_mask is not None and attention_mask.dtype != query.dtype and not plain:
        attention_mask = attention_mask.to(query.dtype)
    groups = heads // key.shape[1]
    if softcap is not None:
        return _capped(query, key, value, attention_mask, scaling, softcap), None
    if length == 1:
        # One query per row: the heads that share keys become the queries of one product.
        packed = query.view(rows, key.shape[1], groups, size) if groups > 1 else query
        if query.device.type == "cpu" and query.dtype == torch.float32 and key.is_contiguous():
            return _few_queries(packed, key, value, attention_mask, scaling, heads), None
        out = scaled_dot_product_attention(
            packed, key, value, attn_mask=attention_mask, scale=scaling
        )
        return out.reshape(rows, 1, heads, size), None
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if plain else attention_mask,
        is_causal=plain,
        scale=scaling,
    )
    return out.transpose(1, 2).contiguous(), None


def _within_window(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    length = query.shape[2]
    if length == 1:
        end = CURRENT_SLOT.get() + 1
        seen = slice(max(0, end - window), end)
        return key[:, :, seen], value[:, :, seen], None if mask is None else mask[..., seen]
    assert mask is not None  # refused above
    position = torch.arange(length, device=query.device)
    too_old = position[None, :] <= position[:, None] - window
    return key, value, mask.masked_fill(too_old, float("-inf"))


def _few_queries(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    heads: int,
) -> Tensor:
    """The plain formula: on a CPU, and over a dense block, two batched products take half the time
    of the fused kernel's many small ones (over slices they would be as many themselves)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(2, 3))
    if mask is not None:
        scores += mask
    out = torch.matmul(torch.softmax(scores, dim=-1), value)
    return out.view(query.shape[0], 1, heads, value.shape[-1])


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float,
) -> Tensor:
    """Attention with tanh-capped scores (Gemma 2), which the fused kernels do not offer."""
    rows, heads, length, size = query.shape
    kv_heads = key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    grouped = query.reshape(rows, kv_heads, -1, size)
    scores = torch.matmul(grouped, key.transpose(2, 3)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(rows, kv_heads, heads // kv_heads, length, -1)
    if mask is not None:
        scores = scores + mask.unsqueeze(2)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    out = torch.matmul(weights.view(rows, kv_heads, -1, weights.shape[-1]), value)
    return out.view(rows, heads, length, -1).transpose(1, 2).contiguous()


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive [1, 1, length, length]: -inf above the diagonal. ``rollout_attention`` takes the kernel
    that needs no mask in its place."""
    full = torch.full((length, length), float("-inf"), dtype=dtype, device=device)
    mask = full.triu(1)[None, None]
    mask.plain_causal = True  # type: ignore[attr-defined]
    return mask


_windowed_layers: set[int] | None = None


@contextmanager
def sliding_layers_seen() -> Iterator[set[int]]:
    """Collects the attention modules (by id) that name a sliding window while it is open."""
    global _windowed_layers
    seen: set[int] = set()
    _windowed_layers = seen
    try:
        yield seen
    finally:
        _windowed_layers = None


@contextmanager
def sampling_mode(model: nn.Module, attention: str | None = ATTENTION_NAME) -> Iterator[None]:
    """Evaluation mode (no dropout, no gradient checkpointing) with ``attention`` selected.

    Every module's mode and every config's attention are put back on the way out, whatever
    happened inside. ``attention`` None leaves the model's own.
    """
    trained = [m for m in model.modules() if m.training]
    before = [(c, c._attn_implementation_internal) for c in attention_configs(model)]
    try:
        model.eval()
        if attention is not None:
            for config, _ in before:
                config._attn_implementation_internal = attention
        with torch.inference_mode(), uncompiled(model), without_router_logits(model):
            yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name
        for module in trained:
            module.training = True


AttentionInterface.register(ATTENTION_NAME, rollout_attention)
