"""The pool of verifier processes: limits, deaths, order, and how it ends."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from srft.errors import RewardError
from srft.rewards import pool as pool_module
from srft.rewards.pool import VerifierPool

ROOT = Path(__file__).parents[2]
MATH = "srft.rewards.verifiers:check_math"

ADVERSARIAL = {
    "tower of powers": r"\boxed{9^{9^{9^{9}}}}",
    "tower in prose": "the answer is 9^9^9^9",
    "huge factorial": r"\boxed{99999999!}",
    "nested parentheses": r"\boxed{" + "(" * 5000 + "1" + ")" * 5000 + "}",
    "nested fractions": r"\boxed{" + r"\frac{1}{" * 300 + "2" + "}" * 300 + "}",
    "megabyte of braces": "{" * 1_000_000,
    "unclosed boxes": r"\boxed{" * 140_000,
    "long number": r"\boxed{" + "7" * 100_000 + "}",
    "unicode": "\\boxed{\U0001f600\u202e\u0663\u0664}",
    "null byte": "\\boxed{\x00}",
    "lone surrogate": "\\boxed{\ud800}",
    "empty": "",
    "binomial": r"\boxed{\binom{10^9}{5 \cdot 10^8}}",
    "tower of exponentials": r"\boxed{e^{e^{e^{e^{e}}}}}",
}


def test_every_adversarial_answer_gets_a_score_within_its_limit(pool: VerifierPool) -> None:
    pool.submit(MATH, "1", "1").result()
    futures = {name: pool.submit(MATH, text, "1") for name, text in ADVERSARIAL.items()}
    verdicts = {name: future.result() for name, future in futures.items()}
    assert all(verdict.score == 0.0 for verdict in verdicts.values()), verdicts
    assert verdicts["tower of powers"].status in {"timeout", "memory"}
    assert pool.submit(MATH, r"\boxed{\frac{2}{4}}", "1/2").result().score == 1.0


def test_time_limit_holds_against_sleep_and_against_the_interpreter_lock(
    pool: VerifierPool,
) -> None:
    for check in ("hostile:nap", "hostile:hold_the_lock"):
        verdict = pool.submit(check, "60", None).result()
        assert (verdict.score, verdict.status) == (0.0, "timeout")


def test_memory_limit_holds_for_growth_for_one_gulp_and_for_what_is_held(hostile: Path) -> None:
    with VerifierPool(workers=2, timeout_s=20.0, memory_mb=128) as pool:
        futures = [pool.submit(f"hostile:{name}", "", None) for name in ("grow", "gulp", "rest")]
        assert [f.result().status for f in futures] == ["memory"] * 3
        assert pool.stats()["memory"] == 3


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{__import__('os').system('touch CANARY')}",
        r"__import__('os').system('touch CANARY')",
        r"\boxed{\operatorname{__import__('pathlib').Path('CANARY').touch()}}",
        r"\boxed{().__class__.__base__.__subclasses__()}",
        r"<answer>__import__('os').system('touch CANARY')</answer>",
        r"$open('CANARY','w').write('x')$",
        r"\boxed{\text{exec}(\text{\"open('CANARY','w')\"})}",
    ],
)
@pytest.mark.parametrize("check", ["check_math", "check_exact", "check_numeric", "check_choice"])
def test_answers_are_never_run(pool: VerifierPool, tmp_path: Path, check: str, text: str) -> None:
    canary = tmp_path / "canary"
    for answer in ("1", text.replace("CANARY", str(canary))):
        said = text.replace("CANARY", str(canary))
        pool.submit(f"srft.rewards.verifiers:{check}", said, answer).exception()
    pool.submit(
        "srft.rewards.countdown:check_countdown",
        text.replace("CANARY", str(canary)),
        "3",
        {"numbers": [1, 2]},
    ).result()
    assert not canary.exists()


def test_results_come_back_to_the_item_they_belong_to(pool: VerifierPool) -> None:
    wanted = [float(i) for i in range(300)]
    random.Random(0).shuffle(wanted)
    futures = [pool.submit("hostile:echo", str(value), None) for value in wanted]
    assert [future.result().score for future in futures] == wanted


def test_a_worker_killed_from_outside_is_replaced_and_its_item_scored(pool: VerifierPool) -> None:
    pool.submit("hostile:nap", "0", "1").result()
    before = pool.stats()["restarted"]
    future = pool.submit("hostile:nap", "1", "1")
    time.sleep(0.4)
    for pid in pool.worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert future.result().status == "ok"
    assert pool.stats()["restarted"] == before + 1
    assert pool.submit(MATH, "#### 7", "7").result().score == 1.0


def test_workers_killed_at_random_lose_nothing_and_change_nothing(pool: VerifierPool) -> None:
    futures = [pool.submit("hostile:echo", str(i), None) for i in range(600)]
    rng, kills = random.Random(0), 0
    while not futures[-1].done():
        if pids := pool.worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(pids), signal.SIGKILL)
                kills += 1
        time.sleep(0.1)
    assert kills > 3
    assert [f.result().score for f in futures] == list(range(600))


def test_an_item_that_kills_its_worker_is_scored_zero_and_counted(hostile: Path) -> None:
    with VerifierPool(workers=1) as pool:
        verdict = pool.submit("hostile:die", "", None).result()
        assert (verdict.score, verdict.status) == (0.0, "crash")
        assert pool.stats()["crash"] == 1
        first = pool.submit("hostile:pid", "", None).result().score
        assert pool.submit("hostile:die_once", str(int(first)), None).result().status == "ok"
        assert pool.stats()["restarted"] == 2


def test_the_nursery_killed_from_outside_is_replaced(hostile: Path) -> None:
    with VerifierPool(workers=2, timeout_s=5.0) as pool:
        assert pool.submit("hostile:echo", "1", None).result().score == 1.0
        assert pool._state is not None and pool._state.nursery._process is not None
        os.kill(pool._state.nursery._process.pid, signal.SIGKILL)
        for pid in pool.worker_pids():
            os.kill(pid, signal.SIGKILL)
        futures = [pool.submit("hostile:echo", str(i), None) for i in range(20)]
        assert [f.result().score for f in futures] == list(range(20))


def test_a_verifier_that_fails_raises_and_is_not_scored(pool: VerifierPool) -> None:
    with pytest.raises(RewardError, match="no such thing"):
        pool.submit("hostile:fail", "", None).result()


def test_workers_import_neither_torch_nor_transformers(pool: VerifierPool) -> None:
    for module in ("torch", "transformers", "numpy", "srft.types"):
        assert pool.submit("hostile:loaded", module, None).result().score == 0.0
    assert pool.submit("hostile:loaded", "math_verify", None).result().score == 1.0


def test_submitting_from_many_threads_loses_nothing(pool: VerifierPool) -> None:
    scores: dict[int, float | None] = {}

    def work(thread: int) -> None:
        futures = [pool.submit("hostile:echo", str(thread * 50 + i), None) for i in range(50)]
        for i, future in enumerate(futures):
            scores[thread * 50 + i] = future.result().score

    threads = [threading.Thread(target=work, args=(t,)) for t in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == {i: float(i) for i in range(300)}


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the worker is busy and two items wait, nothing more is taken."""
    gate, taken = threading.Event(), []

    def attempt(slot: Any, payload: bytes) -> tuple[str, float]:
        gate.wait()
        return "ok", 1.0

    monkeypatch.setattr(pool_module._Slot, "_attempt", attempt)
    with VerifierPool(workers=1, queue_size=2) as pool:

        def submit() -> None:
            for _ in range(5):
                taken.append(pool.submit(MATH, "1", "1"))

        thread = threading.Thread(target=submit)
        thread.start()
        _until(lambda: len(taken) >= 3)
        thread.join(0.2)  # what is not bounded goes on meanwhile
        assert thread.is_alive() and len(taken) == 3
        gate.set()
        thread.join()
        assert [future.result().score for future in taken] == [1.0] * 5


