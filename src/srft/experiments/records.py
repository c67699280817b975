"""Figures of finished runs in one file, so that an experiment also goes on where their folders are not."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from pathlib import Path

from srft.experiments.arm_results import RunFigures, read_figures
from srft.experiments.process import Job
from srft.runs.files import read_jsonl, to_json

NAME = "runs.jsonl"


class Records:
    """``runs.jsonl`` of an experiment's folder: a line for each finished run, under the digest of its
    recipe. To go on with an experiment on another machine this file is all that is needed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock = threading.Lock()
        rows = read_jsonl(self.path) if self.path.is_file() else []
        self._figures = {row.pop("digest"): RunFigures(**row) for row in rows}

    def __contains__(self, job: Job) -> bool:
        return job.digest in self._figures

    def of(self, job: Job) -> RunFigures:
        """The figures of a finished job that was added."""
        figures = self._figures[job.digest]
        return replace(figures, arm=job.arm, seed=job.seed, folder=str(job.folder))

    def add(self, job: Job) -> None:
        """Reads the run of a finished job, unless it is there already."""
        with self._lock:
            if job in self:
                return
            # Where the folders stand on this machine is nobody else's business, and changes.
            place = Path(*job.folder.parts[-3:]).as_posix()
            figures = replace(read_figures(job), folder=place)
            self._figures[job.digest] = figures
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_json({"digest": job.digest, **asdict(figures)}) + "\n")
