"""Token-budget micro-batches without padding.

Sequences are laid end to end in one row of N tokens; the prompt that the sequences of a group have
in common stands there once, where it may be shared. The objective sees only the response tokens, T
of them; ``predict_T`` says at which of the N positions the model predicts each (the position before
it), so no other hidden state ever meets the output head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srft.errors import DataError
from srft.objective.table import loss_mask, sequence_table, take_rows, token_index
from srft.types import SequenceTable, TokenIndex, TrainingSequence


@dataclass(frozen=True)
class PackedBatch:
    """S sequences end to end, N tokens, of which T are response tokens.

    input_ids_N, position_ids_N (int64; positions restart at 0 with each prompt).
    cu_seqlens (int32, S + 1): sequence s, prompt and response, is ``[cu_seqlens[s], cu_seqlens[s +
    1])`` of the N; where prompts are shared, of the P = cu_seqlens[S] places of ``expand_P``.
    max_length: tokens of the longest sequence.
    expand_P (int64): which of the N tokens stands at each place of the sequences written out one
    after another; None where every token belongs to one sequence (P = N, in order).
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
    expand_P: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """N, prompts included: what the model's layers have to work through."""
        return self.input_ids_N.shape[0]

    @property
    def num_response_tokens(self) -> int:
        """T."""
        return self.target_T.shape[0]

    def padded_places(self) -> Tensor:
        """Where each of the N tokens stands in the S rows of ``max_length`` places, one after another."""
        lengths = self.cu_seqlens.diff().long()
        row_N = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        return row_N * self.max_length + self.position_ids_N

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        return _moved(self, device)


def _moved(value: Any, device: torch.device | str) -> Any:
    """Tensors on ``device``, whatever dataclasses they are in."""
    if isinstance(value, Tensor):
        return value.to(device)
    if not is_dataclass(value):
        return value
    return replace(value, **{f.name: _moved(getattr(value, f.name), device) for f in fields(value)})  # type: ignore[type-var]


def pack(
    sequences: Sequence[TrainingSequence],
    table: SequenceTable | None,
    token_budget: int,
    device: torch.device | str = "cpu",
    share_prompts: bool = False,
    rank: int = 0,
    ranks: int = 1,
) -> list[PackedBatch]:
    """Cut ``sequences`` into micro-batches of at most ``token_budget`` tokens (prompts included).

    table: that of these sequences, with their advantages; None: one without. share_prompts:
    sequences with the same prompt stand together, and the prompt once (packed attention only). See
    :func:`partition` for how the cut is made. The result depends on the arguments alone.

    rank, ranks: of all micro-batches only those of one rank, equally many on each: their number is
    raised to a multiple of ``ranks``, and they are dealt out from the longest on, so that ranks work
    on sequences of similar length at the same time. One that goes without gets an empty micro-batch,
    whose forward and backward passes do no more than take part.

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
    table = sequence_table(sequences) if table is None else table
    units = _units(sequences, token_budget, share_prompts)
    lengths = [_tokens(sequences, unit) for unit in units]
    parts = partition(lengths, token_budget)
    rounds = -(-len(parts) // ranks)
    if len(parts) < rounds * ranks:
        parts = partition(lengths, token_budget, at_least=rounds * ranks)
    packs = [
        _pack_one(sequences, table, [units[u] for u in chosen]).to(device)
        for chosen in parts[rank::ranks]
    ]
    if len(packs) < rounds:
        packs.append(empty_pack(sequences[0].prompt_ids[0]).to(device))
    return packs


def pack_contexts(
    sequences: Sequence[TrainingSequence], packed: PackedBatch, share_prompts: bool = False
) -> PackedBatch:
    """The responses of ``packed`` that a teacher scores, each behind its ``context_ids`` in place of its
    prompt, as one micro-batch in the same order: token for token those of ``packed`` whose sequence
    is taught. An empty micro-batch where there are none.

    sequences: what ``packed`` was cut from.
    """
    told = [sequences[row] for row in packed.rows if sequences[row].context_ids is not None]
    chosen = [replace(s, prompt_ids=s.context_ids or ()) for s in told]
    device = packed.input_ids_N.device
    if not chosen:
        return empty_pack(int(packed.input_ids_N[0])).to(device)
    runs = itertools.groupby(range(len(chosen)), key=lambda row: chosen[row].prompt_ids)
    units = [list(run) for _, run in runs] if share_prompts else [[r] for r in range(len(chosen))]
    return _pack_one(chosen, sequence_table(chosen), units).to(device)


def empty_pack(token: int) -> PackedBatch:
    """A micro-batch of no sequence: the model runs on a single ``token`` that nothing is read from,
    so that its loss is an exact zero with a gradient path through every weight."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return PackedBatch(
        input_ids_N=torch.tensor([token]),
        position_ids_N=torch.zeros(1, dtype=torch.int64),
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
        max_length=1,
        target_T=nothing,
        predict_T=nothing,
        index=token_index(sequence_table([])),
        rows=(),
    )


