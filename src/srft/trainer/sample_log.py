"""What is kept of a step for people to read: whole groups with a figure for every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from srft.data.packing import pack, pack_contexts
from srft.model.policy import Policy
from srft.objective.loss import covered, with_advantages
from srft.objective.method import Method, Progress
from srft.objective.preparation import look_before, prepare
from srft.objective.table import take_rows, take_tokens
from srft.trainer.collect import Collected
from srft.trainer.setup import Setup
from srft.trainer.teacher import Teacher, ask
from srft.trainer.update import forward
from srft.types import SequenceTable, TokenBatch, TrainingSequence

_DIGITS = 5


@torch.no_grad()
def sample_records(
    setup: Setup, method: Method, collected: Collected, progress: Progress
) -> list[dict[str, Any]]:
    """One record for each of the first ``run.samples_prompts`` groups (docs/metrics.md lists the fields),
    with log-probabilities, entropies and losses under the weights of before the step's update."""
    policy, teacher = setup.policy_of(method), setup.teacher_of(method)
    prompts, budget = setup.config.run.samples_prompts, setup.config.train.micro_batch_tokens
    decode = policy.decode
    # Of all groups together, as it is trained on: some advantages are compared across groups.
    table, kept = prepare(method, collected.sequences)
    first, records = 0, []
    for g, example in list(enumerate(collected.examples))[:prompts]:
        rollouts, demos = collected.rollouts[g], collected.demos[g]
        sequences = [*(r.sequence for r in rollouts), *demos]
        rows = range(first, first + len(sequences))
        first = rows.stop
        # Of several turns all is shown, of one what the verifier has read.
        texts = [
            r.text if r.sequence.loss_mask is None else decode(r.sequence.response_ids)
            for r in rollouts
        ]
        texts += [decode(demo.response_ids) for demo in demos]
        if not sequences:
            continue
        extras = [*(_plain(r.score.extras) for r in rollouts), *({} for _ in demos)]
        group = take_rows(table, torch.tensor(rows))
        figures = _token_figures(policy, method, sequences, group, progress, budget, teacher)
        for row, figure in zip(rows, figures, strict=True):
            if row not in kept:
                figure["loss"] = [None] * len(figure["loss"])
        records.append(
            {
                "prompt": decode(example.prompt_ids),
                "asked": example.example.asked,
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
                        **({"extras": extra} if extra else {}),
                        "token_ids": list(sequence.response_ids),
                        "tokens": [decode([token]) for token in sequence.response_ids],
                        **figure,
                    }
                    for sequence, text, extra, figure in zip(
                        sequences, texts, extras, figures, strict=True
                    )
                ],
            }
        )
    return records


def _token_figures(
    policy: Policy,
    method: Method,
    sequences: Sequence[TrainingSequence],
    table: SequenceTable,
    progress: Progress,
    token_budget: int,
    teacher: Teacher | None,
) -> list[dict[str, Any]]:
    """Advantage and per-token log-probability, entropy and weighted loss of each sequence."""
    figures: list[dict[str, Any]] = [{} for _ in sequences]
    packs = pack(sequences, table, token_budget, policy.device)
    lessons = [
        ask(teacher, method, packed, pack_contexts(sequences, packed)) if teacher else None
        for packed in packs
    ]
    batches = [forward(policy, p, lesson=lesson) for p, lesson in zip(packs, lessons, strict=True)]
    # The step's own figures are not known yet; those of the group stand in for them.
    seen = look_before(method, [(batch.index, batch.entropy_T) for batch in batches])
    for packed, scored in zip(packs, batches, strict=True):
        batch = replace(scored, batch_entropy=seen.entropy, prefix_threshold=seen.prefix_threshold)
        loss_T = token_losses(method, batch, progress)
        for place, row in enumerate(packed.rows):
            mine = batch.index.sequence_T == place
            values = {"logprob": batch.logprob_T, "entropy": batch.entropy_T, "loss": loss_T}
            figures[row] = {
                "advantage": round(table.advantage_S[row].item(), _DIGITS),
                **{name: _rounded(v[mine], sequences[row].loss_mask) for name, v in values.items()},
            }
    return figures


def _plain(extras: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold: whatever functions noted may be any object."""
    return {
        name: value if isinstance(value, str | int | float | None) else str(value)
        for name, value in extras.items()
    }


def token_losses(method: Method, batch: TokenBatch, progress: Progress) -> Tensor:
    """loss_T: the weighted sum of all terms at each token, before any averaging."""
    loss_T = torch.zeros_like(batch.logprob_T)
    batch = with_advantages(method, batch)
    for term in method.terms:
        mask_T = covered(term, batch.index, method.switches)
        weight = term.weight
        factor = weight(progress, method.switches) if callable(weight) else weight
        if factor and mask_T.any():
            loss_T[mask_T] += factor * term.loss(take_tokens(batch, mask_T), method.switches)
    return loss_T


def _rounded(values: Tensor, mask: Sequence[bool] | None) -> list[float | None]:
    """None at tokens that a tool wrote."""
    rounded: list[float | None] = [round(value, _DIGITS) for value in values.tolist()]
    return [v if m else None for v, m in zip(rounded, mask, strict=True)] if mask else rounded
