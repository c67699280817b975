"""The statistics of sampled accuracy: estimates, intervals, paired differences. Pure and seeded.

Notation: P problems, n samples of each, c of them correct; R bootstrap replicates. A *score* is one
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
    where nobody votes the vote is wrong. A tie is broken at random, so m tied answers of which r
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


def replicate_means(score_P: ArrayLike, seed: int, replicates: int = REPLICATES) -> Floats:
    """``replicates`` means of P scores drawn with replacement: the bootstrap over problems.

    Drawing P times from P scores is a multinomial draw over their distinct values, of which there
    are few (n + 1 for a fraction correct), so 12,000 problems cost no more than 30.
    """
    values, counts = np.unique(np.asarray(score_P, dtype=np.float64), return_counts=True)
    total = int(counts.sum())
    rng = np.random.default_rng(seed)
    return rng.multinomial(total, counts / total, size=replicates) @ values / total


def interval_over_problems(
    score_P: ArrayLike, seed: int = 0, confidence: float = 0.95, replicates: int = REPLICATES
) -> Interval:
    """Percentile bootstrap over problems: where would the mean be on other problems of this kind?

    Only problems are resampled, not the samples within: the scatter of the problem scores already
    holds the sampling noise, and resampling both levels would count it twice. Where all scores are
    equal resampling shows nothing, and the Clopper-Pearson interval takes over: of P problems
    P * score were successes. For a score in [0, 1] that is the widest case, so it is conservative.

    Raises:
        ValueError: no problem, or equal scores outside [0, 1] (no interval can be given).
    """
    scores = np.asarray(score_P, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("no interval over zero problems")
    mean = float(scores.mean())
    if np.ptp(scores) == 0:
        low, high = clopper_pearson(mean * scores.size, scores.size, confidence)
        return Interval(mean, low, high, confidence)
    return _percentiles(mean, replicate_means(scores, seed, replicates), confidence)


def clopper_pearson(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval, by quantiles of the beta distribution.

    Raises:
        ValueError: successes outside 0..trials.
    """
    from scipy.stats import beta

    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials: scores must lie in [0, 1]")
    tail, failures = (1 - confidence) / 2, trials - successes
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, failures + 1))
    high = 1.0 if failures == 0 else float(beta.ppf(1 - tail, successes + 1, failures))
    return low, high


def interval_over_samples(
    n_P: ArrayLike,
    c_P: ArrayLike,
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = 2_000,
) -> Interval:
    """Bootstrap over samples, problems fixed: where would avg@k of these very problems be with
    other random seeds?

    Within each problem n - 1 of its n samples are drawn with replacement. Drawing n would give the
    variance p(1-p)/n with p = c/n, which is too small by (n-1)/n (half for n = 2); drawing n - 1
    makes it unbiased (Rao and Wu 1988). Where every problem's samples agree with each other,
    drawing shows nothing; the half-width is then the share of samples that could differ and still
    not have been seen among all N, 1 - (alpha/2)^(1/N).

    Raises:
        ValueError: a problem with fewer than two samples.
    """
    n, c = np.asarray(n_P, dtype=np.int64), np.asarray(c_P, dtype=np.int64)
    if n.size == 0 or n.min() < 2:
        raise ValueError("an interval over samples needs two samples or more of each problem")
    share = c / n
    if ((c == 0) | (c == n)).all():
        return _around(float(share.mean()), int(n.sum()), confidence)
    rng = np.random.default_rng(seed)
    # Problems with the same (n, c) are drawn together: the sum of their binomials is a binomial.
    kinds, sizes = np.unique(np.stack([n, c], axis=1), axis=0, return_counts=True)
    total = np.zeros(replicates)
    for (kind_n, kind_c), size in zip(kinds, sizes, strict=True):
        drawn = rng.binomial(size * (kind_n - 1), kind_c / kind_n, size=replicates)
        total += drawn / (kind_n - 1)
    return _percentiles(float(share.mean()), total / n.size, confidence)