def _units(
    sequences: Sequence[TrainingSequence], token_budget: int, share_prompts: bool
) -> list[list[int]]:
    """Rows that stand together behind one prompt; more than the budget holds become several."""
    if not share_prompts:
        return [[row] for row in range(len(sequences))]
    open_units: dict[tuple[int, ...], list[int]] = {}
    units: list[list[int]] = []
    for row, sequence in enumerate(sequences):
        unit = open_units.get(sequence.prompt_ids)
        if unit is None or _tokens(sequences, [*unit, row]) > token_budget:
            unit = open_units[sequence.prompt_ids] = []
            units.append(unit)
        unit.append(row)
    return units


def _tokens(sequences: Sequence[TrainingSequence], unit: Sequence[int]) -> int:
    """Tokens of a unit: the prompt once, and every response."""
    return len(sequences[unit[0]].prompt_ids) + sum(len(sequences[r].response_ids) for r in unit)


def partition(
    lengths: Sequence[int], token_budget: int, at_least: int = 1
) -> list[tuple[int, ...]]:
    """Which sequences share a micro-batch: rows of ``lengths`` (tokens), longest first.

    Sequences of similar length come together (sorted, then cut), the number of micro-batches is
    the fewest such a cut needs, and among the cuts into that many the one whose fullest
    micro-batch is smallest is taken. A sequence longer than the budget is alone in its own.
    ``at_least`` asks for more micro-batches where there are sequences enough.
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
    sequences: Sequence[TrainingSequence], table: SequenceTable, units: Sequence[Sequence[int]]
) -> PackedBatch:
    ids: list[int] = []
    positions: list[int] = []
    prompt_start: list[int] = []
    response_start: list[int] = []
    for unit in units:
        start = len(ids)
        prompt = sequences[unit[0]].prompt_ids
        ids.extend(prompt)
        positions.extend(range(len(prompt)))
        for row in unit:
            response = sequences[row].response_ids
            prompt_start.append(start)
            response_start.append(len(ids))
            ids.extend(response)
            positions.extend(range(len(prompt), len(prompt) + len(response)))
    rows = tuple(row for unit in units for row in unit)
    chosen = [sequences[row] for row in rows]
    prompt_S = torch.tensor([len(s.prompt_ids) for s in chosen])
    total_S = prompt_S + torch.tensor([len(s.response_ids) for s in chosen])
    cu_seqlens = torch.zeros(len(chosen) + 1, dtype=torch.int64)
    torch.cumsum(total_S, 0, out=cu_seqlens[1:])
    chosen_table = take_rows(table, torch.tensor(rows, dtype=torch.int64))
    index = token_index(chosen_table, loss_mask(chosen))
    prompt_start_S, response_start_S = torch.tensor(prompt_start), torch.tensor(response_start)
    place_T = response_start_S[index.sequence_T] + index.position_T
    # The first token of a response is predicted by the last one of its prompt, wherever that is.
    prompt_end_T = (prompt_start_S + prompt_S)[index.sequence_T]
    input_ids_N = torch.tensor(ids, dtype=torch.int64)
    return PackedBatch(
        input_ids_N=input_ids_N,
        position_ids_N=torch.tensor(positions, dtype=torch.int64),
        cu_seqlens=cu_seqlens.to(torch.int32),
        max_length=int(total_S.max()),
        target_T=input_ids_N[place_T],
        predict_T=torch.where(index.position_T == 0, prompt_end_T, place_T) - 1,
        index=index,
        rows=rows,
        sampler_logprob_T=_sampler_logprobs(chosen),
        expand_P=_expand(prompt_start_S, response_start_S, prompt_S, cu_seqlens)
        if len(units) < len(rows)
        else None,
    )


def _expand(
    prompt_start_S: Tensor, response_start_S: Tensor, prompt_S: Tensor, cu_seqlens: Tensor
) -> Tensor:
    """expand_P of ``PackedBatch``."""
    total_S = cu_seqlens.diff()
    sequence_P = torch.arange(len(total_S)).repeat_interleave(total_S)
    place_P = torch.arange(len(sequence_P)) - cu_seqlens[:-1][sequence_P]
    behind_P = place_P - prompt_S[sequence_P]  # place within the response, negative in the prompt
    in_prompt = prompt_start_S[sequence_P] + place_P
    in_response = response_start_S[sequence_P] + behind_P
    return torch.where(behind_P < 0, in_prompt, in_response)


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
