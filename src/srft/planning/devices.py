"""What is known of accelerators, and how ``--gpus 8xH100-80G`` is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from srft.errors import ConfigError, did_you_mean

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator. memory_gib: what a process can allocate on an empty one (GiB, below the
    number on the box). tflops: dense bfloat16 products with float32 sums, 10^12 a second.
    bandwidth_gbs: to its own memory, link_gbs: to another one in the same node and one direction,
    both 10^9 bytes a second."""

    name: str
    memory_gib: float
    tflops: float
    bandwidth_gbs: float
    link_gbs: float

    @property
    def is_cpu(self) -> bool:
        return self.name.startswith("cpu")


# From the makers' data sheets (dense figures, without sparsity); a PCIe card's link is its slot.
_TABLE = (
    Device("A10G-24G", 22.0, 70, 600, 25),
    Device("A100-40G", 39.4, 312, 1555, 300),
    Device("A100-80G", 79.2, 312, 2039, 300),
    Device("B200-180G", 178.0, 2250, 7700, 900),
    Device("GH200-96G", 94.5, 989, 4000, 450),
    Device("H100-80G", 79.2, 989, 3350, 450),
    Device("H100-PCIe-80G", 79.2, 756, 2000, 55),
    Device("H200-141G", 139.8, 989, 4800, 450),
    Device("L4-24G", 22.0, 121, 300, 25),
    Device("L40S-48G", 44.4, 362, 864, 25),
    Device("RTX3090-24G", 23.6, 71, 936, 12),
    Device("RTX4090-24G", 23.5, 165, 1008, 20),
    Device("RTX5090-32G", 31.4, 209, 1792, 45),
)
DEVICES = {device.name: device for device in _TABLE}


@dataclass(frozen=True)
class Cluster:
    """``nodes`` machines with ``per_node`` devices each, one training process a device."""

    device: Device
    per_node: int
    nodes: int

    @property
    def size(self) -> int:
        return self.per_node * self.nodes

    def describe(self) -> str:
        many = f"{self.per_node} x {self.device.name}" if self.per_node > 1 else self.device.name
        return f"{self.nodes} nodes of {many}" if self.nodes > 1 else many


def read_cluster(text: str, nodes: int = 1) -> Cluster:
    """``8xH100-80G``, ``H100`` (the first of that name), ``cpu`` (this machine) or ``cpu-16G``.

    Raises ConfigError, with the nearest names, for a device that is not in the table.
    """
    match = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?([A-Za-z][\w.-]*)", text.strip())
    if match is None or match[1] == "0" or nodes < 1:
        raise ConfigError(f"--gpus {text!r}: write it as 8xH100-80G, H100, or cpu")
    count, name = int(match[1] or 1), match[2]
    if re.fullmatch(r"cpu(-[\d.]+[gG])?", name):
        return Cluster(_cpu(name, count), count, nodes)
    wanted = _plain(name)
    found = [d for d in _TABLE if _plain(d.name) == wanted] or [
        d for d in _TABLE if _plain(d.name).startswith(wanted)
    ]
    if not found:
        near = did_you_mean(name.upper(), [d.upper() for d in DEVICES], cutoff=0.4)
        raise ConfigError(
            f"--gpus: no figures for {name!r}; known: {', '.join(DEVICES)}"
            f"{near or '.'} For another one take a similar name and set memory_gib, tflops, "
            "bandwidth_gbs and link_gbs with --assume"
        )
    return Cluster(found[0], count, nodes)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _cpu(name: str, processes: int) -> Device:
    """This machine, its memory shared out to the processes; its speed is measured when time is
    planned."""
    import psutil

    total = psutil.virtual_memory().total / GIB
    if "-" in name:
        total = float(name[4:-1])
    return replace(
        Device(name, 0, 0, 0, 10.0), memory_gib=total / processes, tflops=0.0, bandwidth_gbs=0.0
    )


def measured_cpu(device: Device, seconds: float = 0.15) -> Device:
    """``device`` with the speed of one process of this machine: float32 products of the size of a
    small layer, made as layers make them, and copies larger than its caches. On PyTorch's present
    number of threads, and by the processor time that they get, so that a busy machine measures the
    same."""
    import time

    import torch

    from srft.model.cpu.products import product

    def rate(amount: float, run: object) -> float:
        assert callable(run)
        run()
        threads = torch.get_num_threads()
        best, start = 0.0, time.process_time()
        while time.process_time() - start < seconds * threads:
            begin = time.process_time()
            for _ in range(4):
                run()
            best = max(best, 4 * amount * threads / (time.process_time() - begin))
        return best

    side = 512
    a, b = torch.randn(side, side), torch.randn(side, side)
    source = torch.zeros(16 * 2**20)
    target = torch.empty_like(source)
    flops = rate(2 * side**3, lambda: product(a, b))
    copied = rate(2 * source.nbytes, lambda: target.copy_(source))
    return replace(device, tflops=flops / 1e12, bandwidth_gbs=copied / 1e9)
