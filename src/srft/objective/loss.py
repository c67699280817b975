"""Counts, the loss, and what is logged about it.

    loss = sum over terms  weight * (sum_T  average_T * loss_T) / count

    average   average_T                                 count
    token     1                                         tokens the term covers
    sequence  1 / (tokens it covers in the sequence)    sequences with such a token
    constant  1                                         such sequences * constant_length

``counts`` is summed over every micro-batch and rank before the first forward pass; the losses of
micro-batches are then simply added, on one rank and over ranks (whose gradients are summed, not
averaged). A sequence is never cut over micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from srft.objective.method import Average, Method, Progress, Term
from srft.objective.switches import Switches
from srft.objective.table import take_tokens, token_count
from srft.objective.terms import importance, rollout_tokens, taught_tokens
from srft.types import SequenceTable, TokenBatch, TokenIndex

BALANCE = "router_aux"
"""What the balance of experts is called beside the terms of a method."""


def counts(method: Method, index: TokenIndex) -> dict[str, float]:
    """The denominator of each term over the sequences in ``index``, by the term's name.

    Sums over disjoint indices are the count of their union. Sequences that ``active`` leaves out
    belong in the index, those that ``method.select`` leaves out do not. With ``shared_count`` the
    RL terms on demonstrations and rollouts are one mean: each is divided by the sum of their counts,
    those of weight 0 left out.
    """
    found = {term.name: _count(term, index, method.switches) for term in method.terms}
    if method.switches.shared_count:
        shared = [t.name for t in method.terms if t.source == "rl" and t.weight != 0]
        found |= dict.fromkeys(shared, sum(found[name] for name in shared))
    return found


def covered(term: Term, index: TokenIndex, switches: Switches) -> Tensor:
    """Which tokens the term covers, bool_T: its own mask, less what no term may cover."""
    return term.mask(index, switches) & index.loss_mask_T


def active(method: Method, table: SequenceTable, progress: Progress | None = None) -> Tensor:
    """Which sequences need a forward pass, bool_S: some term may have gradient on them.

    A term whose weight is 0 asks for none; a weight that is a function is evaluated where
    ``progress`` is given and taken to be non-zero where not. Advantages must be filled in.
    """
    active_S = torch.zeros_like(table.is_demo_S)
    for term in method.terms:
        if progress is None and callable(term.weight):
            weight = 1.0
        else:
            weight = _weight(term, progress or Progress(0, 1), method.switches)
        if weight != 0:
            active_S = active_S | term.active(table, method.switches)
    return active_S


def compute_loss(
    method: Method, batch: TokenBatch, counts: Mapping[str, float], progress: Progress
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one micro-batch (a scalar with gradient) and its metrics.

    A term without tokens in the batch gives an exact zero; the loss has a gradient path in any
    case, so that every rank can call ``backward``.

    Metrics are scalars to be combined over micro-batches and ranks by the ending of their key:
    ``/total``, ``/sum`` and ``/count`` add, ``/max`` and ``/min`` are what they say;
    ``reduce_metrics`` finishes them. The keys depend on the method alone, so ranks agree on them.
    """
    switches = method.switches
    batch = with_advantages(method, batch)
    # An empty slice: zero with a gradient path even where a log-probability is infinite.
    loss = batch.logprob_T[:0].sum()
    metrics = _batch_metrics(method, batch)
    for term in method.terms:
        weight = _weight(term, progress, switches)
        part = take_tokens(batch, covered(term, batch.index, switches))
        value = loss.detach().new_zeros(())
        if weight != 0:
            term_loss = weight * _average(term, part, counts[term.name], switches)
            loss = loss + term_loss
            value = term_loss.detach()
        metrics[f"loss/{term.name}/total"] = value
        if term.observe is not None:
            with torch.no_grad():
                for name, seen in term.observe(part, switches).items():
                    _spread(metrics, name, seen)
    if batch.balance is not None:
        loss = loss + batch.balance
        metrics[f"loss/{BALANCE}/total"] = batch.balance.detach()
    metrics["loss/total"] = loss.detach()
    return loss, metrics


@torch.no_grad()
def with_advantages(method: Method, batch: TokenBatch) -> TokenBatch:
    """The batch with the advantage of each token, where the method gives tokens their own."""
    if method.token_advantage is None:
        return batch
    return replace(batch, advantage_T=method.token_advantage(batch, method.switches))


def reduce_metrics(parts: Iterable[Mapping[str, Tensor | float]]) -> dict[str, float]:
    """Metrics of all micro-batches as plain numbers.

    ``x/total`` becomes ``x``, ``x/sum`` over ``x/count`` becomes ``x``, ``x/max`` and ``x/min``
    keep their names. A mean over nothing, and its extremes, are left out rather than logged as NaN.
    """
    merged: dict[str, float] = {}
    for part in parts:
        for key, tensor in part.items():
            value = float(tensor)
            if key not in merged:
                merged[key] = value
            elif key.endswith("/max"):
                merged[key] = max(merged[key], value)
            elif key.endswith("/min"):
                merged[key] = min(merged[key], value)
            else:
                merged[key] += value
    finished: dict[str, float] = {}
    for key, value in merged.items():
        name, _, ending = key.rpartition("/")
        if ending == "total":
            finished[name] = value
        elif ending == "sum" and merged[f"{name}/count"] > 0:
            finished[name] = value / merged[f"{name}/count"]
        elif ending in ("max", "min") and merged[f"{name}/count"] > 0:
            finished[key] = value
    return finished


