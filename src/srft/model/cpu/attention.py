"""Causal attention of bfloat16 queries, keys and values on a CPU, with a backward pass written out.

The fused kernel's own backward pass takes ten times as long as its forward pass in bfloat16 (in float32
three times, as it should). By hand it is five batched products of rounded factors, summed in float32, over
a few sequences at a time; what is kept is the three inputs (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from srft.model.cpu.products import autocasts_to_bfloat16, rounded_factors

# Numbers in one chunk's scores, so that they stay in cache.
_CHUNK = 1 << 18


class _HalfAttention(torch.autograd.Function):
    """query [B, H, L, d], key and value [B, K, L, d]; H is a multiple of K. seen: [L, L], or None where
    all that precedes is seen."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, seen)
        ctx.scale = scale
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=seen,
            is_causal=seen is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, seen = ctx.saved_tensors
        batch, heads, length, _ = query.shape
        groups = heads // key.shape[1]
        if seen is None:
            seen = torch.ones(length, length, dtype=torch.bool).tril()
        # Heads that share keys are queries of one product.
        hidden = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf")).repeat(groups, 1)
        results = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
        ]
        step = max(1, _CHUNK // (heads * length * length))
        with rounded_factors():
            for start in range(0, batch, step):
                part = slice(start, start + step)
                q, dout = (_flat(x[part], length * groups) for x in (query, grad))
                k, v = (_flat(x[part], length) for x in (key, value))
                q = q * ctx.scale
                weights = torch.bmm(q, k.mT).add_(hidden).softmax(-1)
                slope = torch.bmm(dout, v.mT).mul_(weights)
                slope.addcmul_(weights, slope.sum(-1, keepdim=True), value=-1)
                found = (
                    torch.bmm(slope, k).mul_(ctx.scale),
                    torch.bmm(slope.mT, q),
                    torch.bmm(weights.mT, dout),
                )
                for into, one in zip(results, found, strict=True):
                    into[part] = one.view(into[part].shape)
        return *results, None, None


def _flat(x: Tensor, length: int) -> Tensor:
    """[b, h, L, d] -> float32 [b h L / length, length, d]."""
    return x.float().reshape(-1, length, x.shape[-1])


def takes(query: Tensor) -> bool:
    """Whether attention over ``query`` is computed in bfloat16 on a CPU, with gradients."""
    if not query.is_cpu or not torch.is_grad_enabled():
        return False
    if torch.is_autocast_enabled("cpu"):
        return autocasts_to_bfloat16() and query.dtype != torch.float64
    return query.dtype == torch.bfloat16


def half_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float
) -> Tensor:
    """[B, H, L, d] -> [B, H, L, d], see ``_HalfAttention``."""
    half = [x.bfloat16() for x in (query, key, value)]
    out: Tensor = _HalfAttention.apply(*half, seen, scale)
    return out
