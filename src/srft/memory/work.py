"""How much there is to do in a step, and how it is spread over processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from srft.config import SRFTConfig
from srft.errors import ConfigError
from srft.memory.assumptions import Assumptions
from srft.memory.devices import Cluster
from srft.model.loading import parameter_dtype
from srft.objective.method import Method


@dataclass(frozen=True)
class Layout:
    """world = replicate x shard processes, one a device. gather and reduce: dtypes of the weights
    that FSDP2 gathers and of the gradients that it adds up. compute: dtype of matrix products."""

    world: int
    replicate: int
    shard: int
    reshard: bool
    weights: torch.dtype
    compute: torch.dtype
    gather: torch.dtype
    reduce: torch.dtype

    @property
    def autocast(self) -> torch.dtype | None:
        """Dtype of autocast around float32 weights, or None; FSDP2 casts what it gathers instead."""
        return self.compute if self.compute != self.weights and self.world == 1 else None


def read_layout(config: SRFTConfig, cluster: Cluster) -> Layout:
    """What the recipe's ``parallel`` section and its dtypes make of ``cluster``.

    Raises ConfigError where the section asks for another number of processes.
    """
    parallel = config.parallel
    world = cluster.size
    shard = parallel.shard or max(1, world // parallel.replicate)
    if shard * parallel.replicate != world:
        raise ConfigError(
            f"parallel: replicate x shard is {parallel.replicate * shard}, but {cluster.describe()} "
            f"runs {world} processes; set parallel.shard or parallel.replicate so that they "
            "multiply to that"
        )
    weights = parameter_dtype(config.model)
    compute = weights
    if weights == torch.float32 and (config.model.autocast != "auto" or not cluster.is_cpu):
        auto = config.model.autocast == "auto"
        compute = torch.bfloat16 if auto else getattr(torch, config.model.autocast)
    dtypes = {"auto": compute, "float32": torch.float32, "bfloat16": torch.bfloat16}
    return Layout(
        world,
        parallel.replicate,
        shard,
        parallel.reshard_after_forward,
        weights,
        compute,
        dtypes[parallel.gather_dtype],
        dtypes[parallel.reduce_dtype],
    )


@dataclass(frozen=True)
class Tokens:
    """A step of one process in which every sequence is as long as it may be: its prompts, and lengths
    in tokens. demonstrations and group: of each prompt. further: demonstrations of other prompts."""

    prompts: float
    group: int
    demonstrations: int
    prompt: float
    response: float
    demonstration: float
    shared: bool
    further: float = 0.0

    @property
    def sequences(self) -> float:
        return self.prompts * (self.group + self.demonstrations) + self.further

    @property
    def responses(self) -> float:
        """Response tokens, rollouts and demonstrations."""
        each = self.group * self.response + self.demonstrations * self.demonstration
        return self.prompts * each + self.further * self.demonstration

    @property
    def total(self) -> float:
        """Tokens that the layers work through; a shared prompt counts once."""
        copies = 1 if self.shared else self.group + self.demonstrations
        return (self.prompts * copies + self.further) * self.prompt + self.responses

    @property
    def padding(self) -> float:
        """Places in attention for each token."""
        return (self.sequences * self.prompt + self.responses) / self.total


@dataclass(frozen=True)
class Lengths:
    """What the data of a run holds, in tokens. prompt, demonstration: the longest. asked: the longest
    prompt and response that the engine will be asked for. evaluated: the most samples of an evaluation."""

    prompt: int
    demonstration: int
    asked: int
    evaluated: int


@dataclass(frozen=True)
class Work:
    """micro_batch: tokens of the fullest micro-batch of a process, of ``micro_batches``. longest: of a
    sequence. reference: whether scores of a reference model are needed. asked: the longest prompt and
    response of the engine; rollouts: the most that it is asked for at once."""

    step: Tokens
    longest: int
    micro_batch: float
    micro_batches: int
    reference: bool
    asked: int
    rollouts: int


def measure_work(
    config: SRFTConfig,
    methods: list[Method],
    layout: Layout,
    assumed: Assumptions,
    window: int | None,
    lengths: Lengths | None = None,
) -> Work:
    """Counts of a step, by ``lengths`` or by the recipe's limits, where these are known by themselves. Limits
    that the recipe leaves wide end at the model's window."""
    rollouts = any(m.rollouts for m in methods)
    demos = any(m.demonstrations or m.continues for m in methods)
    limit = config.rollout.max_tokens
    window = window or 2**40
    longest_prompt = config.data.max_prompt_tokens or assumed.prompt_tokens
    longest_demo = config.data.max_demonstration_tokens or limit
    if lengths is not None:
        longest_prompt, longest_demo = lengths.prompt, lengths.demonstration or 1
    longest_prompt = max(1, min(longest_prompt, window - (limit if rollouts else 1)))
    longest_demo = max(1, min(longest_demo, window - longest_prompt))
    step = Tokens(
        prompts=math.ceil(config.train.prompts_per_step / layout.world),
        group=config.rollout.group_size if rollouts else 0,
        demonstrations=int(demos),
        prompt=longest_prompt,
        response=limit,
        demonstration=longest_demo,
        shared=config.model.attention != "padded",
        further=config.train.demonstrations_per_step / layout.world * any(m.mixes for m in methods),
    )
    longest = longest_prompt + max(limit if rollouts else 0, longest_demo if demos else 0)
    budget = config.train.micro_batch_tokens
    parts = config.train.optimizer_steps_per_batch
    count = max(1, math.ceil(step.total / parts / budget))
    return Work(
        step,
        longest,
        micro_batch=max(step.total / parts / count, min(longest, step.total)),
        micro_batches=count * parts,
        reference=any(m.reads_reference(config.teacher.frozen) for m in methods),
        asked=lengths.asked if lengths else longest_prompt + limit,
        rollouts=max(int(step.prompts * step.group), lengths.evaluated if lengths else 0),
    )
