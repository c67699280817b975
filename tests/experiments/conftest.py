"""A small experiment, and settings that make its runs short."""

from __future__ import annotations

from pathlib import Path

import pytest

from srft.experiments.experiment import Arm, Experiment


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(
        "small",
        "A small one",
        (Arm("base", untrained=True), Arm("srft", "srft"), Arm("grpo", "grpo")),
    )


@pytest.fixture
def settings(tiny_model: Path) -> list[str]:
    """Overrides that make a run of the tiny model short."""
    return [
        f"model.path={tiny_model}",
        "train.steps=2",
        "train.prompts_per_step=2",
        "rollout.group_size=2",
        "rollout.max_tokens=8",
        "data.limit=20",
        "data.eval_limit=9",
        "reward.failed_demonstrations=keep",
    ]
