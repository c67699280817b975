"""metrics.jsonl and samples.jsonl, and the optional trackers beside them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from srft.errors import CheckpointError, ConfigError


class JsonlLog:
    """One JSON object a line, flushed line by line. ``offset`` goes into checkpoints, and a resumed
    run cuts the file back to it, so that no step is recorded twice."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if path.stat().st_size < offset:
                # The log was cut by someone; what is left is kept, up to its last whole line.
                offset = path.read_bytes().rfind(b"\n") + 1
            self._file = path.open("r+b")
            self._file.truncate(offset)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
        self._file.seek(offset)

    @property
    def offset(self) -> int:
        return self._file.tell()

    def write(self, record: Mapping[str, Any]) -> None:
        """Raises CheckpointError where the disk is full or not writable; what a line cut short
        leaves is cut away by a resume."""
        line = _json(record)
        try:
            # A lone surrogate, which JSON text may hold and UTF-8 may not, is written as "?".
            self._file.write(line.encode(errors="replace") + b"\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror}). Free space or make the folder "
                "writable, then go on with --resume"
            ) from error

    def close(self) -> None:
        # What a failed write has left in the buffer fails once more here, and is lost already.
        with contextlib.suppress(OSError):
            self._file.close()


class SilentLog(JsonlLog):
    """The log of a process that is not the one to write it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def offset(self) -> int:
        return 0

    def write(self, record: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a log; a last line cut short by a crash is left out, and so is a line that
    something else has damaged (the report says how many these are)."""
    records = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def _json(record: Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_plain(record), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity; null says that a figure does not exist."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


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
