# mypy: disable-error-code="no-untyped-def"
"""The output head's two kernels for GPUs: the same sums as ``head.py``, logits in registers only.

``sweep`` multiplies hidden states with blocks of the vocabulary and keeps the four running numbers
of ``head.py`` per token. ``tile_gradient`` makes a tile of logits again and writes its gradient, in
the dtype that the two products behind it take. Products are summed in float32; float32 factors are
multiplied exactly (no TF32).

Block sizes are fixed, not tuned at run time, so that a run computes the same every time.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from srft.model.head_shared import Head, Saved

# Tokens, vocabulary and width of one program's block; warps; stages of its pipeline of loads.
BLOCKS = {"BT": 128, "BV": 128, "BD": 64, "num_warps": 8, "num_stages": 3}
# Triton's interpreter runs each block in numpy: what counts there is that tests meet every edge.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if _INTERPRETED:
    BLOCKS |= {"BT": 16, "BV": 32, "BD": 16}


def runs_on(device: torch.device) -> bool:
    return device.type == "cuda" or _INTERPRETED


@triton.jit
def _logits(
    hidden,
    weight,
    bias,
    t,
    v,
    T,
    V,
    D,
    hidden_stride,
    weight_stride,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """[BT, BV] of scaled, capped logits, before the temperature."""
    z = tl.zeros((BT, BV), dtype=tl.float32)
    row = hidden + t[:, None].to(tl.int64) * hidden_stride
    column = weight + v[None, :].to(tl.int64) * weight_stride
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        a = tl.load(row + d[None, :], mask=(t[:, None] < T) & (d[None, :] < D), other=0.0)
        b = tl.load(column + d[:, None], mask=(v[None, :] < V) & (d[:, None] < D), other=0.0)
        z = tl.dot(a, b, z, input_precision="ieee")
    if HAS_BIAS:
        z += tl.load(bias + v, mask=v < V, other=0.0).to(tl.float32)[None, :]
    z *= scale
    if HAS_CAP:
        z = cap * (2 * tl.sigmoid(2 * z / cap) - 1)  # tanh
    return z


@triton.jit
def _sweep_kernel(
    hidden,
    weight,
    bias,
    target,
    top,
    total,
    weighted,
    found,
    T,
    V,
    D,
    first,
    split_size,
    hidden_stride,
    weight_stride,
    scale,
    cap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    """One block of tokens over one share of the V columns given, which are ids from ``first`` on."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    split = tl.program_id(1)
    y = tl.load(target + t, mask=t < T, other=-1) - first
    m = tl.full((BT,), float("-inf"), dtype=tl.float32)
    s = tl.zeros((BT,), dtype=tl.float32)
    w = tl.zeros((BT,), dtype=tl.float32)
    z_y = tl.zeros((BT,), dtype=tl.float32)
    begin = split * split_size
    end = tl.minimum(begin + split_size, V)
    for start in range(begin, end, BV):
        v = start + tl.arange(0, BV)
        z = _logits(
            hidden,
            weight,
            bias,
            t,
            v,
            T,
            V,
            D,
            hidden_stride,
            weight_stride,
            scale,
            cap,
            HAS_BIAS,
            HAS_CAP,
            BT,
            BV,
            BD,
        )
        z = z / temperature
        inside = (v < end)[None, :]
        z_y += tl.sum(tl.where((v[None, :] == y[:, None]) & inside, z, 0.0), 1)
        new = tl.maximum(m, tl.max(tl.where(inside, z, float("-inf")), 1))
        z = z - new[:, None]
        e = tl.where(inside, tl.exp(z), 0.0)
        # Before the first block m is -inf, and -inf times 0 would be nan.
        shift = tl.where(m > float("-inf"), m - new, 0.0)
        factor = tl.where(m > float("-inf"), tl.exp(shift), 0.0)
        w = factor * (w + shift * s) + tl.sum(tl.where(inside, e * z, 0.0), 1)
        s = factor * s + tl.sum(e, 1)
        m = new
    at = split.to(tl.int64) * T + t
    tl.store(top + at, m, mask=t < T)
    tl.store(total + at, s, mask=t < T)
    tl.store(weighted + at, w, mask=t < T)
    tl.store(found + at, z_y, mask=t < T)


