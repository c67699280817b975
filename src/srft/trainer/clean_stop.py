"""A clean stop: the current step is finished, what can be done again is left, and a checkpoint written."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
_ONE_REQUEST = 1.0
"""Seconds in which signals are one request: ``timeout`` sends one to its command and another to the group."""


class Interrupted(BaseException):
    """A stop was asked for during what a resumed run does again."""


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into ``requested`` (the signal's name).

    Another one, a second later or more, acts as usual, for those who cannot wait. Outside the main thread
    signals belong to somebody else, and nothing is installed.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}
        self._leaves = False
        self._asked = 0.0

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
        if self.requested is None:
            self.requested, self._asked = signal.Signals(number).name, time.monotonic()
            if self._leaves:
                raise Interrupted
        elif time.monotonic() - self._asked >= _ONE_REQUEST:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
