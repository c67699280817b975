"""How much memory this process can have, and how much it has had."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_SELF = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")
_HOLES = 0.12
"""Share of the addresses left under ``ulimit -v`` that freed memory keeps. From one measurement: SmolLM2 with
LoRA under 4 GB had 2.58 of 2.83 GiB in use when no more could be had."""

# mallopt's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX.
_MALLOC = ((-1, 128 << 10), (-3, 128 << 10), (-8, 1))


@dataclass(frozen=True)
class Free:
    """bytes: that this process can have in all, what it has already included. limit: what sets it."""

    bytes: float
    limit: str


def free_memory(device: torch.device, processes: int = 1) -> Free:
    """The smallest of what is free on the device, and, of the host's memory, of what a control group and
    ``ulimit -v`` leave. ``processes`` of this run share the host."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Free(free + torch.cuda.memory_reserved(device), "the GPU's free memory")
    held = held_memory(device)
    found = [
        Free(held + psutil.virtual_memory().available / processes, "the machine's free memory")
    ]
    for path in _groups():
        found += _left_in_group(path, held, processes)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        # Addresses that hold nothing count there too: of libraries, of threads' stacks, and later of what was
        # freed between what is still in use.
        unused = psutil.Process().memory_info().vms - held
        found.append(Free(held + (1 - _HOLES) * max(0, limit - unused - held), "ulimit -v"))
    return min(found, key=lambda free: free.bytes)


def _groups() -> Iterator[Path]:
    """Folders of the control groups of memory that this process is in, up to the root."""
    try:
        lines = (_SELF / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            root = _CGROUPS / kinds
            yield from (
                root / part
                for part in (path.lstrip("/"), *map(str, Path(path.lstrip("/")).parents))
            )


def _left_in_group(path: Path, held: float, processes: int) -> list[Free]:
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit, used = (path / limit_file).read_text(), int((path / used_file).read_text())
            stat = dict(line.split() for line in (path / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit.strip() == "max" or int(limit) >= 1 << 60:
            return []
        # Pages of files that were read count as used, and go as soon as they are in the way.
        used -= int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        return [Free(held + max(0, int(limit) - used) / processes, "the control group's limit")]
    return []


def held_memory(device: torch.device) -> float:
    """What this process has now, bytes: resident, or allocated on a GPU."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    return float(psutil.Process().memory_info().rss)


@dataclass
class Peak:
    """bytes: the most that this process had; None where the system does not say."""

    bytes: float | None = None


@contextmanager
def watch_peak(device: torch.device) -> Iterator[Peak]:
    """The peak of what is done meanwhile, known afterwards."""
    peak = Peak()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = float(torch.cuda.max_memory_allocated(device))
        return
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        yield peak
        return
    yield peak
    status = (_SELF / "status").read_text().split()
    peak.bytes = float(status[status.index("VmHWM:") + 1]) * 1024


def local_processes(size: int) -> int:
    """How many of a run's ``size`` processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size))


def keep_nothing_freed() -> None:
    """From here on the C library (glibc's) hands every large block back as soon as it is freed, and new
    threads get no heaps of their own. Otherwise what was freed between blocks in use stays, step after step:
    with SmolLM2 and LoRA under 4 GB addresses ran out after two, where now 3.6 GB is the most. Costs time:
    128 s in place of 105 there, and up to twice as long for an update."""
    option = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if option is not None:
        for which, value in _MALLOC:
            option(which, value)


def release() -> None:
    """What is not used any more goes back to the system: the C library keeps what layers have freed, and a
    copy that is written to the disk would come on top of it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # glibc's
        trim(0)
