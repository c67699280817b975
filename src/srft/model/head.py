"""Log-probability and entropy of response tokens straight from hidden states.

The usual way makes logits [T, V], then log-softmax, softmax and their gradients: four such arrays
at the peak, tens of gigabytes at a vocabulary of 150,000. Here logits exist one tile (some tokens
times some of the vocabulary) at a time. The forward pass keeps four running numbers per token, so
the vocabulary can be visited in parts:

    m = max z,   s = sum exp(z - m),   a = sum exp(z - m) (z - m),   z_y
    log p(y) = z_y - m - log s,        H = log s - a / s             (nats)

The backward pass makes each tile again (one more matrix product) and turns it into its gradient
in place, with g and h the gradients of the loss by log p(y) and by H:

    d log p(y) / dz_v = 1[v = y] - p_v,        dH / dz_v = -p_v (log p_v + H)
    dz_v = g 1[v = y] - p_v (g + h (log p_v + H))

Soft-capping z = c tanh(l / c) multiplies that by 1 - (z / c)^2.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from srft.errors import ModelError
from srft.model.head_shared import Head, Saved

# One tile should stay in cache on a CPU; on a GPU it should be large enough to fill the device.
CPU_TILE = (256, 4096)
GPU_TILE = (8192, 8192)

Kernels = Literal["auto", "torch", "triton"]


class _LogprobEntropy(torch.autograd.Function):
    """(hidden_TD, weight_VD, bias_V or None, target_T) -> (logprob_T, entropy_T)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        head: Head,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            sweep = _triton().sweep if head.triton else _sweep
            lse, entropy, target_logit = sweep(hidden, weight, bias, target, head)
        ctx.save_for_backward(hidden, weight, bias, target, lse, entropy)
        ctx.head = head
        ctx.set_materialize_grads(False)
        return target_logit - lse, entropy.clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprob: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, lse, entropy = ctx.saved_tensors
        if grad_logprob is None and grad_entropy is None:
            return None, None, None, None, None
        if grad_logprob is None:
            grad_logprob = torch.zeros_like(lse)
        saved = Saved(hidden, weight, bias, target, lse, entropy)
        with torch.autocast(hidden.device.type, enabled=False):
            grads = _backward(saved, grad_logprob, grad_entropy, ctx.head, ctx.needs_input_grad)
        return *grads, None, None


def _sweep(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: Head
) -> tuple[Tensor, Tensor, Tensor]:
    """(log-sum-exp, entropy, target's logit), all T, after the temperature."""
    T, V = hidden.shape[0], weight.shape[0]
    top = torch.full((T,), -torch.inf, dtype=head.compute, device=hidden.device)
    total, weighted, target_logit = (torch.zeros_like(top) for _ in range(3))
    hidden = head.operands(hidden)
    for v in head.tiles(V, head.chunk_vocab):
        weight_v = head.operands(weight[v])
        bias_v = None if bias is None else bias[v].to(head.compute)
        for t in head.tiles(T, head.chunk_tokens):
            z = head.logits(hidden[t], weight_v, bias_v)
            if head.temperature != 1.0:
                z /= head.temperature
            _collect_target(z, target[t], v, target_logit[t])
            new_top = torch.maximum(top[t], z.amax(dim=1))
            z -= new_top[:, None]
            e = z.exp()
            # The first tile has nothing to rescale, and -inf * 0 would be nan.
            if v.start > 0:
                shift = top[t] - new_top
                factor = shift.exp()
                weighted[t] = factor * (weighted[t] + shift * total[t])
                total[t] *= factor
            total[t] += e.sum(dim=1)
            weighted[t] += e.mul_(z).sum(dim=1)
            top[t] = new_top
    log_total = total.log()
    return top + log_total, log_total - weighted / total, target_logit


def _collect_target(z: Tensor, target: Tensor, v: slice, target_logit: Tensor) -> None:
    inside = (target >= v.start) & (target < v.stop)
    local = (target - v.start).clamp_(0, z.shape[1] - 1)
    found = z.gather(1, local[:, None]).squeeze(1)
    target_logit.copy_(torch.where(inside, found, target_logit))


