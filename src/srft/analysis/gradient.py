"""What each term's gradient touches: Eq. 4 of the paper made visible.

Per response token, a term's loss depends on the logits z through log p(y) and, for an entropy bonus,
H. With g and h the derivatives of that token's weighted loss by the two (taken by autograd from the
very functions that training uses),

    d loss / d z_v = g (1[v = y] - p_v) - h p_v (log p_v + H)

An entry is *touched* where this exceeds a threshold in absolute value; a position is touched where
any of its entries is. Averages over tokens, which scale all entries of a term alike, are left out:
the threshold is on the gradient of one token's loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from srft.analysis.distributions import hidden_states, logits, tiles, token_figures
from srft.analysis.responses import TokenizedResponse
from srft.model.output_head import output_head
from srft.objective.method import Method, Progress, Term
from srft.objective.preparation import look_before, prepare
from srft.objective.table import take_rows, take_tokens, token_index
from srft.types import SequenceTable, TokenBatch, TrainingSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Touched:
    """Shares at one threshold. positions: of the term's tokens. vocabulary: mean over its tokens of
    the share of entries. union: of the vocabulary, touched at one position or another."""

    threshold: float
    positions: float
    vocabulary: float
    union: float


@dataclass(frozen=True)
class TermGradient:
    """``tokens`` covered by the term. ``size``: mean over them of the sum of |gradient|.
    ``entries_90``: mean number of
    vocabulary entries that hold 90 % of a position's |gradient| (over touched positions)."""

    term: str
    source: str
    tokens: int
    size: float
    entries_90: float
    touched: tuple[Touched, ...]


@dataclass(frozen=True)
class GradientView:
    """The terms of one method on one batch of responses; ``sequences`` of them take part in training."""

    method: str
    model: str
    sequences: int
    vocabulary: int
    terms: tuple[TermGradient, ...]


def gradient_view(
    model: PreTrainedModel,
    name: str,
    method: Method,
    responses: Sequence[TokenizedResponse],
    progress: Progress | None = None,
) -> GradientView:
    """Per-position gradients at the logits of every term of ``method``, on the responses that a step of
    it trains on: of the kinds that it collects, less those that it leaves out (HPT's gate).

    Responses need a reward where the method has rollouts; those of one prompt (``group``) make a
    group. Without a reward a response counts as right. Reference and sampler log-probabilities are
    taken to be the model's own.
    """
    progress = progress or Progress(0, 1)
    vocabulary = output_head(model).weight.shape[0]
    tallies = {term.name: _Tally(vocabulary) for term in method.terms}
    collected = [
        r
        for r in responses
        if (method.demonstrations if r.response.kind == "demonstration" else method.rollouts)
    ]
    table, kept = prepare(method, list(map(_training_sequence, collected)))
    trained = [collected[row] for row in kept]
    if trained:
        batch = _batch(model, method, trained, take_rows(table, torch.tensor(kept)))
        _tally(model, method, trained, batch, progress, tallies)
    terms = tuple(tallies[term.name].result(term) for term in method.terms)
    return GradientView(method.name, name, len(trained), vocabulary, terms)


def _tally(
    model: PreTrainedModel,
    method: Method,
    responses: Sequence[TokenizedResponse],
    batch: TokenBatch,
    progress: Progress,
    tallies: Mapping[str, _Tally],
) -> None:
    """Adds the gradient at every token to the tallies of the terms that cover it."""
    head = output_head(model)
    derivatives = {term.name: _derivatives(term, method, batch, progress) for term in method.terms}
    starts = np.concatenate([[0], np.cumsum([len(r.own) for r in responses])]).tolist()
    with torch.no_grad():
        for row, hidden in hidden_states(model, responses):
            target_T = torch.tensor(responses[row].own, device=hidden.device)
            for part in tiles(len(target_T), head.weight.shape[0]):
                logp = torch.log_softmax(logits(head, hidden[part]), dim=1)
                at = slice(starts[row] + part.start, starts[row] + part.stop)
                for term in method.terms:
                    covered_T, g_T, h_T = (x[at].to(logp.device) for x in derivatives[term.name])
                    if covered_T.any():
                        of_term = (logp, target_T[part], g_T, h_T)
                        gradient_TV = logit_gradient(*(x[covered_T] for x in of_term))
                        tallies[term.name].add(gradient_TV)


