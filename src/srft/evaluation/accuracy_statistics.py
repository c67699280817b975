"""The statistics of sampled accuracy: estimates, intervals, paired differences. Pure and seeded.

Notation: P problems, n samples of each, c of them correct. A *score* is one
number per problem, usually the fraction correct c/n; score_P is the vector over problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

REPLICATES = 10_000
EXACT_SUBSETS = 2_000
"""Up to this many subsets of k of n samples, majority@k averages over all of them."""


@dataclass(frozen=True)
class Interval:
    """A two-sided interval of coverage ``confidence``; ``low`` and ``high`` are on the scale of
    ``estimate``."""

    estimate: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """Mean of (a - b) over the problems both have. ``p_value``: two-sided sign-flip test of "no
    difference". ``wins`` / ``losses``: problems on which a scores higher / lower than b."""

    interval: Interval
    p_value: float
    problems: int
    wins: int
    losses: int


def avg_at_k(correct_Pk: Sequence[Sequence[bool]]) -> float:
    """avg@k: the mean over problems of each problem's fraction of correct samples.

    Every problem counts the same, also where the numbers of samples differ.

    Raises:
        ValueError: no problem, or a problem without a sample.
    """
    if not correct_Pk or any(len(row) == 0 for row in correct_Pk):
        raise ValueError("avg@k needs at least one problem and one sample of each")
    return float(np.mean([np.mean(row) for row in correct_Pk]))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k of one problem, 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).

    The probability that k of the n samples, drawn without replacement, hold a correct one. The
    quotient of binomials is the product of 1 - k/i over i = n-c+1 .. n, which never overflows.

    Raises:
        ValueError: k > n, k < 1 or c outside 0..n.
    """
    _check_k(n, k)
    if not 0 <= c <= n:
        raise ValueError(f"c = {c} correct samples of n = {n} is impossible")
    if n - c < k:  # fewer wrong samples than k: any k of them hold a correct one
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def majority_at_k(
    answers: Sequence[Hashable | None], correct: Sequence[bool], k: int, seed: int = 0
) -> float:
    """majority@k of one problem: the chance that a vote among k of its n samples is right.

    A sample votes for its extracted answer; None (nothing could be extracted) does not vote, and
    where nothing votes the vote is wrong. A tie is broken at random, so m tied answers of which r
    are right score r/m. For k < n the mean over all k-subsets, or over ``EXACT_SUBSETS`` seeded
    random ones where there are more.

    Raises:
        ValueError: k > n, k < 1, or answers and correct of different lengths.
    """
    n = len(answers)
    _check_k(n, k)
    if len(correct) != n:
        raise ValueError(f"{n} answers but {len(correct)} verdicts")
    # Verdicts may differ among equal answers (a verifier that timed out): an answer is as right
    # as its samples are on average.
    verdicts: dict[Hashable, list[bool]] = {}
    for answer, verdict in zip(answers, correct, strict=True):
        verdicts.setdefault(answer, []).append(verdict)
    right = {answer: float(np.mean(flags)) for answer, flags in verdicts.items()}
    return float(np.mean([_vote([answers[i] for i in s], right) for s in _subsets(n, k, seed)]))


def _vote(answers: Sequence[Hashable | None], right: dict[Hashable, float]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    return float(np.mean([right[answer] for answer, count in votes.items() if count == most]))


def _subsets(n: int, k: int, seed: int) -> list[tuple[int, ...]]:
    if comb(n, k) <= EXACT_SUBSETS:
        return list(combinations(range(n), k))
    rng = np.random.default_rng(seed)
    return [tuple(rng.choice(n, k, replace=False)) for _ in range(EXACT_SUBSETS)]


def _check_k(n: int, k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if k > n:
        raise ValueError(f"k = {k} needs at least {k} samples of each problem, there are {n}")


def standard_error(score_P: ArrayLike) -> float | None:
    """Of the mean of P scores, s / sqrt(P) with P - 1 in s; None where P = 1."""
    scores = np.asarray(score_P, dtype=np.float64)
    return float(scores.std(ddof=1) / np.sqrt(scores.size)) if scores.size > 1 else None


def interval_over_problems(
    score_P: ArrayLike,
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    lowest: float = 0.0,
) -> Interval:
    """Where would the mean be on other problems of this kind? For scores in [lowest, 1], of any
    distribution, from one problem up (Learned-Miller and Thomas 2019, arXiv 1905.06208).

    The P scores get random weights (Dirichlet, all ones: the Bayesian bootstrap), together with one
    problem more that was not seen: of the lowest score for the lower end, of score 1 for the upper. The
    ends are quantiles of such means. For scores that are 0 or 1 this is Clopper-Pearson's interval, and
    that is computed. The extra problem's share is 1 in P + 1, so with many problems it is the bootstrap.

    Only problems are resampled, not the samples within: the scatter of the problem scores already
    holds the sampling noise, and resampling both levels would count it twice.

    Raises:
        ValueError: no problem, or a score outside [lowest, 1].
    """
    scores = np.asarray(score_P, dtype=np.float64)
    if lowest == 0 and scores.size and np.isin(scores, (0.0, 1.0)).all():
        low, high = clopper_pearson(float(scores.sum()), scores.size, confidence)
        return Interval(float(scores.mean()), low, high, confidence)
    return interval_of_average([scores], seed, confidence, replicates, lowest)


def interval_of_average(
    scores: Sequence[ArrayLike],
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    lowest: float = 0.0,
) -> Interval:
    """Interval of the unweighted average of several benchmarks' means: that of `interval_over_problems`,
    with an unseen problem in each benchmark. Where every member is all wrong its lower end is 0, and so
    is the average's."""
    members = [np.asarray(score_P, dtype=np.float64) for score_P in scores]
    if not members or not all(m.size for m in members):
        raise ValueError("no interval over zero problems")
    if not all(((m >= lowest) & (m <= 1)).all() for m in members):
        raise ValueError(f"scores must lie in [{lowest:g}, 1]")
    draws = [_possible_means(m, seed + i, replicates, lowest) for i, m in enumerate(members)]
    (low_R, high_R), tail = np.mean(draws, axis=0), (1 - confidence) / 2
    mean = float(np.mean([m.mean() for m in members]))
    low, high = float(np.quantile(low_R, tail)), float(np.quantile(high_R, 1 - tail))
    return Interval(mean, low, high, confidence)


