"""A tiny Qwen3 with random weights over the lab's tokenizer, and a recipe that runs in seconds."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter. It must know before anything imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.toys import real_data_dir, save_lab_model

from srft.config import SRFTConfig, parse_config
from srft.lab import lab_train


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model of some 20,000 parameters."""
    return save_lab_model(tmp_path_factory.mktemp("tiny"), initializer_range=0.02)


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Forty lab problems as plain rows."""
    return [dict(row) for row in lab_train(40)]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data; tests that need it are skipped where it is absent."""
    return real_data_dir()


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Callable[..., SRFTConfig]:
    """``recipe(**sections)``: a config of six quick steps; sections replace or add settings."""

    def build(**sections: Any) -> SRFTConfig:
        values: dict[str, Any] = {
            "model": {"path": str(tiny_model)},
            "data": {"train": "lab", "limit": 40},
            "reward": "exact",
            "rollout": {"group_size": 3, "max_tokens": 12},
            "train": {"prompts_per_step": 4, "learning_rate": 1e-3},
            "run": {"dir": str(tmp_path / "run"), "live": "never", "checkpoint_every": 2},
        }
        if "stages" not in sections:
            values["train"]["steps"] = 6
        for name, section in sections.items():
            if isinstance(section, dict) and isinstance(values.get(name), dict):
                values[name] = {**values[name], **section}
            else:
                values[name] = section
        return parse_config(values)

    return build
