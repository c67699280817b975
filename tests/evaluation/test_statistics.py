"""Estimates against brute force, intervals against simulation."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.evaluation import accuracy_statistics as stats


@given(st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_pass_at_k_is_the_share_of_k_subsets_with_a_correct_sample(n, data):
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    flags = [True] * c + [False] * (n - c)
    subsets = list(combinations(flags, k))
    assert stats.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_stable_where_binomials_overflow_floats():
    n, c, k = 5000, 3, 2500
    exact = 1 - comb(n - c, k) / comb(n, k)  # Python integers are exact
    assert stats.pass_at_k(n, c, k) == pytest.approx(exact, rel=1e-12)


def test_pass_at_k_is_unbiased_over_repeated_experiments():
    p, n, k = 0.3, 6, 3
    c, weight = np.arange(n + 1), [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(w * stats.pass_at_k(n, int(x), k) for x, w in zip(c, weight, strict=True))
    assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 2), (0, 0, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match=r"k|correct"):
        stats.pass_at_k(n, c, k)


def test_avg_at_k_weighs_problems_equally():
    assert stats.avg_at_k([[True, True, True, True], [False]]) == 0.5
    with pytest.raises(ValueError, match="at least one"):
        stats.avg_at_k([])
    with pytest.raises(ValueError, match="at least one"):
        stats.avg_at_k([[True], []])


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_majority_at_k_is_the_mean_over_all_subsets_and_tie_breaks(k):
    answers, truth = ["7", "7", "3", None, "9"], "7"
    correct = [a == truth for a in answers]

    def one(subset):
        voters = [a for a in subset if a is not None]
        if not voters:
            return 0.0
        top = max(voters.count(a) for a in voters)
        tied = sorted({a for a in voters if voters.count(a) == top})
        return tied.count(truth) / len(tied)

    expected = np.mean([one(s) for s in combinations(answers, k)])
    assert stats.majority_at_k(answers, correct, k) == pytest.approx(expected)


def test_majority_at_one_without_missing_answers_is_the_mean():
    correct = [True, False, False, True, False]
    answers = ["1", "2", "3", "1", "4"]
    assert stats.majority_at_k(answers, correct, 1) == pytest.approx(0.4)


def test_majority_of_many_subsets_is_seeded_and_close_to_exact():
    rng = np.random.default_rng(0)
    answers = [str(a) for a in rng.choice(3, 40, p=[0.5, 0.3, 0.2])]
    correct = [a == "0" for a in answers]
    first = stats.majority_at_k(answers, correct, 5, seed=1)
    assert first == stats.majority_at_k(answers, correct, 5, seed=1)
    counts = [answers.count(a) / 40 for a in "012"]
    exact = 0.0  # with replacement; 5 of 40 without is close
    for draw in product(range(3), repeat=5):
        votes = [draw.count(a) for a in range(3)]
        tied = [a for a in range(3) if votes[a] == max(votes)]
        exact += np.prod([counts[a] for a in draw]) * (0 in tied) / len(tied)
    assert first == pytest.approx(exact, abs=0.05)


def test_majority_refuses_k_beyond_n_and_unequal_lengths():
    with pytest.raises(ValueError, match="k = 3"):
        stats.majority_at_k(["1", "2"], [True, False], 3)
    with pytest.raises(ValueError, match="verdicts"):
        stats.majority_at_k(["1", "2"], [True], 1)


def test_replicate_means_have_the_moments_of_resampling():
    scores = np.random.default_rng(0).random(50)
    draws = stats.replicate_means(scores, seed=1, replicates=20_000)
    assert draws.mean() == pytest.approx(scores.mean(), abs=0.002)
    assert draws.std() == pytest.approx(scores.std() / np.sqrt(50), rel=0.03)


def test_interval_over_problems_agrees_with_scipy():
    from scipy.stats import bootstrap

    scores = np.random.default_rng(3).binomial(4, 0.4, 60) / 4
    ours = stats.interval_over_problems(scores, seed=5)
    theirs = bootstrap(
        (scores,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours == stats.interval_over_problems(scores, seed=5)


def test_interval_over_problems_covers_the_population_mean():
    rng = np.random.default_rng(0)
    hits, trials = 0, 400
    for trial in range(trials):
        difficulty = rng.beta(1, 1, 60)
        interval = stats.interval_over_problems(rng.binomial(4, difficulty) / 4, trial, 0.95, 1000)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.91 <= hits / trials <= 0.98


@pytest.mark.parametrize("n", [2, 8])
def test_interval_over_samples_covers_the_true_accuracy_of_fixed_problems(n):
    rng = np.random.default_rng(1)
    difficulty = rng.beta(1, 1, 60)
    hits, trials = 0, 400
    for trial in range(trials):
        counts = rng.binomial(n, difficulty)
        interval = stats.interval_over_samples(np.full(60, n), counts, trial, replicates=1000)
        hits += interval.low <= difficulty.mean() <= interval.high
    assert 0.91 <= hits / trials <= 0.985


def test_interval_over_samples_has_a_width_where_all_samples_agree():
    wrong = stats.interval_over_samples([32] * 30, [0] * 30)
    assert (wrong.low, wrong.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 960)))
    mixed = stats.interval_over_samples([4] * 10, [4, 0] * 5)
    assert mixed.low == pytest.approx(1 - mixed.high) and mixed.high - 0.5 == pytest.approx(
        1 - 0.025 ** (1 / 40)
    )


def test_interval_over_samples_needs_two_samples():
    with pytest.raises(ValueError, match="two samples"):
        stats.interval_over_samples([1, 4], [1, 2])


@pytest.mark.parametrize(
    ("scores", "low", "high"),
    [([1.0] * 30, 0.025 ** (1 / 30), 1.0), ([0.0] * 30, 0.0, 1 - 0.025 ** (1 / 30))],
)
def test_all_right_and_all_wrong_still_have_a_width(scores, low, high):
    interval = stats.interval_over_problems(scores)
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_one_problem_says_almost_nothing():
    interval = stats.interval_over_problems([0.5])
    assert interval.low < 0.05 and interval.high > 0.95


def test_no_problem_is_refused():
    with pytest.raises(ValueError, match="zero problems"):
        stats.interval_over_problems([])
    with pytest.raises(ValueError, match="zero benchmarks"):
        stats.interval_of_average([])


def test_interval_of_average_is_narrower_than_its_parts():
    rng = np.random.default_rng(0)
    parts = [rng.binomial(1, 0.5, 50) for _ in range(4)]
    whole = stats.interval_of_average(parts)
    assert whole.estimate == pytest.approx(np.mean([p.mean() for p in parts]))
    single = stats.interval_over_problems(parts[0])
    assert whole.high - whole.low < 0.7 * (single.high - single.low)


def test_average_of_perfect_benchmarks_still_has_a_width():
    whole = stats.interval_of_average([[1.0] * 30, [1.0] * 40])
    assert whole.estimate == 1 and 0.8 < whole.low < 0.999


def test_pairing_removes_what_the_problems_have_in_common():
    rng = np.random.default_rng(0)
    base = rng.beta(0.5, 0.5, 200)
    a, b = np.clip(base + 0.05, 0, 1), base
    found = stats.paired_difference(a, b)
    assert found.interval.low > 0 and found.p_value < 0.001
    assert found.interval.estimate == pytest.approx((a - b).mean())
    assert found.wins == (a > b).sum() and found.losses == 0
    alone = stats.interval_over_problems(a)
    assert found.interval.high - found.interval.low < 0.5 * (alone.high - alone.low)


def test_paired_interval_covers_zero_for_equal_models():
    rng = np.random.default_rng(4)
    inside = rejected = 0
    for trial in range(300):
        difficulty = rng.beta(1, 1, 80)
        a, b = rng.binomial(4, difficulty) / 4, rng.binomial(4, difficulty) / 4
        found = stats.paired_difference(a, b, trial, replicates=1000)
        inside += found.interval.low <= 0 <= found.interval.high
        rejected += found.p_value < 0.05
    assert 0.91 <= inside / 300 <= 0.985
    assert rejected / 300 <= 0.09


def test_sign_flip_p_value_equals_enumeration():
    difference = np.array([0.5, 0.25, -0.25, 1.0, 0.0, 0.75])
    signs = np.array(list(product([-1, 1], repeat=6)))
    exact = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).mean()
    found = stats.paired_difference(difference, np.zeros(6), replicates=50_000)
    assert found.p_value == pytest.approx(exact, abs=0.01)


def test_identical_results_differ_by_zero_with_a_width_and_no_evidence():
    found = stats.paired_difference([1, 0, 1], [1, 0, 1])
    assert found.interval.estimate == 0 and found.p_value == 1
    assert found.interval.low < 0 < found.interval.high


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equal-length"):
        stats.paired_difference([1, 0], [1])
