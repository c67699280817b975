"""A limit on the time a reward function of the user's may take, so that no run waits for ever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from srft.errors import RewardError


@contextmanager
def deadline(seconds: float | None, what: str) -> Iterator[None]:
    """Raises RewardError in the main thread when the block takes longer than ``seconds``.

    A function of the user's runs in this very process, so it cannot be killed as a verifier of ours
    can; it is interrupted by a signal, which ends whatever waits (a request without a time-out, a
    lock, ``sleep``) and every loop of Python's. Code in C that never returns is not reached. The
    signal is SIGVTALRM: SIGALRM belongs to the time limits of libraries that such functions call.
    Outside the main thread, and without ``seconds``, nothing is watched.
    """
    main = threading.current_thread() is threading.main_thread()
    if seconds is None or not main or not hasattr(signal, "pthread_kill"):
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise RewardError(
            f"{what} did not return within {seconds:g} s (reward.function_timeout_s). Mend what it "
            "waits for, or raise the limit; the run goes on with --resume"
        )

    thread = threading.main_thread().ident
    assert thread is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (thread, signal.SIGVTALRM))
    timer.daemon = True
    previous = signal.signal(signal.SIGVTALRM, late)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # a signal sent later would meet the default handler, which ends the process
        signal.signal(signal.SIGVTALRM, previous)
