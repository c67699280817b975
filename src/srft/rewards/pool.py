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
import logging
import math
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
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, get_args

import psutil

from srft.errors import RewardError
from srft.rewards.verifiers import Status, Verdict
from srft.rewards.worker import LONGEST, READY, line
from srft.secrets import for_verifiers

logger = logging.getLogger(__name__)
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
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from srft.rewards.worker import "
    "nursery_main; nursery_main(int(sys.argv[1]))"
)


def default_workers() -> int:
    """The cores this process may use, shared among the ranks of the machine, at most 16."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(16, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


def _receive(connection: socket.socket) -> Any:
    """One message of the nursery's. Raises EOFError or OSError where none comes."""
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(LONGEST)
        if not piece or len(data) > LONGEST:
            raise EOFError("it has ended")
        data += piece
    return json.loads(data)


class _Nursery:
    """The process that forks workers. One request at a time; restarted if it has died."""

    _holes_said = False

    def __init__(self, cpu_s: float, address_space: int, packages: Sequence[str]) -> None:
        self._limits = (cpu_s, address_space, list(packages))
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.resting_rss = 0
        self.closed = False

    def fork(self) -> tuple[int, socket.socket]:
        """A new worker: its process id and the socket to it. Raises RewardError if none starts."""
        with self._lock:
            for attempt in range(1, _START_ATTEMPTS + 1):
                ours, theirs = socket.socketpair()
                try:
                    control = self._started()
                    socket.send_fds(control, [line("fork")], [theirs.fileno()])
                    return _receive(control)[0], ours
                except (EOFError, OSError) as error:
                    ours.close()
                    self._stop()
                    if attempt == _START_ATTEMPTS or self.closed:
                        raise RewardError(f"no verifier process can be started: {error}") from error
                finally:
                    theirs.close()
        raise AssertionError("unreachable")

    def reap(self, pid: int, grace_s: float = 0.0) -> int:
        """End a worker and give its exit code, 0 where it did not end by itself."""
        with self._lock:
            try:
                if self._control is None:
                    raise EOFError
                self._control.sendall(line("reap", pid, grace_s))
                code: int = _receive(self._control)[0]
                return code
            except (EOFError, OSError):
                # The nursery was killed: its workers belong to init now, which reaps them.
                self._stop()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return -signal.SIGKILL

    def _started(self) -> socket.socket:
        if self.closed:
            raise RewardError("the verifier pool is closed")
        if self._control is not None:
            return self._control
        self._control, theirs = socket.socketpair()
        environment = for_verifiers(os.environ)
        environment |= {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryFile() as errors, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-PB", "-c", _BOOTSTRAP, str(theirs.fileno()),
                 json.dumps([path for path in sys.path if isinstance(path, str)])],
                pass_fds=[theirs.fileno()], env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            theirs.close()
            self._control.settimeout(_START_LIMIT_S)
            try:
                self._control.sendall(line(*self._limits))
                state, detail = _receive(self._control)
            except TimeoutError:
                self._stop()
                raise RewardError(
                    f"no verifier process started in {_START_LIMIT_S:.0f} s"
                ) from None
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
        if detail and not _Nursery._holes_said:
            _Nursery._holes_said = True
            logger.warning(
                "this machine cannot fully contain verifier processes (docs/rewards.md): a completion that "
                "took control of one could %s",
                ", ".join(detail),
            )
        self.resting_rss = psutil.Process(self._process.pid).memory_info().rss
        return self._control

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # Its workers with it; before `wait`, while nobody else can have its number.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._control = self._process = None

    def close(self) -> None:
        """End the nursery and its workers."""
        self.closed = True
        with self._lock:
            self._stop()


