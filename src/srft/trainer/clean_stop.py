"""A clean stop: the current step is finished, what can be done again is left, and a checkpoint written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupted(BaseException):
    """A stop was asked for during what a resumed run does again."""


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into ``requested`` (the signal's name).

    A second one acts as usual, for those who cannot wait. Outside the main thread signals belong to
    somebody else, and nothing is installed.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}
        self._leaves = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def unless_asked(self, work: Callable[[], T]) -> T | None:
        """What ``work`` returns, which a resumed run does again; None where a request came before or
        meanwhile, which ends it there and then."""
        try:
            try:
                self._leaves = True
                return work() if self.requested is None else None
            finally:
                self._leaves = False
        except Interrupted:  # the signal may come in the line above, too
            return None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        self._restore()
        if self._leaves:
            raise Interrupted

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
