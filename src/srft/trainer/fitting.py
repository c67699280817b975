"""A run fits into the memory there is: what is left to choose is chosen before the model is loaded,
tried with one real micro-batch before the first step, and halved should memory run short later."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import yaml
from transformers import PreTrainedModel

from srft.config import SRFTConfig
from srft.data.packing import pack
from srft.errors import ConfigError, MemoryShort, out_of_memory
from srft.memory.advice import hints
from srft.memory.assumptions import assume
from srft.memory.case import build_case, with_settings
from srft.memory.devices import GIB, Cluster
from srft.memory.fit import AUTOCAST, AUTOMATIC, FULL, TOKENS, Fit, fit, get, replaced
from srft.memory.free import (
    Free,
    free_memory,
    held_memory,
    keep_nothing_freed,
    local_processes,
    release,
    watch_peak,
)
from srft.memory.phases import plan_memory
from srft.memory.work import Lengths
from srft.model.cpu.products import bfloat16_gain
from srft.model.fast import training_mode
from srft.model.policy import Policy
from srft.objective.method import Method
from srft.parallel.world import World
from srft.runs.run_dir import RunDir, change_recipe
from srft.trainer.train_config import TrainConfig
from srft.types import TokenizedExample, TrainingSequence

T = TypeVar("T")

_PLAIN = 0.25
"""Up to this share of the memory no trial is made: the arithmetic is not that far off."""
_CAREFUL = 0.6
"""From this share on a quarter is tried first: some systems end a process instead of refusing memory."""
_TIGHT = 0.8
"""From this share on what is freed goes back at once, which can double the time of an update."""
_GROWTH = 1.08
"""What runs came to, over what a trial in a fresh process took: the C library keeps what is freed between
blocks in use. From 1.02 to 1.18 in seven runs of SmolLM2 and Gemma 3."""
_FEWEST_TOKENS = 64


@dataclass(frozen=True)
class Room:
    """What was chosen and what there is. asked: the recipe as it was given. fitted: None where the
    arithmetic does not know the model, as ``note`` says. held: by this process before it had a model."""

    asked: SRFTConfig
    config: SRFTConfig
    fitted: Fit | None
    cluster: Cluster
    lengths: Lengths
    free: Free
    held: float
    device: torch.device
    world: World
    note: str = ""

    def tried(self, policy: Policy) -> tuple[SRFTConfig, str]:
        """The recipe, with smaller micro-batches where a real one shows that they are needed, and what is
        to be said of it.

        Raises:
            ConfigError: it does not fit, and the recipe leaves nothing smaller to choose.
        """
        if self.fitted is None:
            return self.config, self.note
        planned = self.held + self.fitted.memory.peak.bytes
        if self.world.size > 1 or planned < _PLAIN * self.free.bytes:
            return self.config, self._line(planned, "by arithmetic")
        peak = _peak(self, self.fitted, policy, planned)
        if peak <= FULL * self.free.bytes:
            return self.config, self._line(peak, "tried with one micro-batch")
        tokens = self.config.train.micro_batch_tokens // 2
        if get(self.asked, TOKENS) != "auto" or 2 * tokens <= self.fitted.case.work.longest:
            raise refusal(self, peak)
        config = replaced(self.config, {TOKENS: tokens})
        case = with_settings(self.fitted.case, config, self.lengths)
        return replace(self, config=config, fitted=Fit(case)).tried(policy)

    def _line(self, peak: float, how: str) -> str:
        assert self.fitted is not None
        each = " a process" if self.world.size > 1 else ""
        return (
            f"memory: at most about {_gib(peak)} of {_gib(self.free.bytes)} GiB{each} ({self.free.limit}; "
            f"{how}), {self.fitted.settings()}"
        )


def measure_lengths(
    config: SRFTConfig,
    methods: Sequence[Method],
    examples: Sequence[TokenizedExample],
    evaluation: Sequence[Sequence[TokenizedExample]],
) -> Lengths:
    """What the data of a run asks of memory; ``evaluation``: the problems of each set."""
    prompt = max(len(example.prompt_ids) for example in examples)
    longest = prompt
    if any(method.continues for method in methods):
        demos = [len(e.prompt_ids) + len(d) for e in examples for d in e.demonstration_ids]
        longest = max([longest, *demos])
    asked = longest + config.rollout.max_tokens
    if problems := [len(p.prompt_ids) for some in evaluation for p in some]:
        limit = config.evaluation.max_tokens or config.rollout.max_tokens
        asked = max(asked, max(problems) + limit)
    return Lengths(
        prompt=prompt,
        demonstration=max((len(d) for e in examples for d in e.demonstration_ids), default=0),
        asked=asked,
        evaluated=max(map(len, evaluation), default=0) * (config.evaluation.n or 1),
    )


def fit_memory(
    asked: SRFTConfig,
    lengths: Lengths,
    model: PreTrainedModel | None,
    device: torch.device,
    world: World,
    run: RunDir,
) -> Room:
    """Chooses what the recipe leaves to be chosen, before there is a model. What a run chose that goes on
    in ``run`` comes first, so that it computes the same to the bit.

    Raises:
        ConfigError: nothing fits; the message says what would make it fit.
    """
    everywhere = world.gather(
        (free_memory(device, local_processes(world.size)), held_memory(device)), "free memory"
    )
    free, held = min(everywhere, key=lambda one: one[0].bytes - one[1])
    if model is not None:
        held -= sum(p.numel() * p.element_size() for p in model.parameters())
    cluster = Cluster(device.type, (free.bytes - held) / GIB, world.size, 1)
    assumed = assume(cluster)
    room = Room(asked, asked, None, cluster, lengths, free, held, device, world)
    before = world.from_main(lambda: chosen_before(run), "the run's settings")
    gain = world.from_main(bfloat16_gain, "the processor's speed") if cluster.is_cpu else 1.0
    given = None if model is None else model.config
    try:
        fitted = fit(asked, cluster, assumed, lengths, given, before, gain)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  an architecture of which the arithmetic knows too little
        config = replaced(asked, _defaults(asked))
        note = f"memory: not planned, since this model cannot be counted ({type(error).__name__}: {error})"
        return replace(room, config=config, note=note)
    room = replace(room, config=fitted.config, fitted=fitted)
    if not fitted.memory.fits and model is None:
        raise refusal(room, held + fitted.memory.peak.bytes)
    share = _CAREFUL if free.limit == "ulimit -v" else _TIGHT  # where addresses count, holes do too
    if cluster.is_cpu and held + fitted.memory.peak.bytes > share * free.bytes:
        keep_nothing_freed()
    return room


def _defaults(asked: SRFTConfig) -> dict[str, Any]:
    values = (
        asked.train.micro_batch_tokens,
        asked.rollout.rows,
        asked.model.gradient_checkpointing is True,
    )
    return dict(zip(AUTOMATIC, values, strict=True))


def chosen_before(run: RunDir) -> Mapping[str, Any]:
    """What the run in this folder chose when it began; nothing where none did."""
    try:
        recipe = yaml.safe_load(run.config.read_text(encoding="utf-8"))
        keys = (*AUTOMATIC, AUTOCAST)
        found = {key: recipe[key.split(".")[0]][key.split(".")[1]] for key in keys}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return {key: value for key, value in found.items() if value != "auto"}


def as_chosen(config: SRFTConfig, run: RunDir) -> SRFTConfig:
    """The recipe, with what the run in this folder chose where the recipe leaves it to be chosen."""
    chosen = chosen_before(run)
    return replaced(config, {key: chosen[key] for key in chosen if get(config, key) == "auto"})


def refusal(room: Room, peak: float) -> ConfigError:
    """What is said where a run does not fit, with settings each of which would lower its peak."""
    assert room.fitted is not None
    case = room.fitted.case

    def share(other: SRFTConfig) -> float:
        planned = plan_memory(
            build_case(other, room.cluster, case.assumed, room.lengths, case.shape.config)
        )
        return (room.held + planned.peak.bytes) / room.free.bytes

    found = hints(room.config, room.world.size, share)
    enough = [hint for hint in found if hint.share <= FULL]
    helps = ", or ".join(
        f"{hint.setting} ({_gib(hint.share * room.free.bytes)} GiB)" for hint in enough or found[:3]
    )
    what = "What would make it fit" if enough else "No setting alone is enough; what helps most"
    return ConfigError(
        f"out of memory, foreseen before the first step: with {room.fitted.settings()} this run would take "
        f"about {_gib(peak)} GiB, and this process can have {_gib(room.free.bytes)} ({room.free.limit}). "
        f"{what}: {helps}; or shorter responses, a smaller model, more memory (`srft plan` shows every item)"
    )


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def _peak(room: Room, fitted: Fit, policy: Policy, planned: float) -> float:
    """The peak to be expected, bytes: what a real micro-batch takes, with what is not there yet beside it;
    infinity where it ran out of memory."""
    memory, case = fitted.memory, fitted.case
    train = memory.phase("train")
    # Beside the micro-batch a step holds these, which do not exist before the first one.
    later = train.item("optimizer") + train.item("key/value cache")
    others = max((p.bytes for p in memory.phases if p.name != "train"), default=0.0)
    tokens = int(case.work.micro_batch)
    whole = case.work.micro_batches == 1
    sizes = [tokens]
    if planned > _CAREFUL * room.free.bytes and tokens > 4 * case.work.longest:
        sizes.insert(0, tokens // 4)
    reached = 0.0
    for size in sizes:
        before = held_memory(room.device)
        reached = _trial(room, policy, size, gradients=not whole)
        fixed = case.shape.trained * case.trained_itemsize
        expected = before + fixed + max(0.0, reached - before - fixed) * tokens / size
        if max(reached, expected) + later > room.free.bytes:
            return max(reached, expected) + later
    growth = _GROWTH if room.device.type == "cpu" else 1.0
    return max(growth * (reached + later), room.held + others)


def _trial(room: Room, policy: Policy, tokens: int, gradients: bool) -> float:
    """The peak of this process during a forward and backward pass over so many tokens, sequences as long
    as they may be. Leaves neither gradients nor a trace in the random state. ``gradients``: these are
    there already, as in a step's second micro-batch."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    devices = [room.device] if room.device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices),
            watch_peak(room.device) as peak,
            training_mode(policy.model, noise=False),
        ):
            for p in trained if gradients else ():
                p.grad = torch.zeros_like(p)
            packed = pack(
                _longest_sequences(room, policy, tokens),
                None,
                tokens,
                policy.device,
                share_prompts=policy.shares_prompts,
            )[0]
            scores = policy.score(packed)
            (scores.logprob_T.sum() + scores.entropy_T.sum()).backward()
            del scores, packed
        return peak.bytes or held_memory(room.device)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return float("inf")
    finally:
        for p in trained:
            p.grad = None
        release()