def _backward(
    saved: Saved,
    grad_logprob: Tensor,
    grad_entropy: Tensor | None,
    head: Head,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by hidden, weight and bias, each in the dtype of its input."""
    T, V = saved.hidden.shape[0], saved.weight.shape[0]
    gradient = _triton().tile_gradient if head.triton else _tile_gradient
    # A sum's gradient is one number spread over T: kernels want T of them.
    outer_gradients = (
        grad_logprob.contiguous(),
        None if grad_entropy is None else grad_entropy.contiguous(),
    )
    hidden = head.operands(saved.hidden)
    grad_hidden = torch.zeros_like(saved.hidden, dtype=head.compute) if needs[0] else None
    grad_weight = torch.empty_like(saved.weight) if needs[1] else None
    bias = saved.bias
    grad_bias = None
    if bias is not None and needs[2]:
        grad_bias = torch.zeros_like(bias, dtype=head.compute)
    for v in head.tiles(V, head.chunk_vocab):
        weight_v = head.operands(saved.weight[v])
        bias_v = None if bias is None else bias[v].to(head.compute)
        # Summed over tokens in the compute dtype, rounded to the weight's own only once.
        sum_v = None if grad_weight is None else torch.zeros_like(weight_v, dtype=head.compute)
        for t in head.tiles(T, head.chunk_tokens):
            dz = gradient(hidden[t], weight_v, bias_v, saved, t, v, *outer_gradients, head)
            if grad_hidden is not None:
                grad_hidden[t] += head.product(dz, weight_v)
            if sum_v is not None:
                sum_v += head.outer(dz, hidden[t])
            if grad_bias is not None:
                grad_bias[v] += dz.sum(dim=0, dtype=head.compute)
        if grad_weight is not None and sum_v is not None:
            grad_weight[v] = sum_v
    return (
        None if grad_hidden is None else grad_hidden.to(saved.hidden.dtype),
        grad_weight,
        grad_bias.to(bias.dtype) if bias is not None and grad_bias is not None else None,
    )


def _tile_gradient(
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
    """Gradient by the raw logits (before bias, scale and cap) of one tile, as a factor of products:
    hidden [t], weight and bias [v] are the tile's own, the gradients those of all T."""
    z = head.logits(hidden, weight, bias)
    grad_logprob = grad_logprob[t]
    slope = None if head.softcap is None else 1.0 - (z / head.softcap).square_()
    logp = z.div_(head.temperature) if head.temperature != 1.0 else z
    logp -= saved.lse[t, None]
    if grad_entropy is None:
        dz = logp.exp_().mul_(-grad_logprob[:, None])
    else:
        p = logp.exp()
        dz = logp.add_(saved.entropy[t, None]).mul_(grad_entropy[t, None])
        dz.add_(grad_logprob[:, None]).mul_(p).neg_()
    local = saved.target[t] - v.start
    inside = (local >= 0) & (local < dz.shape[1])
    local = local.clamp_(0, dz.shape[1] - 1)
    dz.scatter_add_(1, local[:, None], torch.where(inside, grad_logprob, 0.0)[:, None])
    if slope is not None:
        dz *= slope
    factor = head.logit_scale / head.temperature
    if factor != 1.0:
        dz *= factor
    return dz.to(head.operand) if head.native_half(dz) else dz


def _triton() -> Any:
    from srft.model import head_triton

    return head_triton


def _takes_triton(hidden: Tensor, operand: torch.dtype, kernels: Kernels) -> bool:
    """auto takes the kernels where factors are halves on a CUDA device: float32 products without
    TF32, which Triton does one by one, are faster in PyTorch's library."""
    if kernels == "torch" or not hidden.numel():
        return False
    if kernels == "auto":
        half = operand in (torch.bfloat16, torch.float16)
        return hidden.is_cuda and half and find_spec("triton") is not None
    if find_spec("triton") is None or not _triton().runs_on(hidden.device):
        raise ModelError(
            "the Triton kernels of the output head need Triton and a CUDA device (or Triton's "
            "interpreter, TRITON_INTERPRET=1): set model.kernels to auto"
        )
    return operand != torch.float64


def _operand_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _check(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> None:
    if temperature <= 0:
        raise ModelError(f"temperature must be above 0, not {temperature}")
    if hidden.shape[-1] != weight.shape[-1]:
        raise ModelError(
            f"hidden states have width {hidden.shape[-1]}, the head expects {weight.shape[-1]}"
        )
    if target.numel() == 0:
        return
    low, high = (int(x) for x in target.aminmax())
    if low < 0 or high >= weight.shape[0]:
        raise ModelError(
            f"token id {low if low < 0 else high} is outside the head's vocabulary of "
            f"{weight.shape[0]}: tokenizer and model do not match"
        )


def fused_logprob_entropy(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    chunk_vocab: int | None = None,
    kernels: Kernels = "auto",
) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) in nats of softmax(cap(scale (hidden W^T + bias)) / temperature).

    Both outputs carry gradient to hidden, weight and bias, and are float32 (float64 for float64
    input). Sums, logits and what follows are float32 whatever the inputs' dtype; under autocast,
    factors of matrix products are rounded to its dtype. At most a few tiles of ``chunk_tokens`` x
    ``chunk_vocab`` numbers are alive at a time (chosen by device when None). Gradients cost one
    more matrix product than the usual way; under ``no_grad`` nothing is kept. With the entropy
    unused, its part of the backward pass is skipped. ``kernels``: "torch" for PyTorch's operations,
    "triton" for the kernels of ``head_triton.py``, "auto" for those where they are the faster ones.

    Raises ModelError for a token id outside the vocabulary, for widths that do not agree and for
    a temperature of 0 or below.
    """
    _check(hidden_TD, weight_VD, target_T, temperature)
    tile = GPU_TILE if hidden_TD.is_cuda else CPU_TILE
    operand = _operand_dtype(hidden_TD, weight_VD)
    head = Head(
        softcap=softcap,
        logit_scale=logit_scale,
        temperature=temperature,
        chunk_tokens=chunk_tokens or tile[0],
        chunk_vocab=chunk_vocab or tile[1],
        operand=operand,
        compute=torch.float64 if operand == torch.float64 else torch.float32,
        triton=_takes_triton(hidden_TD, operand, kernels),
        plain=kernels == "torch",
    )
    logprob_T, entropy_T = _LogprobEntropy.apply(hidden_TD, weight_VD, bias_V, target_T, head)
    return logprob_T, entropy_T
