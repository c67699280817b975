"""What PyTorch's output head (``head.py``) and Triton's (``head_triton.py``) have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from srft.model.cpu.products import outer, product, rounded_factors


@dataclass(frozen=True)
class Head:
    """What happens between the matrix product and log-softmax, and how it is cut up.

    ``operand`` is the dtype the factors of matrix products are rounded to (the autocast dtype
    where autocast is on); ``compute`` that of sums, logits and everything after. ``triton``: by
    Triton's kernels; ``plain``: products by PyTorch's default library.
    """

    softcap: float | None
    logit_scale: float
    temperature: float
    chunk_tokens: int
    chunk_vocab: int
    operand: torch.dtype
    compute: torch.dtype
    triton: bool
    plain: bool

    def tiles(self, length: int, chunk: int) -> list[slice]:
        return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]

    def operands(self, x: Tensor) -> Tensor:
        """Round to the operand dtype; widen where the device cannot sum halves in float32."""
        x = x.to(self.operand)
        return x if self.native_half(x) else x.to(self.compute)

    def native_half(self, x: Tensor) -> bool:
        return x.is_cuda and self.operand in (torch.bfloat16, torch.float16)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b`` summed and returned in the compute dtype."""
        if self.native_half(a):
            return torch.mm(a, b, out_dtype=self.compute)
        if a.is_cpu and self.operand == torch.bfloat16:
            with rounded_factors():
                return torch.mm(a, b)
        return torch.mm(a, b) if self.plain else product(a, b.t())

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        """``a.T @ b`` summed and returned in the compute dtype."""
        if self.native_half(a) or self.plain or self.operand == torch.bfloat16:
            return self.product(a.t(), b)
        return outer(a, b)

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Tile of scaled, capped logits, before the temperature."""
        z = self.product(hidden, weight.t())
        if bias is not None:
            z += bias
        if self.logit_scale != 1.0:
            z *= self.logit_scale
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z


@dataclass(frozen=True)
class Saved:
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    lse: Tensor
    entropy: Tensor