def _longest_sequences(room: Room, policy: Policy, tokens: int) -> list[TrainingSequence]:
    """Random sequences of at least ``tokens`` tokens as a step's worst micro-batch has them: groups of
    responses to one prompt."""
    step = room.fitted.case.work.step if room.fitted else None
    assert step is not None
    length = int(
        max(step.response if step.group else 0, step.demonstration if step.demonstrations else 0)
    )
    embedding: Any = policy.model.get_input_embeddings()
    size = int(embedding.weight.shape[0])
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, size, (count,), generator=generator).tolist())

    found: list[TrainingSequence] = []
    group, total = 0, 0
    while total < tokens or not found:
        prompt = draw(int(step.prompt))
        total += len(prompt)
        for _ in range(max(1, step.group + step.demonstrations)):
            found.append(TrainingSequence(prompt, draw(length), group, False, 0.0, False))
            total += length if policy.shares_prompts else length + len(prompt)
            if total >= tokens:
                break
        group += 1
    return found


def within_memory(attempt: Callable[..., T], config: TrainConfig) -> T | None:
    """What ``attempt(config=config)`` returns, or None where it may fit in smaller micro-batches."""
    try:
        result = attempt(config=config)
        host = torch.device("cpu")
        if held_memory(host) > _CAREFUL * free_memory(host).bytes:
            release()  # for the sampler, whose blocks are of other sizes
        return result
    except MemoryShort:
        if config.micro_batch_tokens <= _FEWEST_TOKENS:
            raise
    release()
    return None


def halved(config: SRFTConfig, run: RunDir, step: int) -> tuple[SRFTConfig, str]:
    """The recipe with micro-batches of half as many tokens, as the run's config.yaml then says too; and what
    is to be said of it."""
    tokens = config.train.micro_batch_tokens // 2
    config = replaced(config, {TOKENS: tokens})
    change_recipe(run, config.to_yaml(redacted=True), step)
    return config, f"out of memory: micro-batches of at most {tokens:,} tokens from now on"
