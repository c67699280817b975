"""What is kept of a step for people to read: whole groups with a figure for every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from srft.data.packing import PackedBatch, pack
from srft.objective.method import Method, Progress
from srft.objective.table import take_tokens
from srft.trainer.collect import Collected
from srft.trainer.update import mean_entropy, prepare
from srft.types import TokenBatch, TrainingSequence

_DIGITS = 5


@torch.no_grad()
def sample_records(
    method: Method,
    collected: Collected,
    *,
    prompts: int,
    progress: Progress,
    forward: Callable[[PackedBatch], TokenBatch],
    token_budget: int,
    device: torch.device,
    decode: Callable[[Sequence[int]], str],
) -> list[dict[str, Any]]:
    """One record for each of the first ``prompts`` groups (docs/metrics.md lists the fields).

    ``forward`` scores a pack under the weights of before the step's update; log-probabilities,
    entropies and losses are those. ``decode`` turns token ids into text.
    """
    records = []
    for g, example in list(enumerate(collected.examples))[:prompts]:
        rollouts, demos = collected.rollouts[g], collected.demos[g]
        sequences = [*(r.sequence for r in rollouts), *demos]
        texts = [*(r.text for r in rollouts), *(decode(demo.response_ids) for demo in demos)]
        if not sequences:
            continue
        figures = _token_figures(method, sequences, progress, forward, token_budget, device)
        records.append(
            {
                "prompt": decode(example.prompt_ids),
                "prompt_ids": list(example.prompt_ids),
                "answer": example.example.answer,
                "source": example.example.source,
                "responses": [
                    {
                        "kind": "demonstration" if sequence.is_demo else "rollout",
                        "text": text,
                        "reward": sequence.reward,
                        "correct": sequence.correct,
                        "truncated": sequence.truncated,
                        "token_ids": list(sequence.response_ids),
                        "tokens": [decode([token]) for token in sequence.response_ids],
                        **figure,
                    }
                    for sequence, text, figure in zip(sequences, texts, figures, strict=True)
                ],
            }
        )
    return records


def _token_figures(
    method: Method,
    sequences: Sequence[TrainingSequence],
    progress: Progress,
    forward: Callable[[PackedBatch], TokenBatch],
    token_budget: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Advantage and per-token log-probability, entropy and weighted loss of each sequence."""
    table, _ = prepare(method, sequences)
    # The order inside a pack is the packer's own, so each sequence is found by its number, which
    # travels in the place of the group.
    numbered = [replace(sequence, group=i) for i, sequence in enumerate(sequences)]
    figures: list[dict[str, Any]] = [{} for _ in sequences]
    batches = [forward(p) for p in pack(numbered, table.advantage_S, token_budget, device)]
    # The step's own mean is not known yet; that of the group stands in for it.
    mean = mean_entropy([(batch.index, batch.entropy_T) for batch in batches])
    for scored in batches:
        batch = replace(scored, batch_entropy=mean)
        loss_T = token_losses(method, batch, progress)
        for row, number in enumerate(batch.index.sequences.group_S.tolist()):
            mine = batch.index.sequence_T == row
            figures[number] = {
                "advantage": round(table.advantage_S[number].item(), _DIGITS),
                "logprob": _rounded(batch.logprob_T[mine]),
                "entropy": _rounded(batch.entropy_T[mine]),
                "loss": _rounded(loss_T[mine]),
            }
    return figures


def token_losses(method: Method, batch: TokenBatch, progress: Progress) -> Tensor:
    """loss_T: the weighted sum of all terms at each token, before any averaging."""
    loss_T = torch.zeros_like(batch.logprob_T)
    for term in method.terms:
        mask_T = term.mask(batch.index, method.switches)
        weight = term.weight
        factor = weight(progress, method.switches) if callable(weight) else weight
        if factor and mask_T.any():
            loss_T[mask_T] += factor * term.loss(take_tokens(batch, mask_T), method.switches)
    return loss_T


def _rounded(values: Tensor) -> list[float]:
    return [round(value, _DIGITS) for value in values.tolist()]
