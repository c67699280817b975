"""The result of an analysis as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from srft.analysis.analysis_result import AnalysisResult
from srft.analysis.dynamics import Dynamics
from srft.analysis.shift import counted
from srft.analysis.token_statistics import Estimate

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from srft.analysis.gradient import GradientView


def render(result: AnalysisResult) -> RenderableType:
    """Everything worth reading at a glance; the page and analysis.json hold the rest."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for kind in dict.fromkeys(s.kind for s in result.shifts):
        parts += [_shift_table(result, kind), _class_table(result, kind), Text()]
    if result.dynamics is not None:
        parts += [_dynamics_table(result.dynamics), Text()]
    if result.gradient is not None:
        parts += [_gradient_table(result.gradient), Text()]
    parts += [Text(note, style="yellow") for note in result.notes]
    if result.files:
        parts.append(Text(f"written {', '.join(map(str, result.files))}"))
    return Group(*parts)


def _table(title: str, columns: Sequence[str]) -> Table:
    """The first column holds names, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    look: Any = {"title_justify": "left", "title_style": "bold", "box": SIMPLE_HEAD}
    table = Table(title=title, pad_edge=False, **look)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


_MEANS = (
    ("mean |change of probability|", "absolute_change"),
    ("KL(base || model), nats", "kl_forward"),
    ("KL(model || base), nats", "kl_backward"),
    ("JSD, nats", "jsd"),
    ("most probable token is another", "top_changed"),
    ("response's token ranks first, before", "first_before"),
    ("response's token ranks first, after", "first_after"),
    ("entropy before, nats", "entropy_before"),
    ("entropy after, nats", "entropy_after"),
)
_SHARES = ("top_changed", "first_before", "first_after")


def _shift_table(result: AnalysisResult, kind: str) -> Table:
    shifts = [s for s in result.shifts if s.kind == kind]
    scored = f"{counted(shifts[0].responses, kind)}, {shifts[0].tokens:,} tokens"
    title = f"Token shift on {scored}, from {shifts[0].base}"
    table = _table(title, ["", *(s.model for s in shifts)])
    for t in shifts[0].changed:
        table.add_row(f"changed by more than {t:g}", *(_percent(s.changed[t]) for s in shifts))
    for label, key in _MEANS:
        form = _percent if key in _SHARES else _value
        table.add_row(label, *(form(s.means[key]) for s in shifts))
    label = "rank correlation of entropy and |change|"
    table.add_row(label, *(_value(s.entropy_correlation) for s in shifts))
    label = "share of |change| on the fifth of highest entropy"
    table.add_row(label, *(_percent(s.top_fifth) for s in shifts))
    return table


def _class_table(result: AnalysisResult, kind: str) -> Table:
    shifts = [s for s in result.shifts if s.kind == kind]
    title = f"Where: share of tokens changed by more than {result.threshold:g}, by kind of text"
    table = _table(title, ["", "of all tokens", *(s.model for s in shifts)])
    for row in shifts[0].by_class:
        found = [next(c for c in s.by_class if c.name == row.name) for s in shifts]
        cells = [_percent(c.changed) for c in found]
        table.add_row(row.name, f"{100 * row.share:.1f} %", *cells)
    return table


def _dynamics_table(dynamics: Dynamics) -> Table:
    title = f"Distances in probability space ({dynamics.tokens:,} tokens)"
    table = _table(title, ["run", "step", *(f"to {name}" for name in dynamics.references)])
    for trajectory in dynamics.trajectories:
        for point in trajectory.points:
            step = "end" if point.step is None else str(point.step)
            cells = [f"{point.distances[r]:.4f}" for r in dynamics.references]
            table.add_row(trajectory.name, step, *cells)
    return table


def _gradient_table(view: GradientView) -> Table:
    title = (
        f"Gradient at {view.vocabulary:,} logits, {view.method} on {view.model}: share above 0.001"
    )
    columns = ["term", "tokens", "positions", "vocabulary at each", "vocabulary in all"]
    table = _table(title, [*columns, "sum of |gradient|", "entries with 90 %"])
    for term in view.terms:
        touched = next(t for t in term.touched if t.threshold == 1e-3)
        shares = (touched.positions, touched.vocabulary, touched.union)
        cells = [f"{term.tokens:,}", *(f"{100 * v:.1f} %" for v in shares)]
        table.add_row(term.term, *cells, f"{term.size:.3g}", f"{term.entries_90:.3g}")
    return table


def _percent(e: Estimate) -> str:
    return _interval(e, 100, ".1f", " %")


def _value(e: Estimate) -> str:
    return _interval(e, 1, ".3g")


def _interval(e: Estimate, scale: int, form: str, unit: str = "") -> str:
    text = f"{scale * e.value:{form}}{unit}"
    if e.low is None or e.high is None:
        return text
    return f"{text} [{scale * e.low:{form}}, {scale * e.high:{form}}]"
