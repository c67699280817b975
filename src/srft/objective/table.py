"""From a list of sequences to the flat tensors the objective works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from srft.types import SequenceTable, TokenBatch, TokenIndex, TrainingSequence


def sequence_table(sequences: Sequence[TrainingSequence]) -> SequenceTable:
    """One row per sequence, in order; ``advantage_S`` is zero until a method has filled it in."""
    for row, sequence in enumerate(sequences):
        assert len(sequence.response_ids) > 0, f"sequence {row} has an empty response"
        assert 0 <= sequence.prefix_length <= len(sequence.response_ids), (
            f"sequence {row}: prefix of {sequence.prefix_length} tokens, "
            f"response of {len(sequence.response_ids)}"
        )
    return SequenceTable(
        group_S=torch.tensor([s.group for s in sequences], dtype=torch.int64),
        is_demo_S=torch.tensor([s.is_demo for s in sequences], dtype=torch.bool),
        reward_S=torch.tensor([s.reward for s in sequences], dtype=torch.float32),
        correct_S=torch.tensor([s.correct for s in sequences], dtype=torch.bool),
        truncated_S=torch.tensor([s.truncated for s in sequences], dtype=torch.bool),
        length_S=torch.tensor([len(s.response_ids) for s in sequences], dtype=torch.int64),
        prefix_S=torch.tensor([s.prefix_length for s in sequences], dtype=torch.int64),
        taught_S=torch.tensor([s.context_ids is not None for s in sequences], dtype=torch.bool),
        advantage_S=torch.zeros(len(sequences)),
    )


def take_rows(table: SequenceTable, rows_S: Tensor) -> SequenceTable:
    """The rows where a bool_S is True, or those at an int64 index."""
    return SequenceTable(**{f.name: getattr(table, f.name)[rows_S] for f in fields(table)})


def loss_mask(sequences: Sequence[TrainingSequence]) -> Tensor | None:
    """loss_mask_T of all response tokens, sequence after sequence; None where every token counts."""
    if all(s.loss_mask is None for s in sequences):
        return None
    for row, s in enumerate(sequences):
        assert s.loss_mask is None or len(s.loss_mask) == len(s.response_ids), f"sequence {row}"
    flat = [m for s in sequences for m in (s.loss_mask or [True] * len(s.response_ids))]
    return torch.tensor(flat, dtype=torch.bool)


def token_index(table: SequenceTable, loss_mask_T: Tensor | None = None) -> TokenIndex:
    """Every response token of every sequence, sequence after sequence."""
    length_S = table.length_S
    row_S = torch.arange(len(length_S), device=length_S.device)
    sequence_T = torch.repeat_interleave(row_S, length_S)
    start_S = torch.cumsum(length_S, 0) - length_S
    position_T = torch.arange(len(sequence_T), device=length_S.device) - start_S[sequence_T]
    if loss_mask_T is None:
        loss_mask_T = torch.ones_like(sequence_T, dtype=torch.bool)
    assert len(loss_mask_T) == len(sequence_T)
    return TokenIndex(table, sequence_T, position_T, loss_mask_T)


def take_tokens(batch: TokenBatch, mask_T: Tensor) -> TokenBatch:
    """The batch with only the tokens where ``mask_T`` is True; the table of sequences stays whole.

    Terms work on such a batch rather than multiply by a mask, because an infinite loss at a token
    that is not theirs would turn into 0 * inf = NaN in the backward pass.
    """

    index = replace(
        batch.index,
        **{name: getattr(batch.index, name)[mask_T] for name in _PER_TOKEN[TokenIndex]},
    )
    taken: dict[str, Any] = {}
    for name in _PER_TOKEN[TokenBatch]:
        value_T = getattr(batch, name)
        taken[name] = None if value_T is None else value_T[mask_T]
    return replace(batch, index=index, **taken)


# Fields with a value for every token, by the letter that names of tensors end with.
_PER_TOKEN = {
    kind: tuple(f.name for f in fields(kind) if f.name.endswith("_T"))
    for kind in (TokenIndex, TokenBatch)
}


def sequence_mean(value_T: Tensor, index: TokenIndex) -> Tensor:
    """Mean of a per-token value over each sequence's tokens in the index; value_S, 0 where none."""
    return sequence_sum(value_T, index) / token_count(index).clamp(min=1).to(value_T.dtype)


def sequence_sum(value_T: Tensor, index: TokenIndex) -> Tensor:
    """Sum of a per-token value over each sequence's tokens in the index; value_S."""
    zero_S = value_T.new_zeros(len(index.sequences.group_S))
    return zero_S.index_add(0, index.sequence_T, value_T)


def token_count(index: TokenIndex) -> Tensor:
    """Number of tokens each sequence has in the index; int64_S."""
    return torch.bincount(index.sequence_T, minlength=len(index.sequences.group_S))
