"""Attention in bfloat16 on a CPU: its gradients against float64, beside those of the fused kernel."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from srft.model.cpu.attention import half_attention, takes


def leaves(batch, heads, kv_heads, length, width, dtype=torch.bfloat16, seed=0):
    torch.manual_seed(seed)
    shapes = ((batch, n, length, width) for n in (heads, kv_heads, kv_heads))
    return [torch.randn(s).to(torch.bfloat16).to(dtype).requires_grad_() for s in shapes]


def naive(query, key, value, seen, scale):
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query @ key.mT * scale).masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("batch, heads, kv_heads", [(3, 4, 2), (1, 3, 3), (5, 6, 1)])
@pytest.mark.parametrize("length, width", [(1, 16), (7, 16), (130, 64), (300, 32)])
@pytest.mark.parametrize("window", [None, 5])
def test_gradients_are_nearer_to_float64_than_the_fused_kernels(
    batch, heads, kv_heads, length, width, window
):
    scale = 0.3
    place = torch.arange(length)
    seen = place[:, None] >= place
    if window is not None:
        seen &= place[:, None] - place < window
    given = None if window is None else seen

    def fused(query, key, value, seen, scale):
        gqa = query.shape[1] != key.shape[1]
        causal = seen is None
        return scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=causal, scale=scale, enable_gqa=gqa
        )

    gradients = []
    for attention, dtype, mask in (
        (half_attention, torch.bfloat16, given),
        (fused, torch.bfloat16, given),
        (naive, torch.float64, seen),
    ):
        inputs = leaves(batch, heads, kv_heads, length, width, dtype)
        out = attention(*inputs, mask, scale)
        torch.manual_seed(1)
        out.backward(torch.randn(out.shape).to(dtype))
        gradients.append([x.grad.double() for x in inputs])
    for ours, fused_one, exact in zip(*gradients, strict=True):
        size = exact.norm() + 1e-9
        assert (ours - exact).norm() / size < min(
            0.02, 1.2 * (fused_one - exact).norm() / size + 2e-3
        )


def test_it_is_for_bfloat16_on_a_cpu_with_gradients():
    x = torch.zeros(1, 1, 2, 2)
    assert not takes(x) and takes(x.bfloat16()) and not takes(x.half())
    with torch.no_grad():
        assert not takes(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert takes(x) and not takes(x.double())
    with torch.autocast("cpu", torch.float16):
        assert not takes(x)
