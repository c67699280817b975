"""Products of matrices on a CPU: of float32 by the faster of the two libraries inside PyTorch, of
bfloat16 factors where the processor multiplies them as such.

PyTorch hands them to MKL, which on processors of other makers than its own stays with 256-bit
vectors. oneDNN, in the same build and with the same float32 sums, takes 512-bit ones where the
processor has them, and is then about twice as fast (docs/performance.md). Which one is used depends
on the processor and on the sizes alone, so that a resumed run computes the same to the bit.

A layer is given the faster products by changing its class: weights, names, hooks and what is saved
stay as they are.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Multiplications below which oneDNN's preparation of a call costs more than it saves.
_LEAST_WORK = 1 << 20


def onednn_is_faster() -> bool:
    """Whether this processor has vectors of 512 bits that MKL leaves unused."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _maker() == "AuthenticAMD"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _maker() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    names = (line.split(":")[1].strip() for line in lines if line.startswith("vendor_id"))
    return next(names, "unknown")


def _limit_cache() -> None:
    """oneDNN keeps what it prepared for each shape, and packed rows have a new length every time: at its
    own limit of 1,024 shapes that is gigabytes. It reads its limit at its first product, so the variables
    are set for that one alone, unless the user has set them."""
    limits = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    unset = [name for name in limits if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, "64"))
    try:
        one = torch.ones(1, 1)
        torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], "")
    finally:
        for name in unset:
            del os.environ[name]