def _until(holds: Callable[[], bool]) -> None:
    """Waits; what never holds runs into the test's own limit."""
    while not holds():
        time.sleep(0.01)


def test_a_worker_is_replaced_after_so_many_items(hostile: Path) -> None:
    with VerifierPool(workers=1, timeout_s=5.0, recycle_after=3) as pool:
        pids = [pool.submit("hostile:pid", "", None).result().score for _ in range(9)]
    assert len(set(pids)) == 3


def test_closing_ends_every_process_and_refuses_further_items(hostile: Path) -> None:
    pool = VerifierPool(workers=2, timeout_s=3600.0)
    pool.submit("hostile:echo", "1", None).result()
    running = pool.submit("hostile:nap", "3600", None)
    waiting = [pool.submit("hostile:nap", "3600", None) for _ in range(5)]
    _until(lambda: len(pool.worker_pids()) == 2 and running.running())
    assert pool._state is not None and pool._state.nursery._process is not None
    pids = [*pool.worker_pids(), pool._state.nursery._process.pid]
    pool.close()
    pool.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(RewardError, match="closed"):
        running.result()
    assert all(future.cancelled() or future.exception() for future in waiting)
    with pytest.raises(RewardError, match="closed"):
        pool.submit("hostile:echo", "1", None)


def _script(body: str, tmp_path: Path) -> subprocess.Popen[str]:
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(body))
    paths = [str(ROOT / "src"), *(p for p in sys.path if p.endswith("hostile0"))]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    return subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment,
    )  # fmt: skip


