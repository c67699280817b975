"""A picture of a run as a PNG file, for a README, a look without a browser, or a paper's draft."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.report.style import CYCLE, PALETTE, style
from srft.runs.files import Record, is_number
from srft.runs.metrics import PHASES, metric
from srft.runs.reading import Run, read_run
from srft.runs.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLE_PAD = 21  # points between a title and its axes: room for one line of legend

Panel = Callable[["Axes", Run], bool]


def plot_run(run_dir: Path | str) -> Path | None:
    """Draws a run into ``plots/overview.png``: a panel for each figure that it recorded. None where
    there is nothing to draw.

    Raises:
        DataError: ``run_dir`` is not a run directory.
    """
    from matplotlib.figure import Figure

    run = read_run(run_dir)
    with style():
        # A figure that no window system and no other code's pyplot knows of.
        chart: Any = Figure(figsize=(16, 7.2), layout="constrained")
        free = list(chart.subplots(2, 4).flat)
        for key, panel in PANELS:
            known = metric(key)
            assert known is not None, key
            free[0].clear()
            free[0].set_title(known.title + (f" ({known.unit})" if known.unit else ""))
            if panel(free[0], run):
                _finish(free.pop(0), run)
        free[0].clear()
        if _families_panel(free[0], run):
            free.pop(0)
        if len(free) == len(chart.axes):
            return None
        for ax in free:
            ax.remove()
        chart.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        steps = run.metrics[-1]["step"] if run.metrics else 0
        title = plain_text(f"{run.method} · {run.name} · {steps} steps")
        chart.suptitle(title, x=0.008, ha="left", fontsize=13, weight="bold")
        out = RunDir(run.path).plots / "overview.png"
        out.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # The name of a run may be in any script; a box instead is not worth a warning.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            chart.savefig(out, dpi=150)
    return out


def _families_panel(ax: Axes, run: Run) -> bool:
    """The first and the last evaluation, family by family, the overall accuracy first."""
    evaluations = run.evaluation()
    records = [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else evaluations
    families = list(dict.fromkeys(f for r in records for f in (r.get("by_family") or {})))
    rows, thick = ["overall", *families], 0.8 / max(1, len(records))
    for i, record in enumerate(records):
        last = i == len(records) - 1
        at = [y + (i - (len(records) - 1) / 2) * thick for y in range(len(rows))]
        values = [_accuracy(record, row) for row in rows]
        color = PALETTE["rollout"] if last else "#c3cad3"
        label = f"step {record.get('step', '?')}"
        bars = ax.barh(
            at, [v or 0.0 for v in values], height=thick * 0.88, color=color, label=label
        )
        ax.bar_label(
            bars,
            [f"{100 * v:.1f}" if v is not None else "-" for v in values],
            padding=3,
            fontsize=7,
        )
    ax.set_title("Evaluation by family", pad=_TITLE_PAD)
    ax.set_yticks(range(len(rows)), [plain_text(row) for row in rows])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100 %"])
    ax.grid(axis="y", visible=False)
    if len(records) > 1:
        _legend_row(ax)
    return bool(records)


def _accuracy(record: Record, row: str) -> float | None:
    value = record.get("accuracy") if row == "overall" else (record.get("by_family") or {}).get(row)
    return float(value) if value is not None and is_number(value) else None


def _interval(record: Record) -> list[float]:
    """Both ends, or nothing."""
    found = record.get("interval")
    known = isinstance(found, list) and len(found) == 2 and all(map(is_number, found))
    return [float(end) for end in found] if known and found else []


# Panels: each draws on one axes and says whether there was anything to draw.


def _accuracy_panel(ax: Axes, run: Run) -> bool:
    """Accuracy of rollouts, and of evaluations with their intervals."""
    key = "reward/accuracy" if run.series("reward/accuracy")[0] else "reward/mean"
    drawn = _line(ax, run, key, PALETTE["rollout"], "rollouts")
    evaluations = [e for e in run.evaluation() if is_number(e.get("accuracy"))]
    steps = [e["step"] for e in evaluations]
    look: dict[str, Any] = {"color": PALETTE["ink"], "markersize": 4.5, "linewidth": 1.2}
    if evaluations:
        ax.plot(steps, [e["accuracy"] for e in evaluations], "o-", label="evaluation", **look)
    for e in evaluations:
        if interval := _interval(e):
            ax.plot([e["step"]] * 2, interval, color=PALETTE["ink"], linewidth=1.0, alpha=0.5)
    if key == "reward/accuracy" or evaluations:
        _percent(ax)
        ax.set_title("Accuracy")
    return drawn or bool(evaluations)


def _lines_panel(*lines: tuple[str, str, str]) -> Panel:
    """A line for each metric, under the title of the first one that the run has."""

    def panel(ax: Axes, run: Run) -> bool:
        drawn = [_line(ax, run, key, PALETTE[color], label) for key, color, label in lines]
        ax.set_ylim(bottom=0)
        return any(drawn)

    return panel


def _entropy_panel(ax: Axes, run: Run) -> bool:
    trained = [("entropy/rollouts", "rollout", "rollouts")]
    if not run.series("entropy/rollouts")[0]:
        trained = [("rollout/entropy", "rollout", "rollouts")]
    return _lines_panel(*trained, ("entropy/demos", "demonstration", "demonstrations"))(ax, run)


def _weight_panel(ax: Axes, run: Run) -> bool:
    """Mean of each weight over the tokens of a step, with the range from smallest to largest."""
    drawn, means, tops = False, [1e-9], [0.0]
    pairs = (("weight/sft", "$w_{SFT}$", "demonstration"), ("weight/rl", "$w_{RL}$", "rollout"))
    for key, label, color in pairs:
        _band(ax, run, f"{key}/min", f"{key}/max", PALETTE[color])
        drawn |= _line(ax, run, key, PALETTE[color], label)
        means += run.series(key)[1]
        tops += run.series(f"{key}/max")[1]
    # exp(+H) of a single token can be orders of magnitude above the mean.
    _scale(ax, logarithmic=max(tops) > 20 * max(means))
    return drawn


def _loss_panel(ax: Axes, run: Run) -> bool:
    drawn = False
    for key, color in term_colors(run.keys()).items():
        drawn |= _line(ax, run, key, color, key.partition("/")[2].replace("_", " "))
    return _line(ax, run, "loss", PALETTE["ink"], "whole loss", width=1.1) or drawn


def _gradient_panel(ax: Axes, run: Run) -> bool:
    drawn = _line(ax, run, "train/gradient_norm", PALETTE["third"], "before clipping")
    values = sorted(run.series("train/gradient_norm")[1]) or [0.0]
    _scale(ax, logarithmic=values[0] > 0 and values[-1] > 30 * values[len(values) // 2])
    return drawn


def _time_panel(ax: Axes, run: Run) -> bool:
    """Seconds of each phase of a step, stacked."""
    keys = [f"time/{phase}" for phase in PHASES]
    rows = [m for m in run.metrics if any(is_number(m.get(key)) for key in keys)]
    if not rows:
        return False
    steps = [m["step"] for m in rows]
    stacks = [smooth([m[k] if is_number(m.get(k)) else 0.0 for m in rows]) for k in keys]
    if len(steps) == 1:
        steps = [steps[0] - 0.5, steps[0] + 0.5]
        stacks = [values * 2 for values in stacks]
    look: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.4, "alpha": 0.9}
    colors = ("#2f6fb7", "#b88a17", "#d9722e", "#3b9b74", "#c3cad3")
    ax.stackplot(steps, *stacks, labels=PHASES, colors=colors, **look)
    ax.margins(x=0)
    return True


PANELS: Sequence[tuple[str, Panel]] = (
    ("reward/mean", _accuracy_panel),
    ("rollout/entropy", _entropy_panel),
    (
        "rollout/length_mean",
        _lines_panel(
            ("rollout/length_mean", "rollout", "rollouts"),
            ("demo/length_mean", "demonstration", "demonstrations"),
        ),
    ),
    ("weight/sft", _weight_panel),
    ("loss", _loss_panel),
    ("train/gradient_norm", _gradient_panel),
    ("time/step", _time_panel),
)
"""The metric that a panel is called after, and what draws it."""


def term_colors(keys: Sequence[str]) -> dict[str, str]:
    """A colour for each ``loss/<term>``: orange for the supervised one, blue for rollouts."""
    terms = [key for key in keys if key.startswith("loss/")]
    preferred = {"sft": "demonstration", "rollout": "rollout"}
    chosen: dict[str, str] = {}
    for key in terms:
        for word, color in preferred.items():
            if word in key and PALETTE[color] not in chosen.values():
                chosen[key] = PALETTE[color]
                break
    spare = [c for c in CYCLE if c not in chosen.values()]
    for i, key in enumerate(k for k in terms if k not in chosen):
        chosen[key] = spare[i % len(spare)] if spare else PALETTE["neutral"]
    return {key: chosen[key] for key in terms}


def smooth(values: Sequence[float], window: int | None = None) -> list[float]:
    """Centred moving mean, the window shrinking towards both ends; by default a twentieth of the
    series."""
    half = (window if window is not None else len(values) // 20) // 2
    result = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        part = values[i - reach : i + reach + 1]
        result.append(sum(part) / len(part))
    return result


def _line(ax: Axes, run: Run, key: str, color: str, label: str, width: float = 1.9) -> bool:
    """The smoothed series over its faint raw values."""
    steps, values = run.series(key)
    if not steps:
        return False
    if len(steps) == 1:
        ax.plot(steps, values, "o", color=color, markersize=5, label=label)
        return True
    smoothed = smooth(values)
    if smoothed != values:
        ax.plot(steps, values, color=color, linewidth=0.7, alpha=0.28)
    ax.plot(steps, smoothed, color=color, linewidth=width, label=label)
    return True


def _band(ax: Axes, run: Run, low: str, high: str, color: str) -> None:
    lows = dict(zip(*run.series(low), strict=True))
    highs = dict(zip(*run.series(high), strict=True))
    steps = [step for step in lows if step in highs]
    if not steps:
        return
    below, above = (smooth([values[step] for step in steps]) for values in (lows, highs))
    ax.fill_between(steps, below, above, color=color, alpha=0.09, linewidth=0)
    for edge in (below, above):
        ax.plot(steps, edge, color=color, linewidth=0.9, alpha=0.55, linestyle=(0, (4, 2)))


def _scale(ax: Axes, logarithmic: bool) -> None:
    if logarithmic:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)


def _percent(ax: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _finish(ax: Axes, run: Run) -> None:
    """Legend, stage boundaries and axis label."""
    if len(ax.get_legend_handles_labels()[1]) > 1:
        _legend_row(ax)
    else:
        ax.set_title(ax.get_title(loc="left"), pad=_TITLE_PAD)
    look: Any = {"color": PALETTE["neutral"], "linewidth": 1, "linestyle": (0, (3, 3))}
    for before, after in pairwise(run.metrics):
        if before.get("stage", 0) != after.get("stage", 0):
            ax.axvline(after["step"] - 0.5, **look)
    ax.set_xlabel("step")
    if len(run.metrics) > 1:
        locator: Any = ax.xaxis.get_major_locator()
        locator.set_params(integer=True)


def _legend_row(ax: Axes) -> None:
    """Legend in one line between title and axes, where it covers nothing."""
    labels = ax.get_legend_handles_labels()[1]
    ax.set_title(ax.get_title(loc="left"), pad=_TITLE_PAD)
    look: Any = {"handlelength": 1.1, "handletextpad": 0.45, "columnspacing": 1.1}
    place: Any = {"loc": "lower left", "bbox_to_anchor": (-0.012, 0.995), "borderaxespad": 0.15}
    ax.legend(ncols=len(labels), **place, **look)


def plain_text(text: str) -> str:
    """Dollar signs would start a formula in matplotlib."""
    return text.replace("$", r"\$")
