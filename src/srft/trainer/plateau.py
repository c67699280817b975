"""When a stage has nothing more to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

# Watched in this order; the first that a method produces, and whether larger is better.
_WATCHED = (("reward/mean", True), ("loss/sft", False))


def watched_value(metrics: Mapping[str, float]) -> float | None:
    """The figure a plateau is judged by, signed so that larger is better; None where none exists."""
    for key, larger_is_better in _WATCHED:
        if key in metrics:
            return metrics[key] if larger_is_better else -metrics[key]
    return None


def reached_plateau(history: Sequence[float], window: int) -> bool:
    """Whether the mean of the last ``window`` values is no better than that of the ``window``
    values before them. False while there are fewer than two windows."""
    if len(history) < 2 * window:
        return False
    return fmean(history[-window:]) <= fmean(history[-2 * window : -window])