UNGUARDED = """
    from srft.rewards.pool import VerifierPool
    print("imported")
    pool = VerifierPool(workers=2, timeout_s=60.0)
    print(pool.submit("srft.rewards.verifiers:check_math", "#### 7", "7").result().score)
    futures = [pool.submit("hostile:nap", "60", None) for _ in range(4)]
    import time; time.sleep(0.3)
    print("pids", pool._state.nursery._process.pid, *pool.worker_pids(), flush=True)
"""


def _pids(output: str) -> list[int]:
    return [int(word) for word in output.split("pids")[1].split()]


def _gone(pids: list[int], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        alive = [p for p in pids if psutil.pid_exists(p) and not _is_zombie(p)]
        if not alive:
            return True
        time.sleep(0.05)
    return False


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_script_without_main_guard_runs_once_and_ends_with_items_running(
    hostile: Path, tmp_path: Path
) -> None:
    script = _script(UNGUARDED, tmp_path)
    output, errors = script.communicate(timeout=60)
    assert script.returncode == 0, errors
    assert output.count("imported") == 1 and "1.0" in output and not errors
    assert _gone(_pids(output), within_s=5.0)


@pytest.mark.slow
def test_every_rank_of_torchrun_has_workers_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(
        textwrap.dedent("""
        import os
        from srft.rewards.scorer import Scorer
        from srft.types import Example
        with Scorer("math", timeout_s=1.0) as scorer:
            texts = [r"\\boxed{\\frac{1}{2}}", "#### 9", r"\\boxed{9^{9^{9^{9}}}}"]
            rewards = [s.reward for s in scorer.score([Example("", (), "0.5")] * 3, texts)]
            print(f"rank {os.environ['RANK']}: {rewards} of {scorer._pool.workers}", flush=True)
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "rank.py"], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env=dict(os.environ, PYTHONPATH=str(ROOT / "src")),
    )  # fmt: skip
    share = max(1, min(16, len(os.sched_getaffinity(0)) // 2))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"rank {rank}: [1.0, 0.0, 0.0] of {share}" for rank in (0, 1)
    ]


def test_no_process_outlives_a_trainer_that_was_killed(hostile: Path, tmp_path: Path) -> None:
    script = _script(UNGUARDED + "    time.sleep(60)\n", tmp_path)
    assert script.stdout is not None
    lines = iter(script.stdout.readline, "")
    pids = next(_pids(line) for line in lines if "pids" in line)
    assert len(pids) == 3
    script.kill()
    script.communicate()
    assert _gone(pids, within_s=10.0)


def test_a_forked_child_gets_workers_of_its_own(hostile: Path, tmp_path: Path) -> None:
    body = """
        import os
        from srft.rewards.pool import VerifierPool
        pool = VerifierPool(workers=1, timeout_s=10.0)
        print(pool.submit("hostile:echo", "1", None).result().score, flush=True)
        child = os.fork()
        print(pool.submit("hostile:echo", "2", None).result().score, flush=True)
        if child == 0:
            pool.close()
            os._exit(7)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(pool.submit("hostile:echo", "3", None).result().score)
    """
    script = _script(body, tmp_path)
    output, errors = script.communicate(timeout=60)
    assert script.returncode == 0, errors
    assert sorted(output.split()) == ["1.0", "2.0", "2.0", "3.0", "7", "child"]


def test_a_pool_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/nowhere"])
    with VerifierPool(workers=1) as pool, pytest.raises(RewardError, match="No module named"):
        pool.submit(MATH, "1", "1").result()
