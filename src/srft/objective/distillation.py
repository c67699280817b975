"""Distillation: a teacher scores the policy's own rollouts once more, in a context of its own.

The teacher is another model (on-policy distillation), or the policy itself that has been shown a
demonstration or a right rollout (self-distillation); ``Method.teacher`` says which. Published
warnings about teachers that see the answer: the policy learns to write as if it had seen it
(leakage), drifts in style, and becomes unstable late (RLSD, 2604.03128); ``teacher/*`` in the metrics
and the alarm ``teacher-drift`` watch for that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srft.objective.method import Term
from srft.objective.switches import Switches
from srft.objective.terms import (
    ROLLOUT_READS,
    advantage,
    demo_tokens,
    importance,
    ratio,
    rollouts,
    taught_tokens,
)
from srft.types import SequenceTable, TokenBatch, TokenIndex

RLSD_READS = ("rlsd_mix", "rlsd_clip")


def taught_demo_tokens(index: TokenIndex, switches: Switches) -> Tensor:
    """Tokens of the demonstrations that a teacher scores."""
    return demo_tokens(index, switches) & index.sequences.taught_S[index.sequence_T]


def _taught(table: SequenceTable, switches: Switches) -> Tensor:
    return rollouts(table, switches) & table.taught_S


def _taught_demos(table: SequenceTable, switches: Switches) -> Tensor:
    return table.is_demo_S & table.taught_S


def distill_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """Towards the teacher, on tokens drawn from the policy.

    sampled: -ratio * stopgrad(lp_teacher - lp), whose gradient at ratio 1 is that of KL(pi || teacher)
    in expectation. full: the divergence itself. Both times the importance weight.
    """
    if switches.distill_form == "full":
        return _divergence(batch) * importance(batch, switches)
    gap_T = _teacher_gap(batch, switches)
    return -ratio(batch, switches) * gap_T * importance(batch, switches)


def distill_demo_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """The divergence from teacher to policy at the tokens of a demonstration (GKD's other half)."""
    return _divergence(batch)


def _divergence(batch: TokenBatch) -> Tensor:
    assert batch.divergence_T is not None, "the method must ask for the divergence"
    return batch.divergence_T


def _teacher_gap(batch: TokenBatch, switches: Switches) -> Tensor:
    """lp_teacher - lp without gradient, bounded by distill_clip; gap_T."""
    assert batch.teacher_logprob_T is not None, "the method must name a teacher"
    gap_T = batch.teacher_logprob_T - batch.logprob_T.detach()
    bound = switches.distill_clip
    return gap_T if bound is None else gap_T.clamp(-bound, bound)


def observe_distill(batch: TokenBatch, switches: Switches) -> dict[str, Tensor]:
    if switches.distill_form == "full":
        return {"teacher/divergence": _divergence(batch)}
    return {"teacher/advantage": _teacher_gap(batch, switches)}


def rlsd_advantage(batch: TokenBatch, switches: Switches) -> Tensor:
    """A * (1 - mix + mix * clip(exp(sign(A) (lp_teacher - lp_old)), 1 +- clip)) (RLSD, 2604.03128).

    The reward decides the direction; the teacher, who has seen what the policy has not, how far each
    token goes. Where no teacher scores a sequence the weight is 1.
    """
    assert batch.teacher_logprob_T is not None, "the method must name a teacher"
    advantage_T = advantage(batch)
    gap_T = batch.teacher_logprob_T - batch.old_logprob_T
    bound = switches.rlsd_clip
    weight_T = torch.exp(torch.sign(advantage_T) * gap_T).clamp(max(0.0, 1 - bound), 1 + bound)
    taught_T = batch.index.sequences.taught_S[batch.index.sequence_T]
    # Elsewhere the gap is the policy's to its old self.
    weight_T = torch.where(taught_T, weight_T, 1.0)
    return advantage_T * (1 - switches.rlsd_mix + switches.rlsd_mix * weight_T)


DISTILL = Term(
    "distill", "distill", taught_tokens, distill_loss, _taught,
    reads=("distill_form", "distill_beta", "distill_top_k", "distill_clip", "ratio_level",
           *ROLLOUT_READS),
    observe=observe_distill,
)  # fmt: skip
DISTILL_DEMO = Term(
    "distill_demo", "distill", taught_demo_tokens, distill_demo_loss, _taught_demos,
    reads=("distill_beta", "distill_top_k"),
)  # fmt: skip
