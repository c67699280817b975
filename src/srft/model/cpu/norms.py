"""Root-mean-square norms of float32 activations, with a hand-written backward pass.

transformers writes the norm as five operations (so does PyTorch on a CPU), and autograd then runs a dozen
over tensors of the full size to come back. By hand it is four, and one tensor is kept in place of three
(docs/performance.md). Half-precision activations keep transformers' own rounding. Zhang and Sennrich, 2019.

A norm is given it by changing its class: weights, names, hooks and what is saved stay as they are.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Norms that are x / rms(x) * weight and nothing else (Gemma's, for one, has 1 + weight).
PLAIN_NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})


class _RootMeanSquareNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = rms.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, weight, scale = ctx.saved_tensors
        width = grad.shape[-1]
        product = (grad * normed).reshape(-1, width)
        for_weight = product.sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, for_weight, None
        # What moves along x does not change the norm: d normed = (1 - normed normed^T / width) dx * scale
        along = torch.mv(product, weight).view(scale.shape)
        for_x = (grad * weight).addcmul_(normed, along, value=-1 / width).mul_(scale)
        return for_x, for_weight, None


class _FastNorm(nn.Module):
    """Stands before the class of a norm; see ``use_fast_norms``."""

    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight = self.weight
        by_hand = (
            hidden_states.dtype == weight.dtype == torch.float32
            # The compiler fuses the plain formula, forward and backward.
            and not torch.compiler.is_compiling()
        )
        if by_hand:
            return _RootMeanSquareNorm.apply(hidden_states, weight, self.variance_epsilon)
        return super().forward(hidden_states)


def use_fast_norms(model: nn.Module) -> None:
    """Give every plain norm of ``model`` the backward pass written out."""
    for module in model.modules():
        if is_plain_norm(module) and not isinstance(module, _FastNorm):
            module.__class__ = _fast(type(module))  # type: ignore[arg-type]


def is_plain_norm(module: nn.Module) -> bool:
    """Whether this is transformers' root-mean-square norm of one of the ``PLAIN_NORMS``."""
    kind = type(module)
    return kind.__name__ in PLAIN_NORMS and kind.__module__.startswith("transformers.")


@functools.cache
def _fast(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_FastNorm, kind), {"__module__": kind.__module__})
