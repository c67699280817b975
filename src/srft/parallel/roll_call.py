"""Who is missing, and who says so.

A process that dies or stalls is noticed by the others only as a broken or silent connection. Each
process therefore notes in the launcher's key-value store where it last was; one that sees an error
signs in there, and those that have neither signed in nor arrived at the same place are the missing
ones. The store also decides which process reports an error: the first one to claim it. The others
end quietly with the same exit code.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from srft.errors import PeerError, RankError, SRFTError

_GRACE_S = 5.0
_CONNECT_S = 300.0
_REPORT = "report"
_HINT = "Look at its output, then continue with --resume"


@functools.cache
def connect() -> dist.Store:
    """The launcher's store: torchrun keeps it in its own process, so that it outlives any of ours."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=not agent and os.environ["RANK"] == "0",
        timeout=timedelta(seconds=_CONNECT_S),
        wait_for_workers=False,
    )
    # A restart by torchrun must not read what the attempt before it left.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"srft/{attempt}", store)


class RollCall:
    """One process's view of the others."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout_s: float) -> None:
        self.store, self.rank, self.size, self.timeout_s = store, rank, size, timeout_s
        self.arrivals = 0
        store.set(f"who/{rank}", f"host {socket.gethostname()}, process {os.getpid()}")

    def arrive(self, what: str) -> None:
        """Notes that this process has come to ``what``."""
        self.arrivals += 1
        self.store.set(f"at/{self.rank}", json.dumps([self.arrivals, what]))

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Around what all processes do: an error in one of them ends all, and one of them says why."""
        self.arrive(what)
        try:
            yield
        except Exception as error:
            verdict = self.judge(error)
            if verdict is error:
                raise
            raise verdict from error

    def judge(self, error: Exception) -> Exception:
        """The exception that this process is to end with: its own error, the name of a missing
        process, or PeerError where another process has the report."""
        if isinstance(error, PeerError) or getattr(error, "judged", False):
            return error
        try:
            if not _from_a_peer(error):
                return self._report(error)
            self.store.set(f"failed/{self.rank}", "1")
            deadline = time.monotonic() + _GRACE_S
            while time.monotonic() < deadline:
                if self.store.check([_REPORT]) or not self._absent():
                    break
                time.sleep(0.1)
            return self._report(RankError(self._message(error)))
        except dist.DistError:
            # Without torchrun the first process keeps the store: each one says so for itself.
            return RankError(
                f"missing: rank 0 of {self.size}, whose rendezvous store is gone with it. {_HINT}"
            )

    def _report(self, error: Exception) -> Exception:
        code = error.exit_code if isinstance(error, SRFTError) else 1
        first = claim_report(self.store, self.rank, code)
        if first is not None:
            return PeerError(*first)
        error.judged = True  # type: ignore[attr-defined]
        return error

    def _absent(self) -> list[int]:
        """Ranks that have not signed in as having seen an error."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        return [rank for rank in others if not self.store.check([f"failed/{rank}"])]

    def _message(self, error: Exception) -> str:
        absent = self._absent()
        # One that waits at the same place as we did is not missing: it has yet to run out of time.
        behind = [rank for rank in absent if self._place(rank)[0] < self.arrivals]
        missing = behind or absent
        if not missing:
            return f"the processes lost contact with one another ({_first_line(error)})"
        said = "; ".join(
            f"rank {rank} of {self.size} ({self._read(f'who/{rank}', 'never seen')}), last seen "
            f"{self._place(rank)[1]}"
            for rank in missing
        )
        return (
            f"missing: {said}. It has died, or did not answer for parallel.timeout_s="
            f"{self.timeout_s:g} seconds. {_HINT}"
        )

    def _place(self, rank: int) -> tuple[int, str]:
        place = json.loads(self._read(f"at/{rank}", '[0, "starting"]'))
        return int(place[0]), str(place[1])

    def _read(self, key: str, default: str) -> str:
        return self.store.get(key).decode() if self.store.check([key]) else default


def is_to_report(error: BaseException, code: int) -> bool:
    """Whether this process is the one to tell the user of ``error``, which may come before the
    processes have met; True where there is only one."""
    if os.environ.get("WORLD_SIZE", "1") == "1" or getattr(error, "judged", False):
        return True
    rank = int(os.environ["RANK"])
    try:
        return claim_report(connect(), rank, code) is None
    except dist.DistError:  # no store: the main process has gone before this one came
        return rank == 0


def claim_report(store: dist.Store, rank: int, code: int) -> tuple[int, int] | None:
    """None where this process is the one to report its error; otherwise (rank, exit code) of the
    process that does."""
    mine = json.dumps([rank, code])
    found = store.compare_set(_REPORT, "", mine).decode()
    if found == mine:
        return None
    first: list[Any] = json.loads(found)
    return None if first[0] == rank else (first[0], first[1])


def _from_a_peer(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone or silent."""
    if isinstance(error, SRFTError):
        return False
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("gloo", "connection closed by peer", "connection reset", "nccl")
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
