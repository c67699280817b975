"""Token-budget micro-batches without padding.

Sequences are laid end to end in one row of N tokens. The objective sees only their response
tokens, T of them, in the same order; ``predict_T`` says at which of the N positions the model
predicts each (the position before it), so no other hidden state ever meets the output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from srft.errors import DataError
from srft.objective.table import sequence_table, take_rows, token_index
from srft.types import SequenceTable, TokenIndex, TrainingSequence


@dataclass(frozen=True)
class PackedBatch:
    """S sequences end to end, N tokens, of which T are response tokens.

    input_ids_N, position_ids_N (int64; positions restart at 0 with each sequence).
    cu_seqlens (int32, S + 1): sequence s is ``[cu_seqlens[s], cu_seqlens[s + 1])`` of the N.
    max_length: tokens of the longest sequence.
    target_T (int64): the response tokens. predict_T (int64): index into N of the hidden state
    that predicts each.
    index: which sequence and position each response token is; its table has these S rows.
    rows: which of the sequences given to :func:`pack` the S rows are.
    sampler_logprob_T (float32): the engine's own log-probabilities; 0 (probability 1, the paper's
    pi_beta) at tokens of sequences that have none, None where no sequence has any.
    """

    input_ids_N: Tensor
    position_ids_N: Tensor
    cu_seqlens: Tensor
    max_length: int
    target_T: Tensor
    predict_T: Tensor
    index: TokenIndex
    rows: tuple[int, ...]
    sampler_logprob_T: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """N, prompts included: what the model's layers have to work through."""
        return self.input_ids_N.shape[0]

    @property
    def num_response_tokens(self) -> int:
        """T."""
        return self.target_T.shape[0]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        table = SequenceTable(
            **{
                f.name: getattr(self.index.sequences, f.name).to(device)
                for f in fields(SequenceTable)
            }
        )
        sampler = self.sampler_logprob_T
        return PackedBatch(
            input_ids_N=self.input_ids_N.to(device),
            position_ids_N=self.position_ids_N.to(device),
            cu_seqlens=self.cu_seqlens.to(device),
            max_length=self.max_length,
            target_T=self.target_T.to(device),
            predict_T=self.predict_T.to(device),
            index=TokenIndex(
                sequences=table,
                sequence_T=self.index.sequence_T.to(device),
                position_T=self.index.position_T.to(device),
            ),
            rows=self.rows,
            sampler_logprob_T=None if sampler is None else sampler.to(device),
        )


def pack(
    sequences: Sequence[TrainingSequence],
    advantages: Tensor | None,
    token_budget: int,
    device: torch.device | str = "cpu",
    at_least: int = 1,
) -> list[PackedBatch]:
    """Cut ``sequences`` into micro-batches of at most ``token_budget`` tokens (prompts included).

    advantages: float32, one per sequence, or None for zeros. See :func:`partition` for how the cut
    is made and for ``at_least``. The result depends on the arguments alone.

    Raises DataError where a sequence has an empty prompt (nothing predicts its first token) or an
    empty response (nothing to train on).
    """
    for row, sequence in enumerate(sequences):
        if not sequence.prompt_ids or not sequence.response_ids:
            part = "response" if sequence.prompt_ids else "prompt"
            raise DataError(
                f"sequence {row} (group {sequence.group}) has an empty {part}: give every example "
                "at least one prompt token (a beginning-of-sequence token will do) and one "
                "response token"
            )
    table = sequence_table(sequences, advantages)
    lengths = [len(s.prompt_ids) + len(s.response_ids) for s in sequences]
    return [
        _pack_one(sequences, table, rows).to(device)
        for rows in partition(lengths, token_budget, at_least)
    ]


def partition(
    lengths: Sequence[int], token_budget: int, at_least: int = 1
) -> list[tuple[int, ...]]:
    """Which sequences share a micro-batch: rows of ``lengths`` (tokens), longest first.

    Sequences of similar length come together (sorted, then cut), the number of micro-batches is
    the fewest such a cut needs, and among the cuts into that many the one whose fullest
    micro-batch is smallest is taken. A sequence longer than the budget is alone in its own.
    ``at_least`` asks for more micro-batches where there are sequences enough: ranks that must run
    the same number of forward passes agree on the largest and pass it here.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, not {token_budget}")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    count = max(len(_cut(order, lengths, token_budget)), min(at_least, len(order)))
    low, high = 1, token_budget
    while low < high:
        middle = (low + high) // 2
        if len(_cut(order, lengths, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    parts = _cut(order, lengths, low)
    while len(parts) < count:
        # Equal lengths cut unevenly can leave fewer parts than asked for: halve the fullest.
        fullest = max(
            (p for p in range(len(parts)) if len(parts[p]) > 1),
            key=lambda p: (sum(lengths[row] for row in parts[p]), -p),
        )
        half = (len(parts[fullest]) + 1) // 2
        parts[fullest : fullest + 1] = [parts[fullest][:half], parts[fullest][half:]]
    return [tuple(part) for part in parts]


def _cut(order: list[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    parts: list[list[int]] = []
    filled = 0
    for row in order:
        if not parts or filled + lengths[row] > capacity:
            parts.append([])
            filled = 0
        parts[-1].append(row)
        filled += lengths[row]
    return parts


def _pack_one(
    sequences: Sequence[TrainingSequence], table: SequenceTable, rows: tuple[int, ...]
) -> PackedBatch:
    chosen = [sequences[row] for row in rows]
    prompt = torch.tensor([len(s.prompt_ids) for s in chosen])
    total = prompt + torch.tensor([len(s.response_ids) for s in chosen])
    cu_seqlens = torch.zeros(len(chosen) + 1, dtype=torch.int64)
    torch.cumsum(total, 0, out=cu_seqlens[1:])
    ids = [i for s in chosen for part in (s.prompt_ids, s.response_ids) for i in part]
    input_ids_N = torch.tensor(ids, dtype=torch.int64)
    position_ids_N = torch.arange(len(ids)) - cu_seqlens[:-1].repeat_interleave(total)
    index = token_index(take_rows(table, torch.tensor(rows, dtype=torch.int64)))
    response_start_S = cu_seqlens[:-1] + prompt
    place_T = response_start_S[index.sequence_T] + index.position_T
    return PackedBatch(
        input_ids_N=input_ids_N,
        position_ids_N=position_ids_N,
        cu_seqlens=cu_seqlens.to(torch.int32),
        max_length=int(total.max()),
        target_T=input_ids_N[place_T],
        predict_T=place_T - 1,
        index=index,
        rows=rows,
        sampler_logprob_T=_sampler_logprobs(chosen),
    )


def _sampler_logprobs(chosen: list[TrainingSequence]) -> Tensor | None:
    if all(s.sampler_logprobs is None for s in chosen):
        return None
    values: list[float] = []
    for s in chosen:
        known = s.sampler_logprobs
        if known is not None and len(known) != len(s.response_ids):
            raise DataError(
                f"a rollout of group {s.group} has {len(s.response_ids)} tokens but "
                f"{len(known)} log-probabilities from its engine: there must be one per token"
            )
        values.extend([0.0] * len(s.response_ids) if known is None else known)
    return torch.tensor(values, dtype=torch.float32)
