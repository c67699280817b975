"""Figures about a token shift: how many tokens change, which, and where (Fig. 2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srft.analysis.distributions import TokenShift
from srft.analysis.token_statistics import Estimate, Resampler
from srft.analysis.words import CLASSES

THRESHOLDS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Changes of probability above which a token counts as changed."""

THRESHOLD = 0.1
"""The one among them that single figures refer to."""

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Tokens whose ``low`` <= x < ``high``: mean |change|, and the share that changed."""

    low: float
    high: float
    tokens: int
    change: float
    changed: float


@dataclass(frozen=True)
class ClassShift:
    """One class of tokens. ``share``: of all tokens; ``share_of_change``: of the sum of |change|."""

    name: str
    tokens: int
    share: float
    share_of_change: Estimate
    changed: Estimate


@dataclass(frozen=True)
class TokenChange:
    """A token's text, how often it was taken, and its mean probability before and after."""

    text: str
    count: int
    before: float
    after: float


@dataclass(frozen=True)
class Shift:
    """One model against the base on the responses of one kind.

    means: per-token means (nats, shares). changed: share of tokens with |change of probability|
    above each threshold. entropy_correlation: Spearman's between the base's entropy and |change|;
    entropy_jsd_correlation: the same with the JSD. top_fifth: share of the sum of |change| that
    falls on the fifth of the tokens with the base's highest entropy. by_entropy: bins of equal
    numbers of tokens. by_position: tenths of the response.
    """

    model: str
    base: str
    kind: str
    responses: int
    tokens: int
    means: dict[str, Estimate]
    changed: dict[float, Estimate]
    entropy_correlation: Estimate
    entropy_jsd_correlation: Estimate
    top_fifth: Estimate
    by_entropy: tuple[Bin, ...]
    by_position: tuple[Bin, ...]
    by_class: tuple[ClassShift, ...]
    raised: tuple[TokenChange, ...]
    lowered: tuple[TokenChange, ...]


def counted(count: int, kind: str) -> str:
    """ "3 rollouts"; kinds that files name themselves ("output of sft") have no plural."""
    if kind in ("demonstration", "rollout", "response"):
        return f"{count} {kind}{'' if count == 1 else 's'}"
    return f"{count} x {kind}"


def summarize(
    shift: TokenShift,
    classes: Sequence[str],
    texts: Sequence[str],
    *,
    model: str,
    base: str,
    kind: str,
    threshold: float = THRESHOLD,
    seed: int = 0,
    replicates: int = 2_000,
) -> Shift:
    """Sums up one model's token shift; ``classes`` and ``texts`` are those of each token."""
    draw = Resampler(shift.sequence_T, seed, replicates)
    size_T = np.abs(shift.change_T)
    changed_T = size_T > threshold
    class_T = np.asarray(classes)
    entropy_T = shift.entropy_before_T
    high_T = _top_fifth(entropy_T)
    return Shift(
        model=model,
        base=base,
        kind=kind,
        responses=len(np.unique(shift.sequence_T)),
        tokens=len(size_T),
        means={name: draw.mean(values) for name, values in _columns(shift).items()},
        changed={t: draw.mean(size_T > t) for t in sorted({*THRESHOLDS, threshold})},
        entropy_correlation=draw.rank_correlation(entropy_T, size_T),
        entropy_jsd_correlation=draw.rank_correlation(entropy_T, shift.jsd_T),
        top_fifth=draw.ratio(size_T * high_T, size_T),
        by_entropy=_bins(size_T, entropy_T, _quantile_edges(entropy_T), changed_T),
        by_position=_bins(
            size_T, _relative_position(shift), np.linspace(0, 1, BINS + 1), changed_T
        ),
        by_class=tuple(
            ClassShift(
                name,
                int(here_T.sum()),
                float(here_T.mean()),
                draw.ratio(size_T * here_T, size_T),
                draw.ratio(changed_T & here_T, here_T),
            )
            for name in CLASSES
            if (here_T := class_T == name).any()
        ),
        **_most_changed(shift, texts),
    )


def _columns(shift: TokenShift) -> dict[str, np.ndarray]:
    before, after = np.exp(shift.logprob_before_T), np.exp(shift.logprob_after_T)
    return {
        "change": after - before,
        "absolute_change": np.abs(after - before),
        "probability_before": before,
        "probability_after": after,
        "logprob_before": shift.logprob_before_T,
        "logprob_after": shift.logprob_after_T,
        "entropy_before": shift.entropy_before_T,
        "entropy_after": shift.entropy_after_T,
        "kl_forward": shift.kl_forward_T,
        "kl_backward": shift.kl_backward_T,
        "jsd": shift.jsd_T,
        "tv": shift.tv_T,
        "first_before": shift.rank_before_T == 1,
        "first_after": shift.rank_after_T == 1,
        "top_changed": shift.top_changed_T,
    }


def _top_fifth(entropy_T: np.ndarray) -> np.ndarray:
    """True for the fifth of the tokens with the highest entropy, ties broken by place."""
    count = max(1, round(len(entropy_T) / 5))
    keep_T = np.zeros(len(entropy_T), bool)
    keep_T[np.argsort(-entropy_T, kind="stable")[:count]] = True
    return keep_T


def _quantile_edges(values_T: np.ndarray) -> np.ndarray:
    return np.unique(np.quantile(values_T, np.linspace(0, 1, BINS + 1)))


def _relative_position(shift: TokenShift) -> np.ndarray:
    """(place + 1/2) / length, so that a response of any length reaches from near 0 to near 1."""
    rows, inverse = np.unique(shift.sequence_T, return_inverse=True)
    length_S = np.bincount(inverse, minlength=len(rows))
    return (shift.position_T + 0.5) / length_S[inverse]


def _bins(
    size_T: np.ndarray, x_T: np.ndarray, edges: np.ndarray, changed_T: np.ndarray
) -> tuple[Bin, ...]:
    if len(edges) < 2:
        edges = np.array([edges[0], edges[0]])
    place_T = np.clip(np.searchsorted(edges, x_T, side="right") - 1, 0, len(edges) - 2)
    bins = []
    for i in range(len(edges) - 1):
        here = place_T == i
        if here.any():
            means = float(size_T[here].mean()), float(changed_T[here].mean())
            bins.append(Bin(float(edges[i]), float(edges[i + 1]), int(here.sum()), *means))
    return tuple(bins)


def _most_changed(
    shift: TokenShift, texts: Sequence[str], top: int = 12, least: int = 3
) -> dict[str, tuple[TokenChange, ...]]:
    """Tokens taken at least ``least`` times, by the sum of their changes."""
    ids, inverse, counts = np.unique(shift.token_T, return_inverse=True, return_counts=True)
    before = np.bincount(inverse, weights=np.exp(shift.logprob_before_T))
    after = np.bincount(inverse, weights=np.exp(shift.logprob_after_T))
    first = {int(ids[k]): i for i, k in reversed(list(enumerate(inverse)))}
    order = np.argsort(after - before)

    def entry(k: int) -> TokenChange:
        n = int(counts[k])
        return TokenChange(texts[first[int(ids[k])]], n, float(before[k] / n), float(after[k] / n))

    often = [int(k) for k in order if counts[k] >= least]
    return {
        "raised": tuple(entry(k) for k in reversed(often[-top:]) if after[k] > before[k]),
        "lowered": tuple(entry(k) for k in often[:top] if after[k] < before[k]),
    }
