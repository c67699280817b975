"""Pictures of an experiment: accuracy of the arms with intervals, accuracy against what it cost, and training
curves, with bands over seeds.

    python -m benchmarks.lab.pictures lab/longer --out docs/images [--arms sft grpo srft]

reads ``results.json`` and the runs beside it, and writes ``lab-longer.png``, ``lab-longer-cost.png`` and
``lab-longer-curves.png``. Of published figures, as ``benchmarks/results/lab/longer.json``, it draws the first
two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srft.report.plots import CYCLE, PALETTE, plain_text, style
from srft.runs.files import is_number, read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVES = (
    ("reward/accuracy", "Accuracy of rollouts"),
    ("rollout/entropy", "Entropy of rollouts (nats)"),
    ("rollout/length_mean", "Response length (tokens)"),
)
_PARTS = {"in": ("in distribution", PALETTE["rollout"]), "out": ("out of it", PALETTE["second"])}


def draw(place: Path, out: Path, arms: Sequence[str] = ()) -> None:
    """The pictures of the experiment in the folder ``place``, or of the published figures in that file; cost
    and curves are of ``arms``, or of the first six trained."""
    folder = place if place.is_dir() else None
    path = place if folder is None else folder / "results.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    name = f"lab-{place.stem if folder is None else place.name}"
    chosen = arms or list(dict.fromkeys(r["arm"] for r in result["runs"] if r["steps"]))[:6]
    with style():
        _draw_accuracy(result, out / f"{name}.png")
        _draw_cost(result, chosen, out / f"{name}-cost.png")
        if folder is not None:
            _draw_curves(folder, result, chosen, out / f"{name}-curves.png")


def _draw_accuracy(result: Mapping[str, Any], out: Path) -> None:
    """A point and a 95 % interval over seeds (over problems with one seed) per arm, best first."""
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    parts = [part for part in _PARTS if part in result["arms"][0]["accuracy"]]
    arms = sorted(result["arms"], key=lambda arm: arm["accuracy"][parts[0]]["mean"])
    figure, axes = pyplot.subplots(
        1,
        len(parts),
        figsize=(4.6 * len(parts) + 1.2, 1.1 + 0.27 * len(arms)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, part in zip(axes[0], parts, strict=True):
        title, color = _PARTS[part]
        for y, arm in enumerate(arms):
            value = arm["accuracy"][part]
            own = PALETTE["demonstration"] if arm["name"] == result["reference"] else color
            interval = value["seeds"] or value["problems"]
            if interval is not None:
                ax.plot(interval, [y, y], color=own, linewidth=1.6, alpha=0.55)
            ax.plot([value["mean"]], [y], "o", color=own, markersize=5)
        ax.set_title(f"Accuracy {title}")
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        ax.set_yticks(range(len(arms)), [plain_text(arm["name"]) for arm in arms])
    _save(figure, out)


def _draw_cost(result: Mapping[str, Any], arms: Sequence[str], out: Path) -> None:
    """Accuracy at every evaluation over the FLOPs spent by then: mean, lowest and highest seed."""
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    parts = [part for part in _PARTS if part in result["arms"][0]["accuracy"]]
    size = (4.9 * len(parts) + 0.4, 4.6)
    figure, axes = pyplot.subplots(1, len(parts), figsize=size, squeeze=False, layout="constrained")
    for ax, part in zip(axes[0], parts, strict=True):
        for number, arm in enumerate(arms):
            curves = [run.get("curve", []) for run in result["runs"] if run["arm"] == arm]
            length = min(map(len, curves), default=0)
            cost = [np.mean([c[i]["flops"] for c in curves]) / 1e12 for i in range(length)]
            values = np.array([[c[i][part] for i in range(length)] for c in curves])
            color = CYCLE[number % len(CYCLE)]
            dashes = "-" if number < len(CYCLE) else "--"
            label = plain_text(arm)
            ax.plot(
                cost, values.mean(0), dashes, marker="o", markersize=4, color=color, label=label
            )
            ax.vlines(cost, values.min(0), values.max(0), color=color, alpha=0.35)
        ax.set_title(f"Accuracy {_PARTS[part][0]}")
        ax.set_xlabel("TFLOP spent on training and sampling")
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    _save(figure, out)


def _draw_curves(folder: Path, result: Mapping[str, Any], arms: Sequence[str], out: Path) -> None:
    """Mean over seeds with the range between the lowest and the highest seed."""
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    runs = {
        arm: [
            folder / Path(r["folder"]).relative_to(Path(r["folder"]).parents[1])
            for r in result["runs"]
            if r["arm"] == arm
        ]
        for arm in arms
    }
    panels = list(_CURVES)
    if any(len(_series(run, "evaluation")) > 1 for found in runs.values() for run in found):
        panels.append(("evaluation", "Accuracy, all problems"))
    rows = 1 if len(panels) == 3 else 2
    size = (13.5, 3.8) if rows == 1 else (10.5, 6.6)
    figure, axes = pyplot.subplots(
        rows, len(panels) // rows, figsize=size, squeeze=False, layout="constrained"
    )
    percent = PercentFormatter(1.0, decimals=0, symbol=" %")
    for ax, (key, title) in zip(axes.flat, panels, strict=True):
        ax.set_title(title)
        for i, (arm, found) in enumerate(runs.items()):
            _band(ax, found, arm, key, i)
        ax.set_xlabel("step")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if title.startswith("Accuracy"):
            ax.yaxis.set_major_formatter(percent)
        else:
            ax.set_ylim(bottom=0)
    # SFT samples nothing, so the first panel may lack some arms.
    entries: dict[str, Any] = {}
    for ax in axes.flat:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=max(1, len(entries))
    )
    _save(figure, out)


def _band(ax: Axes, runs: Sequence[Path], arm: str, key: str, number: int) -> None:
    series = [points for run in runs if (points := _series(run, key))]
    steps = sorted(set.intersection(*(set(points) for points in series))) if series else []
    if not steps:
        return
    values = np.array([[points[step] for step in steps] for points in series])
    smoothed = values if key == "evaluation" else np.array([_smooth(row) for row in values])
    color = CYCLE[number % len(CYCLE)]
    marker = "o" if key == "evaluation" else None
    mean = np.mean(smoothed, axis=0)
    ax.plot(steps, mean, color=color, label=plain_text(arm), marker=marker, markersize=3.5)
    low, high = np.min(smoothed, axis=0), np.max(smoothed, axis=0)
    if len(steps) == 1:
        ax.plot([steps[0]] * 2, [low[0], high[0]], color=color, alpha=0.4)
    else:
        ax.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)


def _smooth(values_N: np.ndarray) -> np.ndarray:
    """Moving mean over a tenth of the series and at least 5 steps; one-sided at its ends, where a
    single noisy step would otherwise be the last word."""
    window = np.ones(min(len(values_N), max(5, len(values_N) // 10)))
    counts = np.convolve(np.ones(len(values_N)), window, mode="same")
    return np.convolve(values_N, window, mode="same") / counts


def _series(folder: Path, key: str) -> dict[int, float]:
    """Step -> value of one metric, or of the accuracy of evaluations."""
    name, field = ("evaluation", "accuracy") if key == "evaluation" else ("metrics", key)
    path = folder / f"{name}.jsonl"
    return {row["step"]: row[field] for row in read_jsonl(path) if is_number(row.get(field))}


def _save(figure: Any, out: Path) -> None:
    from matplotlib import pyplot

    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the pictures of an experiment.")
    parser.add_argument(
        "place", type=Path, help="folder of one experiment, or its published figures"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--arms", nargs="*", default=[], help="arms of cost and curves")
    options = parser.parse_args()
    draw(options.place, options.out, options.arms)
