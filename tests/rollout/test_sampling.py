"""Uniform numbers, truncated distributions, and drawing from them."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TopKLogitsWarper, TopPLogitsWarper

from srft.config import parse_config, section
from srft.errors import ConfigError
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


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 1000, 49_152])
@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
def test_tokens_are_those_of_the_cumulative_sum_in_float64(vocabulary, spread):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(64, vocabulary, generator=generator) * spread
    u = torch.from_numpy(uniforms(list(range(64)), 1)[:, 0])
    token, logprob = draw(logits, u, SamplingParams())
    exact = logits.double().log_softmax(-1)
    running = exact.exp().cumsum(-1)
    place = running.gather(-1, token[:, None])[:, 0]
    before = place - exact.exp().gather(-1, token[:, None])[:, 0]
    # The uniform number lies within the token's share, up to the rounding of float32 sums.
    assert (u >= before - 1e-6).all() and (u <= place + 1e-6).all()
    torch.testing.assert_close(
        logprob.double(), exact.gather(-1, token[:, None])[:, 0], rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("vocabulary", [300, 512, 5000])
def test_every_uniform_number_draws_a_token_of_positive_probability(vocabulary):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, vocabulary, generator=generator) * 5
    logits[torch.rand(1, vocabulary, generator=generator) < 0.7] = -torch.inf
    cumulative = logits.double().softmax(-1).cumsum(-1)[0]
    # At, just below and just above every boundary between two tokens.
    edges = torch.cat([cumulative, cumulative - 1e-12, cumulative + 1e-12, cumulative - 1e-7])
    u = edges.clamp(0, 1 - 2.0**-53)
    token, logprob = draw(logits.expand(len(u), -1), u, SamplingParams())
    assert logprob.isfinite().all()
    assert logits[0, token].isfinite().all()


def test_a_row_of_nan_says_so_and_leaves_its_neighbours_alone():
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(0))
    u = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    alone = draw(logits[[0, 2]], u[[0, 2]], SamplingParams())
    logits[1] = torch.nan
    token, logprob = draw(logits, u, SamplingParams())
    assert logprob[1].isnan() and 0 <= token[1] < 700
    assert token[[0, 2]].tolist() == alone[0].tolist()
    assert logprob[[0, 2]].tolist() == alone[1].tolist()


@pytest.mark.parametrize("cut", [{"top_p": 0.8}, {"top_k": 20}, {"min_p": 0.1}])
def test_rollouts_of_a_truncated_distribution_are_refused_with_the_reason(cut):
    with pytest.raises(ConfigError, match=rf"{next(iter(cut))}.*importance weights are biased"):
        parse_config({"rollout": cut})
    with pytest.raises(ConfigError, match=r"evaluation\.top_p"):
        section("rollout", cut)


def test_truncation_that_is_off_is_read_and_evaluation_may_truncate():
    config = parse_config({"rollout": {"top_p": 1.0, "top_k": 0}, "evaluation": {"top_p": 0.8}})
    params = config.rollout.sampling_params()
    assert (params.top_p, params.top_k, config.evaluation.top_p) == (1.0, 0, 0.8)
