"""What ``auto`` means in ``train.tokens_per_micro_batch``, ``rollout.max_rows`` and
``model.gradient_checkpointing``: the fastest that fits, by the arithmetic of ``phases.py``; and in
``model.autocast`` on a CPU: what the processor is faster with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from srft.config import SRFTConfig
from srft.memory.assumptions import Assumptions
from srft.memory.case import build_case, with_settings
from srft.memory.devices import Cluster
from srft.memory.phases import Case, Memory, plan_memory
from srft.memory.work import Lengths
from srft.model.loading import parameter_dtype
from srft.rollout.rollout_config import MOST_ROWS
from srft.trainer.train_config import MOST_TOKENS

TOKENS, ROWS, CHECKPOINTING = AUTOMATIC = (
    "train.tokens_per_micro_batch",
    "rollout.max_rows",
    "model.gradient_checkpointing",
)
AUTOCAST = "model.autocast"
_WIDE = 512
"""Width of a model from which on products, not what lies between them, take most of the time."""
_PAYS = 2.0
"""How many times as fast products have to be, so that a measurement on a busy machine decides the same."""
FULL = 0.95
"""Of the memory may be planned with: the arithmetic is not that exact, and others use the machine."""
_EASY = 0.5
"""Of a CPU's memory is taken for nothing but speed: beyond 2,048 tokens there is hardly any."""
_FAST_TOKENS = 2048
_FEWEST_TOKENS = 256
_FEWEST_ROWS = 8
_CACHE_SHARE = 0.2


@dataclass(frozen=True)
class Fit:
    """The recipe without ``auto``, and what it takes."""

    case: Case

    @property
    def config(self) -> SRFTConfig:
        return self.case.config

    @cached_property
    def memory(self) -> Memory:
        return plan_memory(self.case)

    def settings(self) -> str:
        """What was chosen or given, as a phrase."""
        values = get(self.config, TOKENS), get(self.config, ROWS), get(self.config, CHECKPOINTING)
        kept = "with" if values[2] else "no"
        half = self.case.layout.autocast
        products = f", products in {str(half).removeprefix('torch.')}" if half else ""
        return (
            f"micro-batches of {values[0]:,} tokens, {values[1]:,} rollouts side by side, {kept} gradient "
            f"checkpointing{products}"
        )


def get(config: SRFTConfig, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def replaced(config: SRFTConfig, values: Mapping[str, Any]) -> SRFTConfig:
    """``config`` with settings of ``AUTOMATIC`` replaced; what the recipe says itself stays so."""
    for key, value in values.items():
        section, name = key.split(".")
        inner = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: inner})
    return config


def fit(
    config: SRFTConfig,
    cluster: Cluster,
    assumed: Assumptions,
    lengths: Lengths | None = None,
    model_config: Any = None,
    before: Mapping[str, Any] | None = None,
    gain: float = 1.0,
) -> Fit:
    """The first of the choices that fits ``cluster``, or the smallest. ``before``: what a run chose that
    goes on now. ``gain``: how many times as fast a CPU is with products in bfloat16 as in float32.

    Raises:
        ConfigError, ModelError: see ``build_case``.
    """
    case = build_case(config, cluster, assumed, lengths, model_config)
    if cluster.is_cpu and _asks_for_autocast(config):
        pays = case.shape.hidden >= _WIDE and gain >= _PAYS
        dtype = "bfloat16" if pays else "float32"
        if before:  # a run that began before there was a choice began in float32
            dtype = before.get(AUTOCAST, "float32")
        config = replaced(config, {AUTOCAST: dtype})
        case = build_case(config, cluster, assumed, lengths, model_config)
    fitted: Fit | None = None
    for choice, share in _choices(config, cluster, before or {}):
        resolved = replaced(config, choice)
        fitted = Fit(with_settings(case, resolved, lengths))
        memory = fitted.memory
        rows_fit = share == FULL or _cache_of(memory) <= _CACHE_SHARE * memory.capacity
        if memory.peak.bytes <= share * memory.capacity and rows_fit:
            break
    assert fitted is not None
    return fitted


def _asks_for_autocast(config: SRFTConfig) -> bool:
    model = config.model
    four_bits = model.lora is not None and model.lora.quantization is not None
    return model.autocast == "auto" and parameter_dtype(model) == torch.float32 and not four_bits


def _cache_of(memory: Memory) -> float:
    return memory.phase("generate").item("key/value cache")


def _choices(
    config: SRFTConfig, cluster: Cluster, before: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], float]]:
    """Settings, the fastest first, each with the share of the memory that it may take."""
    auto = [key for key in AUTOMATIC if get(config, key) == "auto"]
    if all(key in before for key in auto):
        yield {key: before[key] for key in auto}, FULL
    easy = _EASY if cluster.is_cpu else FULL
    rows = list(_halves(MOST_ROWS, _FEWEST_ROWS))
    steps = [(tokens, False, easy) for tokens in _halves(MOST_TOKENS, _FAST_TOKENS)]
    steps += [(tokens, False, FULL) for tokens in _halves(_FAST_TOKENS, 2 * _FEWEST_TOKENS)]
    steps += [(tokens, True, FULL) for tokens in _halves(2 * _FAST_TOKENS, _FEWEST_TOKENS)]
    seen = []
    for tokens, checkpointing, share in steps:
        for few in rows:
            values = {TOKENS: tokens, ROWS: few, CHECKPOINTING: checkpointing}
            chosen = {key: values[key] for key in auto}
            if (chosen, share) not in seen:
                seen.append((chosen, share))
                yield chosen, share


def _halves(most: int, fewest: int) -> Iterator[int]:
    while most >= fewest:
        yield most
        most //= 2
