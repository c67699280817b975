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


def test_interval_over_many_problems_agrees_with_scipys_bootstrap():
    from scipy.stats import bootstrap

    scores = np.random.default_rng(3).binomial(4, 0.4, 600) / 4
    ours = stats.interval_over_problems(scores, seed=5)
    theirs = bootstrap(
        (scores,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert ours == stats.interval_over_problems(scores, seed=5)


@given(st.integers(1, 60), st.data())
@settings(max_examples=40, deadline=None)
def test_of_scores_that_are_0_or_1_it_is_scipys_exact_binomial_interval(problems, data):
    """And the drawn form, which all other scores get, is the same but for the drawing."""
    from scipy.stats import binomtest

    right = data.draw(st.integers(0, problems))
    scores = np.array([1.0] * right + [0.0] * (problems - right))
    exact = binomtest(right, problems).proportion_ci(method="exact")
    ours = stats.interval_over_problems(scores)
    assert (ours.low, ours.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    nearly = np.clip(scores, 1e-9, 1 - 1e-9)
    drawn = stats.interval_over_problems(nearly)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.012)


POPULATIONS = {
    "many hard": lambda rng, size: rng.beta(0.6, 1, size),
    "nearly all hard": lambda rng, size: rng.beta(0.1, 2, size),
    "hard or easy": lambda rng, size: rng.beta(0.2, 0.2, size),
}


@pytest.mark.parametrize("problems", [3, 5, 10, 20])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_over_few_problems_hold(problems, n, name):
    """Single, paired, over samples, and averages of three; 93 % less two standard errors."""
    rng, trials = np.random.default_rng(problems), 100
    many = POPULATIONS[name](rng, 200_000)
    mean, gain = many.mean(), (np.minimum(many + 0.1, 1) - many).mean()
    hits = np.zeros(5)
    for trial in range(trials):
        scores, differences = [], []
        for _ in range(3):
            p = POPULATIONS[name](rng, problems)
            c, better = rng.binomial(n, p), rng.binomial(n, np.minimum(p + 0.1, 1))
            scores.append(c / n)
            differences.append(stats.paired(better / n, c / n))
        single = stats.interval_over_problems(scores[0], trial, replicates=300)
        pair = stats.paired_difference(better / n, c / n, trial, replicates=300).interval
        whole = stats.interval_of_average(scores, trial, replicates=300)
        pairs = stats.interval_of_average(differences, trial, replicates=300, lowest=-1.0)
        for place, (found, truth) in enumerate(
            [(single, mean), (pair, gain), (whole, mean), (pairs, gain)]
        ):
            hits[place] += found.low - 1e-9 <= truth <= found.high + 1e-9
        if n > 1:
            found = stats.interval_over_samples([n] * problems, c)
            hits[4] += found.low <= p.mean() <= found.high
    assert (hits[: 5 if n > 1 else 4] / trials >= 0.93 - 2 * np.sqrt(0.93 * 0.07 / trials)).all()


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=6), min_size=1,
                max_size=5))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_an_average_is_consistent_with_its_members(members):
    """It holds their mean, lies within the average of their intervals, and of one member is that one's."""
    parts = [stats.interval_over_problems(scores) for scores in members]
    whole = stats.interval_of_average(members)
    assert whole.estimate == pytest.approx(np.mean([np.mean(scores) for scores in members]))
    assert np.mean([p.low for p in parts]) - 0.01 <= whole.low <= whole.estimate
    assert whole.estimate <= whole.high <= np.mean([p.high for p in parts]) + 0.01
    one = stats.interval_of_average(members[:1])
    assert (one.low, one.high) == pytest.approx((parts[0].low, parts[0].high), abs=0.012)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_an_average_of_members_all_wrong_or_all_right_has_its_estimate_at_the_end(right):
    members = [[right] * size for size in (3, 5, 30)]
    parts = [stats.interval_over_problems(scores) for scores in members]
    whole = stats.interval_of_average(members)
    assert (whole.low if right == 0 else whole.high) == whole.estimate == right
    assert 0.05 < whole.high - whole.low < max(p.high - p.low for p in parts)


def test_differences_that_are_all_equal_leave_room_for_what_was_not_seen():
    """As far as the share of problems that could differ and not have been seen, 1 - 0.025^(1/P)."""
    one = stats.paired_difference([1, 0, 1], [1, 0, 1]).interval
    unseen = 1 - 0.025 ** (1 / 3)
    assert one.high == pytest.approx(unseen, abs=0.01) and one.low == pytest.approx(
        -unseen, abs=0.01
    )
    whole = stats.interval_of_average([[0.0] * 3] * 4, lowest=-1.0)
    assert whole.low < -0.3 and 0.3 < whole.high < one.high


