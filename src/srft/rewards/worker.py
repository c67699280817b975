"""The other side of the pool: a nursery process that forks workers, and the workers.

The nursery imports math-verify once (about a second) and then forks a worker in milliseconds
whenever the pool has had to kill one, so an adversarial answer costs its time limit and little
more. It stays single-threaded, which is what makes forking safe. It imports neither torch nor the
user's ``__main__``: scripts need no ``if __name__ == "__main__"`` guard and notebooks work.

Every message is a line of JSON, in both directions, so reading one runs no code. Pool to nursery:
``["fork"]`` with a socket for the new worker, answered by its process id; ``["reap", pid, grace_s]``,
answered by its exit code (minus the signal's number if a signal ended it, 0 if it had to be killed);
``["stop"]``. Pool to worker: ``[check, text, answer, columns, options]``, where ``check`` is
``package.module:function``; answer: ``[score, status, tired]``, where a tired worker has grown and is
to be replaced before it is held against the next item. What a worker may do is `srft.rewards.sandbox`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import numbers
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srft.rewards.sandbox import Sandbox

READY, FAILED = "ready", "failed"
LONGEST = 2**16
"""Bytes of the longest message that the pool reads."""
_TRACEBACK = 4000
_REQUEST = 4096


def line(*values: Any) -> bytes:
    """A message. Raises TypeError where a value is not plain data."""
    return json.dumps(values, default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Arrays and their numbers (NumPy, torch) as lists and numbers; exact numbers as text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, numbers.Number):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not plain data (text, number, list, mapping)")


def nursery_main(descriptor: int) -> None:
    """Run the nursery on an inherited socket until the pool closes it."""
    control = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cpu_s, address_space, packages = json.loads(control.recv(_REQUEST))
    try:
        _warm_up()
        for package in packages:
            importlib.import_module(package)
        from srft.rewards.sandbox import Sandbox

        sandbox = Sandbox()
        holes = sandbox.holes()
    except Exception:  # noqa: BLE001 - whatever it is, the pool reports it to the user
        control.sendall(line(FAILED, traceback.format_exc()[-_TRACEBACK:]))
        return
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, pages shared with workers
    control.sendall(line(READY, holes))
    children: set[int] = set()
    with contextlib.suppress(OSError):  # the pool has gone
        while True:
            text, descriptors, _, _ = socket.recv_fds(control, _REQUEST, 1)
            request: Any = json.loads(text) if text else ["stop"]
            if request[0] == "stop":
                break
            if request[0] == "fork":
                pid = os.fork()
                if pid == 0:
                    _worker_main(descriptors[0], cpu_s, address_space, sandbox)
                os.close(descriptors[0])
                children.add(pid)
                control.sendall(line(pid))
            else:
                _, pid, grace_s = request
                control.sendall(line(_reap(pid, grace_s, pid in children)))
                children.discard(pid)
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


def _reap(pid: int, grace_s: float, ours: bool) -> int:
    """The exit code of a worker; 0 where it lives on for `grace_s` seconds and is killed. One that an
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
    os.waitpid(pid, 0)
    return 0


def _worker_main(descriptor: int, cpu_s: float, address_space: int, sandbox: Sandbox) -> None:
    """Verify jobs until the pool closes the socket. Never returns. cpu_s: processor seconds an item
    may use, after which the kernel ends the worker with SIGPROF. address_space: bytes it may map
    beyond what it has at birth."""
    code = 0
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # parsers print to them
            os.dup2(null, stream)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        _limit_memory(address_space)
        birth_rss = _peak_rss()
        jobs = socket.socket(fileno=descriptor)
        sandbox.enter(descriptor)
        for job in jobs.makefile("rb", 2**16):
            # A clock of the kernel's: it stops this process in whatever C code it is, and whether
            # or not the pool is still there.
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            score, status = _run(*json.loads(job))
            signal.setitimer(signal.ITIMER_PROF, 0)
            jobs.sendall(line(score, status, _peak_rss() > birth_rss + address_space // 8))
    except OSError:
        pass
    except BaseException:  # noqa: BLE001 - a forked child must never unwind into the nursery's loop
        code = 1
    os._exit(code)


def _limit_memory(address_space: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    import resource
    from pathlib import Path

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + address_space
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _peak_rss() -> int:
    """The most memory this process has held so far, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _run(check: str, *arguments: Any) -> tuple[float | None, str]:
    try:
        verdict = _resolve(check)(*arguments)
    except MemoryError:
        return 0.0, "memory"
    except Exception:  # noqa: BLE001 - reported to the pool, which counts it and says so
        return None, "error:" + traceback.format_exc(limit=-3)[-_TRACEBACK:]
    return None if verdict.score is None else float(verdict.score), verdict.status


_CHECKS: dict[str, Callable[..., Any]] = {}


def _resolve(check: str) -> Callable[..., Any]:
    if check not in _CHECKS:
        module, _, name = check.partition(":")
        _CHECKS[check] = getattr(importlib.import_module(module), name)
    return _CHECKS[check]
