"""Pictures of an analysis as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.analysis.shift import Shift, counted
from srft.report.plots import plain_text, smooth
from srft.report.style import CYCLE, PALETTE, style

if TYPE_CHECKING:
    from srft.analysis.analyze import AnalysisResult
    from srft.analysis.curves import Efficiency, MethodCurves
    from srft.analysis.dynamics import Dynamics
    from srft.analysis.gradient import GradientView


def plot_analysis(result: AnalysisResult, folder: Path) -> list[Path]:
    """Draws what the analysis holds: shift_<kind>.png, dynamics.png, curves.png, efficiency.png,
    gradient.png."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with style():
        for kind in dict.fromkeys(s.kind for s in result.shifts):
            shifts = [s for s in result.shifts if s.kind == kind]
            written.append(
                _shift(shifts, result.threshold, folder / f"shift_{_file_name(kind)}.png")
            )
        if result.dynamics is not None:
            written.append(_dynamics(result.dynamics, folder / "dynamics.png"))
        if result.efficiency is not None:
            written += _curves(result.efficiency, folder)
        if result.gradient is not None:
            written.append(_gradient(result.gradient, folder / "gradient.png"))
    return written


def _shift(shifts: Sequence[Shift], threshold: float, out: Path) -> Path:
    """Four panels: how many tokens change, where along entropy, in what text, and where in it."""
    from matplotlib import pyplot

    chart: Any
    chart, axes = pyplot.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
    chart.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    _changed_panel(axes[0, 0], shifts)
    _entropy_panel(axes[0, 1], shifts)
    _class_panel(axes[1, 0], shifts, threshold)
    _position_panel(axes[1, 1], shifts, threshold)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    scored = counted(shifts[0].responses, shifts[0].kind)
    chart.suptitle(
        plain_text(f"Token shift against {shifts[0].base} on {scored}"),
        x=0.008, ha="left", fontsize=13, weight="bold",
    )  # fmt: skip
    return _save(chart, out)


