"""The result of an analysis as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srft.analysis.analysis_result import AnalysisResult
from srft.analysis.shift import counted
from srft.analysis.token_statistics import Estimate

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def render(result: AnalysisResult) -> RenderableType:
    """Everything worth reading at a glance; the page and analysis.json hold the rest."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for kind in dict.fromkeys(s.kind for s in result.shifts):
        parts += [_shift_table(result, kind), _class_table(result, kind), Text()]
    if result.dynamics is not None:
        parts += [_dynamics_table(result), Text()]
    if result.gradient is not None:
        parts += [_gradient_table(result), Text()]
    parts += [Text(note, style="yellow") for note in result.notes]
    if result.files:
        parts.append(Text(f"written {', '.join(map(str, result.files))}"))
    return Group(*parts)


def _table(title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )


def _shift_table(result: AnalysisResult, kind: str) -> Table:
    shifts = [s for s in result.shifts if s.kind == kind]
    scored = counted(shifts[0].responses, kind)
    table = _table(f"Token shift on {scored}, {shifts[0].tokens:,} tokens, from {shifts[0].base}")
    table.add_column("")
    for s in shifts:
        table.add_column(s.model, justify="right")
    rows = [
        (f"changed by more than {t:g}", [_percent(s.changed[t]) for s in shifts])
        for t in shifts[0].changed
    ]
    rows += [
        ("mean |change of probability|", [_value(s.means["absolute_change"]) for s in shifts]),
        ("KL(base || model), nats", [_value(s.means["kl_forward"]) for s in shifts]),
        ("KL(model || base), nats", [_value(s.means["kl_backward"]) for s in shifts]),
        ("JSD, nats", [_value(s.means["jsd"]) for s in shifts]),
        ("most probable token is another", [_percent(s.means["top_changed"]) for s in shifts]),
        (
            "response's token ranks first, before",
            [_percent(s.means["first_before"]) for s in shifts],
        ),
        ("response's token ranks first, after", [_percent(s.means["first_after"]) for s in shifts]),
        ("entropy before, nats", [_value(s.means["entropy_before"]) for s in shifts]),
        ("entropy after, nats", [_value(s.means["entropy_after"]) for s in shifts]),
        (
            "rank correlation of entropy and |change|",
            [_value(s.entropy_correlation) for s in shifts],
        ),
        (
            "share of |change| on the fifth of highest entropy",
            [_percent(s.top_fifth) for s in shifts],
        ),
    ]
    for label, cells in rows:
        table.add_row(label, *cells)
    return table


def _class_table(result: AnalysisResult, kind: str) -> Table:
    shifts = [s for s in result.shifts if s.kind == kind]
    table = _table(
        f"Where: share of tokens changed by more than {result.threshold:g}, by kind of text"
    )
    table.add_column("")
    table.add_column("of all tokens", justify="right")
    for s in shifts:
        table.add_column(s.model, justify="right")
    for row in shifts[0].by_class:
        cells = []
        for s in shifts:
            found = next((c for c in s.by_class if c.name == row.name), None)
            cells.append("-" if found is None else _percent(found.changed))
        table.add_row(row.name, f"{100 * row.share:.1f} %", *cells)
    return table


def _dynamics_table(result: AnalysisResult) -> Table:
    dynamics = result.dynamics
    assert dynamics is not None
    table = _table(f"Distances in probability space ({dynamics.tokens:,} tokens)")
    table.add_column("run")
    table.add_column("step", justify="right")
    for name in dynamics.references:
        table.add_column(f"to {name}", justify="right")
    for trajectory in dynamics.trajectories:
        for point in trajectory.points:
            step = "end" if point.step is None else str(point.step)
            table.add_row(
                trajectory.name, step, *(f"{point.distances[r]:.4f}" for r in dynamics.references)
            )
    return table


def _gradient_table(result: AnalysisResult) -> Table:
    view = result.gradient
    assert view is not None
    table = _table(
        f"Gradient at {view.vocabulary:,} logits, {view.method} on {view.model}: share above 0.001"
    )
    table.add_column("term")
    names = (
        "tokens",
        "positions",
        "vocabulary at each",
        "vocabulary in all",
        "sum of |gradient|",
        "entries with 90 %",
    )
    for name in names:
        table.add_column(name, justify="right")
    for term in view.terms:
        touched = next(t for t in term.touched if t.threshold == 1e-3)
        shares = (
            f"{100 * v:.1f} %" for v in (touched.positions, touched.vocabulary, touched.union)
        )
        table.add_row(
            term.term, f"{term.tokens:,}", *shares, f"{term.size:.3g}", f"{term.entries_90:.3g}"
        )
    return table


def _percent(e: Estimate) -> str:
    text = f"{100 * e.value:.1f} %"
    return (
        text
        if e.low is None or e.high is None
        else f"{text} [{100 * e.low:.1f}, {100 * e.high:.1f}]"
    )


def _value(e: Estimate) -> str:
    text = f"{e.value:.3g}"
    return text if e.low is None or e.high is None else f"{text} [{e.low:.3g}, {e.high:.3g}]"
