"""The faster float32 products: the same numbers, and only where they are known to be faster."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from tests.toys import tiny_model
from torch import nn

from srft.model.cpu import products
from srft.model.cpu.products import (
    FastLinear,
    FrozenLinear,
    outer,
    product,
    rounded_factors,
    rounded_weights,
    use_fast_products,
)
from srft.model.fast import prepare_compute
from srft.model.model_config import ModelConfig

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN"
)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where oneDNN is the faster one, and for products of any size."""
    monkeypatch.setattr(products, "_ONEDNN", True)
    monkeypatch.setattr(products, "_LEAST_WORK", 1)


def _near(ours: torch.Tensor, wide: torch.Tensor) -> None:
    torch.testing.assert_close(ours.double(), wide, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("shape", [(5, 7, 3), (64, 33, 17), (3, 200, 130)])
def test_products_agree_with_float64(taken: None, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    m, k, n = shape
    x, weight, bias, rest = torch.randn(m, k), torch.randn(n, k), torch.randn(n), torch.randn(m, n)
    assert products.takes(x, weight)
    wide = x.double() @ weight.double().t()
    _near(product(x, weight), wide)
    _near(product(x, weight, bias), wide + bias.double())
    _near(product(rest, weight.t()), rest.double() @ weight.double())
    for a, b in ((rest, x), (x, rest)):
        _near(outer(a, b), a.double().t() @ b.double())


@needs_onednn
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("fast", [False, True])
@torch.inference_mode()
def test_a_frozen_layer_serves_other_numbers_of_rows(
    taken: None, with_bias: bool, fast: bool
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(40, 24), torch.randn(40) if with_bias else None
    layer = FrozenLinear(weight, bias, rows=16, fast=fast)
    assert (layer.packed is not None) == fast
    for rows in (1, 16, 50):
        x, rest = torch.randn(rows, 24), torch.randn(rows, 40)
        wide = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
        _near(layer(x), wide)
        _near(layer.plus(rest, x), rest.double() + wide)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_has_the_gradients_of_the_plain_one(taken: None, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias)
    fast = copy.deepcopy(plain)
    fast.__class__ = FastLinear
    x = torch.randn(2, 9, 24, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    for layer, at in ((plain, x), (fast, y)):
        layer(at).square().sum().backward()
    pairs = [(x.grad, y.grad), (plain.weight.grad, fast.weight.grad)]
    if bias:
        pairs.append((plain.bias.grad, fast.bias.grad))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_other_dtypes_autocast_and_small_products_stay_with_the_plain_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "_ONEDNN", True)
    x, weight = torch.zeros(128, 128), torch.zeros(128, 128)
    assert products.takes(x, weight)
    assert not products.takes(x[:63], weight)
    assert not products.takes(x.double(), weight.double())
    assert not products.takes(x.bfloat16(), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not products.takes(x, weight)
        assert FastLinear(128, 128)(x).dtype == torch.bfloat16
    monkeypatch.setattr(products, "_ONEDNN", False)
    assert not products.takes(x, weight)


def test_the_recipe_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    for kernels, kind in (("torch", nn.Linear), ("auto", FastLinear)):
        model = tiny_model("qwen3")
        names = list(model.state_dict())
        prepare_compute(model, ModelConfig(kernels=kernels))
        assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {kind}
        assert list(model.state_dict()) == names


def test_on_other_processors_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    model = tiny_model("qwen3")
    use_fast_products(model)
    assert not any(isinstance(m, FastLinear) for m in model.modules())


@needs_onednn
def test_onednns_limit_is_set_and_the_environment_stays_as_it_was() -> None:
    """A shape that comes again after 100 others is prepared anew: the limit of 64 is in force."""
    code = """
import os
before = dict(os.environ)
import srft.cli_train
from srft.model.cpu import products
products._limit_cache()
assert dict(os.environ) == before, set(os.environ) ^ set(before)
import torch
weight = torch.ones(32, 32)
for rows in [*range(1, 101)] * 2:
    torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 32), weight, None, "none", [], "")
"""
    environment = {**os.environ, "ONEDNN_VERBOSE": "2", "OMP_NUM_THREADS": "1"}
    environment.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cache_miss") >= 200
    assert done.stdout.count("cache_hit") <= 1  # the second call of `_limit_cache` above


@pytest.mark.skipif(
    not products._multiplies_bfloat16(), reason="this processor does not multiply bfloat16"
)
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_rounded_once_compute_what_autocast_does(rows, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 80, bias=bias), nn.ReLU(), nn.Linear(80, 8, bias=bias))
    x = torch.randn(rows, 3, 96)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with pytest.raises(ValueError, match="out"), rounded_weights(model, 8):
            assert {type(m) for m in model} == {products._RoundedLinear, nn.ReLU}
            found = model(x)
            raise ValueError("out")
        assert torch.equal(expected, model(x))
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-6)
    assert {type(m) for m in model} == {nn.Linear, nn.ReLU}
    assert not any("packed" in vars(m) for m in model)
    assert all(torch.equal(a, before[name]) for name, a in model.state_dict().items())


def test_weights_are_rounded_under_autocast_to_bfloat16_alone():
    model = nn.Sequential(nn.Linear(4, 4))
    for context in (torch.autocast("cpu", torch.float16), torch.no_grad()):
        with context, rounded_weights(model, 8):
            assert type(model[0]) is nn.Linear
    with torch.autocast("cpu", torch.bfloat16), rounded_weights(model.double(), 8):
        assert type(model[0]) is nn.Linear


def test_rounded_factors_are_for_the_block_alone():
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    with pytest.raises(ValueError, match="out"), rounded_factors():
        assert matmul.fp32_precision == ("bf16" if products._multiplies_bfloat16() else before)
        raise ValueError("out")
    assert matmul.fp32_precision == before


@pytest.mark.skipif(
    not products._multiplies_bfloat16(), reason="this processor does not multiply bfloat16"
)
def test_where_memory_runs_out_while_weights_are_rounded_the_model_is_as_before(monkeypatch):
    def short(tensor):
        raise MemoryError("no room")

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    monkeypatch.setattr(torch.Tensor, "bfloat16", short)
    with (
        pytest.raises(MemoryError, match="no room"),
        torch.autocast("cpu", torch.bfloat16),
        rounded_weights(model, 8),
    ):
        pass
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
