"""A reward function that never returns ends the run with its name, whichever thread it runs in."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from srft.errors import RewardError
from srft.rewards.scorer import Scorer
from srft.types import Example

ROWS = [Example(prompt="p", answer="1", source="data.jsonl:7")]
FOREVER = 60.0
"""A test that waits this long fails: nothing but their limit is to end these functions."""


def hangs(prompts, completions, **columns):
    time.sleep(FOREVER)


def loops(prompts, completions, **columns):
    end = time.monotonic() + FOREVER
    while not released.is_set() and time.monotonic() < end:
        pass


def waits_for_a_lock(prompts, completions, **columns):
    lock = threading.Lock()
    with lock:
        lock.acquire()


def tries_again_whatever_happens(prompts, completions, **columns):
    for _ in range(round(FOREVER / 0.05)):
        try:
            time.sleep(0.05)
        except Exception:  # noqa: BLE001 - as users write it
            continue


async def never_answers(prompts, completions, **columns):
    await asyncio.sleep(FOREVER)


async def blocks_the_loop(prompts, completions, **columns):
    time.sleep(FOREVER)


def fails_together_and_hangs_alone(prompts, completions, **columns):
    if len(prompts) > 1:
        raise KeyError("together")
    time.sleep(FOREVER)
    waited_out.set()


released, waited_out = threading.Event(), threading.Event()


@pytest.fixture(autouse=True)
def abandoned_functions_end():
    """What was abandoned in a loop must not burn the processor for the tests that follow."""
    released.clear()
    waited_out.clear()
    yield
    released.set()


def in_main(call):
    return call()


def in_a_thread(call):
    """As evaluation and rollouts ahead call: errors are raised again in the main thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


WHERE = pytest.mark.parametrize("where", [in_main, in_a_thread])


@WHERE
@pytest.mark.parametrize(
    "function",
    [
        hangs,
        loops,
        waits_for_a_lock,
        tries_again_whatever_happens,
        never_answers,
        blocks_the_loop,
    ],
)
def test_a_function_that_does_not_return_is_interrupted_and_named(function, where):
    scorer = Scorer(function, function_timeout_s=0.2)
    message = rf"{function.__name__}.*data.jsonl:7.*function_timeout_s"
    with scorer, pytest.raises(RewardError, match=message):
        where(lambda: scorer.score(ROWS, ["x"]))
    assert signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL


@WHERE
def test_the_search_for_the_sample_that_fails_is_limited_too(where):
    scorer = Scorer(fails_together_and_hangs_alone, function_timeout_s=0.2)
    with scorer, pytest.raises(RewardError, match="raised KeyError: 'together'"):
        where(lambda: scorer.score(ROWS * 2, ["x", "y"]))
    assert not waited_out.is_set()


@WHERE
def test_what_a_function_raises_and_returns_is_its_own(where):
    def late(completions, **_):
        raise TimeoutError("the judge said so")

    with (
        Scorer(late, function_timeout_s=60) as scorer,
        pytest.raises(RewardError, match="late raised TimeoutError: the judge said so"),
    ):
        where(lambda: scorer.score(ROWS, ["x"]))
    with Scorer(lambda completions, **_: [0.25], function_timeout_s=60) as scorer:
        assert where(lambda: scorer.score(ROWS, ["x"]))[0].reward == 0.25


def has_a_limit_of_its_own(prompts, completions, **columns):
    """As math-verify does it."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(FOREVER)
    except TimeoutError:
        return [0.5] * len(completions)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_function_keeps_its_own_alarm_and_a_quick_one_notices_nothing():
    with Scorer(has_a_limit_of_its_own, function_timeout_s=20) as scorer:
        assert scorer.score(ROWS, ["x"])[0].reward == 0.5
        assert scorer.score(ROWS, ["x"])[0].reward == 0.5
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer)]


def test_without_a_limit_a_function_runs_in_the_thread_that_asks():
    threads = []

    def where_am_i(completions, **_):
        threads.append(threading.get_ident())
        return [1.0]

    with Scorer(where_am_i) as scorer, ThreadPoolExecutor(1) as pool:
        pool.submit(scorer.score, ROWS, ["x"]).result()
        asked = pool.submit(threading.get_ident).result()
    assert threads == [asked]
