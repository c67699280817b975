"""Names and places inside a run directory, and how one begins."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from srft.errors import ConfigError
from srft.paths import local_path
from srft.runs.environment import environment
from srft.runs.files import flatten, to_json, write_whole
from srft.runs.lock import hold


@dataclass(frozen=True)
class RunDir:
    """One training run on the disk."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def reference(self, stage: int) -> Path:
        """The policy as it was when a stage with a reference of its own began."""
        return self.path / "reference" / f"stage_{stage}"

    @property
    def refused(self) -> Path:
        return self.path / "refused"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def id(self) -> str:
        """What trackers know the run by, over resumes; a new one where environment.json has none."""
        try:
            return str(json.loads(self.environment.read_text(encoding="utf-8"))["id"])
        except (OSError, ValueError, KeyError, TypeError):
            return _new_id()

    @property
    def begun(self) -> bool:
        """Whether a run was begun here: environment.json says so, and is none of another program's."""
        try:
            about = json.loads(self.environment.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(about, dict) and "versions" in about

    @property
    def is_run(self) -> bool:
        """Whether there is anything of a run to be read."""
        return any(path.is_file() for path in (self.metrics, self.config, self.samples))


def step_of(checkpoint: str) -> int | None:
    """The step in a checkpoint's name, ``step_000100``; None where it is none, such as a copy's."""
    step = checkpoint.removeprefix("step_")
    return int(step) if step != checkpoint and step.isdecimal() else None


def choose_run_dir(given: str | None, methods: Sequence[str]) -> RunDir:
    """``run.dir``, or ``runs/<methods>-<date>``; nothing is created yet."""
    if given:
        return RunDir(local_path(given))
    name = "-".join(methods)[:100]  # of many stages: file systems end at 255 bytes
    folder = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = folder, 2
    while path.exists():
        path, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return RunDir(path)


def check_free(run: RunDir) -> None:
    """Raises ConfigError where the folder is no run and holds what a run would write over."""
    if run.begun:
        return
    written = (run.config, run.environment, run.metrics, run.samples, run.evaluation, run.events)
    folders = (run.checkpoints, run.model, run.best, run.refused, run.plots)
    files = (*written, run.report)
    full = [f for f in folders if f.is_dir() and any(f.iterdir())]
    if held := [path.name for path in (*(f for f in files if f.exists()), *full)]:
        raise ConfigError(
            f"run.dir: {run.path} is no run and holds {', '.join(held)}, which a run writes: it would be "
            "lost. Set run.dir to another folder"
        )


@contextmanager
def reserved(run: RunDir, recipe: str, say: Callable[[str], None]) -> Iterator[None]:
    """Around what precedes the training: the folder with config.yaml (``recipe``) stands before anything
    else is done, so that a run that is killed meanwhile can be resumed. An error leaves no new folder.

    Raises:
        ConfigError: another process writes there, or the folder cannot be written.
    """
    new, ours = not run.path.exists(), False
    try:
        with hold(run.path, "setting up", say):
            ours = True
            check_free(run)
            if not run.metrics.exists() and not run.checkpoints.exists():
                begin_run(run, recipe)
            yield
    except Exception:
        if new and ours:
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def begin_run(run: RunDir, recipe: str, given: Mapping[str, Any] | None = None) -> None:
    """Writes config.yaml (``recipe``) and environment.json. given: what no recipe holds, by its names.

    Raises:
        ConfigError: they cannot be written.
    """
    try:
        write_whole(
            run.environment,
            to_json({"id": run.id, **environment(), "given": given or {}}, indent=1),
        )
        write_whole(run.config, recipe)
    except OSError as error:
        raise ConfigError(f"run.dir: {run.path} cannot be written ({error.strerror})") from error


def check_unused(run: RunDir) -> None:
    """Raises ConfigError where the folder holds a run."""
    begun = run.metrics.exists() and run.metrics.stat().st_size
    if begun or any(run.checkpoints.glob("step_*")):
        raise ConfigError(
            f"{run.path}: already holds a run. Continue it with --resume (in Python "
            "train(resume_from_checkpoint=True)), or set run.dir (TRL's output_dir) to another folder."
        )


def _new_id() -> str:
    return uuid.uuid4().hex[:16]


def recipe_changes(run: RunDir, recipe: str) -> list[str]:
    """Settings in which ``recipe`` (YAML) differs from that of the run, as ``key: old -> new``. A run
    whose folder was moved has the same recipe all the same."""
    try:
        old = flatten(yaml.safe_load(run.config.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return [f"{run.config} cannot be read: whether the recipe is the same is not known"]
    new = flatten(yaml.safe_load(recipe))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key != "run.dir"
    ]


def change_recipe(run: RunDir, recipe: str, step: int) -> None:
    """config.yaml says what the run goes on with after ``step``; what it was until then is kept beside
    it, the first where a resume was repeated.

    Raises:
        ConfigError: it cannot be written.
    """
    kept = run.path / f"config.until_step_{step:06d}.yaml"
    try:
        if run.config.exists() and not kept.exists():
            write_whole(kept, run.config.read_bytes())
        write_whole(run.config, recipe)
    except OSError as error:
        raise ConfigError(f"{run.config} cannot be written ({error.strerror})") from error
