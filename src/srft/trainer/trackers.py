"""The optional trackers beside metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from srft.errors import ConfigError


class Tracker(Protocol):
    """Where metrics go beside the log file."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def open_tracker(name: str, run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    """wandb, tensorboard or trackio.

    Raises:
        ConfigError: the library is not installed.
    """
    try:
        return _TRACKERS[name](run_dir, config)
    except ImportError as error:
        raise ConfigError(
            f"run.trackers: {name} is not installed; pip install 'srft[{name}]', or leave it out"
        ) from error


class _WandbLike:
    """wandb and trackio have the same calls."""

    def __init__(
        self, module: Any, run_dir: Path, config: Mapping[str, Any], **options: Any
    ) -> None:
        self._run = module.init(project="srft", name=run_dir.name, config=dict(config), **options)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb(run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    import wandb

    return _WandbLike(wandb, run_dir, config, dir=str(run_dir))


def _trackio(run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    import trackio

    return _WandbLike(trackio, run_dir, config)


class _TensorBoard:
    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


_TRACKERS = {"wandb": _wandb, "tensorboard": _TensorBoard, "trackio": _trackio}