def interval_of_average(
    scores: Sequence[ArrayLike],
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> Interval:
    """Interval of the unweighted average of several benchmarks' means, problems resampled within
    each benchmark (a stratified bootstrap; benchmarks themselves are not resampled).

    A benchmark whose scores are all equal draws from the Jeffreys posterior of its mean instead,
    so that it does not count as known exactly.
    """
    if not scores:
        raise ValueError("no interval over zero benchmarks")
    means = [float(np.mean(np.asarray(score_P, dtype=np.float64))) for score_P in scores]
    draws = [_benchmark_draws(s, seed + i, replicates) for i, s in enumerate(scores)]
    return _percentiles(float(np.mean(means)), np.mean(draws, axis=0), confidence)


def _benchmark_draws(score_P: ArrayLike, seed: int, replicates: int) -> Floats:
    scores = np.asarray(score_P, dtype=np.float64)
    if np.ptp(scores) > 0:
        return replicate_means(scores, seed, replicates)
    right = float(scores.mean()) * scores.size
    rng = np.random.default_rng(seed)
    return rng.beta(right + 0.5, scores.size - right + 0.5, size=replicates)


def paired_difference(
    a_P: ArrayLike,
    b_P: ArrayLike,
    seed: int = 0,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
) -> PairedDifference:
    """Mean difference a - b of two models on the same problems, in the same order.

    The interval resamples the P differences, which takes out what the problems' difficulty has in
    common. Where all differences are equal, the half-width is the share of problems that could
    differ and still not have been seen among P, 1 - (alpha/2)^(1/P).

    Raises:
        ValueError: vectors of different lengths, or empty.
    """
    a, b = np.asarray(a_P, dtype=np.float64), np.asarray(b_P, dtype=np.float64)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"paired scores must be two equal-length vectors: {a.shape}, {b.shape}")
    difference = a - b
    mean = float(difference.mean())
    if np.ptp(difference) == 0:
        interval = _around(mean, a.size, confidence, lowest=-1.0)
    else:
        interval = _percentiles(mean, replicate_means(difference, seed, replicates), confidence)
    return PairedDifference(
        interval,
        _sign_flip_p(difference, seed, replicates),
        a.size,
        int((difference > 0).sum()),
        int((difference < 0).sum()),
    )


def average_difference(
    differences: Sequence[ArrayLike], seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Interval of the unweighted average of several benchmarks' mean paired differences, problems
    resampled within each. A benchmark without any difference adds zero and no width."""
    if not differences:
        raise ValueError("no interval over zero benchmarks")
    means = [float(np.mean(np.asarray(d, dtype=np.float64))) for d in differences]
    draws = [replicate_means(d, seed + i) for i, d in enumerate(differences)]
    return _percentiles(float(np.mean(means)), np.mean(draws, axis=0), confidence)


def _sign_flip_p(difference_P: Floats, seed: int, replicates: int) -> float:
    """Share of random sign assignments with a sum as far from zero as the observed one."""
    sizes, counts = np.unique(np.abs(difference_P), return_counts=True)
    rng = np.random.default_rng(seed)
    positive = rng.binomial(counts, 0.5, size=(replicates, counts.size))
    sums = np.abs((2 * positive - counts) @ sizes)
    # One for the observed assignment itself: a p-value is never zero. The slack is for rounding.
    return float(((sums >= abs(difference_P.sum()) - 1e-9).sum() + 1) / (replicates + 1))


def _around(mean: float, trials: int, confidence: float, lowest: float = 0.0) -> Interval:
    """Where no trial of so many differed: the mean and the share that could have, unseen."""
    width = 1 - ((1 - confidence) / 2) ** (1 / trials)
    return Interval(mean, max(lowest, mean - width), min(1.0, mean + width), confidence)


def _percentiles(estimate: float, draws_R: Floats, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws_R, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), confidence)