@triton.jit
def _gradient_kernel(
    hidden,
    weight,
    bias,
    target,
    lse,
    entropy,
    grad_logprob,
    grad_entropy,
    out,
    T,
    V,
    D,
    first,
    hidden_stride,
    weight_stride,
    scale,
    cap,
    temperature,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BT: tl.constexpr,
    BV: tl.constexpr,
    BD: tl.constexpr,
):
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    v = tl.program_id(1) * BV + tl.arange(0, BV)
    z = _logits(
        hidden,
        weight,
        bias,
        t,
        v,
        T,
        V,
        D,
        hidden_stride,
        weight_stride,
        scale,
        cap,
        HAS_BIAS,
        HAS_CAP,
        BT,
        BV,
        BD,
    )
    real = t < T
    y = tl.load(target + t, mask=real, other=-1) - first
    g = tl.load(grad_logprob + t, mask=real, other=0.0)
    logp = z / temperature - tl.load(lse + t, mask=real, other=0.0)[:, None]
    p = tl.exp(logp)
    if HAS_ENTROPY:
        h = tl.load(grad_entropy + t, mask=real, other=0.0)[:, None]
        dz = -p * (g[:, None] + h * (logp + tl.load(entropy + t, mask=real, other=0.0)[:, None]))
    else:
        dz = -p * g[:, None]
    dz += tl.where(v[None, :] == y[:, None], g[:, None], 0.0)
    if HAS_CAP:
        dz *= 1 - (z / cap) * (z / cap)
    dz *= scale / temperature
    at = t[:, None].to(tl.int64) * V + v[None, :]
    tl.store(out + at, dz.to(out.dtype.element_ty), mask=real[:, None] & (v < V)[None, :])


def sweep(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: Head
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-sum-exp, entropy, target's logit), all T, after the temperature."""
    T, V = hidden.shape[0], weight.shape[0]
    hidden = head.operands(hidden).contiguous()
    parts: list[Tensor] = []
    for v in head.tiles(V, head.chunk_vocab):
        weight_v = head.operands(weight[v]).contiguous()
        splits, size = _splits(T, len(weight_v), hidden.device)
        part = torch.empty(4, splits, T, dtype=torch.float32, device=hidden.device)
        _sweep_kernel[(triton.cdiv(T, BLOCKS["BT"]), splits)](
            hidden,
            weight_v,
            None if bias is None else bias[v],
            target,
            *part,
            T,
            *weight_v.shape,
            v.start,
            size,
            hidden.stride(0),
            weight_v.stride(0),
            *_numbers(head),
            HAS_BIAS=bias is not None,
            HAS_CAP=head.softcap is not None,
            **BLOCKS,
        )
        parts.append(part)
    tops, totals, weights, found = torch.cat(parts, dim=1)
    top = tops.amax(0)
    shift = tops - top
    factor = shift.exp()
    total = (factor * totals).sum(0)
    weighted = (factor * (weights + shift * totals)).sum(0)
    log_total = total.log()
    return top + log_total, log_total - weighted / total, found.sum(0)


def _splits(T: int, V: int, device: torch.device) -> tuple[int, int]:
    """(programs that share the vocabulary, its columns for each): a few waves of programs."""
    blocks = triton.cdiv(V, BLOCKS["BV"])
    wanted = 2
    if device.type == "cuda":
        wanted = 4 * torch.cuda.get_device_properties(device).multi_processor_count
        wanted = triton.cdiv(wanted, triton.cdiv(T, BLOCKS["BT"]))
    each = triton.cdiv(blocks, max(1, min(wanted, blocks)))
    return triton.cdiv(blocks, each), each * BLOCKS["BV"]


def tile_gradient(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    saved: Saved,
    t: slice,
    v: slice,
    grad_logprob: Tensor,
    grad_entropy: Tensor | None,
    head: Head,
) -> Tensor:
    """Gradient by the raw logits of one tile, in the operand dtype: hidden [t], weight and bias [v]
    are the tile's own, the gradients and what was saved those of all T."""
    out = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)
    grid = (triton.cdiv(len(hidden), BLOCKS["BT"]), triton.cdiv(len(weight), BLOCKS["BV"]))
    _gradient_kernel[grid](
        hidden,
        weight,
        bias,
        saved.target[t],
        saved.lse[t],
        saved.entropy[t],
        grad_logprob[t],
        None if grad_entropy is None else grad_entropy[t],
        out,
        len(hidden),
        *weight.shape,
        v.start,
        hidden.stride(0),
        weight.stride(0),
        *_numbers(head),
        HAS_BIAS=bias is not None,
        HAS_CAP=head.softcap is not None,
        HAS_ENTROPY=grad_entropy is not None,
        **BLOCKS,
    )
    return out


def _numbers(head: Head) -> tuple[Any, ...]:
    return float(head.logit_scale), float(head.softcap or 1.0), float(head.temperature)
