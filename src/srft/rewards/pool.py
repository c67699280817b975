"""Verifiers in worker processes that can be killed: one score per item, whatever the item is.

`VerifierPool.submit` gives a future; a thread per worker hands it items one at a time, watches the
clock and the worker's memory, and replaces a worker that exceeded its limits. See
`srft.rewards.worker` for the processes. Starts at the first item; closes with the interpreter.

The time limit counts the worker's processor time. On a machine whose cores are all busy (one that
trains) a second by the wall clock may be a tenth of a second of computing: a limit by the wall
clock scores right answers 0 there, and other ones in every run. A limit by the wall clock, ten times
as long, stands behind it for what does not compute.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, get_args

import psutil

from srft.errors import RewardError
from srft.rewards.verifiers import Status, Verdict
from srft.rewards.worker import READY, Job, Limits, dumps
from srft.secrets import without_secrets

_FIRST_LOOK_S = 0.02
_LOOK_EVERY_S = 0.05
# Two seconds of computing. A start that fails is seen at once; a crowded machine may take minutes.
_START_LIMIT_S = 600.0
_START_ATTEMPTS = 3
_DEATHS: dict[int | None, str] = {-signal.SIGPROF: "timeout", -signal.SIGKILL: "killed"}
# A worker that dies by itself may have been unlucky once. One killed from outside says next to
# nothing about the item; on a busy machine the same item can be hit more than once.
_TRIES = {"crash": 2, "killed": 20}
_BOOTSTRAP = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); "
    "from srft.rewards.worker import nursery_main; nursery_main(int(sys.argv[1]))"
)


def default_workers() -> int:
    """The cores this process may use, shared among the ranks of the machine, at most 16."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(16, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