def _possible_means(
    score_P: Floats, seed: int, replicates: int, lowest: float
) -> tuple[Floats, Floats]:
    """Means under random weights, the unseen problem of the lowest score and of score 1."""
    values, counts = np.unique(score_P, return_counts=True)
    rng = np.random.default_rng(seed)
    weights = rng.gamma(counts, size=(replicates, counts.size))  # equal scores stand together
    unseen = rng.exponential(size=replicates)
    sums, total = weights @ values, weights.sum(axis=1) + unseen
    return (sums + lowest * unseen) / total, (sums + unseen) / total


def clopper_pearson(
    successes: float, trials: float, confidence: float = 0.95
) -> tuple[float, float]:
    """The exact binomial interval, by quantiles of the beta distribution."""
    from scipy.stats import beta

    tail, failures = (1 - confidence) / 2, trials - successes
    low = 0.0 if successes <= 0 else float(beta.ppf(tail, successes, failures + 1))
    high = 1.0 if failures <= 0 else float(beta.ppf(1 - tail, successes + 1, failures))
    return low, high


def interval_over_samples(n_P: ArrayLike, c_P: ArrayLike, confidence: float = 0.95) -> Interval:
    """Where would avg@k of these very problems be with other random seeds? Problems are fixed.

    Clopper-Pearson's interval with the effective number of samples (Korn and Graubard 1998): as many
    coin flips of the mean's chance as have the variance sum p(1-p)/n / P^2, and never fewer than
    there were samples. In that variance p = (c+1)/(n+2), which a problem whose few samples agree does
    not make zero.

    Raises:
        ValueError: a problem with fewer than two samples.
    """
    n, c = np.asarray(n_P, dtype=np.float64), np.asarray(c_P, dtype=np.float64)
    if n.size == 0 or n.min() < 2:
        raise ValueError("an interval over samples needs two samples or more of each problem")
    mean, chance = float((c / n).mean()), (c + 1) / (n + 2)
    variance_of_sum = float((chance * (1 - chance) / n).sum())
    trials = n.size**2 * max(1 / float((1 / n).sum()), mean * (1 - mean) / variance_of_sum)
    low, high = clopper_pearson(mean * trials, trials, confidence)
    return Interval(mean, low, high, confidence)


def paired_difference(
    a_P: ArrayLike,
    b_P: ArrayLike,
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> PairedDifference:
    """Mean difference a - b of two models on the same problems, in the same order.

    The interval is that over problems of the P differences, which takes out what the problems'
    difficulty has in common; the unseen problem is lost or won entirely.

    Raises:
        ValueError: vectors of different lengths, or empty.
    """
    difference = paired(a_P, b_P)
    return PairedDifference(
        interval_over_problems(difference, seed, confidence, replicates, lowest=-1.0),
        _sign_flip_p(difference, seed, replicates),
        difference.size,
        int((difference > 0).sum()),
        int((difference < 0).sum()),
    )


def paired(a_P: ArrayLike, b_P: ArrayLike) -> Floats:
    """a - b, problem by problem.

    Raises:
        ValueError: vectors of different lengths, or empty.
    """
    a, b = np.asarray(a_P, dtype=np.float64), np.asarray(b_P, dtype=np.float64)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"paired scores must be two equal-length vectors: {a.shape}, {b.shape}")
    return (a - b).round(12)  # 0.3 - 0.2 is 0.2 - 0.1


def _sign_flip_p(difference_P: Floats, seed: int, replicates: int) -> float:
    """Share of random sign assignments with a sum as far from zero as the observed one."""
    sizes, counts = np.unique(np.abs(difference_P), return_counts=True)
    rng = np.random.default_rng(seed)
    positive = rng.binomial(counts, 0.5, size=(replicates, counts.size))
    sums = np.abs((2 * positive - counts) @ sizes)
    # One for the observed assignment itself: a p-value is never zero. The slack is for rounding.
    return float(((sums >= abs(difference_P.sum()) - 1e-9).sum() + 1) / (replicates + 1))
