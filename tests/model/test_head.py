"""The fused head is log-softmax and entropy, with their gradients, in bounded memory: by PyTorch's
operations and by the Triton kernels, which run in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from srft.errors import ModelError
from srft.model.head import fused_logprob_entropy

VARIANTS = {
    "plain": {},
    "softcap": {"softcap": 3.0},
    "scale": {"logit_scale": 0.25},
    "temperature": {"temperature": 0.6},
    "all": {"softcap": 4.0, "logit_scale": 1.7, "temperature": 1.3},
}


CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None,
    reason="Triton's interpreter: absent, or off where there is a GPU",
)
EVERY_WAY = pytest.mark.parametrize(
    "device, kernels",
    [
        ("cpu", "torch"),
        pytest.param("cpu", "triton", marks=INTERPRETED),
        pytest.param("cuda", "torch", marks=CUDA),
        pytest.param("cuda", "triton", marks=CUDA),
    ],
)


def naive(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def inputs(T: int, D: int, V: int, dtype: torch.dtype, spread: float = 1.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(T + D + V)
    hidden = torch.randn(T, D, generator=draw, dtype=torch.float64)
    weight = torch.randn(V, D, generator=draw, dtype=torch.float64) * spread / D**0.5
    bias = torch.randn(V, generator=draw, dtype=torch.float64)
    target = torch.randint(V, (T,), generator=draw)
    leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight, bias)]
    return [*leaves, target]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_pass_gradcheck(variant: str, with_bias: bool) -> None:
    hidden, weight, bias, target = inputs(5, 4, 7, torch.float64)

    def both(h: Tensor, w: Tensor, *b: Tensor) -> tuple[Tensor, Tensor]:
        return fused_logprob_entropy(
            h, w, target, b[0] if b else None, chunk_tokens=2, chunk_vocab=3, **VARIANTS[variant]
        )

    leaves = (hidden, weight, bias) if with_bias else (hidden, weight)
    assert torch.autograd.gradcheck(both, leaves)


@EVERY_WAY
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_float32_agrees_with_naive_float64(
    variant: str, spread: float, device: str, kernels: str
) -> None:
    # No size a multiple of a block's; few, because the interpreter is slow.
    T, D, V = (67, 33, 501) if (device, kernels) != ("cpu", "triton") else (19, 18, 75)
    tensors = inputs(T, D, V, torch.float32, spread)
    hidden, weight, bias = (x.detach().to(device).requires_grad_() for x in tensors[:3])
    target = tensors[3].to(device)
    options = VARIANTS[variant]
    ours = fused_logprob_entropy(
        hidden, weight, target, bias, chunk_tokens=16, chunk_vocab=50, kernels=kernels, **options
    )
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    theirs = naive(wide[0], wide[1], target, wide[2], **options)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=3e-6 * spread)
    mix = torch.linspace(-1, 1, T, device=device)
    (ours[0] * mix + ours[1] * mix.flip(0).square()).sum().backward()
    wide_mix = mix.double()
    (theirs[0] * wide_mix + theirs[1] * wide_mix.flip(0).square()).sum().backward()
    for a, b in zip((hidden, weight, bias), wide, strict=True):
        scale = float(b.grad.abs().max())
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.parametrize("chunks", [(1, 1), (3, 7), (12, 40), (13, 41), (1000, 1000)])
def test_chunk_sizes_change_nothing(chunks: tuple[int, int]) -> None:
    hidden, weight, bias, target = inputs(13, 8, 41, torch.float64)
    ours = fused_logprob_entropy(
        hidden, weight, target, bias, chunk_tokens=chunks[0], chunk_vocab=chunks[1]
    )
    for a, b in zip(ours, naive(hidden, weight, target, bias), strict=True):
        torch.testing.assert_close(a, b)


@EVERY_WAY
@pytest.mark.parametrize("which", [0, 1])
def test_each_output_alone_gives_its_own_gradient(which: int, device: str, kernels: str) -> None:
    hidden, weight, _, target = (x.detach().to(device) for x in inputs(9, 4, 11, torch.float32))
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    ours = fused_logprob_entropy(hidden, weight, target, kernels=kernels)[which]
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    theirs = naive(wide[0], wide[1], target)[which]
    grads = torch.autograd.grad(ours.sum(), (hidden, weight))
    for a, b in zip(grads, torch.autograd.grad(theirs.sum(), wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@EVERY_WAY
def test_bfloat16_factors_are_summed_in_float32(device: str, kernels: str) -> None:
    hidden, weight, _, target = (x.detach().to(device) for x in inputs(21, 40, 70, torch.bfloat16))
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    ours = fused_logprob_entropy(hidden, weight, target, kernels=kernels)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    theirs = naive(wide[0], wide[1], target)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(ours[0].sum() + ours[1].sum(), (hidden, weight))
    expected = torch.autograd.grad(theirs[0].sum() + theirs[1].sum(), wide)
    for a, b in zip(grads, expected, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.double(), b, rtol=2**-6, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_halves_on_a_gpu_take_the_kernels_and_little_memory() -> None:
    T, D, V = 4096, 256, 65536
    hidden = torch.randn(T, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(V, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(V, (T,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    logprob, _ = fused_logprob_entropy(hidden, weight, target)
    logprob.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 4 * T * V / 2
    other = fused_logprob_entropy(hidden, weight, target, kernels="torch")[0]
    torch.testing.assert_close(logprob, other, rtol=1e-4, atol=1e-3)


def test_a_frozen_head_gets_no_gradient_and_passes_it_on() -> None:
    hidden, weight, _, target = inputs(9, 4, 11, torch.float64)
    logprob, _ = fused_logprob_entropy(hidden, weight.detach(), target)
    logprob.sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_half_precision_inputs_are_summed_in_float32() -> None:
    hidden, weight, bias, target = inputs(33, 64, 301, torch.bfloat16)
    logprob, entropy = fused_logprob_entropy(hidden, weight, target, bias, chunk_vocab=100)
    assert logprob.dtype == entropy.dtype == torch.float32
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    expected = naive(wide[0], wide[1], target, wide[2])
    # The inputs are exact in float64, so float32 accuracy is due.
    torch.testing.assert_close(logprob.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=1e-5, atol=1e-5)
    logprob.sum().backward()
    expected[0].sum().backward()
    for a, b in zip((hidden, weight, bias), wide, strict=True):
        assert a.grad.dtype == torch.bfloat16
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=2**-7, atol=1e-2)


def test_autocast_rounds_factors_but_not_logits() -> None:
    hidden, weight, _, target = inputs(33, 64, 301, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprob, _ = fused_logprob_entropy(hidden, weight, target)
    rounded = [x.detach().bfloat16().double() for x in (hidden, weight)]
    expected, _ = naive(*rounded, target)
    assert logprob.dtype == torch.float32
    torch.testing.assert_close(logprob.double(), expected, rtol=1e-5, atol=1e-5)


@EVERY_WAY
def test_huge_logits_stay_finite(device: str, kernels: str) -> None:
    hidden = torch.tensor([[1e4], [-1e4]], device=device, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], device=device, requires_grad=True)
    target = torch.tensor([0, 0], device=device)
    logprob, entropy = fused_logprob_entropy(hidden, weight, target, chunk_vocab=1, kernels=kernels)
    assert logprob.tolist() == [0.0, -2e4]
    assert entropy.tolist() == [0.0, 0.0]
    (logprob.sum() + entropy.sum()).backward()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(weight.grad).all()


def test_uniform_logits_have_entropy_log_v() -> None:
    logprob, entropy = fused_logprob_entropy(
        torch.zeros(3, 4), torch.randn(1000, 4), torch.tensor([0, 500, 999]), chunk_vocab=300
    )
    expected = torch.full((3,), 1000.0).log()
    torch.testing.assert_close(entropy, expected)
    torch.testing.assert_close(logprob, -expected)


def test_no_tokens_give_empty_scores_and_zero_gradient() -> None:
    hidden, weight, _, _ = inputs(3, 4, 7, torch.float32)
    logprob, entropy = fused_logprob_entropy(hidden[:0], weight, torch.zeros(0, dtype=torch.int64))
    assert logprob.shape == entropy.shape == (0,)
    (logprob.sum() + entropy.sum()).backward()
    assert not weight.grad.any()


def test_no_array_of_tokens_by_vocabulary_ever_exists() -> None:
    T, V = 512, 4096
    hidden, weight, _, target = inputs(T, 8, V, torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        logprob, entropy = fused_logprob_entropy(
            hidden, weight, target, chunk_tokens=64, chunk_vocab=512
        )
        (logprob.sum() + entropy.sum()).backward()
    assert largest == V * 8  # the gradient of the weight


def test_nothing_is_kept_without_gradient() -> None:
    hidden, weight, _, target = inputs(64, 8, 128, torch.float32)
    with torch.no_grad():
        scores = fused_logprob_entropy(hidden, weight, target)
    assert all(s.grad_fn is None and not s.requires_grad for s in scores)


@pytest.mark.parametrize("bad", [-1, 11])
def test_a_token_outside_the_vocabulary_is_refused(bad: int) -> None:
    hidden, weight, _, _ = inputs(2, 4, 11, torch.float32)
    with pytest.raises(ModelError, match="outside the head's vocabulary of 11"):
        fused_logprob_entropy(hidden, weight, torch.tensor([0, bad]))


def test_a_temperature_of_zero_is_refused() -> None:
    hidden, weight, _, target = inputs(2, 4, 11, torch.float32)
    with pytest.raises(ModelError, match="temperature"):
        fused_logprob_entropy(hidden, weight, target, temperature=0.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on this machine")
def test_kernels_that_cannot_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, target = inputs(2, 4, 11, torch.float32)
    monkeypatch.setattr("srft.model.head.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"set model\.kernels to auto"):
        fused_logprob_entropy(hidden, weight, target, kernels="triton")
    fused_logprob_entropy(hidden, weight, target)