_ONEDNN = onednn_is_faster()
if _ONEDNN:
    _limit_cache()


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is the faster one for ``x`` [..., K] by ``weight`` [N, K]."""
    return (
        _usable(weight)
        and x.dtype == torch.float32
        and x.is_cpu
        and x.numel() * weight.shape[0] >= _LEAST_WORK
    )


def _usable(weight: Tensor) -> bool:
    return _ONEDNN and _plain(weight) and not torch.is_autocast_enabled("cpu")


def _plain(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.is_cpu


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` without gradient, for ``x`` [..., K] and ``weight`` [N, K]."""
    if takes(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def autocasts_to_bfloat16() -> bool:
    """Whether products on the CPU are under autocast to bfloat16 here."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it (AMX, AVX512-BF16)."""
    amx, avx = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    return torch.backends.mkldnn.is_available() and (amx or avx)


@functools.cache
def bfloat16_gain() -> float:
    """How many times as fast as float32's this processor's products of bfloat16 factors are, casts
    included: measured once, in about a tenth of a second, and 1 where it has no instructions for them."""
    if not _multiplies_bfloat16():
        return 1.0
    x, weight = torch.ones(256, 1024), torch.ones(1024, 1024)
    rounded = weight.bfloat16()
    wide = _fastest(lambda: functional.linear(x, weight))
    return wide / _fastest(lambda: functional.linear(x.bfloat16(), rounded).float())


def _fastest(call: Callable[[], Any]) -> float:
    """The least processor time of this thread, seconds: what else the machine does counts little."""
    call()
    found = []
    for _ in range(7):
        start = time.thread_time()
        call()
        found.append(time.thread_time() - start)
    return min(found)


@contextmanager
def rounded_factors() -> Iterator[None]:
    """Products of float32 matrices whose factors oneDNN rounds to bfloat16, sums and results in float32,
    where the processor has instructions for that. Elsewhere nothing changes."""
    if not _multiplies_bfloat16():
        yield
        return
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def rounds_weights() -> bool:
    """Whether a sampler here rounds weights to bfloat16 once for many tokens: under autocast to it on a CPU
    that multiplies such factors."""
    return autocasts_to_bfloat16() and _multiplies_bfloat16()


class FrozenLinear:
    """``x @ weight.T + bias`` for x [M, K], without gradient, for a weight [N, K] that stays as it is while
    this lives. rounded: the factors and the result are bfloat16, whatever x and the weight are.

    oneDNN gets it in the layout that it computes in, brought there once, for about ``rows`` rows of x:
    with few rows that takes longer than the product itself.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rows: int,
        fast: bool = True,
        rounded: bool = False,
    ) -> None:
        self.weight, self.bias, self.rounded = weight, bias, rounded
        self.packed: Tensor | None = None
        self.least_rows = 0 if rounded else -(-_LEAST_WORK // weight.numel())
        if rounded:
            half = weight.detach().bfloat16()
            self.weight = self.packed = torch.ops.mkldnn._reorder_linear_weight(half, rows)
            self.bias = None if bias is None else bias.detach().bfloat16()
        elif fast and _usable(weight) and rows >= self.least_rows:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is not None and len(x) >= self.least_rows:
            x = x.bfloat16() if self.rounded else x
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return functional.linear(x, self.weight, self.bias)

    def plus(self, residual: Tensor, x: Tensor) -> Tensor:
        """The same and a ``residual`` [M, N]."""
        if self.rounded:
            return residual + self(x)
        if self.packed is not None and len(x) >= self.least_rows:
            pointwise = torch.ops.mkldnn._linear_pointwise.binary
            return pointwise(x, residual, self.packed, self.bias, "add")
        if self.bias is not None:
            return residual + functional.linear(x, self.weight, self.bias)
        return torch.addmm(residual, x, self.weight.t())


def outer(a: Tensor, b: Tensor) -> Tensor:
    """``a.T @ b`` without gradient, for [T, N] and [T, K]: the gradient of a weight."""
    if not takes(a.t(), b.t()):
        return a.t() @ b
    # oneDNN wants one factor turned over in memory: the smaller one.
    if a.shape[1] <= b.shape[1]:
        return torch.ops.mkldnn._linear_pointwise(a.t(), b.t(), None, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise(b.t(), a.t(), None, "none", [], "").t().contiguous()


# Operators of their own, because torch.compile must take these calls as they stand: its own lowering
# of oneDNN's products demands that weights never change.
@torch.library.custom_op("srft::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return product(x, weight, bias)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("srft::outer", mutates_args=())
def _outer(a: Tensor, b: Tensor) -> Tensor:
    return outer(a, b)


@_outer.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[1], b.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _gradients(
    ctx: Any, grad: Tensor, linear: Callable[..., Tensor], outer: Callable[..., Tensor]
) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    for_x, for_weight, for_bias = ctx.needs_input_grad
    # An expanded gradient, such as that of a sum, would send oneDNN to its reference code: 100 times slower.
    grad = grad.contiguous()
    flat = grad.reshape(-1, grad.shape[-1])
    return (
        linear(grad, weight.t(), None) if for_x else None,
        outer(flat, x.reshape(-1, x.shape[-1])) if for_weight else None,
        flat.sum(0) if for_bias else None,
    )


_linear.register_autograd(
    lambda ctx, grad: _gradients(ctx, grad, _linear, _outer), setup_context=_keep
)


class _Linear(torch.autograd.Function):
    """The same outside compiled code, without an operator's long way through the dispatcher."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad, product, outer)


class FastLinear(nn.Linear):
    """``nn.Linear``, by the faster library where it is known which."""

    def forward(self, input: Tensor) -> Tensor:
        if takes(input, self.weight):
            linear = _linear if torch.compiler.is_compiling() else _Linear.apply
            return linear(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias)


def use_fast_products(model: nn.Module) -> None:
    """Give every plain linear layer of ``model`` the faster products, where there are any."""
    if not onednn_is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear


def _may_round(module: nn.Linear) -> bool:
    return type(module) in (nn.Linear, FastLinear) and _plain(module.weight)


class _RoundedLinear(nn.Linear):
    """Takes the place of the class of a linear layer, see ``rounded_weights``."""

    def forward(self, input: Tensor) -> Tensor:
        pointwise = torch.ops.mkldnn._linear_pointwise
        return pointwise(input.bfloat16(), self.packed, self.rounded_bias, "none", [], "")


@contextmanager
def rounded_weights(model: nn.Module, rows: int) -> Iterator[None]:
    """Under autocast to bfloat16 on a CPU: the weights of linear layers are rounded once, and laid out as
    oneDNN computes with about ``rows`` rows, in place of anew in every pass. Without gradient, and for
    weights that stay as they are meanwhile."""
    if not rounds_weights():
        yield
        return
    changed: list[tuple[nn.Linear, type[nn.Linear]]] = []
    try:
        for module in model.modules():
            if isinstance(module, nn.Linear) and _may_round(module):
                changed.append((module, type(module)))
                bias = module.bias
                vars(module)["packed"] = torch.ops.mkldnn._reorder_linear_weight(
                    module.weight.detach().bfloat16(), rows
                )
                vars(module)["rounded_bias"] = None if bias is None else bias.detach().bfloat16()
                module.__class__ = _RoundedLinear
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind
            for name in ("packed", "rounded_bias"):  # absent where memory ran out in between
                vars(module).pop(name, None)
