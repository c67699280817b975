"""Batches of refused steps, kept for looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

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
