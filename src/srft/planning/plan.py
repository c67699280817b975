"""``srft plan``: the memory that a recipe needs on given devices, what does not fit, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from srft.config import SRFTConfig
from srft.errors import ConfigError
from srft.memory.advice import Hint, hints
from srft.memory.assumptions import assume as read_assumptions
from srft.memory.case import build_case
from srft.memory.devices import Cluster, read_cluster
from srft.memory.fit import fit
from srft.memory.phases import Case, Memory, plan_memory
from srft.memory.shape import ModelShape


@dataclass(frozen=True)
class Plan:
    """A recipe on a cluster. ``hints`` is empty where it fits; ``problems`` are sentences."""

    config: SRFTConfig
    cluster: Cluster
    case: Case
    memory: Memory
    hints: tuple[Hint, ...]
    problems: tuple[str, ...]

    @property
    def shape(self) -> ModelShape:
        return self.case.shape

    @property
    def fits(self) -> bool:
        return self.memory.fits and not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers (bytes, tokens), for --json."""
        case, memory = self.case, self.memory
        model = asdict(replace(self.shape, config=None))
        phases = {p.name: {i.name: i.bytes for i in p.items} for p in memory.phases}
        return {
            "fits": self.fits,
            "problems": list(self.problems),
            "cluster": asdict(self.cluster),
            "processes": {k: getattr(case.layout, k) for k in ("world", "replicate", "shard")},
            "model": {k: v for k, v in model.items() if k != "config"},
            "work": {
                "micro_batch_tokens": case.work.micro_batch,
                "longest_sequence": case.work.longest,
            },
            "memory": {
                "capacity_bytes": memory.capacity,
                "peak_bytes": memory.peak.bytes,
                "peak_phase": memory.peak.name,
                "rows": memory.rows,
                "phases": {
                    name: {"bytes": sum(items.values()), "items": items}
                    for name, items in phases.items()
                },
            },
            "hints": [asdict(hint) for hint in self.hints],
            "assumptions": case.assumed.model_dump(),
        }


def make_plan(config: SRFTConfig, gpus: str, *, nodes: int = 1, assume: Sequence[str] = ()) -> Plan:
    """Plan ``config`` on ``gpus`` (see ``devices.read_cluster``) with ``assume`` as key=value.

    Raises:
        ConfigError: an unknown device or assumption, or a parallel section that does not divide
            the devices.
        ModelError: the model's config cannot be read.
    """
    cluster = read_cluster(gpus, nodes)
    assumed = read_assumptions(cluster, assume)
    if assumed.memory_gib is not None:
        cluster = replace(cluster, memory_gib=assumed.memory_gib)
    fitted = fit(config, cluster, assumed)
    config, case, memory = fitted.config, fitted.case, fitted.memory

    def share(other: SRFTConfig) -> float:
        try:
            planned = plan_memory(build_case(other, cluster, assumed))
        except ConfigError:
            return float("inf")
        return planned.peak.bytes / planned.capacity

    problems = tuple(_problems(case, memory))
    found = () if memory.fits else hints(config, cluster.size, share)
    return Plan(config, cluster, case, memory, found, problems)


def _problems(case: Case, memory: Memory) -> list[str]:
    """What stands in the way beside the sum of bytes."""
    found = []
    window, limit = case.shape.window, case.config.rollout.max_tokens
    if window is not None and limit >= window and case.work.step.group:
        found.append(
            f"rollouts of {limit:,} tokens do not fit the model's window of {window:,}: lower "
            "rollout.max_tokens, or set model.max_position_embeddings (with a model.rope_theta that "
            "reaches so far)"
        )
    if case.work.step.group and not memory.rows:
        key = (
            "rollout.cache_tokens" if case.samples_itself else "rollout.vllm.gpu_memory_utilization"
        )
        found.append(f"the engine's cache does not hold one sequence: raise {key}")
    per_step = case.config.train.prompts_per_step
    if per_step < case.layout.world:
        found.append(
            f"{case.layout.world} processes share {per_step} prompts: raise train.prompts_per_step"
        )
    return found
