"""Reads run directories, also those still being written to.

Nothing here fails because a file is absent, cut short or of a newer version: what could not be read
is said in ``Run.notes``, and what is there is shown.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from srft.errors import DataError
from srft.runs.files import Record, flatten, is_number, jsonl_lines
from srft.runs.run_dir import RunDir

# Settings that say where a run writes or how it is repeated, not what it does.
_NOT_THE_METHOD = frozenset(
    {
        "train.seed",
        "data.seed",
        "evaluation.seed",
        "run.dir",
        "run.live",
        "run.trackers",
        "train.device",
    }
)


@dataclass(frozen=True)
class Run:
    """One run directory. ``metrics`` and ``evaluations`` are in order of steps; a step written twice
    (a resumed run) counts once, as last written. ``notes`` are sentences for the reader about what
    is missing or damaged."""

    path: Path
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Record] = ()
    evaluations: Sequence[Record] = ()
    events: Sequence[Record] = ()
    notes: Sequence[str] = ()

    @property
    def method(self) -> str:
        """``srft``; the methods of a run in stages are joined by an arrow."""
        stages = self.config.get("stages") or []
        names = [
            str(stage["method"])
            for stage in stages
            if isinstance(stage, dict) and "method" in stage
        ]
        if not names:
            names = list(dict.fromkeys(str(m["method"]) for m in self.metrics if m.get("method")))
        if not names:
            names = [str(self.config.get("method", "unknown"))]
        return " → ".join(names)

    @property
    def seed(self) -> Any:
        return _nested(self.config, "train").get("seed")

    @property
    def planned_steps(self) -> int | None:
        """Number of training steps the recipe asks for, None where it does not say."""
        stages = self.config.get("stages") or []
        planned = [stage.get("steps") for stage in stages if isinstance(stage, dict)]
        counted = [n for n in planned if isinstance(n, int)]
        if planned and len(counted) == len(planned):
            return sum(counted)
        steps = _nested(self.config, "train").get("steps")
        return steps if isinstance(steps, int) else None

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one metric where it exists and is finite."""
        pairs = [(m["step"], m[key]) for m in self.metrics if is_number(m.get(key))]
        return [step for step, _ in pairs], [float(value) for _, value in pairs]

    def keys(self) -> list[str]:
        """Names of all numeric metrics, in the order of their first appearance."""
        seen: dict[str, None] = {}
        for record in self.metrics:
            for key, value in record.items():
                if key not in ("step", "stage") and is_number(value):
                    seen.setdefault(key)
        return list(seen)

    def evaluation(self, name: str | None = None) -> list[Record]:
        """Evaluations of one name (the first one by default), by step."""
        names = list(dict.fromkeys(e.get("name", "eval") for e in self.evaluations))
        wanted = name if name is not None else (names[0] if names else None)
        return [e for e in self.evaluations if e.get("name", "eval") == wanted]

    @property
    def samples_path(self) -> Path:
        return RunDir(self.path).samples


def read_run(path: Path | str) -> Run:
    """Reads one run directory.

    Raises:
        DataError: the folder does not exist, or holds none of the files of a run.
    """
    path = Path(path)
    there = RunDir(path)
    if not path.is_dir():
        raise DataError(
            f"{path}: there is no such folder; give the directory of a run (runs/<name>)"
        )
    if not there.is_run:
        raise DataError(
            f"{path}: not a run directory (it has no metrics.jsonl, config.yaml or samples.jsonl); "
            "give a folder that `srft train` has written"
        )
    notes: list[str] = []
    metrics = _by_step(_records(there.metrics, notes), ("step",))
    run = Run(
        path=path,
        name=path.resolve().name,
        config=_mapping(there.config, notes),
        environment=_mapping(there.environment, notes),
        metrics=metrics,
        evaluations=_by_step(_records(there.evaluation, notes), ("name", "step")),
        events=_records(there.events, notes, required=False),
    )
    if not metrics:
        notes.append("No training step has been recorded yet.")
    planned = run.planned_steps
    last = metrics[-1]["step"] if metrics else 0
    if planned and metrics and last < planned:
        notes.append(f"Training is at step {last} of {planned}.")
    if not run.samples_path.exists():
        notes.append("samples.jsonl is missing: no samples to browse.")
    return replace(run, notes=tuple(notes))


