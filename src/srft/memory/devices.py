"""What is known of accelerators, and how ``--gpus 8xH100-80G`` is read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from srft.errors import ConfigError, did_you_mean

GIB = 2**30

DEVICES = {
    "A10G-24G": 22.0,
    "A100-40G": 39.4,
    "A100-80G": 79.2,
    "B200-180G": 178.0,
    "GH200-96G": 94.5,
    "H100-80G": 79.2,
    "H100-PCIe-80G": 79.2,
    "H200-141G": 139.8,
    "L4-24G": 22.0,
    "L40S-48G": 44.4,
    "RTX3090-24G": 23.6,
    "RTX4090-24G": 23.5,
    "RTX5090-32G": 31.4,
}
"""GiB that a process can allocate on an empty device: below the number on the box."""


@dataclass(frozen=True)
class Cluster:
    """``nodes`` machines with ``per_node`` devices of ``memory_gib`` each, one training process a
    device."""

    device: str
    memory_gib: float
    per_node: int
    nodes: int

    @property
    def is_cpu(self) -> bool:
        return self.device.startswith("cpu")

    @property
    def size(self) -> int:
        return self.per_node * self.nodes

    def describe(self) -> str:
        many = f"{self.per_node} x {self.device}" if self.per_node > 1 else self.device
        return f"{self.nodes} nodes of {many}" if self.nodes > 1 else many


def read_cluster(text: str, nodes: int = 1) -> Cluster:
    """``8xH100-80G``, ``H100`` (the first of that name), ``cpu`` (this machine) or ``cpu-16G``; a CPU's
    memory is shared out to its processes.

    Raises ConfigError, with the nearest names, for a device that is not in the table.
    """
    match = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?([A-Za-z][\w.-]*)", text.strip())
    if match is None or match[1] == "0" or nodes < 1:
        raise ConfigError(f"--gpus {text!r}: write it as 8xH100-80G, H100, or cpu")
    count, name = int(match[1] or 1), match[2]
    if re.fullmatch(r"cpu(-[\d.]+[gG])?", name):
        import psutil

        total = float(name[4:-1]) if "-" in name else psutil.virtual_memory().total / GIB
        return Cluster(name, total / count, count, nodes)
    wanted = _plain(name)
    found = [d for d in DEVICES if _plain(d) == wanted] or [
        d for d in DEVICES if _plain(d).startswith(wanted)
    ]
    if not found:
        near = did_you_mean(name.upper(), [d.upper() for d in DEVICES], cutoff=0.4)
        raise ConfigError(
            f"--gpus: no figures for {name!r}; known: {', '.join(DEVICES)}"
            f"{near or '.'} For another device use any name and set --assume memory_gib=..."
        )
    return Cluster(found[0], DEVICES[found[0]], count, nodes)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