def test_a_gain_on_one_problem_in_ten_is_within_the_paired_interval_where_none_was_seen():
    """With many samples the other problems differ by little, which says nothing of the rare ones."""
    rng = np.random.default_rng(0)
    a, b = rng.binomial(32, 0.5, (2, 20)) / 32
    found = stats.paired_difference(a, b).interval
    assert found.low <= -0.1 and found.high >= 0.1 > 3 * abs(found.estimate)


def test_interval_over_problems_covers_the_population_mean():
    rng = np.random.default_rng(0)
    hits, trials, widths = 0, 400, []
    for trial in range(trials):
        difficulty = rng.beta(1, 1, 60)
        interval = stats.interval_over_problems(rng.binomial(4, difficulty) / 4, trial, 0.95, 1000)
        hits += interval.low <= 0.5 <= interval.high
        widths.append(interval.high - interval.low)
    error = np.sqrt((1 / 12 + 1 / 6 / 4) / 60)  # of beta(1, 1), and of four samples of each
    assert hits / trials >= 0.93 and np.mean(widths) < 1.25 * 2 * 1.96 * error


@pytest.mark.parametrize("n", [2, 8])
def test_interval_over_samples_covers_the_true_accuracy_of_fixed_problems(n):
    rng = np.random.default_rng(1)
    difficulty = rng.beta(1, 1, 60)
    hits, trials, widths = 0, 400, []
    for _ in range(trials):
        interval = stats.interval_over_samples(np.full(60, n), rng.binomial(n, difficulty))
        hits += interval.low <= difficulty.mean() <= interval.high
        widths.append(interval.high - interval.low)
    error = np.sqrt((difficulty * (1 - difficulty) / n).sum()) / 60
    assert hits / trials >= 0.93 and np.mean(widths) < 1.35 * 2 * 1.96 * error


def test_interval_over_samples_of_one_problem_is_the_binomial_one():
    from scipy.stats import binomtest

    for n, c in ((2, 1), (8, 0), (8, 8), (32, 5)):
        exact = binomtest(c, n).proportion_ci(method="exact")
        ours = stats.interval_over_samples([n], [c])
        assert exact.low - 1e-9 <= ours.low and ours.high <= exact.high + 1e-9
        assert ours.high - ours.low > 0.85 * (exact.high - exact.low)


def test_interval_over_samples_has_a_width_where_all_samples_agree():
    wrong = stats.interval_over_samples([32] * 30, [0] * 30)
    assert (wrong.low, wrong.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 960)))
    mixed = stats.interval_over_samples([4] * 10, [4, 0] * 5)
    assert 0.2 < mixed.low == pytest.approx(1 - mixed.high) and mixed.high > 0.55


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
    for none in ([], [[]], [[0.5], []]):
        with pytest.raises(ValueError, match="zero problems"):
            stats.interval_of_average(none)


def test_interval_of_average_is_narrower_than_its_parts():
    rng = np.random.default_rng(0)
    members = [rng.binomial(1, 0.5, 50) for _ in range(4)]
    whole, one = stats.interval_of_average(members), stats.interval_over_problems(members[0])
    assert whole.high - whole.low < 0.7 * (one.high - one.low)


def test_scores_outside_0_and_1_are_refused():
    for scores in ([0.5, 1.5], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match="must lie in"):
            stats.interval_over_problems(scores)


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
    widths = []
    for trial in range(300):
        difficulty = rng.beta(1, 1, 80)
        a, b = rng.binomial(4, difficulty) / 4, rng.binomial(4, difficulty) / 4
        found = stats.paired_difference(a, b, trial, replicates=1000)
        inside += found.interval.low <= 0 <= found.interval.high
        rejected += found.p_value < 0.05
        widths.append(found.interval.high - found.interval.low)
    assert inside / 300 >= 0.93
    error = np.sqrt(2 * (1 / 6 / 4) / 80)  # of two models of four samples each
    assert np.mean(widths) < 1.6 * 2 * 1.96 * error
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


def test_over_many_problems_the_paired_interval_agrees_with_students():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(2)
    a, b = rng.binomial(2, 0.6, 3000) / 2, rng.binomial(2, 0.5, 3000) / 2
    theirs = ttest_rel(a, b).confidence_interval(0.9)
    ours = stats.paired_difference(a, b, confidence=0.9).interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-3)
    wild = stats.paired_difference([1, 0, 0], [0, 0, 1]).interval
    assert -1 < wild.low < -0.7 and 0.7 < wild.high < 1


def test_differences_that_are_equal_but_for_rounding_are_equal():
    found = stats.paired_difference([0.3, 0.2, 0.9], [0.2, 0.1, 0.8])
    unseen = 1 - 0.025 ** (1 / 3)
    assert found.interval.high - 0.1 == pytest.approx(0.9 * unseen, abs=0.01)
    assert 0.1 - found.interval.low == pytest.approx(1.1 * unseen, abs=0.01)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equal-length"):
        stats.paired_difference([1, 0], [1])
