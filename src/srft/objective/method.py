"""What a method is: data, not code paths. The trainer reads these fields and never a name.

The loss of one optimizer step is

    loss = sum over terms k of  weight_k * (sum_T  average_T * loss_k,T) / count_k

where count_k is taken over the whole optimizer step and every rank before the first forward pass,
so the way a batch is cut into micro-batches changes nothing (see ``loss.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from srft.objective.switches import Average, Switches
from srft.types import SequenceTable, TokenBatch, TokenIndex

__all__ = ["Average", "Method", "Progress", "Teacher", "Term"]

Teacher = Literal["model", "reference", "demonstration", "rollout"]


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``step`` counts from 0, ``total`` is the number of steps planned.

    ``entropy``: mean entropy in nats over the response tokens of the previous step (the metric
    ``entropy/rollouts``), which the adaptive entropy bonus reads; None at the first step.
    """

    step: int
    total: int
    entropy: float | None = None


@dataclass(frozen=True)
class Term:
    """One summand of the loss.

    mask: which tokens it covers, bool_T; from the index alone, so it can be counted beforehand.
    loss: per-token loss_T (float32, gradient through logprob_T), before averaging and weight. It
        is handed a batch that holds the covered tokens only.
    weight: a constant, or a function of progress (CHORD's mu).
    active: bool_S, False where the gradient on that sequence is exactly zero whatever the model
        says (advantage 0, for instance), so its forward pass can be skipped. Counting ignores it.
    source: "sft", "rl", "distill" or "regularizer": groups terms in metrics.
    reads: names of the switches the term's functions read; of one that reads the advantage,
        ``advantage.READS`` too. A switch that is set and that no part of the method reads is refused.
    observe: per-token values worth logging (any length, no gradient), by metric name; of bool
        tensors the share that is True is logged, of others mean, minimum and maximum.
    average: how this term is averaged whatever the switches say; None: as they say.
    """

    name: str
    source: Literal["sft", "rl", "distill", "regularizer"]
    mask: Callable[[TokenIndex, Switches], Tensor]
    loss: Callable[[TokenBatch, Switches], Tensor]
    active: Callable[[SequenceTable, Switches], Tensor]
    weight: float | Callable[[Progress, Switches], float] = 1.0
    reads: tuple[str, ...] = ()
    observe: Callable[[TokenBatch, Switches], dict[str, Tensor]] | None = None
    average: Average | None = None


@dataclass(frozen=True)
class Method:
    """A way to train, complete: what data it needs, how advantages are estimated, what is summed.

    rollouts / demonstrations: whether the step samples from the policy / trains on demonstrations.
        Methods with ``prefix`` or ``collect_unsolved`` need examples with demonstrations as well.
    advantage: SequenceTable -> advantage_S. Needs every sequence of a group in the table.
    select: SequenceTable -> keep_S (bool): sequences that take part at all (HPT's gate); those left
        out are not counted. Runs on the same whole table as ``advantage``, after rewards are known;
        the sequences it leaves out are removed before ``counts``.
    prefix: (demonstration length in tokens, rollout number, progress, uniform in [0, 1)) ->
        number of demonstration tokens given as the start of that rollout (UFT, Prefix-RFT). The
        uniform number is drawn once per prompt and step, so that all its rollouts share a prefix.
    refill: drop groups whose rewards are all equal and sample further prompts (DAPO).
    collect_unsolved: keep prompts without a right rollout, and train ``interleave`` (the name of
        another method) on them once a batch has come together (ReLIFT).
    needs_old: the loss reads old_logprob_T, old_entropy_T or batch_entropy even when one optimizer
        step follows each rollout batch, so a pass without gradient comes first.
    needs_reference: the loss reads reference_logprob_T.
    teacher: who scores the responses a second time, in its own context: a frozen ``model``, the frozen
        ``reference``, or the live policy that has been shown a ``demonstration`` or a right
        ``rollout`` of the same prompt; None: nobody.
    divergence: the loss reads divergence_T, from the teacher over the whole vocabulary.
    token_advantage: TokenBatch -> advantage_T, where it differs from token to token.
    rescue: (demonstration length in tokens, attempt, progress) -> number of demonstration tokens
        given to a prompt whose rollouts have all failed when it is sampled once more; None ends
        the attempts. None in place of the function: no second round.
    """

    name: str
    summary: str
    switches: Switches
    terms: tuple[Term, ...]
    advantage: Callable[[SequenceTable, Switches], Tensor]
    rollouts: bool = True
    demonstrations: bool = True
    select: Callable[[SequenceTable, Switches], Tensor] | None = None
    prefix: Callable[[int, int, Progress, float], int] | None = None
    refill: bool = False
    collect_unsolved: bool = False
    interleave: str | None = None
    needs_old: bool = False
    needs_reference: bool = False
    teacher: Teacher | None = None
    divergence: bool = False
    token_advantage: Callable[[TokenBatch, Switches], Tensor] | None = None
    rescue: Callable[[int, int, Progress], int | None] | None = None

    @property
    def mixes(self) -> bool:
        """Whether a step trains on rollouts and on demonstrations."""
        return self.rollouts and self.demonstrations

    @property
    def continues(self) -> bool:
        """Whether rollouts may begin with part of a demonstration."""
        return self.prefix is not None or self.rescue is not None

    def reads_reference(self, frozen_teacher: bool) -> bool:
        """Whether the policy of before training is kept for it. frozen_teacher: one that is shown a
        solution is that policy, not the live one."""
        shown = self.teacher in ("demonstration", "rollout")
        return self.needs_reference or self.teacher == "reference" or (shown and frozen_teacher)
