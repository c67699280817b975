"""The other side of the pool: a nursery process that forks workers, and the workers.

The nursery imports math-verify once (about a second) and then forks a worker in milliseconds
whenever the pool has had to kill one, so an adversarial answer costs its time limit and little
more. It stays single-threaded, which is what makes forking safe. It imports neither torch nor the
user's ``__main__``: scripts need no ``if __name__ == "__main__"`` guard and notebooks work.

Messages are pickles over a socket. Pool to nursery: ``("fork",)`` followed by a socket for the new
worker, answered by its process id; ``("reap", pid, grace_s)``, answered by its exit code (minus the
signal's number if a signal ended it). Pool to worker: a `Job`; answer: ``(score, status, tired)``,
where a tired worker has grown and is to be replaced before it is held against the next item.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

READY, FAILED = "ready", "failed"


@dataclass(frozen=True)
class Job:
    """One completion to verify. `check` is ``package.module:function``; a verifier's function."""

    check: str
    text: str
    answer: str | None
    columns: Mapping[str, Any]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """cpu_s: processor seconds an item may use, after which the kernel ends the worker with SIGPROF.
    address_space: bytes a worker may map beyond what it has at birth (0: no limit)."""

    cpu_s: float
    address_space: int


def nursery_main(descriptor: int) -> None:
    """Run the nursery on an inherited socket until the pool closes it."""
    control: Connection[Any, Any] = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limits: Limits = control.recv()
    try:
        _warm_up()
    except Exception:  # noqa: BLE001 - whatever it is, the pool reports it to the user
        control.send((FAILED, traceback.format_exc()))
        return
    _give_up_rights()
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, pages shared with workers
    control.send((READY, os.getpid()))
    children: set[int] = set()
    try:
        while True:
            request = control.recv()
            if request[0] == "stop":
                break
            if request[0] == "fork":
                child = reduction.recv_handle(control)
                pid = os.fork()
                if pid == 0:
                    control.close()
                    _worker_main(child, limits)
                os.close(child)
                children.add(pid)
                control.send(pid)
            else:
                _, pid, grace_s = request
                control.send(_reap(pid, grace_s, pid in children))
                children.discard(pid)
    except (EOFError, OSError):
        pass  # the pool has gone
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _warm_up() -> None:
    """Import and run everything once, so that forked workers start with it in memory."""
    import logging

    for name in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from srft.rewards import countdown, verifiers

    verifiers.check_math(r"It is $\boxed{\frac{1}{2} + x^2}$", r"x^2 + \frac{1}{2}", {}, {})
    verifiers.check_math("so 7 + 5 = 12", "12", {}, {})
    countdown.check_countdown("<answer>1 + 2</answer>", "3", {"numbers": [1, 2]}, {})


_NEW_USER, _NEW_NETWORK, _NO_NEW_PRIVILEGES = 0x10000000, 0x40000000, 38  # of Linux


def _give_up_rights() -> None:
    """What reads the texts of a model has no business with the network or with privileges: a user and
    a network namespace of its own, where the kernel allows it, no way to more rights, no core dumps.
    The sockets it has stay open."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    libc.unshare(_NEW_USER | _NEW_NETWORK)  # -1 where namespaces are not allowed: best effort


def _forbid_writing() -> None:
    """No file of this process may hold a byte: writing fails, reading and the sockets do not."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _reap(pid: int, grace_s: float, ours: bool) -> int:
    """The exit code of a worker, which is killed if it lives on for `grace_s` seconds. One that an
    earlier nursery forked, which has since died, is killed at once and reaped by init."""
    if not ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return -signal.SIGKILL
    deadline = time.monotonic() + grace_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            break
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _worker_main(descriptor: int, limits: Limits) -> None:
    """Verify jobs until the pool closes the socket. Never returns."""
    code = 0
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # parsers print to them
            os.dup2(null, stream)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        _limit_memory(limits.address_space)
        _forbid_writing()
        birth_rss = _peak_rss()
        jobs: Connection[Any, Any] = Connection(descriptor)
        while True:
            job = jobs.recv()
            # A clock of the kernel's: it stops this process in whatever C code it is, and whether
            # or not the pool is still there.
            signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
            score, status = _run(job)
            signal.setitimer(signal.ITIMER_PROF, 0)
            jobs.send((score, status, _peak_rss() > birth_rss + limits.address_space // 8))
    except (EOFError, OSError):
        pass
    except BaseException:  # noqa: BLE001 - a forked child must never unwind into the nursery's loop
        code = 1
    os._exit(code)


def _limit_memory(address_space: int) -> None:
    if not address_space or not sys.platform.startswith("linux"):
        return
    import resource
    from pathlib import Path

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + address_space
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _peak_rss() -> int:
    """The most memory this process has held so far, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _run(job: Job) -> tuple[float | None, str]:
    try:
        verdict = _resolve(job.check)(job.text, job.answer, job.columns, job.options)
    except MemoryError:
        return 0.0, "memory"
    except Exception:  # noqa: BLE001 - reported to the pool, which counts it and says so
        return None, "error:" + traceback.format_exc(limit=-3)
    return verdict.score, verdict.status


_CHECKS: dict[str, Callable[..., Any]] = {}


def _resolve(check: str) -> Callable[..., Any]:
    if check not in _CHECKS:
        module, _, name = check.partition(":")
        _CHECKS[check] = getattr(importlib.import_module(module), name)
    return _CHECKS[check]


def dumps(job: Job) -> bytes:
    """Pickle a job in the caller's thread, so that what cannot be pickled fails there."""
    return pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