def _weight(term: Term, progress: Progress, switches: Switches) -> float:
    return term.weight(progress, switches) if callable(term.weight) else term.weight


def _average_of(term: Term, switches: Switches) -> Average:
    if term.average is not None:
        return term.average
    if term.source == "sft" and switches.sft_average is not None:
        return switches.sft_average
    return switches.average


def _count(term: Term, index: TokenIndex, switches: Switches) -> float:
    mask_T = covered(term, index, switches)
    average = _average_of(term, switches)
    if average == "token":
        return float(mask_T.sum())
    sequences = float(torch.unique(index.sequence_T[mask_T]).numel())
    if average == "constant":
        assert switches.constant_length is not None, "get_method fills in constant_length"
        return sequences * switches.constant_length
    return sequences


def _average(term: Term, part: TokenBatch, count: float, switches: Switches) -> Tensor:
    """sum_T average_T * loss_T / count over the tokens of ``part``."""
    loss_T = term.loss(part, switches)
    assert count > 0 or loss_T.numel() == 0, f"{term.name} has tokens here but was counted as empty"
    if _average_of(term, switches) == "sequence":
        length_T = token_count(part.index)[part.index.sequence_T]
        loss_T = loss_T / length_T.to(loss_T.dtype)
    return loss_T.sum() / max(count, 1.0)


@torch.no_grad()
def _batch_metrics(method: Method, batch: TokenBatch) -> dict[str, Tensor]:
    """Entropy and log-probability on demonstrations and rollouts, distance from the old policy,
    and from the sampler where its log-probabilities are known."""
    metrics: dict[str, Tensor] = {}
    batch = take_tokens(batch, batch.index.loss_mask_T)
    demo_T = batch.index.sequences.is_demo_S[batch.index.sequence_T]
    for name, mask_T in (("demos", demo_T), ("rollouts", ~demo_T)):
        _spread(metrics, f"entropy/{name}", batch.entropy_T[mask_T])
        _spread(metrics, f"logprob/{name}", batch.logprob_T[mask_T])
        metrics[f"tokens/{name}/total"] = mask_T.sum()
    rollouts = take_tokens(batch, rollout_tokens(batch.index, method.switches))
    log_ratio_T = rollouts.logprob_T - rollouts.old_logprob_T
    _spread(metrics, "ratio/rollouts", torch.exp(log_ratio_T))
    # KL(old || new) by k3, on tokens drawn from the old policy.
    _spread(metrics, "kl_old", _k3(log_ratio_T))
    sampler_T = rollouts.sampler_logprob_T
    gap_T = log_ratio_T[:0] if sampler_T is None else rollouts.old_logprob_T - sampler_T
    _spread(metrics, "mismatch/abs", gap_T.abs())
    _spread(metrics, "mismatch/kl", _k3(gap_T))
    if method.switches.importance_cap is not None:
        weight_T = torch.as_tensor(importance(rollouts, method.switches)).expand_as(gap_T)
        _spread(metrics, "mismatch/weight", weight_T)
        capped_T = (weight_T >= method.switches.importance_cap) | (weight_T == 0)
        _spread(metrics, "mismatch/capped", capped_T)
    if method.needs_reference:
        assert rollouts.reference_logprob_T is not None, "the KL term needs reference_logprob_T"
        # KL(new || reference) by k3, on tokens drawn from about the new policy.
        _spread(metrics, "kl_reference", _k3(rollouts.reference_logprob_T - rollouts.logprob_T))
    if method.teacher is not None:
        _teacher_metrics(metrics, take_tokens(batch, taught_tokens(batch.index, method.switches)))
    return metrics


def _teacher_metrics(metrics: dict[str, Tensor], taught: TokenBatch) -> None:
    """How far the policy is from its teacher, on the tokens that the teacher scored."""
    assert taught.teacher_logprob_T is not None, "the method names a teacher"
    gap_T = taught.teacher_logprob_T - taught.logprob_T
    _spread(metrics, "teacher/gap", gap_T)
    # KL(policy || teacher) by k3, on tokens drawn from about the policy.
    _spread(metrics, "teacher/kl", _k3(gap_T))
    if taught.teacher_entropy_T is not None:
        _spread(metrics, "teacher/entropy", taught.teacher_entropy_T)


def _k3(log_ratio_T: Tensor) -> Tensor:
    """Of log q / p at tokens drawn from p: an estimate of KL(p || q) that is never negative."""
    return torch.expm1(log_ratio_T) - log_ratio_T


def _spread(metrics: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Sum, count, minimum and maximum of ``value``; of nothing they are 0, 0, inf and -inf.

    Of a bool tensor, sum and count only.
    """
    value = value.detach()
    metrics[f"{name}/sum"] = value.sum().float() if value.dtype == torch.bool else value.sum()
    metrics[f"{name}/count"] = torch.tensor(float(value.numel()), device=value.device)
    if value.dtype == torch.bool:
        return
    infinity = value.new_tensor(float("inf"))
    metrics[f"{name}/max"] = value.max() if value.numel() else -infinity
    metrics[f"{name}/min"] = value.min() if value.numel() else infinity
