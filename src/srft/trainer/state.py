"""What a run is in the middle of, and what it came to."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerState

from srft.trainer.setup import Setup


@dataclass
class TrainState:
    """What a resumed run needs beside weights, optimizer and random state; plain JSON.

    step counts finished steps; stage is the index of the stage in hand, which remains the last one, and
    stage_start the step it began with; watched are its figures for the plateau; evaluated is the step at
    which the policy was last evaluated; entropy is the last step's, in nats; alarms
    are the steps in a row that each alarm's metric has been out of bounds.
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
    best: float | None = None
    alarms: dict[str, int] = field(default_factory=dict)


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
