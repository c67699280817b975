"""How far a teacher's distribution is from the policy's, over the whole vocabulary, token by token.

Logits of two models at once are made for a few tokens at a time and made again in the backward pass,
so that no [T, vocabulary] array is ever alive. Between P, the policy, and Q, the teacher, with
M = (1 - beta) P + beta Q:

    beta = 0         KL(Q || P)                                  forward
    0 < beta < 1     beta KL(Q || M) + (1 - beta) KL(P || M)     generalized Jensen-Shannon (GKD, 2306.13649)
    beta = 1         KL(P || Q)                                  reverse

Gradient reaches the policy's hidden states and head, never the teacher's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from srft.errors import ModelError

# Numbers in one model's logits of one piece.
_CPU_PIECE = 2**21
_GPU_PIECE = 2**26


@dataclass(frozen=True)
class Logits:
    """What logits are made of: softmax(cap(scale (hidden W^T + bias)) / temperature).

    hidden_TD: states that predict T response tokens; weight_VD and bias_V: the output head.
    """

    hidden_TD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0
    temperature: float = 1.0

    def logprob(self, hidden: Tensor) -> Tensor:
        """log-softmax of some tokens' logits, in float32 (float64 for float64 states)."""
        z = torch.nn.functional.linear(hidden, self.weight_VD.to(hidden.dtype))
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if self.bias_V is not None:
            z = z + self.bias_V
        z = z * self.logit_scale
        if self.softcap is not None:
            z = torch.tanh(z / self.softcap) * self.softcap
        return torch.log_softmax(z / self.temperature, -1)


def divergence(policy: Logits, teacher: Logits, beta: float, top_k: int | None = None) -> Tensor:
    """divergence_T from teacher to policy in nats, with gradient to the policy alone.

    top_k: over the policy's k likeliest tokens and one bucket that holds all others.

    Raises ModelError where the two vocabularies differ in size.
    """
    if policy.weight_VD.shape[0] != teacher.weight_VD.shape[0]:
        raise ModelError(
            f"the teacher's head has {teacher.weight_VD.shape[0]} tokens, the policy's "
            f"{policy.weight_VD.shape[0]}: a divergence needs one vocabulary. Use a teacher of the same "
            "family, or objective.distill_form=sampled with the same tokenizer"
        )
    tokens, vocabulary = policy.hidden_TD.shape[0], policy.weight_VD.shape[0]
    numbers = _GPU_PIECE if policy.hidden_TD.is_cuda else _CPU_PIECE
    piece = max(1, numbers // vocabulary)

    def part(hidden: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_TV = teacher.logprob(other)
        return _between(policy.logprob(hidden), teacher_TV, beta, top_k)

    pieces = [
        checkpoint(
            part, policy.hidden_TD[t : t + piece], teacher.hidden_TD[t : t + piece].detach(),
            use_reentrant=False,
        )
        for t in range(0, tokens, piece)
    ]  # fmt: skip
    return torch.cat(pieces) if pieces else part(policy.hidden_TD, teacher.hidden_TD.detach())


def _between(p_TV: Tensor, q_TV: Tensor, beta: float, top_k: int | None) -> Tensor:
    """The divergence of each row from log-probabilities of policy (p) and teacher (q)."""
    if top_k is not None and top_k < p_TV.shape[-1]:
        likeliest = p_TV.detach().topk(top_k, -1).indices
        p_TV, q_TV = (_with_rest(x.gather(-1, likeliest)) for x in (p_TV, q_TV))
    if beta == 0:
        return _kl(q_TV, p_TV)
    if beta == 1:
        return _kl(p_TV, q_TV)
    mixture_TV = torch.logaddexp(p_TV + math.log1p(-beta), q_TV + math.log(beta))
    return beta * _kl(q_TV, mixture_TV) + (1 - beta) * _kl(p_TV, mixture_TV)


def _kl(a_TV: Tensor, b_TV: Tensor) -> Tensor:
    """KL(a || b) of each row; a token that a cannot say adds nothing."""
    product_TV = a_TV.exp() * (a_TV - b_TV)
    return torch.where(torch.isneginf(a_TV), 0.0, product_TV).sum(-1)


def _with_rest(logprob_Tk: Tensor) -> Tensor:
    """The given tokens' log-probabilities and, last, that of all others together."""
    # Rounding may leave the sum at 1 or a little above.
    total_T = torch.logsumexp(logprob_Tk, -1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([logprob_Tk, torch.log(-torch.expm1(total_T))], -1)