def read_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Reads several run directories; runs of the same folder name are told apart by their parents.

    Raises:
        DataError: no path, or one of them is no run directory.
    """
    if not paths:
        raise DataError("no run directory was given; give at least one (runs/<name>)")
    runs = [read_run(path) for path in dict.fromkeys(Path(p) for p in paths)]
    count: dict[str, int] = defaultdict(int)
    for run in runs:
        count[run.name] += 1
    return [
        replace(run, name=f"{run.path.resolve().parent.name}/{run.name}")
        if count[run.name] > 1
        else run
        for run in runs
    ]


def iterate_samples(run: Run) -> Iterator[Record]:
    """The saved prompt groups one by one (the file may be large); damaged lines are passed over."""
    if not run.samples_path.exists():
        return
    for _, record in jsonl_lines(run.samples_path):
        if isinstance(record, dict) and isinstance(record.get("responses"), list):
            yield record


def group_by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but their seed, under a name that tells the groups apart: neither in
    their recipes nor in what Python code gave beside them.

    The name is the method's; where several groups share a method, the settings in which they differ
    are added.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = (run.method, json.dumps(sorted(_settings(run).items()), default=str))
        groups.setdefault(key, []).append(run)
    by_method: dict[str, list[list[Run]]] = defaultdict(list)
    for (method, _), members in groups.items():
        by_method[method].append(members)
    named: dict[str, list[Run]] = {}
    for method, rivals in by_method.items():
        for members in rivals:
            name = method if len(rivals) == 1 else f"{method} ({_difference(members, rivals)})"
            while name in named:
                name += "'"
            named[name] = members
    return named


def _difference(members: Sequence[Run], rivals: Sequence[Sequence[Run]]) -> str:
    tables = [_settings(group[0]) for group in rivals]
    own = _settings(members[0])
    keys = sorted({key for table in tables for key in table})
    varying = [k for k in keys if len({json.dumps(t.get(k), default=str) for t in tables}) > 1]
    shown = [f"{key.rsplit('.', 1)[-1]} {own.get(key)}" for key in varying[:3]]
    return ", ".join(shown) or members[0].name


def _settings(run: Run) -> dict[str, Any]:
    """Recipe and what Python code gave as dotted names to values, without what does not define the method."""
    flat = flatten({**run.config, "given": _nested(run.environment, "given")})
    return {name: value for name, value in flat.items() if name not in _NOT_THE_METHOD}


def _nested(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _by_step(records: list[Record], key: tuple[str, ...]) -> list[Record]:
    """Records with a step, each key once (the last one), ordered by step."""
    unique = {tuple(r.get(k) for k in key): r for r in records if isinstance(r.get("step"), int)}
    return sorted(unique.values(), key=lambda r: r["step"])


def _records(path: Path, notes: list[str], required: bool = True) -> list[Record]:
    if not path.exists():
        if required:
            notes.append(f"{path.name} is missing.")
        return []
    lines = [found for _, found in jsonl_lines(path)]
    good = [found for found in lines if not isinstance(found, ValueError)]
    if bad := len(lines) - len(good):
        notes.append(f"{path.name}: {bad} damaged line{'s' if bad > 1 else ''} left out.")
    return good


def _mapping(path: Path, notes: list[str]) -> Record:
    """A JSON or YAML file that holds a mapping."""
    if not path.exists():
        unknown = ": the settings of this run are not known" if path.suffix == ".yaml" else ""
        notes.append(f"{path.name} is missing{unknown}.")
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} is damaged and was skipped.")
    return {}
