"""When a stage has nothing more to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from srft.objective.method import Method
from srft.runs.files import is_number


def watched_value(method: Method, metrics: Mapping[str, Any]) -> float | None:
    """The figure by which a plateau of ``method`` is judged, larger is better: the reward of rollouts,
    or the log-probability of demonstrations where there are none. None on a step without it."""
    value = metrics.get("reward/mean" if method.rollouts else "logprob/demos")
    return value if is_number(value) else None


def reached_plateau(history: Sequence[float], window: int) -> bool:
    """Whether the mean of the last ``window`` values is no better than that of the ``window``
    values before them. False while there are fewer than two windows."""
    if len(history) < 2 * window:
        return False
    return fmean(history[-window:]) <= fmean(history[-2 * window : -window])