def _changed_panel(ax: Any, shifts: Sequence[Shift]) -> None:
    thick = 0.8 / len(shifts)
    thresholds = list(shifts[0].changed)
    for i, shift in enumerate(shifts):
        at = [x + (i - (len(shifts) - 1) / 2) * thick for x in range(len(thresholds))]
        values = [100 * shift.changed[t].value for t in thresholds]
        ax.bar(at, values, thick * 0.9, color=_color(i), label=plain_text(shift.model))
        for x, t, value in zip(at, thresholds, values, strict=True):
            e = shift.changed[t]
            if e.low is not None and e.high is not None:
                ax.plot([x, x], [100 * e.low, 100 * e.high], color=PALETTE["ink"], linewidth=1)
            top = max(value, 100 * (e.high or 0))
            if len(shifts) <= 3:
                ax.annotate(
                    f"{value:.1f}",
                    (x, top),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
    ax.set_xticks(range(len(thresholds)), [f"> {t:g}" for t in thresholds])
    ax.grid(axis="x", visible=False)
    ax.set_title("Tokens whose probability changes by more than … (%)")


def _entropy_panel(ax: Any, shifts: Sequence[Shift]) -> None:
    for i, shift in enumerate(shifts):
        rho = shift.entropy_correlation
        ys = [b.change for b in shift.by_entropy]
        xs = range(1, len(ys) + 1)
        ax.plot(xs, ys, "o-", color=_color(i), markersize=4)
        ax.annotate(
            f"$\\rho$ = {rho.value:.2f}", (xs[-1], ys[-1]), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=8.5, color=_color(i), annotation_clip=False,
        )  # fmt: skip
    ax.set_ylim(bottom=0)
    ax.margins(x=0.12)
    ax.set_title("Mean |change| by the base's entropy")
    ax.set_xlabel("from the lowest entropy to the highest, in tenths of the tokens")


def _class_panel(ax: Any, shifts: Sequence[Shift], threshold: float) -> None:
    names = [c.name for c in shifts[0].by_class]
    thick = 0.8 / len(shifts)
    for i, shift in enumerate(shifts):
        found = {c.name: c for c in shift.by_class}
        at = [x + (i - (len(shifts) - 1) / 2) * thick for x in range(len(names))]
        ax.bar(
            at,
            [100 * found[n].changed.value if n in found else 0 for n in names],
            thick * 0.9,
            color=_color(i),
        )
        for x, name in zip(at, names, strict=True):
            e = found[name].changed if name in found else None
            if e is not None and e.low is not None and e.high is not None:
                ax.plot([x, x], [100 * e.low, 100 * e.high], color=PALETTE["ink"], linewidth=1)
    shares = {c.name: c.share for c in shifts[0].by_class}
    ax.set_xticks(range(len(names)), [f"{n}\n{100 * shares[n]:.0f} % of text" for n in names])
    ax.grid(axis="x", visible=False)
    ax.set_ylim(bottom=0)
    ax.set_title(f"Changed by more than {threshold:g}, by kind of text (%)")


def _position_panel(ax: Any, shifts: Sequence[Shift], threshold: float) -> None:
    for i, shift in enumerate(shifts):
        xs = [50 * (b.low + b.high) for b in shift.by_position]
        ax.plot(
            xs, [100 * b.changed for b in shift.by_position], "o-", color=_color(i), markersize=4
        )
    ax.set_ylim(bottom=0)
    ax.set_xlim(0, 100)
    ax.set_xlabel("place in the response, %")
    ax.set_title(f"Changed by more than {threshold:g}, along the response (%)")


def _dynamics(dynamics: Dynamics, out: Path) -> Path:
    """Distance to the base against distance to each other reference."""
    from matplotlib import pyplot

    base, *others = dynamics.references
    others = others or [base]
    chart, axes = pyplot.subplots(
        1, len(others), figsize=(5.4 * len(others), 4.6), layout="constrained", squeeze=False
    )
    for ax, other in zip(axes.flat, others, strict=True):
        for i, trajectory in enumerate(dynamics.trajectories):
            xs = [p.distances[base] for p in trajectory.points]
            ys = [p.distances[other] for p in trajectory.points]
            ax.plot(
                xs,
                ys,
                "-",
                color=_color(i),
                linewidth=1.4,
                label=plain_text(trajectory.name),
            )
            sizes = [14 + 34 * k / max(1, len(xs) - 1) for k in range(len(xs))]
            ax.scatter(xs, ys, s=sizes, color=_color(i), zorder=3, edgecolor="white", linewidth=0.6)
        start = dynamics.trajectories[0].points[0]
        ax.scatter(
            [start.distances[base]],
            [start.distances[other]],
            s=90,
            marker="D",
            color=PALETTE["ink"],
            zorder=4,
        )
        ax.annotate(
            "base",
            (start.distances[base], start.distances[other]),
            xytext=(8, 6),
            textcoords="offset points",
        )
        ax.set_xlabel(plain_text(f"distance to the base ({base})"))
        ax.set_title(plain_text(f"Distance to {other}"))
        ax.margins(0.12)
    axes.flat[0].legend(loc="best")
    return _save(chart, out)


_PANELS = {
    "reward/accuracy": "Accuracy of rollouts",
    "eval/accuracy": "Accuracy in evaluation",
    "rollout/entropy": "Entropy of rollouts (nats)",
    "rollout/length_mean": "Response length (tokens)",
    "loss": "Loss",
}

_AXES = {
    "steps": "steps",
    "sampled_tokens": "sampled tokens",
    "trained_tokens": "trained tokens",
    "flops": "FLOPs",
}


def _curves(efficiency: Efficiency, folder: Path) -> list[Path]:
    """Metrics over steps, and the metric that costs are compared by over each kind of cost."""
    shown = [k for k in _PANELS if any(k in m.metrics for m in efficiency.methods)]
    written = []
    if shown:
        chart, axes = _row(len(shown))
        for ax, key in zip(axes, shown, strict=True):
            for i, method in enumerate(efficiency.methods):
                _curve(ax, method, key, "steps", i)
                for step in method.stages:
                    ax.axvline(step - 0.5, color=_color(i), linewidth=1, linestyle=(0, (3, 3)))
            ax.set_title(_PANELS[key])
            ax.set_xlabel("step")
        written.append(_save(_with_legend(chart, efficiency), folder / "curves.png"))
    known = [a for a in _AXES if any(a in m.axes for m in efficiency.methods)]
    if any(efficiency.metric in m.metrics for m in efficiency.methods):
        chart, axes = _row(len(known))
        for ax, axis in zip(axes, known, strict=True):
            for i, method in enumerate(efficiency.methods):
                _curve(ax, method, efficiency.metric, axis, i)
            ax.set_title(f"{_PANELS.get(efficiency.metric, efficiency.metric)} by {_AXES[axis]}")
            ax.set_xlabel(_AXES[axis])
            ax.ticklabel_format(axis="x", style="sci", scilimits=(-2, 5))
        written.append(_save(_with_legend(chart, efficiency), folder / "efficiency.png"))
    return written


def _row(count: int) -> tuple[Any, Any]:
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(
        1, count, figsize=(4.5 * count, 3.9), layout="constrained", squeeze=False
    )
    return chart, axes.flat


def _curve(ax: Any, method: MethodCurves, key: str, axis: str, place: int) -> None:
    curve, values = method.metrics.get(key), method.axes.get(axis)
    if curve is None or values is None:
        return
    at = dict(zip(method.steps, values, strict=True))
    keep = [i for i, step in enumerate(curve.steps) if step in at]
    xs = [at[curve.steps[i]] for i in keep]

    def pick(numbers: Sequence[float]) -> list[float]:
        return smooth([numbers[i] for i in keep])

    dots = "o-" if len(keep) <= 12 else "-"
    ax.plot(xs, pick(curve.mean), dots, markersize=3.5, color=_color(place))
    if method.runs > 1:
        ax.fill_between(
            xs, pick(curve.low), pick(curve.high), color=_color(place), alpha=0.15, linewidth=0
        )


def _with_legend(chart: Any, efficiency: Efficiency) -> Any:
    from matplotlib.lines import Line2D

    names = [
        plain_text(m.name + (f", {m.runs} runs" if m.runs > 1 else "")) for m in efficiency.methods
    ]
    lines = [Line2D([], [], color=_color(i)) for i in range(len(names))]
    chart.legend(lines, names, loc="outside upper left", ncols=len(names))
    return chart


def _gradient(view: GradientView, out: Path) -> Path:
    """Share of the vocabulary and of the positions touched, for each threshold."""
    from matplotlib import pyplot

    terms = [t for t in view.terms if t.tokens]
    chart: Any
    chart, axes = pyplot.subplots(1, 3, figsize=(14, 4.1), layout="constrained")
    chart.get_layout_engine().set(h_pad=0.1)
    titles = (
        "Positions touched (%)",
        "Vocabulary touched at a position (%)",
        "Vocabulary touched anywhere (%)",
    )
    for ax, title, name in zip(
        axes.flat, titles, ("positions", "vocabulary", "union"), strict=True
    ):
        thick = 0.8 / max(1, len(terms))
        for i, term in enumerate(terms):
            at = [x + (i - (len(terms) - 1) / 2) * thick for x in range(len(term.touched))]
            ax.bar(
                at,
                [100 * getattr(t, name) for t in term.touched],
                thick * 0.9,
                color=_term_color(term, i),
                label=term.term,
            )
        if terms:
            ax.set_xticks(
                range(len(terms[0].touched)), [f"> {t.threshold:g}" for t in terms[0].touched]
            )
        ax.set_xlabel("|gradient of one token's loss| at a logit")
        ax.grid(axis="x", visible=False)
        ax.set_title(title)
    if terms:
        axes[0].legend(loc="best")
    chart.suptitle(
        plain_text(f"What the terms of {view.method} touch, on {view.model}"),
        x=0.008,
        ha="left",
        weight="bold",
    )
    return _save(chart, out)


def _term_color(term: Any, place: int) -> str:
    first = {"sft": PALETTE["demonstration"], "rl": PALETTE["rollout"]}
    if place == 0 or term.source == "sft":
        return first.get(term.source, PALETTE["neutral"])
    if "demo" in term.term:
        return PALETTE["second"]
    return PALETTE["rollout"] if term.source == "rl" else PALETTE["neutral"]


def _color(i: int) -> str:
    return CYCLE[i % len(CYCLE)]


def _file_name(kind: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in kind)[:60] or "responses"


def _save(chart: Any, out: Path) -> Path:
    from matplotlib import pyplot

    chart.savefig(out, dpi=150)
    pyplot.close(chart)
    return out
