"""A runner that trains nothing: it writes the records that a run would leave, by a rule of the test."""

from __future__ import annotations

import json
from collections.abc import Callable

from srft.experiments.process import FINISHED, Job, Outcome
from srft.memory.fit import replaced

PROBLEMS = 20
FAMILIES = ("chain", "long")


def write_run(job: Job, accuracy: float) -> None:
    """Records of a run that ends with this share of its problems right."""
    job.folder.mkdir(parents=True, exist_ok=True)
    steps = job.config.total_steps
    rows = [
        {
            "step": step,
            "loss": 0.5,
            "reward/accuracy": accuracy * step / steps,
            "rollout/entropy": 0.3,
            "rollout/length_mean": 9.0,
            "total/rollout_tokens": 10.0 * step,
            "total/trained_tokens": 30.0 * step,
            "total/seconds": 0.1 * step,
        }
        for step in range(1, steps + 1)
    ]
    right = [int(i < round(accuracy * PROBLEMS)) for i in range(PROBLEMS)]
    evaluation = {
        "step": steps,
        "name": "eval",
        "accuracy": accuracy,
        "n": 1,
        "correct": {family: right for family in FAMILIES},
    }
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (job.folder / "evaluation.jsonl").write_text(json.dumps(evaluation) + "\n")
    # A real run's recipe says what it chose where it was left to be chosen.
    chosen = {"model.autocast": "float32", "train.tokens_per_micro_batch": 4096}
    (job.folder / "config.yaml").write_text(replaced(job.config, chosen).to_yaml())
    marks = {"digest": job.digest, "parameters": 1000, "refused": 0}
    # As the real runner does: others may look for this mark at any moment.
    writing = job.folder / f"{FINISHED}.writing"
    writing.write_text(json.dumps(marks))
    writing.rename(job.folder / FINISHED)


class FakeRunner:
    """``rule(job)`` is the accuracy the job ends with, or how it fails."""

    def __init__(self, rule: Callable[[Job], float | Outcome], made: list[str]) -> None:
        self._rule, self._made = rule, made

    def run(self, job: Job) -> Outcome:
        self._made.append(job.name)
        result = self._rule(job)
        if isinstance(result, Outcome):
            return result
        write_run(job, result)
        return Outcome("finished")

    def interrupt(self) -> bool:
        return True

    def close(self) -> None:
        pass