class _Nursery:
    """The process that forks workers. One request at a time; restarted if it has died."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._control: Connection[Any, Any] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.resting_rss = 0
        self.closed = False

    def fork(self) -> tuple[int, Connection[Any, Any]]:
        """A new worker: its process id and the socket to it. Raises RewardError if none starts."""
        with self._lock:
            for attempt in range(1, _START_ATTEMPTS + 1):
                ours, theirs = socket.socketpair()
                try:
                    control = self._started()
                    control.send(("fork",))
                    reduction.send_handle(control, theirs.fileno(), None)
                    return control.recv(), Connection(ours.detach())
                except (EOFError, OSError) as error:
                    ours.close()
                    self._stop()
                    if attempt == _START_ATTEMPTS or self.closed:
                        raise RewardError(f"no verifier process can be started: {error}") from error
                finally:
                    theirs.close()
        raise AssertionError("unreachable")

    def reap(self, pid: int, grace_s: float = 0.0) -> int:
        """End a worker and give its exit code."""
        with self._lock:
            try:
                if self._control is None:
                    raise EOFError
                self._control.send(("reap", pid, grace_s))
                code: int = self._control.recv()
                return code
            except (EOFError, OSError):
                # The nursery was killed: its workers belong to init now, which reaps them.
                self._stop()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return -signal.SIGKILL

    def _started(self) -> Connection[Any, Any]:
        if self.closed:
            raise RewardError("the verifier pool is closed")
        if self._control is not None:
            return self._control
        ours, theirs = socket.socketpair()
        environment = without_secrets(os.environ)
        environment |= {
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        environment.pop("PYTHONSTARTUP", None)
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, str(theirs.fileno()),
                 json.dumps([path for path in sys.path if isinstance(path, str)])],
                pass_fds=[theirs.fileno()], env=environment, process_group=0,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            theirs.close()
            self._control = Connection(ours.detach())
            try:
                self._control.send(self._limits)
                if not self._control.poll(_START_LIMIT_S):
                    self._stop()
                    raise RewardError(f"no verifier process started in {_START_LIMIT_S:.0f} s")
                state, detail = self._control.recv()
            except (EOFError, OSError):
                if (
                    self._process.wait() < 0
                ):  # somebody killed it, which says nothing about the next
                    raise OSError(f"killed by signal {-self._process.returncode}") from None
                errors.seek(0)
                state, detail = "failed", errors.read().decode(errors="replace")
        if state != READY:
            self._stop()
            raise RewardError(f"the verifier process cannot start:\n{detail.strip()[-2000:]}")
        self.resting_rss = psutil.Process(self._process.pid).memory_info().rss
        return self._control

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._control = self._process = None

    def close(self) -> None:
        """End the nursery, which takes its workers with it."""
        self.closed = True
        with self._lock:
            if self._control is None or self._process is None:
                return
            # Said in words: a process forked from this one may hold the socket open.
            with contextlib.suppress(OSError):
                self._control.send(("stop",))
            self._control.close()
            self._control = None
            try:
                self._process.wait(timeout=2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class _Slot(threading.Thread):
    """One worker and the thread that feeds it."""

    def __init__(self, state: _State, number: int) -> None:
        super().__init__(name=f"verifier-{number}", daemon=True)
        self._state = state
        self._pid = 0
        self._socket: Connection[Any, Any] | None = None
        self._served = 0

    def run(self) -> None:
        while (task := self._state.tasks.get()) is not None:
            future, payload = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._verify(payload))
            except BaseException as error:  # noqa: BLE001 - the caller gets it from the future
                future.set_exception(error)
            del task, future, payload
        self._end_worker()

    def _verify(self, payload: bytes) -> Verdict:
        tries = Counter[str]()
        while True:
            status, score = self._attempt(payload)
            if self._state.closing.is_set():
                raise RewardError("the verifier pool was closed before this completion was scored")
            tries[status] += 1
            if tries[status] >= _TRIES.get(status, 1):
                break
            self._state.count("restarted")
        status = "crash" if status == "killed" else status
        self._state.count(status)
        return Verdict(score, status)  # type: ignore[arg-type]

    def _attempt(self, payload: bytes) -> tuple[str, float | None]:
        connection = self._worker()
        deadline = time.monotonic() + self._state.wall_limit_s
        try:
            connection.send_bytes(payload)
            outcome = self._wait(connection, deadline)
            if outcome is not None:
                self._end_worker()
                return outcome, 0.0
            score, status, tired = connection.recv()
        except (EOFError, OSError):
            code = self._end_worker(grace_s=1.0)
            return _DEATHS.get(code, "crash"), 0.0
        if status.startswith("error:"):
            raise RewardError(f"a verifier failed:\n{status[6:].strip()}")
        self._served += 1
        if tired or status == "memory" or self._served >= self._state.recycle_after:
            self._end_worker()
        return status, score

    def _wait(self, connection: Connection[Any, Any], deadline: float) -> str | None:
        """None when there is an answer to read, else why there will be none."""
        pause = _FIRST_LOOK_S
        while True:
            left = deadline - time.monotonic()
            if connection.poll(max(0.0, min(pause, left))):
                return None
            if self._state.closing.is_set():
                return "crash"
            if left <= pause:
                return "timeout"
            pause = _LOOK_EVERY_S
            if self._rss() > self._state.nursery.resting_rss + self._state.memory_bytes:
                return "memory"

    def _rss(self) -> int:
        try:
            return int(psutil.Process(self._pid).memory_info().rss)
        except psutil.Error:
            return 0

    def _worker(self) -> Connection[Any, Any]:
        if self._socket is None:
            self._pid, self._socket = self._state.nursery.fork()
            self._served = 0
        return self._socket

    def _end_worker(self, grace_s: float = 0.0) -> int | None:
        """End the worker, if there is one, and give its exit code."""
        if self._socket is None:
            return None
        self._socket.close()
        self._socket = None
        return None if self._state.nursery.closed else self._state.nursery.reap(self._pid, grace_s)


class _State:
    """What the threads share. Holds no reference to the pool, so that the pool can be collected."""

    def __init__(
        self,
        workers: int,
        timeout_s: float,
        memory_mb: int,
        wall_limit_s: float,
        queue_size: int,
        recycle_after: int,
    ) -> None:
        self.owner = os.getpid()
        self.wall_limit_s = wall_limit_s
        self.memory_bytes = memory_mb * 2**20
        self.recycle_after = recycle_after
        self.closing = threading.Event()
        # Twice the limit: the resident-set watch, which can tell what happened, comes first; this
        # stops what allocates gigabytes between two looks.
        self.nursery = _Nursery(Limits(timeout_s, 2 * self.memory_bytes))
        self.tasks: queue.Queue[tuple[Future[Verdict], bytes] | None] = queue.Queue(queue_size)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.slots = [_Slot(self, number) for number in range(workers)]
        for slot in self.slots:
            slot.start()

    def count(self, status: str) -> None:
        with self._lock:
            self._counts[status] += 1

    def counts(self) -> Counter[str]:
        with self._lock:
            return Counter(self._counts)

    def shutdown(self) -> None:
        """Cancel what waits, stop what runs, end every process. Idempotent."""
        if self.owner != os.getpid() or self.closing.is_set():
            return  # in a forked child the processes and threads are the parent's
        self.closing.set()
        with contextlib.suppress(queue.Empty):
            while True:
                task = self.tasks.get_nowait()
                if task is not None:
                    task[0].cancel()
        for _ in self.slots:
            self.tasks.put(None)
        for slot in self.slots:
            if slot is not threading.current_thread():
                slot.join(timeout=5.0)
        self.nursery.close()


class VerifierPool:
    """Runs verifiers in `workers` processes with a limit on time and memory for every item.

    workers: None means `default_workers`. timeout_s: processor seconds per item. memory_mb: MiB an
    item may use beyond the resting worker. wall_limit_s: wall-clock seconds per item (None:
    10 * timeout_s + 10). queue_size: items waiting; `submit` blocks beyond that. recycle_after:
    items after which a worker is replaced, which keeps its caches from growing.

    An item past a limit scores 0 with status "timeout" or "memory"; one whose worker died is tried
    once more in a fresh worker (up to 19 times more where the worker was killed from outside) and
    then scores 0 with status "crash". Safe to use from any thread,
    and in a forked child (which gets workers of its own).
    """

    def __init__(
        self,
        workers: int | None = None,
        timeout_s: float = 5.0,
        memory_mb: int = 512,
        wall_limit_s: float | None = None,
        queue_size: int = 10_000,
        recycle_after: int = 1000,
    ) -> None:
        self.workers = workers or default_workers()
        wall_limit_s = 10 * timeout_s + 10 if wall_limit_s is None else wall_limit_s
        self._settings = (
            self.workers, timeout_s, memory_mb, wall_limit_s, queue_size, recycle_after
        )  # fmt: skip
        self._lock = threading.Lock()
        self._state: _State | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._closed = False

    def submit(
        self,
        check: str,
        text: str,
        answer: str | None,
        columns: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Future[Verdict]:
        """Verify one completion with the function named `check` (``package.module:function``)."""
        payload = dumps(Job(check, text, answer, dict(columns or {}), dict(options or {})))
        future: Future[Verdict] = Future()
        self._running().tasks.put((future, payload))
        return future

    def _running(self) -> _State:
        with self._lock:
            if self._closed:
                raise RewardError("the verifier pool is closed; make a new Scorer")
            if self._state is None or self._state.owner != os.getpid():
                self._state = _State(*self._settings)
                self._finalizer = weakref.finalize(self, self._state.shutdown)
            return self._state

    def stats(self) -> dict[str, int]:
        """Items by outcome (`Verdict.status`) since the start, and `restarted`: the workers that died
        and whose item was tried again."""
        counts = self._state.counts() if self._state else Counter()
        return {name: counts[name] for name in (*get_args(Status), "restarted")}

    def worker_pids(self) -> list[int]:
        """Process ids of the workers alive now."""
        slots = self._state.slots if self._state else []
        return [slot._pid for slot in slots if slot._socket is not None]

    def close(self) -> None:
        """End all processes; futures not yet running are cancelled. Idempotent."""
        with self._lock:
            self._closed = True
        if self._finalizer is not None:
            self._finalizer()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
