"""Summaries of a token shift against small cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from srft.analysis.distributions import TokenShift
from srft.analysis.shift import summarize
from srft.analysis.token_statistics import Resampler
from srft.analysis.words import token_class


def shift_of(
    before: list[float], after: list[float], entropy: list[float], sequence: list[int]
) -> TokenShift:
    n = len(before)
    p, q = np.array(before), np.array(after)
    zero = np.zeros(n)
    position = [int((np.array(sequence[:i]) == s).sum()) for i, s in enumerate(sequence)]
    return TokenShift(
        sequence_T=np.array(sequence),
        position_T=np.array(position),
        token_T=np.arange(n) % 3,
        logprob_before_T=np.log(p),
        logprob_after_T=np.log(q),
        entropy_before_T=np.array(entropy),
        entropy_after_T=zero,
        kl_forward_T=np.abs(q - p),
        kl_backward_T=zero,
        jsd_T=(q - p) ** 2,
        tv_T=zero,
        rank_before_T=np.ones(n, int),
        rank_after_T=np.full(n, 2),
        top_changed_T=np.ones(n, bool),
    )


def test_shares_changed_are_counts_over_tokens():
    shift = shift_of([0.5] * 4, [0.5, 0.53, 0.65, 0.95], [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1])
    found = summarize(shift, ["word"] * 4, ["x"] * 4, model="m", base="b", kind="rollout")
    assert {t: e.value for t, e in found.changed.items()} == {
        0.01: 0.75,
        0.05: 0.5,
        0.1: 0.5,
        0.2: 0.25,
        0.5: 0.0,
    }
    assert found.means["absolute_change"].value == pytest.approx((0.03 + 0.15 + 0.45) / 4)
    assert found.means["first_before"].value == 1.0
    assert found.means["first_after"].value == 0.0
    assert (found.responses, found.tokens) == (2, 4)


def test_entropy_and_change_in_the_same_order_correlate_fully():
    shift = shift_of([0.1] * 5, [0.1, 0.2, 0.3, 0.5, 0.9], [0, 1, 2, 3, 4], [0, 0, 1, 1, 2])
    found = summarize(shift, ["word"] * 5, ["x"] * 5, model="m", base="b", kind="k")
    assert found.entropy_correlation.value == pytest.approx(1.0)
    # The fifth of the tokens with the highest entropy is the last one: 0.8 of 0.1 + 0.2 + 0.4 + 0.8.
    assert found.top_fifth.value == pytest.approx(0.8 / 1.5)


def test_classes_add_up_to_the_whole():
    shift = shift_of([0.5] * 4, [0.5, 0.9, 0.7, 0.5], [0.0] * 4, [0, 0, 1, 1])
    classes = ["number", "operator", "number", "end"]
    found = summarize(shift, classes, list("3+4x"), model="m", base="b", kind="k")
    by = {c.name: c for c in found.by_class}
    assert {name: c.tokens for name, c in by.items()} == {"number": 2, "operator": 1, "end": 1}
    assert by["operator"].share_of_change.value == pytest.approx(0.4 / 0.6)
    assert by["number"].changed.value == 0.5
    assert sum(c.share for c in by.values()) == pytest.approx(1.0)


def test_places_are_relative_to_the_response():
    n = 20
    shift = shift_of([0.5] * 2 * n, ([0.9] + [0.5] * (n - 1)) * 2, [0.0] * 2 * n, [0] * n + [1] * n)
    found = summarize(shift, ["word"] * 2 * n, ["x"] * 2 * n, model="m", base="b", kind="k")
    assert [b.tokens for b in found.by_position] == [4] * 10
    assert [b.changed for b in found.by_position] == [0.5] + [0.0] * 9


def test_no_change_at_all_gives_zeros_and_no_correlation():
    shift = shift_of([0.5] * 4, [0.5] * 4, [0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1])
    found = summarize(shift, ["word"] * 4, ["x"] * 4, model="m", base="b", kind="k")
    assert all(e.value == 0 for e in found.changed.values())
    assert np.isnan(found.entropy_correlation.value)
    assert np.isnan(found.top_fifth.value)
    assert found.raised == found.lowered == ()


def test_a_single_response_has_no_interval():
    shift = shift_of([0.5, 0.5], [0.9, 0.5], [0.0, 1.0], [0, 0])
    found = summarize(shift, ["word"] * 2, ["x"] * 2, model="m", base="b", kind="k")
    assert found.changed[0.1].low is None


def test_the_tokens_that_changed_most_are_those_taken_often():
    shift = shift_of([0.2] * 9, [0.8, 0.1, 0.2] * 3, [0.0] * 9, [0] * 9)
    found = summarize(
        shift, ["word"] * 9, ["up", "down", "same"] * 3, model="m", base="b", kind="k"
    )
    assert [(t.text, t.count) for t in found.raised] == [("up", 3)]
    assert [t.text for t in found.lowered] == ["down"]
    assert found.raised[0].after == pytest.approx(0.8)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """60 responses of 5 tokens whose values share a response's own level: 300 trials."""
    rng = np.random.default_rng(0)
    sequence = np.repeat(np.arange(60), 5)
    inside = 0
    for trial in range(300):
        values = np.repeat(rng.normal(size=60), 5) + rng.normal(size=300) * 0.3
        e = Resampler(sequence, seed=trial, replicates=300).mean(values)
        inside += e.low <= 0.0 <= e.high
    assert 0.89 < inside / 300 < 0.985


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    a = rng.normal(size=200).round(1)
    b = a + rng.normal(size=200)
    draw = Resampler(np.repeat(np.arange(40), 5), seed=0)
    e = draw.rank_correlation(a, b)
    assert e.value == pytest.approx(spearmanr(a, b).statistic)
    assert e.low < e.value < e.high


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" 3", "number"), ("12,345.6", "number"), (" +", "operator"), ("=", "operator"), ("<=", "operator"),
        (" \\frac", "operator"), ("times", "operator"), (" So", "connective"), ("wait", "connective"),
        (" Therefore,", "connective"), ("\n\n", "layout"), (" ;", "layout"), ("(", "layout"), ("", "layout"),
        (" apple", "word"), ("x", "word"), ("x2", "word"), ("total", "word"),
    ],
)  # fmt: skip
def test_tokens_are_sorted_into_classes(text, kind):
    assert token_class(text) == kind


def test_special_tokens_are_ends():
    assert token_class("<eos>", special=True) == "end"
