"""Refused steps: their batches, kept for looking at, and the weights, which they spare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from srft.errors import NumericalError
from srft.model.loading import first_not_finite
from srft.parallel.sharding import own_tensors
from srft.parallel.world import World
from srft.types import TrainingSequence


def save_refused(
    folder: Path | None,
    step: int,
    reason: str,
    sequences: Sequence[TrainingSequence],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Keeps what is needed to see why: tokens, rewards, log-probabilities, and ``more``. Plain values
    and tensors only, read with ``torch.load(path, weights_only=True)``. A disk that cannot hold it
    does not end the run: the step is refused all the same."""
    if folder is None:
        return
    batch = {
        "step": step,
        "reason": reason,
        "sequences": [
            {
                "prompt_ids": list(s.prompt_ids),
                "response_ids": list(s.response_ids),
                "group": s.group,
                "is_demo": s.is_demo,
                "reward": s.reward,
                "sampler_logprobs": list(s.sampler_logprobs or ()),
            }
            for s in sequences
        ],
        **(more or {}),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(batch, folder / f"step_{step:06d}.pt")
    except (OSError, RuntimeError):  # torch.save reports a full disk as RuntimeError
        return


def check_refusals(message: str, in_a_row: int, most: int, folder: Path) -> None:
    """Raises NumericalError where more than ``most`` steps ``in_a_row`` were refused; ``message`` is the
    last one's."""
    if in_a_row > most:
        raise NumericalError(
            f"{message}, {in_a_row} in a row. The batch is in {folder}. Lower train.learning_rate, or "
            "look at the samples for exploding responses"
        )


def check_weights(model: nn.Module, step: int, world: World) -> None:
    """Refused steps spare the weights. Where these are broken all the same, no step repairs them, and no
    checkpoint may take the place of a good one: raises NumericalError."""
    odd = world.first(first_not_finite(own_tensors(model)), "the weights")
    if odd is not None:
        raise NumericalError(
            f"after step {step} the weight {odd} is non-finite. Resume from the last checkpoint with a lower "
            "train.learning_rate"
        )