def logit_gradient(logp_TV: Tensor, target_T: Tensor, g_T: Tensor, h_T: Tensor) -> Tensor:
    """d loss / d z from d loss / d log p(y) = g and d loss / d H = h, the formula above; T x V."""
    p = logp_TV.exp()
    gradient = -p * g_T[:, None]
    gradient.scatter_add_(1, target_T[:, None], g_T[:, None].to(p.dtype))
    if (h_T != 0).any():
        entropy_T = torch.where(p > 0, -p * logp_TV, 0.0).sum(1)
        gradient -= torch.where(p > 0, h_T[:, None] * p * (logp_TV + entropy_T[:, None]), 0.0)
    return gradient


def _training_sequence(response: TokenizedResponse) -> TrainingSequence:
    r = response.response
    reward = 1.0 if r.reward is None else r.reward
    return TrainingSequence(
        prompt_ids=response.prompt_ids,
        response_ids=response.own,
        group=r.group,
        is_demo=r.kind == "demonstration",
        reward=reward,
        correct=reward > 0.5 if r.correct is None else bool(r.correct),
        truncated=r.truncated,
    )


def _batch(
    model: PreTrainedModel,
    method: Method,
    responses: Sequence[TokenizedResponse],
    table: SequenceTable,
) -> TokenBatch:
    logprob_T, entropy_T = map(torch.from_numpy, token_figures(model, responses))
    index = token_index(table)
    seen = look_before(method, [(index, entropy_T)])
    return TokenBatch(
        index=index,
        logprob_T=logprob_T,
        entropy_T=entropy_T,
        entropy_grad_T=entropy_T.clone(),
        old_logprob_T=logprob_T.clone(),
        old_entropy_T=entropy_T.clone(),
        reference_logprob_T=logprob_T.clone(),
        sampler_logprob_T=logprob_T.clone(),
        batch_entropy=seen.entropy,
        prefix_threshold=seen.prefix_threshold,
    )


def _derivatives(
    term: Term, method: Method, batch: TokenBatch, progress: Progress
) -> tuple[Tensor, Tensor, Tensor]:
    """(covered_T, g_T, h_T): which tokens the term covers, and the two derivatives there."""
    mask_T = term.mask(batch.index, method.switches)
    g_T, h_T = torch.zeros_like(batch.logprob_T), torch.zeros_like(batch.logprob_T)
    if mask_T.any():
        leaf = batch.logprob_T.clone().requires_grad_()
        entropy = batch.entropy_grad_T.clone().requires_grad_()
        part = take_tokens(replace(batch, logprob_T=leaf, entropy_grad_T=entropy), mask_T)
        weight = term.weight(progress, method.switches) if callable(term.weight) else term.weight
        loss = weight * term.loss(part, method.switches).sum()
        if loss.requires_grad:
            g, h = torch.autograd.grad(loss, (leaf, entropy), allow_unused=True)
            g_T = g_T if g is None else g
            h_T = h_T if h is None else h
    return mask_T, g_T, h_T


class _Tally:
    """Sums over the tokens of one term; the arrays have a row a threshold."""

    def __init__(self, vocabulary: int) -> None:
        self.tokens = self.moved = 0
        self.size = self.entries = 0.0
        self.positions = self.vocabulary = np.zeros(len(THRESHOLDS))
        self.union_HV = torch.zeros((len(THRESHOLDS), vocabulary), dtype=torch.bool)

    def add(self, gradient_TV: Tensor) -> None:
        size_TV = gradient_TV.abs()
        total_T = size_TV.sum(1)
        self.tokens += len(size_TV)
        self.size += float(total_T.sum())
        moved = total_T > 0
        self.moved += int(moved.sum())
        ordered = size_TV[moved].sort(dim=1, descending=True).values
        below = ordered.cumsum(1) < 0.9 * total_T[moved][:, None]
        self.entries += float((below.sum(1) + 1).sum())
        over = [size_TV > threshold for threshold in THRESHOLDS]
        self.positions = self.positions + [float(o.any(1).sum()) for o in over]
        self.vocabulary = self.vocabulary + [float(o.float().mean(1).sum()) for o in over]
        self.union_HV |= torch.stack([o.any(0) for o in over]).cpu()

    def result(self, term: Term) -> TermGradient:
        n = max(1, self.tokens)
        shares = (self.positions / n, self.vocabulary / n, self.union_HV.double().mean(1))
        touched = zip(THRESHOLDS, *(share.tolist() for share in shares), strict=True)
        return TermGradient(
            term=term.name,
            source=term.source,
            tokens=self.tokens,
            size=self.size / n,
            entries_90=self.entries / max(1, self.moved),
            touched=tuple(Touched(*row) for row in touched),
        )
