"""A reward function that never returns ends the run with its name, and not the night with idle GPUs."""

from __future__ import annotations

import asyncio
import signal
import threading
import time

import pytest

from srft.errors import RewardError
from srft.rewards.scorer import Scorer
from srft.types import Example

ROWS = [Example(prompt="p", answer="1", source="data.jsonl:7")]


def hangs(prompts, completions, **columns):
    time.sleep(60)


def loops(prompts, completions, **columns):
    while True:
        pass


def waits_for_a_lock(prompts, completions, **columns):
    lock = threading.Lock()
    with lock:
        lock.acquire()


async def never_answers(prompts, completions, **columns):
    await asyncio.sleep(60)


def has_a_limit_of_its_own(prompts, completions, **columns):
    """As math-verify does it."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(30)
    except TimeoutError:
        return [0.5] * len(completions)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("function", [hangs, loops, waits_for_a_lock, never_answers])
def test_a_function_that_does_not_return_is_interrupted_and_named(function):
    start = time.monotonic()
    with (
        Scorer(function, function_timeout_s=0.2) as scorer,
        pytest.raises(RewardError, match=rf"{function.__name__}.*data.jsonl:7.*function_timeout_s"),
    ):
        scorer.score(ROWS, ["x"])
    assert time.monotonic() - start < 20
    assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL


def test_a_function_keeps_its_own_alarm_and_a_quick_one_notices_nothing():
    with Scorer(has_a_limit_of_its_own, function_timeout_s=20) as scorer:
        assert scorer.score(ROWS, ["x"])[0].reward == 0.5
        assert scorer.score(ROWS, ["x"])[0].reward == 0.5
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


def test_outside_the_main_thread_nothing_is_watched():
    found = []

    def work():
        with Scorer(lambda completions, **_: [1.0], function_timeout_s=0.001) as scorer:
            found.append(scorer.score(ROWS, ["x"])[0].reward)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1.0]
