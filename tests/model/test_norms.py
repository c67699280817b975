"""The norm with its backward pass written out: the numbers of transformers' own, and only in its place."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.toys import tiny_model
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from srft.model.cpu.norms import _FastNorm, _RootMeanSquareNorm, use_fast_norms
from srft.model.fast import prepare_compute
from srft.model.model_config import ModelConfig

KINDS = [LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm]


def _norm(kind: type[nn.Module], width: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    norm = kind(width, 1e-5).to(dtype)
    nn.init.normal_(norm.weight)
    return norm


def _run(norm: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(grad)
    return y.detach(), x.grad, norm.weight.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 4, 16)])
def test_values_and_gradients_are_those_of_float64(kind: type[nn.Module], shape: tuple[int, ...]):
    torch.manual_seed(0)
    plain = _norm(kind, shape[-1])
    fast, wide = copy.deepcopy(plain), copy.deepcopy(plain).double()
    use_fast_norms(fast)
    assert isinstance(fast, _FastNorm) and isinstance(fast, kind)
    # transformers' norm itself goes through float32, so the wide one is written out here.
    wide.forward = lambda x: wide.weight * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    x, grad = torch.randn(shape), torch.randn(shape).transpose(0, 1).reshape(shape)
    expected = _run(wide, x.double(), grad.double())
    for ours, exact in zip(_run(fast, x, grad), expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=2e-6, atol=2e-6)


def test_the_backward_pass_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, w: _RootMeanSquareNorm.apply(x, w, 1e-3), (x, weight))


def test_a_frozen_weight_gets_no_gradient_and_the_input_does() -> None:
    norm = _norm(Qwen3RMSNorm, 8)
    norm.weight.requires_grad_(False)
    use_fast_norms(norm)
    x = torch.randn(3, 8, requires_grad=True)
    norm(x).sum().backward()
    assert norm.weight.grad is None and x.grad is not None
    norm.weight.requires_grad_(True)
    norm(x.detach()).sum().backward()
    assert norm.weight.grad is not None


def test_only_plain_norms_in_float32_are_replaced() -> None:
    gemma = Gemma2RMSNorm(8)
    use_fast_norms(gemma)
    assert type(gemma) is Gemma2RMSNorm
    plain = _norm(Qwen3RMSNorm, 8, torch.bfloat16)
    fast = copy.deepcopy(plain)
    use_fast_norms(fast)
    x = torch.randn(5, 8, dtype=torch.bfloat16)
    assert torch.equal(fast(x), plain(x))


def test_kernels_torch_leaves_the_norms_alone() -> None:
    for kernels, replaced in (("torch", False), ("auto", True)):
        model = tiny_model()
        names = list(model.state_dict())
        prepare_compute(model, ModelConfig(kernels=kernels))
        assert isinstance(model.model.norm, _FastNorm) == replaced
        assert list(model.state_dict()) == names
        use_fast_norms(model)  # a second time changes nothing
