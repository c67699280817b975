"""The optional trackers beside metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from srft.errors import ConfigError
from srft.runs.metrics import registered
from srft.runs.run_dir import RunDir


class Tracker(Protocol):
    """Where metrics go beside the log file."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class Trackers:
    """Every tracker of a run. One that fails while training goes on never ends it: ``note`` is told of the
    first failure, and at the end of how many there were.

    Raises:
        ConfigError: one is not installed, or does not start.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: RunDir,
        config: Mapping[str, Any],
        step: int,
        note: Callable[[str], None],
    ) -> None:
        self._open = {name: open_tracker(name, run, config, step) for name in names}
        self._failures = dict.fromkeys(names, 0)
        self._note = note

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """The numbers among ``metrics``."""
        numbers = {
            k: float(v) for k, v in registered(metrics).items() if isinstance(v, int | float)
        }
        for name, tracker in self._open.items():
            try:
                tracker.log(numbers, step)
            except Exception as error:  # noqa: BLE001  whatever a foreign library raises
                self._failures[name] += 1
                if self._failures[name] == 1:
                    said = f"the tracker {name} failed ({type(error).__name__}: {str(error)[:200]})"
                    self._note(
                        f"step {step}: {said}; training continues, metrics.jsonl has everything"
                    )

    def close(self) -> None:
        for name, tracker in self._open.items():
            if self._failures[name]:
                self._note(f"the tracker {name} failed {self._failures[name]} times")
            with suppress(Exception):  # the run is over, and metrics.jsonl has everything
                tracker.close()


def open_tracker(name: str, run: RunDir, config: Mapping[str, Any], step: int) -> Tracker:
    """wandb, tensorboard or trackio, to go on after ``step`` steps."""
    try:
        return _TRACKERS[name](run, config, step)
    except ImportError as error:
        raise ConfigError(
            f"run.trackers: {name} is not installed; pip install 'srft[{name}]', or leave it out"
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"run.trackers: {name} does not start ({lines[0][:300]}); fix that, or leave it out"
        ) from error


class _WandbLike:
    """wandb and trackio have the same calls."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb(run: RunDir, config: Mapping[str, Any], step: int) -> Tracker:
    import wandb

    about: Any = {"name": run.path.resolve().name, "config": dict(config), "dir": str(run.path)}
    return _WandbLike(wandb.init(project="srft", id=run.id, resume="allow", **about))


def _trackio(run: RunDir, config: Mapping[str, Any], step: int) -> Tracker:
    import trackio

    # It knows a run by its name alone.
    name = f"{run.path.resolve().name}-{run.id[:6]}"
    return _WandbLike(trackio.init(project="srft", name=name, resume="allow", config=dict(config)))


class _TensorBoard:
    def __init__(self, run: RunDir, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run wrote after its last checkpoint is made again.
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=purge)
        self._writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


_TRACKERS = {"wandb": _wandb, "tensorboard": _TensorBoard, "trackio": _trackio}
