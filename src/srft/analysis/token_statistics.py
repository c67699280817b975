"""Means, shares and rank correlations over tokens, with intervals over responses.

Tokens of one response are not independent, so the bootstrap draws whole responses. Each figure is a
function of sums over responses, so a replicate is a weighted sum of per-response sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REPLICATES = 2_000


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval from a bootstrap over responses (None with fewer than two)."""

    value: float
    low: float | None = None
    high: float | None = None


class Resampler:
    """Draws responses with replacement: the same draws for every figure of one analysis."""

    def __init__(self, sequence_T: np.ndarray, seed: int = 0, replicates: int = REPLICATES) -> None:
        _, self._row_T = np.unique(sequence_T, return_inverse=True)
        self._count = int(self._row_T.max()) + 1 if len(sequence_T) else 0
        rng = np.random.default_rng(seed)
        uniform = np.full(self._count, 1 / max(1, self._count))
        # How often each response is drawn in each replicate; float32 halves the memory.
        self._draws_RS = (
            rng.multinomial(self._count, uniform, size=replicates).astype(np.float32)
            if self._count > 1
            else np.zeros((0, self._count), np.float32)
        )

    def sums(self, value_T: np.ndarray) -> np.ndarray:
        """Sum of a per-token value over each response."""
        return np.bincount(self._row_T, weights=value_T, minlength=self._count)

    def mean(self, value_T: np.ndarray) -> Estimate:
        """Mean over tokens."""
        return self.ratio(value_T, np.ones(len(value_T)))

    def ratio(self, above_T: np.ndarray, below_T: np.ndarray) -> Estimate:
        """Sum of one value over the sum of another; NaN where the latter is 0."""
        above_S, below_S = self.sums(above_T.astype(float)), self.sums(below_T.astype(float))
        total = below_S.sum()
        value = float(above_S.sum() / total) if total else float("nan")
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates = (self._draws_RS @ above_S) / (self._draws_RS @ below_S)
        return self._interval(value, replicates)

    def rank_correlation(self, a_T: np.ndarray, b_T: np.ndarray) -> Estimate:
        """Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank.

        In a replicate the ranks stay those in the whole sample, only the responses' weights change:
        ranking anew each time costs a sort and moves the interval very little.
        """
        from scipy.stats import rankdata

        ra, rb = rankdata(a_T), rankdata(b_T)
        ra, rb = ra - ra.mean(), rb - rb.mean()
        one_T = np.ones(len(ra))
        sums_MS = np.stack([self.sums(v) for v in (one_T, ra, rb, ra * rb, ra * ra, rb * rb)])
        value = _pearson(sums_MS.sum(1)[:, None])[0]
        return self._interval(float(value), _pearson(sums_MS @ self._draws_RS.T))

    def _interval(self, value: float, replicates: np.ndarray) -> Estimate:
        known = replicates[np.isfinite(replicates)]
        if len(known) == 0:
            return Estimate(value)
        low, high = np.quantile(known, [0.025, 0.975])
        return Estimate(value, float(low), float(high))


def _pearson(sums: np.ndarray) -> np.ndarray:
    """Correlation from rows n, sum a, sum b, sum ab, sum aa, sum bb; NaN where one does not vary."""
    n, a, b, ab, aa, bb = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance = ab - a * b / n
        spread = (aa - a * a / n) * (bb - b * b / n)
        return np.where(spread > 1e-12, covariance / np.sqrt(np.maximum(spread, 1e-300)), np.nan)