class _Slot(threading.Thread):
    """One worker and the thread that feeds it."""

    def __init__(self, state: _State, number: int) -> None:
        super().__init__(name=f"verifier-{number}", daemon=True)
        self._state = state
        self._pid = 0
        self._socket: socket.socket | None = None
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
            _send(connection, payload, self._state.wall_limit_s)
            found = self._wait(connection, deadline)
            if isinstance(found, str):
                self._end_worker()
                return found, 0.0
            score, status, tired = _read_answer(found)
        except TimeoutError:
            self._end_worker()
            return "timeout", 0.0
        except ValueError:
            self._end_worker()
            return "crash", 0.0
        except (EOFError, OSError):
            code = self._end_worker(grace_s=1.0)
            return _DEATHS.get(code, "crash"), 0.0
        if status.startswith("error:"):
            raise RewardError(f"a verifier failed:\n{status[6:].strip()}")
        self._served += 1
        if tired or status == "memory" or self._served >= self._state.recycle_after:
            self._end_worker()
        return status, score

    def _wait(self, connection: socket.socket, deadline: float) -> bytes | str:
        """The worker's answer, or the outcome where there will be none."""
        pause, data, cpu_limit = _FIRST_LOOK_S, b"", math.inf
        while True:
            left = deadline - time.monotonic()
            connection.settimeout(max(0.001, min(pause, left)))
            try:
                piece = connection.recv(LONGEST)
                if not piece:
                    raise EOFError
                data += piece
                if len(data) > LONGEST:
                    raise ValueError("a worker sent more than was expected")
                if data.endswith(b"\n"):
                    return data
            except TimeoutError:
                pause = _LOOK_EVERY_S
            if self._state.closing.is_set():
                return "crash"
            if left <= pause:
                return "timeout"
            rss, cpu_s = self._use()
            if rss > self._state.nursery.resting_rss + self._state.memory_bytes:
                return "memory"
            # The timer in the worker is exact; this stops one that has switched it off.
            cpu_limit = min(cpu_limit, cpu_s + 1.5 * self._state.timeout_s + 1.0)
            if cpu_s > cpu_limit:
                return "timeout"

    def _use(self) -> tuple[int, float]:
        """Resident bytes and processor seconds of the worker."""
        try:
            process = psutil.Process(self._pid)
            times = process.cpu_times()
            return int(process.memory_info().rss), times.user + times.system
        except psutil.Error:
            return 0, 0.0

    def _worker(self) -> socket.socket:
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


def _send(connection: socket.socket, payload: bytes, limit_s: float) -> None:
    """Hand over an item. Raises TimeoutError where the worker does not take it, ValueError where it
    has answered before it was asked."""
    connection.settimeout(0.0)
    with contextlib.suppress(BlockingIOError):
        if not connection.recv(1):
            raise EOFError
        raise ValueError("an answer to no request")
    connection.settimeout(limit_s)
    connection.sendall(payload)


def _read_answer(data: bytes) -> tuple[float | None, str, bool]:
    """``[score, status, tired]``. Raises ValueError where a worker says anything else."""
    try:
        score, status, tired = json.loads(data)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    number = score is None or (type(score) is float and math.isfinite(score))
    known = type(status) is str and (status in get_args(Status) or status.startswith("error:"))
    if not (number and known and type(tired) is bool):
        raise ValueError("not an answer of a worker")
    return score, status, tired


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
        packages: Sequence[str],
    ) -> None:
        self.owner = os.getpid()
        self.timeout_s, self.wall_limit_s = timeout_s, wall_limit_s
        self.memory_bytes = memory_mb * 2**20
        self.recycle_after = recycle_after
        self.closing = threading.Event()
        # Twice the limit: the resident-set watch, which can tell what happened, comes first; this
        # stops what allocates gigabytes between two looks.
        self.nursery = _Nursery(timeout_s, 2 * self.memory_bytes, packages)
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
    items after which a worker is replaced, which keeps its caches from growing. packages: what verifiers
    need beside this package, imported before workers are shut off from the disk.

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
        packages: Sequence[str] = (),
    ) -> None:
        self.workers = workers or default_workers()
        wall_limit_s = 10 * timeout_s + 10 if wall_limit_s is None else wall_limit_s
        self._settings = (
            self.workers, timeout_s, memory_mb, wall_limit_s, queue_size, recycle_after, packages
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
        """Verify one completion with the function named `check` (``package.module:function``).
        Raises: RewardError where a column holds what is not plain data."""
        try:
            payload = line(check, text, answer, dict(columns or {}), dict(options or {}))
        except (TypeError, ValueError, RecursionError) as error:
            raise RewardError(
                f"a column of the row cannot be handed to {check}: {error}"
            ) from error
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
