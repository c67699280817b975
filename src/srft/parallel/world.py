"""The processes of a run, and the few things they ask of one another.

Every process runs the same loop. A step's rollouts are divided, then gathered, so that from there on
every process knows the whole step and takes the same decisions by the same pure functions; only the
passes over the model are divided again. Everything here works in a world of one, where it does
nothing: no branch elsewhere asks how many processes there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from srft.errors import ConfigError
from srft.parallel.parallel_config import ParallelConfig
from srft.parallel.roll_call import RollCall, connect

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes. ``group`` carries Python objects and is apart from the groups of
    ``mesh``, over which FSDP moves tensors."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    mesh: DeviceMesh | None = None
    roll: RollCall | None = None
    timeout: timedelta = timedelta(minutes=30)

    @property
    def main(self) -> bool:
        """Whether this process writes logs, checkpoints' small files and the console."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` pieces of work are this process's: every size-th, so that pieces sorted
        by size are shared out evenly."""
        return range(self.rank, count, self.size)

    def gather(self, value: T, what: str) -> list[T]:
        """``value`` of every process, by rank. ``what`` names the occasion if one does not come.

        Raises:
            RankError: a process is gone, or did not come within the time-out.
        """
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self.together(what):
            dist.all_gather_object(found, value, group=self.group)
        return found

    def merge(self, share: list[T], what: str) -> list[T]:
        """The whole list of which every process has its ``share``, in order."""
        shares = self.gather(share, what)
        total = sum(map(len, shares))
        return [shares[i % self.size][i // self.size] for i in range(total)]

    def first(self, value: T | None, what: str) -> T | None:
        """The first ``value`` that is not None, by rank: what one process wants, all do."""
        return next((v for v in self.gather(value, what) if v is not None), None)

    def from_main(self, make: Callable[[], T], what: str) -> T:
        """What ``make`` returns on the main process, on all of them."""
        return self.gather(make() if self.main else None, what)[0]  # type: ignore[return-value]

    def together(self, what: str) -> AbstractContextManager[None]:
        """Around what all processes do: an error in one of them ends all, and one of them says why."""
        return nullcontext() if self.roll is None else self.roll.together(what)

    def apart(self) -> World:
        """The same processes with channels of their own, for another thread's use."""
        if self.size == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=self.timeout)
        return replace(self, group=group, roll=None)

    def close(self) -> None:
        """Leaves the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = World()


def join_world(config: ParallelConfig, device: torch.device) -> World:
    """The world that the launcher's variables describe (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
    MASTER_PORT, as torchrun sets them), or one of one process.

    Raises:
        ConfigError: replicate x shard is not the number of processes.
        RankError: the others did not come within the time-out.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    replicate = config.replicate
    shard = config.shard or max(1, size // replicate)
    if replicate * shard != size:
        raise ConfigError(
            f"parallel: replicate={replicate} x shard={shard} is {replicate * shard} processes, but "
            f"{size} {'was' if size == 1 else 'were'} started (torchrun --nproc-per-node x --nnodes); "
            "change one of them"
        )
    if size == 1:
        return ALONE
    rank = int(os.environ["RANK"])
    timeout = timedelta(seconds=config.timeout_s)
    store = connect()
    store.set_timeout(timeout)
    roll = RollCall(store, rank, size, config.timeout_s)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        backend = config.backend
        if backend == "auto":
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # type: ignore[assignment]
        with roll.together("starting"):
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("group", roll.store),
                rank=rank,
                world_size=size,
                timeout=timeout,
            )
    mesh = init_device_mesh(device.type, (replicate, shard), mesh_dim_names=("replicate", "shard"))
    return World(
        rank,
        size,
        dist.new_group(backend="gloo", timeout=timeout),
        mesh if replicate > 1 else mesh["shard"],
        roll,
        timeout,
    )
