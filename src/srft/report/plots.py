"""Pictures of a run as PNG files, for a README, a terminal-free look, or a paper's draft."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
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


def plot_run(run_dir: Path | str) -> list[Path]:
    """Draws a run into ``run_dir/plots``: ``overview.png``, one PNG per panel, and the evaluation by
    family before and after. What the run has not recorded is not drawn.

    Raises:
        DataError: ``run_dir`` is not a run directory.
    """
    run = read_run(run_dir)
    folder = RunDir(run.path).plots
    with style():
        written = [path for name in PANELS if (path := _save_panel(name, run, folder))]
        if written:
            written.insert(0, _save_overview(run, folder))
        evaluations = run.evaluation()
        if evaluations:
            before = evaluations[0] if len(evaluations) > 1 else None
            written.append(
                plot_accuracy(before, evaluations[-1], folder / "evaluation.png", title=run.method)
            )
    return written


def plot_accuracy(
    before: Record | None, after: Record, out: Path, title: str = "", labels: Sequence[str] = ()
) -> Path:
    """Bar chart of two evaluations, family by family, the overall accuracy first.

    ``before`` and ``after`` are records of evaluation.jsonl; ``labels`` names them in the legend
    (by default their steps). Where ``interval`` is recorded it is drawn on the overall bar.
    """
    names = labels or [f"step {record.get('step', '?')}" for record in (before, after) if record]
    records = [record for record in (before, after) if record is not None]
    families = list(dict.fromkeys(f for r in records for f in (r.get("by_family") or {})))
    rows = ["overall", *families]
    with style():
        height = 0.9 + 0.44 * len(rows)
        chart = _figure(6.4, max(2.0, height))
        ax = chart.subplots()
        thick = 0.8 / len(records)
        for i, (record, name) in enumerate(zip(records, names, strict=False)):
            last = i == len(records) - 1
            color = PALETTE["rollout"] if last else "#c3cad3"
            at = [y + (i - (len(records) - 1) / 2) * thick for y in range(len(rows))]
            values = [_accuracy(record, row) for row in rows]
            widths = [value or 0.0 for value in values]
            bars = ax.barh(at, widths, height=thick * 0.88, color=color, label=name)
            for bar, value in zip(bars, values, strict=True):
                text = f"{100 * value:.1f}" if value is not None else "-"
                end = bar.get_width()
                if bar is bars[0]:
                    end = max(end, _interval_mark(ax, record, at[0]))
                ax.annotate(
                    text,
                    (end, bar.get_y() + bar.get_height() / 2),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                    color=PALETTE["ink"] if last else "#6b7480",
                    fontweight="bold" if last else "normal",
                )
        ax.set_yticks(range(len(rows)), rows)
        ax.tick_params(axis="y", labelsize=9.5, labelcolor=PALETTE["ink"])
        ax.get_yticklabels()[0].set_fontweight("bold")
        ax.invert_yaxis()
        if families:
            ax.axhline(0.5, color="#d5dae1", linewidth=0.8)
        ax.set_xlim(0, 1.08)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100 %"])
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        heading = f"Accuracy{f' · {plain_text(title)}' if title else ''}"
        ax.set_title(heading, pad=22 if len(records) > 1 else 9)
        if len(records) > 1:
            ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.995), ncols=2, borderaxespad=0.2)
        return _save(chart, out)


def _accuracy(record: Record, row: str) -> float | None:
    value = record.get("accuracy") if row == "overall" else (record.get("by_family") or {}).get(row)
    return float(value) if value is not None and is_number(value) else None


def _interval_mark(ax: Axes, record: Record, y: float) -> float:
    """Draws the recorded interval and returns its upper end, 0 where there is none."""
    interval = _interval(record)
    if interval:
        ax.plot(interval, [y, y], color=PALETTE["ink"], linewidth=1.1, alpha=0.75)
    return interval[1] if interval else 0.0


def _interval(record: Record) -> list[float]:
    """Both ends, or nothing."""
    found = record.get("interval")
    known = isinstance(found, list) and len(found) == 2 and all(map(is_number, found))
    return [float(end) for end in found] if known and found else []


# Panels: each draws on one axes and says whether there was anything to draw.

_Lines = Sequence[tuple[str, str, str]]
"""Metric, colour, label."""


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


PANELS: Mapping[str, tuple[str, Panel]] = {
    "accuracy": ("reward/mean", _accuracy_panel),
    "entropy": ("rollout/entropy", _entropy_panel),
    "length": (
        "rollout/length_mean",
        _lines_panel(
            ("rollout/length_mean", "rollout", "rollouts"),
            ("demo/length_mean", "demonstration", "demonstrations"),
        ),
    ),
    "weights": ("weight/sft", _weight_panel),
    "losses": ("loss", _loss_panel),
    "gradient": ("train/gradient_norm", _gradient_panel),
    "time": ("time/step", _time_panel),
}
"""Name of the file -> the metric that the panel is called after, and what draws it."""


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


def _draw(name: str, ax: Axes, run: Run) -> bool:
    """One panel with its title, legend, stage boundaries and axis label."""
    key, panel = PANELS[name]
    known = metric(key)
    assert known is not None, key
    ax.set_title(known.title + (f" ({known.unit})" if known.unit else ""))
    if not panel(ax, run):
        return False
    _finish(ax, run)
    return True


def _finish(ax: Axes, run: Run) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 1:
        _legend_row(ax, handles, labels)
    else:
        ax.set_title(ax.get_title(loc="left"), pad=_TITLE_PAD)
    for before, after in pairwise(run.metrics):
        if before.get("stage", 0) != after.get("stage", 0):
            ax.axvline(
                after["step"] - 0.5, color=PALETTE["neutral"], linewidth=1, linestyle=(0, (3, 3))
            )
    ax.set_xlabel("step")
    if len(run.metrics) > 1:
        _whole_steps(ax)


def _whole_steps(ax: Any) -> None:
    ax.xaxis.get_major_locator().set_params(integer=True)


def _legend_row(ax: Axes, handles: Sequence[Any] | None = None, labels: Sequence[str] = ()) -> None:
    """Legend in one line between title and axes, where it covers nothing."""
    if handles is None:
        handles, labels = ax.get_legend_handles_labels()
    ax.set_title(ax.get_title(loc="left"), pad=_TITLE_PAD)
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.012, 0.995),
        ncols=len(labels),
        handlelength=1.1,
        handletextpad=0.45,
        columnspacing=1.1,
        borderaxespad=0.15,
    )


def _save_panel(name: str, run: Run, folder: Path) -> Path | None:
    chart = _figure(6.4, 3.6)
    if not _draw(name, chart.subplots(), run):
        return None
    return _save(chart, folder / f"{name}.png")


def _save_overview(run: Run, folder: Path) -> Path:
    chart = _figure(16, 7.2)
    flat = list(chart.subplots(2, 4).flat)
    used = 0
    for name in PANELS:
        flat[used].clear()
        used += _draw(name, flat[used], run)
    if used < len(flat):
        flat[used].clear()
        if _family_panel(flat[used], run):
            used += 1
    for ax in flat[used:]:
        ax.remove()
    chart.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    steps = run.metrics[-1]["step"] if run.metrics else 0
    chart.suptitle(
        plain_text(f"{run.method} · {run.name} · {steps} steps"),
        x=0.008,
        ha="left",
        fontsize=13,
        weight="bold",
    )
    return _save(chart, folder / "overview.png")


def _family_panel(ax: Axes, run: Run) -> bool:
    """Evaluation by family over steps."""
    evaluations = run.evaluation()
    families = list(dict.fromkeys(f for e in evaluations for f in (e.get("by_family") or {})))
    ends: list[tuple[float, Any]] = []
    for i, family in enumerate(families[:10]):
        points = [(e["step"], v) for e in evaluations if (v := _accuracy(e, family)) is not None]
        if points:
            color = CYCLE[i % len(CYCLE)]
            dash = "-" if i < len(CYCLE) else "--"
            (line,) = ax.plot(
                *zip(*points, strict=True),
                dash,
                marker="o",
                markersize=3,
                color=color,
                label=plain_text(family),
            )
            ends.append((points[-1][1], line))
    if ends:
        ax.set_title("Evaluation by family", pad=_TITLE_PAD)
        _percent(ax)
        ax.set_xlabel("step")
        _whole_steps(ax)
        if len(families) <= 5:
            _legend_row(ax)
        else:
            # Beside the lines and in their order, so that it covers none of them.
            ax.legend(
                handles=[line for _, line in sorted(ends, key=lambda end: -end[0])],
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),
                fontsize=7.5,
                handlelength=1.2,
            )
    return bool(ends)


def _figure(width: float, height: float) -> Any:
    """A figure that no window system and no other code's pyplot knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(chart: Any, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # The name of a run may be in any script; a box in its place is not worth a warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        chart.savefig(out, dpi=150)
    return out


def plain_text(text: str) -> str:
    """Dollar signs would start a formula in matplotlib."""
    return text.replace("$", r"\$")
