"""The teacher of an experiment's distilling arms: the base model, trained longer than any arm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from srft.config import SRFTConfig
from srft.errors import SRFTError
from srft.experiments.experiment import Arm, arm_recipe
from srft.experiments.process import Job, ProcessRunner, finished_digest, recipe_digest

FOLDER = "teacher"
"""As ``teacher.path`` of an arm, it stands for the model made here."""

TEACHER = Arm("teacher", "srft", steps=3.0)


def make_teacher(base: SRFTConfig, out: Path, console: Console) -> Path:
    """Trains TEACHER under seed 0 in ``out/teacher``, where that has not been done, and returns the folder
    of its exported model. Interrupted, it goes on where it was.

    Raises:
        SRFTError: its training failed.
    """
    folder = out / FOLDER
    config = arm_recipe(TEACHER, base, seed=0, folder=folder, keep_model=True)
    digest = recipe_digest(config)
    if finished_digest(folder) != digest:
        console.print(f"training the teacher: {TEACHER.method}, {config.total_steps} steps")
        runner = ProcessRunner()
        outcome = runner.run(Job(FOLDER, 0, config, folder, digest))
        runner.close()
        if outcome.status != "finished":
            raise SRFTError(f"{folder}: the teacher was not trained ({outcome.error or 'stopped'})")
    return folder / "model"


def has_teacher(arm: Arm) -> bool:
    """Whether the arm learns from the teacher that is made here."""
    return arm.recipe.get("teacher", {}).get("path") == FOLDER


def taught(arm: Arm, teacher: Path) -> Arm:
    """The arm with its teacher's place filled in, where it has one."""
    if not has_teacher(arm):
        return arm
    return replace(arm, recipe={**arm.recipe, "teacher": {"path": str(teacher)}})
