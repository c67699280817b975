"""A limit on the time a reward function of the user's may take, so that no run waits for ever."""

from __future__ import annotations

import contextvars
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import FrameType
from typing import TypeVar

from srft.errors import RewardError

T = TypeVar("T")


class _Late(BaseException):
    """Not an Exception: a function that tries again after any Exception is to end as well."""


def too_late(what: str, seconds: float | None) -> RewardError:
    return RewardError(
        f"{what} did not return within {seconds:g} s (reward.function_timeout_s). Fix what it waits "
        "for, or raise the limit; continue the run with --resume"
    )


def call_within(
    seconds: float | None,
    what: str,
    call: Callable[[], T],
    late: Callable[[str, float], Exception] = too_late,
) -> T:
    """What ``call`` returns or raises. ``seconds``: wall-clock time it may take, None for no limit.
    ``late`` makes the error that is raised after them.

    A function of the user's runs in this very process, so it cannot be killed as a verifier of ours
    can. In the main thread it is interrupted by a signal, which ends whatever waits (a request
    without a time-out, a lock, ``sleep``) and every loop of Python's; the signal is SIGVTALRM, since
    SIGALRM belongs to the time limits of libraries that such functions call. Other threads (evaluation,
    rollouts ahead) cannot be interrupted: there the function runs in one of its own, which is abandoned.

    Raises: RewardError after ``seconds``. Code in C that holds the interpreter lock is not reached.
    """
    if seconds is None:
        return call()
    main = threading.current_thread() is threading.main_thread()
    if main and hasattr(signal, "pthread_kill"):
        return _interrupted(seconds, what, call, late)
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            done.set_exception(error)

    run = contextvars.copy_context().run
    threading.Thread(target=run, args=(work,), name="srft-reward", daemon=True).start()
    if not wait([done], seconds).done:
        raise late(what, seconds)
    return done.result()


def _interrupted(
    seconds: float, what: str, call: Callable[[], T], late: Callable[[str, float], Exception]
) -> T:
    running = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if running:
            raise _Late

    thread = threading.main_thread().ident
    assert thread is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (thread, signal.SIGVTALRM))
    timer.daemon = True
    previous = signal.signal(signal.SIGVTALRM, interrupt)
    timer.start()
    try:
        try:
            return call()
        finally:
            running = False
    except _Late:
        raise late(what, seconds) from None
    finally:
        timer.cancel()
        timer.join()  # a signal sent later would meet the default handler, which ends the process
        signal.signal(signal.SIGVTALRM, previous)
