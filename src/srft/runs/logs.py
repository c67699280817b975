"""The logs of a run while it is being written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srft.errors import CheckpointError
from srft.runs.files import to_json
from srft.runs.metrics import registered
from srft.runs.run_dir import RunDir


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
        line = to_json(record)
        try:
            self._file.write(line.encode(errors="replace") + b"\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror}). Free space or make the folder "
                "writable, then continue with --resume"
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


class MetricsLog(JsonlLog):
    """metrics.jsonl, which holds registered metrics alone."""

    def write(self, record: Mapping[str, Any]) -> None:
        super().write(registered(record))


class RunLogs:
    """All logs of a run, cut back to ``offsets`` (name of the file -> length in bytes); ``silent``: of a
    process that is not the one to write them."""

    def __init__(self, run: RunDir, offsets: Mapping[str, int], silent: bool = False) -> None:
        def log(path: Path, kind: type[JsonlLog] = JsonlLog) -> JsonlLog:
            return SilentLog(path) if silent else kind(path, offsets.get(path.name, 0))

        self.metrics = log(run.metrics, MetricsLog)
        self.samples = log(run.samples)
        self.events = log(run.events)
        self.evaluation = log(run.evaluation)
        self._all = (self.metrics, self.samples, self.events, self.evaluation)

    @property
    def offsets(self) -> dict[str, int]:
        """Where the logs stand: what a checkpoint keeps."""
        return {log.path.name: log.offset for log in self._all}

    def close(self) -> None:
        for log in self._all:
            log.close()
