"""Functions run in several processes that form one world, as a launcher would start them.

The processes are forked from a server that has imported the heavy libraries once, so that a start
costs a fraction of a second, and a test may kill them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import TCPStore

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["srft.trainer.trainer", "tests.distributed.work"])


@dataclass
class Outcome:
    """What became of one process: its result, or its error as text; the exit code where it died."""

    value: Any = None
    error: str | None = None
    exit_code: int | None = None


_stores: list[TCPStore] = []  # they end with the tests


def start(
    function: Callable[..., Any], size: int, *arguments: Any, agent: bool = True
) -> list[tuple[Any, Any]]:
    """(process, pipe) of each rank, on their way. With ``agent`` the store is kept here, as torchrun
    does; without, by the first rank."""
    if agent:
        _stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        port = _stores[-1].port
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    variables = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": str(agent),
    }
    started = []
    for rank in range(size):
        ours, theirs = _context.Pipe(duplex=False)
        mine = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = _context.Process(
            target=_enter, args=(mine, theirs, function, arguments), daemon=True
        )
        process.start()
        theirs.close()
        started.append((process, ours))
    return started


def finish(started: Sequence[tuple[Any, Any]], timeout_s: float = 400.0) -> list[Outcome]:
    """Waits for every process; what is still there after ``timeout_s`` is killed and reported so."""
    deadline = time.monotonic() + timeout_s
    outcomes = []
    for process, pipe in started:
        outcome = Outcome()
        try:
            if pipe.poll(max(0.0, deadline - time.monotonic())):
                outcome = pipe.recv()
            else:
                outcome.error = f"nothing after {timeout_s} s"
                process.kill()
        except EOFError:
            outcome.error = "ended without a word"
        process.join(max(1.0, deadline - time.monotonic()))
        outcome.exit_code = process.exitcode
        outcomes.append(outcome)
    return outcomes


class Crashed(AssertionError):
    """A process ended by a segmentation fault."""


def on_ranks(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """``function(*arguments)`` in ``size`` processes; its results by rank. All must succeed."""
    outcomes = finish(start(function, size, *arguments))
    failed = [f"rank {r}: {o.error}" for r, o in enumerate(outcomes) if o.error]
    if any(outcome.exit_code == -signal.SIGSEGV for outcome in outcomes):
        raise Crashed("\n".join(failed))
    assert not failed, "\n".join(failed)
    return [outcome.value for outcome in outcomes]


def _enter(
    variables: dict[str, str], pipe: Any, function: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(variables)
    try:
        pipe.send(Outcome(function(*arguments)))
    except BaseException as error:  # noqa: BLE001  # whatever ends a process, its test wants to see
        pipe.send(Outcome(error=f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    pipe.close()
