"""What a method is told of a whole batch before the first term: advantages, who takes part, and entropies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srft.objective.method import Method
from srft.objective.table import sequence_table
from srft.objective.terms import in_prefix, prefix_threshold
from srft.types import SequenceTable, TokenIndex, TrainingSequence


@dataclass(frozen=True)
class Before:
    """What a pass over the whole batch beforehand tells: mean entropy of demonstrations and rollouts,
    and the entropy from which on a given prefix's tokens are trained on."""

    entropy: tuple[float, float]
    prefix_threshold: float


def prepare(
    method: Method, sequences: Sequence[TrainingSequence]
) -> tuple[SequenceTable, list[int]]:
    """The table with advantages filled in, and the rows of the sequences that take part."""
    table = sequence_table(sequences)
    table = replace(table, advantage_S=method.advantage(table, method.switches))
    if method.select is None:
        return table, list(range(len(sequences)))
    keep_S = method.select(table, method.switches)
    return table, keep_S.nonzero().flatten().tolist()


def _alone(mine: Any, _: str) -> list[Any]:
    return [mine]


def look_before(
    method: Method,
    parts: Sequence[tuple[TokenIndex, Tensor]],
    gather: Callable[[Any, str], list[Any]] = _alone,
) -> Before:
    """Over all ``parts`` (the tokens of a micro-batch and the entropy of each, in nats) of all processes;
    ``gather``: what each of them has, by rank."""
    entropy = torch.cat([entropy_T for _, entropy_T in parts]).double()
    demo = torch.cat([index.sequences.is_demo_S[index.sequence_T] for index, _ in parts])
    counted = torch.cat([index.loss_mask_T for index, _ in parts])
    given = torch.cat([in_prefix(index) for index, _ in parts])
    masks = (demo & counted, ~demo & counted)
    mine = [(entropy[mask].sum().item(), int(mask.sum())) for mask in masks]
    found = gather((mine, entropy[given].tolist()), "entropy of the batch")
    demos, rollouts = zip(*(sums for sums, _ in found), strict=True)
    prefixes = torch.tensor([h for _, some in found for h in some], dtype=torch.float64)
    threshold = prefix_threshold(prefixes, method.switches)
    return Before((_mean(demos), _mean(rollouts)), threshold)


def _mean(parts: Sequence[tuple[float, int]]) -> float:
    """From (sum, count) of every process; 0.0 where there is nothing."""
    return sum(total for total, _ in parts) / max(1, sum(count for _, count in parts))
