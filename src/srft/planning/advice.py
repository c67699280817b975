"""Which settings make a recipe fit: each alone with the mildest value that does, or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from srft.config import SRFTConfig
from srft.planning.devices import Cluster


@dataclass(frozen=True)
class Verdict:
    """share: peak over capacity; problems: what stands in the way beside memory."""

    share: float
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.share <= 1 and not self.problems


@dataclass(frozen=True)
class Mend:
    """Settings under which the recipe fits, as ``key=value``, and the share of the memory then."""

    settings: dict[str, Any]
    share: float
    cost: str

    def describe(self) -> str:
        return " ".join(f"{key}={_shown(value)}" for key, value in self.settings.items())


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Remedy:
    """A setting, its values from the mildest to the strongest, and what it costs. ``after``: a
    setting without which it is no good."""

    key: str
    values: Sequence[Any]
    cost: str
    after: str | None = None


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


def mends(
    config: SRFTConfig, cluster: Cluster, judge: Callable[[Mapping[str, Any]], Verdict]
) -> tuple[Mend, ...]:
    """Every single setting that suffices. Where none does, the remedies together, in order, each
    as mild as the whole allows. Empty where even they do not."""
    remedies = _remedies(config, cluster)
    single = [remedy for remedy in remedies if remedy.after is None]
    alone = [m for remedy in single if (m := _mildest(remedy, {}, judge)) is not None]
    if alone:
        return tuple(alone)
    chosen: dict[str, Any] = {}
    used: list[Remedy] = []
    before = judge({}).share
    for remedy in remedies:
        if remedy.after is not None and remedy.after not in chosen:
            continue
        found = _mildest(remedy, chosen, judge)
        if found is not None:
            return (_relaxed(found.settings, [*used, remedy], judge),)
        strongest = {**chosen, remedy.key: remedy.values[-1]}
        share = judge(strongest).share
        if share < before * 0.995:
            chosen, before = strongest, share
            used.append(remedy)
    return ()


def _relaxed(
    settings: Mapping[str, Any],
    remedies: Sequence[Remedy],
    judge: Callable[[Mapping[str, Any]], Verdict],
) -> Mend:
    """``settings`` that fit, without what is not needed and as mild as the others allow; the
    remedies that cost most are relaxed first."""
    kept = dict(settings)
    for remedy in reversed(remedies):
        without = {key: value for key, value in kept.items() if key != remedy.key}
        milder = [without, *({**without, remedy.key: value} for value in remedy.values)]
        kept = next(dict(option) for option in milder if judge(option).fits)
    costs = dict.fromkeys(remedy.cost for remedy in remedies if remedy.key in kept)
    return Mend(kept, judge(kept).share, "; ".join(costs))


def _mildest(
    remedy: Remedy, given: Mapping[str, Any], judge: Callable[[Mapping[str, Any]], Verdict]
) -> Mend | None:
    for value in remedy.values:
        settings = {**given, remedy.key: value}
        verdict = judge(settings)
        if verdict.fits:
            return Mend(settings, verdict.share, remedy.cost)
    return None


def _remedies(config: SRFTConfig, cluster: Cluster) -> list[Remedy]:
    """Those the recipe does not use yet, the cheapest in time and quality first."""
    found: list[Remedy] = []
    if config.rollout.engine in ("embedded", "generate") and not config.rollout.free_cache:
        found.append(Remedy("rollout.free_cache", [True], "the cache is made anew each step"))
    found.append(
        Remedy(
            "train.tokens_per_micro_batch",
            _halved(config.train.tokens_per_micro_batch, 256),
            "more and smaller passes",
        )
    )
    if not config.model.gradient_checkpointing:
        found.append(
            Remedy("model.gradient_checkpointing", [True], "about a third more training time")
        )
    if config.rollout.engine in ("embedded", "generate"):
        found.append(
            Remedy("rollout.max_rows", _halved(config.rollout.max_rows, 1), "slower generation")
        )
    if config.rollout.engine == "vllm":
        share = config.rollout.vllm.gpu_memory_utilization
        found.append(
            Remedy(
                "rollout.vllm.gpu_memory_utilization",
                [round(x, 2) for x in (share - 0.1 * k for k in range(1, 9)) if x >= 0.1],
                "fewer rollouts side by side",
            )
        )
    if config.parallel.shard is not None and config.parallel.shard < cluster.size:
        wider = [n for n in _doubled(config.parallel.shard, cluster.size) if cluster.size % n == 0]
        found.append(Remedy("parallel.shard", wider, "weights are gathered from more devices"))
    if config.train.optimizer == "adamw" and cluster.size == 1:
        found.append(Remedy("train.optimizer", ["adamw_8bit"], "moments are rounded to eight bits"))
    rank = "model.lora.rank"
    fresh = config.model.lora is None
    if fresh:
        found.append(Remedy(rank, [64, 16], "adapters are trained in place of the weights"))
    if config.model.dtype in ("auto", "float32"):
        half = Remedy("model.dtype", ["bfloat16"], "a base in half precision", rank)
        found.append(half if fresh else replace(half, after=None))
    if fresh or config.model.lora.quantization is None:  # type: ignore[union-attr]
        four = Remedy("model.lora.quantization", ["nf4"], "a base in four bits, slower", rank)
        found.append(four if fresh else replace(four, after=None))
    return [remedy for remedy in found if remedy.values]


def _halved(value: int, low: int) -> list[int]:
    values = []
    while value // 2 >= low:
        value //= 2
        values.append(value)
    return values


def _doubled(value: int, high: int) -> list[int]:
    values = []
    while value * 2 <= high:
        value *= 2
        values.append(value)
    return values
