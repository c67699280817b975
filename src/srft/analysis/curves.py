"""Training curves of several runs, and what they cost (Fig. 4 to 6 of the paper).

FLOPs are the usual estimate for a dense decoder of N parameters: 6 N per trained token (forward and
backward) and 2 N per sampled token. Attention over the context, the scoring of old log-probabilities
and padding are not in it. Trained tokens count prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from srft.analysis.opened_models import parameter_count
from srft.report.plots import smooth
from srft.report.runs import Run, group_by_method, is_number

EVALUATION = "eval/accuracy"
"""Accuracy of the run's (first) evaluation set, which methods without rollouts have as well."""

METRICS = (
    EVALUATION, "reward/accuracy", "reward/mean", "rollout/entropy", "entropy/rollouts", "entropy/demos",
    "rollout/length_mean", "loss",
)  # fmt: skip

AXES = ("steps", "sampled_tokens", "trained_tokens", "flops", "seconds")


@dataclass(frozen=True)
class Curve:
    """One metric of one method at each step: mean over seeds, lowest and highest."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Reached:
    """What it cost the mean curve to reach ``level`` for the first time; None: not reached, or the
    axis was not recorded."""

    level: float
    cost: dict[str, float | None]


@dataclass(frozen=True)
class MethodCurves:
    """Runs of one method. ``axes``: axis -> its value at each of ``steps`` (mean over seeds), which
    are those of the log and 0."""

    name: str
    runs: int
    steps: tuple[int, ...]
    axes: dict[str, tuple[float, ...]]
    metrics: dict[str, Curve]
    stages: tuple[int, ...]
    reached: tuple[Reached, ...]
    parameters: int | None


@dataclass(frozen=True)
class Efficiency:
    """``levels``: accuracies at which costs are compared, the same for every method."""

    metric: str
    levels: tuple[float, ...]
    methods: tuple[MethodCurves, ...]


def training_curves(runs: Sequence[Run], metric: str | None = None) -> Efficiency:
    """Curves and sample efficiency of ``runs``, seeds of one method taken together.

    metric: what costs are compared by; unset, the rollouts' accuracy if every method has it, else
    that of evaluation. Levels lie at 25, 50, 75 and 90 % of the way from the lowest start to the
    highest point among the methods' smoothed mean curves.
    """
    groups = group_by_method(runs)
    if metric is None:
        rollouts = all(
            _curve(members, "reward/accuracy") is not None for members in groups.values()
        )
        metric = "reward/accuracy" if rollouts else EVALUATION
    curves = {name: _curve(members, metric) for name, members in groups.items()}
    levels = _levels([c for c in curves.values() if c is not None])
    return Efficiency(
        metric,
        levels,
        tuple(_method(name, members, metric, levels) for name, members in groups.items()),
    )


def _method(name: str, runs: Sequence[Run], metric: str, levels: Sequence[float]) -> MethodCurves:
    parameters = next((n for run in runs if (n := parameter_count(run.path)) is not None), None)
    main = _curve(runs, metric)
    steps = (0, *sorted({m["step"] for run in runs for m in run.metrics} - {0}))
    axes = _axes(runs, steps, parameters)
    found = {key: curve for key in METRICS if (curve := _curve(runs, key)) is not None}
    records = runs[0].metrics
    stages = tuple(
        b["step"] for a, b in pairwise(records) if a.get("stage", 0) != b.get("stage", 0)
    )
    reached = (
        tuple(_reached(level, main, steps, axes) for level in levels) if main is not None else ()
    )
    return MethodCurves(name, len(runs), steps, axes, found, stages, reached, parameters)


def _points(run: Run, key: str) -> list[tuple[int, float]]:
    if key == EVALUATION:
        return [
            (e["step"], float(e["accuracy"]))
            for e in run.evaluation()
            if is_number(e.get("accuracy"))
        ]
    return list(zip(*run.series(key), strict=True))


def _curve(runs: Sequence[Run], key: str) -> Curve | None:
    at: dict[int, list[float]] = {}
    for run in runs:
        for step, value in _points(run, key):
            at.setdefault(step, []).append(value)
    if not at:
        return None
    steps = tuple(sorted(at))
    return Curve(
        steps,
        tuple(float(np.mean(at[s])) for s in steps),
        tuple(min(at[s]) for s in steps),
        tuple(max(at[s]) for s in steps),
    )


def _axes(
    runs: Sequence[Run], steps: Sequence[int], parameters: int | None
) -> dict[str, tuple[float, ...]]:
    keys = {
        "sampled_tokens": "total/rollout_tokens",
        "trained_tokens": "total/trained_tokens",
        "seconds": "total/seconds",
    }
    axes: dict[str, tuple[float, ...]] = {"steps": tuple(float(s) for s in steps)}
    for axis, key in keys.items():
        curve = _curve(runs, key)
        if curve is not None:
            known = {0: 0.0, **dict(zip(curve.steps, curve.mean, strict=True))}
            if all(step in known for step in steps):
                axes[axis] = tuple(known[step] for step in steps)
    if parameters is not None and "trained_tokens" in axes:
        sampled = axes.get("sampled_tokens", tuple(0.0 for _ in steps))
        axes["flops"] = tuple(
            parameters * (6 * trained + 2 * s)
            for trained, s in zip(axes["trained_tokens"], sampled, strict=True)
        )
    return axes


def _levels(curves: Sequence[Curve]) -> tuple[float, ...]:
    if not curves:
        return ()
    smoothed = [smooth(c.mean) for c in curves]
    start, end = min(values[0] for values in smoothed), max(max(values) for values in smoothed)
    if not end > start:
        return ()
    return tuple(round(start + share * (end - start), 4) for share in (0.25, 0.5, 0.75, 0.9))


def _reached(
    level: float, curve: Curve, steps: Sequence[int], axes: dict[str, tuple[float, ...]]
) -> Reached:
    smoothed = zip(curve.steps, smooth(curve.mean), strict=True)
    first = next((step for step, value in smoothed if value >= level), None)
    at = steps.index(first) if first in steps else None
    return Reached(
        level, {axis: axes[axis][at] if at is not None and axis in axes else None for axis in AXES}
    )
