"""Which settings make a recipe take less: each alone, and what would be left of the peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from srft.config import SRFTConfig


@dataclass(frozen=True)
class Hint:
    """``key=value``, the peak's share of the memory with it, and what it costs."""

    setting: str
    share: float
    cost: str


def changed(config: SRFTConfig, settings: Mapping[str, Any]) -> SRFTConfig:
    """The recipe with ``section.key`` settings replaced."""
    values = config.model_dump(exclude_unset=True)
    for key, value in settings.items():
        *sections, last = key.split(".")
        inner = values
        for name in sections:
            if inner.get(name) is None:
                inner[name] = {}
            inner = inner[name]
        inner[last] = value
    return SRFTConfig.model_validate(values)


def hints(
    config: SRFTConfig, devices: int, share: Callable[[SRFTConfig], float]
) -> tuple[Hint, ...]:
    """The settings that lower the peak, the strongest first. share: of the memory, under a recipe."""
    before = share(config)
    found = [
        Hint(f"{key}={str(value).lower() if isinstance(value, bool) else value}", after, cost)
        for key, value, cost in _candidates(config, devices)
        if (after := share(changed(config, {key: value}))) < 0.995 * before
    ]
    return tuple(sorted(found, key=lambda hint: hint.share))


def _candidates(config: SRFTConfig, devices: int) -> list[tuple[str, Any, str]]:
    """(key, value, cost) of what the recipe does not do yet."""
    model, train, rollout, parallel = config.model, config.train, config.rollout, config.parallel
    budget, rows = train.micro_batch_tokens, rollout.rows
    found: list[tuple[bool, str, Any, str]] = [
        (budget >= 1024, "train.tokens_per_micro_batch", budget // 4, "more and smaller passes"),
        (model.gradient_checkpointing is not True, "model.gradient_checkpointing", True,
         "about a third more training time"),
        (train.optimizer == "adamw" and devices == 1, "train.optimizer", "adamw_8bit",
         "moments are rounded to eight bits"),
        (model.lora is None, "model.lora.rank", 64,
         "adapters are trained in place of the weights"),
        (model.lora is not None and model.dtype in ("auto", "float32"), "model.dtype", "bfloat16",
         "a base in half precision"),
        (model.lora is not None and model.lora.quantization is None, "model.lora.quantization",
         "nf4", "a base in four bits, slower"),
        (bool(parallel.shard) and parallel.shard != devices, "parallel.shard", devices,
         "weights are gathered from more devices"),
    ]  # fmt: skip
    if rollout.engine == "vllm":
        utilization = round(rollout.vllm.gpu_memory_utilization / 2, 2)
        key = "rollout.vllm.gpu_memory_utilization"
        found.append((True, key, utilization, "fewer rollouts side by side"))
    elif rollout.engine != "vllm-server":
        found.append((rows > 1, "rollout.max_rows", rows // 4 or 1, "slower generation"))
        found.append(
            (not rollout.free_cache, "rollout.free_cache", True, "the cache is made anew each step")
        )
    return [(key, value, cost) for use, key, value, cost in found if use]
