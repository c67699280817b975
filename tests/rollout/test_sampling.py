"""Uniform numbers, truncated distributions, and drawing from them."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TopKLogitsWarper, TopPLogitsWarper

from srft.rollout.sampling import draw, sampling_logprobs, uniforms
from srft.types import SamplingParams


def test_uniforms_are_uniform_over_seeds_and_over_positions():
    u = uniforms(list(range(400)), 100)
    assert u.min() >= 0.0 and u.max() < 1.0
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-3
    assert stats.kstest(u[0], "uniform").pvalue > 1e-3


def test_neighbouring_seeds_and_positions_are_independent():
    u = uniforms(list(range(400)), 200) - 0.5
    n = u[1:].size
    for a, b in ((u[1:], u[:-1]), (u[:, 1:], u[:, :-1]), (u[1:, :-1], u[:-1, 1:])):
        correlation = (a * b).mean() * 12
        assert abs(correlation) < 5 / np.sqrt(n)
    pairs = (uniforms(list(range(2000)), 2) * 8).astype(int)
    counts = np.bincount(pairs[:, 0] * 8 + pairs[:, 1], minlength=64)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_stream_depends_on_its_seed_alone_and_is_a_prefix_of_a_longer_one():
    many = uniforms([5, 6, 7], 50)
    assert np.array_equal(uniforms([6], 20)[0], many[1, :20])
    golden = 0x9E3779B97F4A7C15
    shifted = uniforms([5 + golden], 50)[0]
    assert not np.intersect1d(shifted, many[0]).size


def test_seeds_of_any_size_and_sign_are_taken_modulo_two_to_the_64():
    assert np.array_equal(uniforms([-1], 4), uniforms([2**64 - 1], 4))
    assert np.array_equal(uniforms([2**64 + 3], 4), uniforms([3], 4))


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.7)])
def test_truncation_equals_transformers_processors(top_k, top_p):
    torch.manual_seed(0)
    logits = torch.randn(16, 30) * 3
    params = SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p)
    expected = logits / 0.7
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    expected = expected.log_softmax(-1)
    actual = sampling_logprobs(logits, params)
    assert torch.equal(actual.isinf(), expected.isinf())
    assert torch.allclose(actual, expected, atol=1e-5)


def test_draws_follow_the_truncated_distribution():
    torch.manual_seed(1)
    logits = torch.randn(1, 12) * 1.5
    params = SamplingParams(temperature=0.8, top_k=9, top_p=0.95)
    n = 40_000
    u = torch.from_numpy(uniforms(list(range(n)), 1)[:, 0])
    token, logprob = draw(logits.expand(n, -1), u, params)
    expected = sampling_logprobs(logits, params)[0]
    counts = np.bincount(token.numpy(), minlength=12)
    kept = expected.exp().numpy() > 0
    assert counts[~kept].sum() == 0
    frequencies = expected.double().exp().numpy()[kept]
    assert stats.chisquare(counts[kept], frequencies / frequencies.sum() * n).pvalue > 1e-3
    assert torch.allclose(logprob, expected[token])


def test_the_ends_of_the_unit_interval_draw_tokens_of_positive_probability():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    params = SamplingParams()
    low, _ = draw(logits, torch.zeros(1, dtype=torch.float64), params)
    high, _ = draw(logits, torch.full((1,), 1 - 2.0**-53, dtype=torch.float64), params)
    assert (low.item(), high.item()) == (1, 3)


def test_temperature_zero_is_greedy_with_the_models_own_logprob():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    token, logprob = draw(logits, torch.tensor([0.99]), SamplingParams(temperature=0.0, top_k=1))
    assert token.item() == 1
    assert torch.allclose(logprob, logits.log_softmax(-1)[:, 1])
