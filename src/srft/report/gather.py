"""What the report says, as plain data: run directories in, JSON-ready dictionaries out."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

from srft.report.before_after import before_after
from srft.report.plots import term_colors
from srft.report.style import CYCLE
from srft.runs.files import Record, flatten, is_number
from srft.runs.metrics import Metric, headings, metric
from srft.runs.reading import Run, group_by_method
from srft.version import __version__

_MAX_FIGURES = 400_000
"""Numbers in all curves together; longer runs are thinned to means over windows of steps."""

_MAX_EVENTS = 200


def gather_summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Runs, their groups (same method, other seed), results, settings, notes."""
    groups = group_by_method(runs)
    place = {id(run): i for i, members in enumerate(groups.values()) for run in members}
    keys = list(dict.fromkeys(chain.from_iterable(run.keys() for run in runs)))
    return {
        "generated": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": __version__,
        "groups": [
            {"name": name, "runs": [runs.index(run) for run in members]}
            for name, members in groups.items()
        ],
        "runs": [_run(run, place[id(run)]) for run in runs],
        "problems": before_after(runs),
        "figures": {key: figure_data(key) for key in keys},
        "headings": headings(keys),
        "terms": _term_colors(keys),
    }


def gather_curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One object a run: ``steps``, ``stages`` (first step of each but the first), ``window`` (steps in
    one point) and ``columns`` (metric -> list with None where it does not exist)."""
    width = sum(len(run.keys()) for run in runs)
    points = max(100, min(2_000, _MAX_FIGURES // max(1, width)))
    return [_curves(run, points) for run in runs]


def _run(run: Run, group: int) -> dict[str, Any]:
    last = run.metrics[-1] if run.metrics else {}
    names = list(dict.fromkeys(str(e.get("name", "eval")) for e in run.evaluations))
    return {
        "name": run.name,
        "group": group,
        "method": run.method,
        "seed": run.seed,
        "steps": last.get("step", 0),
        "planned": run.planned_steps,
        "totals": {k: last[k] for k in last if k.startswith("total/") and is_number(last[k])},
        "evaluations": [
            {"name": n, "records": [_evaluation(e) for e in run.evaluation(n)]} for n in names
        ],
        "environment": run.environment,
        "config": list(flatten(run.config).items()),
        "events": [_event(e) for e in run.events[-_MAX_EVENTS:]],
        "events_left_out": max(0, len(run.events) - _MAX_EVENTS),
        "notes": list(run.notes),
    }


def _evaluation(record: Record) -> Record:
    families = record.get("by_family")
    interval = record.get("interval")
    return {
        "step": record["step"],
        "accuracy": _number(record.get("accuracy")),
        "n": _number(record.get("n_problems")),
        "families": {str(k): _number(v) for k, v in families.items()}
        if isinstance(families, dict)
        else {},
        "interval": [_number(v) for v in interval] if isinstance(interval, (list, tuple)) else None,
        "length": _number(record.get("length_mean")),
        "truncated": _number(record.get("truncated")),
    }


def _event(record: Record) -> Record:
    return {
        "step": _number(record.get("step")),
        "level": str(record.get("level", "note")),
        "message": str(record.get("message", "")),
    }


def figure_data(key: str) -> dict[str, str]:
    """Title, unit, meaning and heading of a metric; one that nobody knows (a run of another version's)
    is called by its key."""
    known = metric(key) or Metric(key, key, group="Other")
    shown = {"title": known.title, "unit": known.unit, "what": known.meaning.replace("`", "")}
    return {**shown, "group": known.group}


def _term_colors(keys: Sequence[str]) -> dict[str, int]:
    """``loss/<term>`` -> place in the page's palette."""
    return {
        key: CYCLE.index(color) if color in CYCLE else len(CYCLE)
        for key, color in term_colors(keys).items()
    }


def _curves(run: Run, points: int) -> dict[str, Any]:
    records = run.metrics
    keys = run.keys()
    window = -(-len(records) // points) if records else 1
    parts = [records[i : i + window] for i in range(0, len(records), window)]
    return {
        "steps": [part[-1]["step"] for part in parts],
        "window": window,
        "stages": [
            after["step"]
            for before, after in pairwise(records)
            if before.get("stage", 0) != after.get("stage", 0)
        ],
        "columns": {key: [_mean(part, key) for part in parts] for key in keys},
    }


def _mean(records: Sequence[Record], key: str) -> float | None:
    values = [r[key] for r in records if is_number(r.get(key))]
    if not values:
        return None
    # Totals only grow: the last one is the right one at the window's last step.
    value = values[-1] if key.startswith("total/") else sum(values) / len(values)
    return float(f"{value:.5g}")


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None
