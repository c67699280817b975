"""What a run is in the middle of, and what it came to."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerState

from srft.errors import ConfigError
from srft.trainer.plateau import reached_plateau
from srft.trainer.setup import Setup
from srft.trainer.train_config import Stage


@dataclass
class TrainState:
    """What a resumed run needs beside weights, optimizer and random state; plain JSON.

    step counts finished steps; stage is the index of the stage in hand, which remains the last one, and
    stage_start the step it began with; watched are its figures for the plateau; evaluated is the step at
    which the policy was last evaluated, evaluation_due whether the run goes on with an evaluation; best is
    the best figure so far, and best_of what it is a figure of (``Evaluator.measure``); entropy is the last
    step's, in nats; alarms are the steps in a row that each alarm's metric has been out of bounds.
    """

    step: int = 0
    stage: int = 0
    stage_start: int = 0
    watched: list[float] = field(default_factory=list)
    unsolved: list[int] = field(default_factory=list)
    entropy: float | None = None
    refused_in_a_row: int = 0
    rollout_tokens: float = 0.0
    trained_tokens: float = 0.0
    seconds: float = 0.0
    evaluated: int | None = None
    evaluation_due: bool = False
    best: float | None = None
    best_of: str | None = None
    alarms: dict[str, int] = field(default_factory=dict)

    def stage_over(self, stages: Sequence[Stage]) -> bool:
        """Whether the current stage has had its steps or has reached its plateau."""
        stage = stages[self.stage]
        flat = stage.plateau is not None and reached_plateau(self.watched, stage.plateau)
        return flat or self.step - self.stage_start >= stage.steps

    def next_stage(self, stages: Sequence[Stage]) -> bool:
        """Begins the next stage; False where there is none."""
        if self.stage + 1 == len(stages):
            return False
        self.stage, self.stage_start, self.watched = self.stage + 1, self.step, []
        return True

    def go_on(self, stages: Sequence[Stage]) -> bool:
        """After a resume, with stages that may have changed: whether another stage begins, since the
        recipe has fewer steps or one more stage.

        Raises:
            ConfigError: the stage in hand is not among them.
        """
        if self.stage >= len(stages):
            raise ConfigError(
                f"stages: the run is in stage {self.stage + 1} after step {self.step}, and the recipe "
                f"has {len(stages)}; resume with the stages that it was started with, or with more "
                "after them"
            )
        return self.stage_over(stages) and self.next_stage(stages)

    @property
    def is_evaluated(self) -> bool:
        """Whether the policy was evaluated as it is now."""
        return self.evaluated == self.step

    def finished(self, stages: Sequence[Stage]) -> bool:
        """Whether the last stage is over."""
        return self.stage + 1 == len(stages) and self.stage_over(stages)

    def total_steps(self, stages: Sequence[Stage]) -> int:
        """Steps taken and to come, as far as is known: a stage may end early, at its plateau."""
        to_come = sum(stage.steps for stage in stages[self.stage :])
        return self.step if self.finished(stages) else self.stage_start + to_come


def trl_state(setup: Setup, step: int) -> TrainerState:
    """What reward functions are given as ``trainer_state`` with the completions of the step that
    follows ``step`` finished ones; steps are training steps."""
    train, total = setup.config.train, setup.config.total_steps
    epochs_a_step = train.prompts_per_step / len(setup.train)
    return TrainerState(
        global_step=step,
        max_steps=total,
        epoch=step * epochs_a_step,
        num_train_epochs=math.ceil(total * epochs_a_step),
        train_batch_size=train.prompts_per_step,
        is_local_process_zero=int(os.environ.get("LOCAL_RANK", "0")) == 0,
        is_world_process_zero=setup.world.main,
    )


@dataclass(frozen=True)
class TrainResult:
    """Where things are after training. ``evaluations`` are the lines of evaluation.jsonl, and
    ``stopped_by`` names the signal that ended the run early."""

    run_dir: Path
    model_dir: Path | None
    step: int
    metrics: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]]
    stopped_by: str | None = None


def due(step: int, every: int) -> bool:
    """Whether it is the turn of what is done ``every`` so many steps; 0: never."""
    return every > 0 and step % every == 0
