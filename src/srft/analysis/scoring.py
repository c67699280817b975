"""Two models on the same tokens: full distributions compared, a few tokens at a time.

Both models are shown the same prompt and response (teacher forcing). At each response token, P is
the next-token distribution of the first model (the base) and Q that of the second, both over the
whole vocabulary at temperature 1:

    before, after   log P(y), log Q(y) of the response's own token y
    entropy         H(P), H(Q)                                                  nats
    kl_forward      KL(P || Q) = sum_v P(v) log (P(v) / Q(v))                   nats
    kl_backward     KL(Q || P)                                                  nats
    jsd             (KL(P || M) + KL(Q || M)) / 2,  M = (P + Q) / 2             nats, at most log 2
    tv              sum_v |P(v) - Q(v)| / 2                                     0 to 1
    rank            1 + number of tokens more probable than y
    top_changed     whether the most probable token is another one

Where the two models are the same, every difference is exactly zero: hidden states, hence logits,
are, and each formula below is written so that equal inputs give 0 and not a rounding error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from srft.analysis.responses import TokenizedResponse
from srft.errors import ModelError
from srft.model.output_head import OutputHead, body, output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TILE = 2**22
"""Numbers in one tile of logits (tokens times vocabulary): 32 MB in float64."""


@dataclass(frozen=True)
class TokenShift:
    """Per-token figures of all responses end to end; arrays of T numbers, see the module's head.

    sequence_T: which response each token belongs to. position_T: its place there, from 0.
    token_T: its id.
    """

    sequence_T: np.ndarray
    position_T: np.ndarray
    token_T: np.ndarray
    logprob_before_T: np.ndarray
    logprob_after_T: np.ndarray
    entropy_before_T: np.ndarray
    entropy_after_T: np.ndarray
    kl_forward_T: np.ndarray
    kl_backward_T: np.ndarray
    jsd_T: np.ndarray
    tv_T: np.ndarray
    rank_before_T: np.ndarray
    rank_after_T: np.ndarray
    top_changed_T: np.ndarray

    @property
    def change_T(self) -> np.ndarray:
        """Q(y) - P(y): how much more probable the response's token has become."""
        return np.exp(self.logprob_after_T) - np.exp(self.logprob_before_T)

    def rows(self, keep_T: np.ndarray) -> TokenShift:
        """The tokens where ``keep_T`` is True."""
        return TokenShift(**{name: array[keep_T] for name, array in self.__dict__.items()})


@torch.no_grad()
def compare(
    before: PreTrainedModel, after: PreTrainedModel, responses: Sequence[TokenizedResponse]
) -> TokenShift:
    """Scores every response token under both models.

    Raises:
        ModelError: the models do not have the same vocabulary.
    """
    heads = output_head(before), output_head(after)
    sizes = [head.weight.shape[0] for head in heads]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"the models have {sizes[0]} and {sizes[1]} entries in their vocabularies: distributions "
            "over different vocabularies cannot be compared; compare models made from one base"
        )
    parts: dict[str, list[np.ndarray]] = {}
    for number, response in enumerate(responses):
        hidden = hidden_states(before, response), hidden_states(after, response)
        target_T = torch.tensor(response.ids, device=hidden[0].device)
        for rows in _tiles(len(response.ids), sizes[0]):
            figures = distribution_shift(
                logits(heads[0], hidden[0][rows]), logits(heads[1], hidden[1][rows]), target_T[rows]
            )
            for name, value_T in figures.items():
                parts.setdefault(name, []).append(value_T.cpu().numpy())
        parts.setdefault("sequence_T", []).append(np.full(len(response.ids), number))
        parts.setdefault("position_T", []).append(np.arange(len(response.ids)))
        parts.setdefault("token_T", []).append(np.asarray(response.ids))
    return TokenShift(**{name: np.concatenate(arrays) for name, arrays in parts.items()})


def distribution_shift(before_TV: Tensor, after_TV: Tensor, target_T: Tensor) -> dict[str, Tensor]:
    """Every figure of :class:`TokenShift` from two arrays of logits (T x V) and the tokens taken."""
    logp = torch.log_softmax(before_TV, dim=1)
    logq = torch.log_softmax(after_TV, dim=1)
    p, q = logp.exp(), logq.exp()
    target = target_T[:, None]
    return {
        "logprob_before_T": logp.gather(1, target)[:, 0],
        "logprob_after_T": logq.gather(1, target)[:, 0],
        "entropy_before_T": _weighted(p, -logp).sum(1),
        "entropy_after_T": _weighted(q, -logq).sum(1),
        "kl_forward_T": _weighted(p, logp - logq).sum(1).clamp_(min=0),
        "kl_backward_T": _weighted(q, logq - logp).sum(1).clamp_(min=0),
        "jsd_T": _to_mixture(p, logp, logq).add_(_to_mixture(q, logq, logp)).sum(1).div_(2).clamp_(min=0),
        "tv_T": (p - q).abs_().sum(1).div_(2),
        "rank_before_T": _rank(before_TV, target),
        "rank_after_T": _rank(after_TV, target),
        "top_changed_T": before_TV.argmax(1) != after_TV.argmax(1),
    }


def _weighted(p: Tensor, value: Tensor) -> Tensor:
    """p * value with 0 * infinity = 0: what cannot happen adds nothing to a mean."""
    return torch.where(p > 0, p * value, 0.0)


def _to_mixture(p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
    """Summands of KL(P || (P + Q) / 2), of which log(P / M) = -log((1 + Q / P) / 2).

    The exponent is bounded where Q / P would overflow; P is then too small to add anything.
    """
    ratio = torch.expm1((logq - logp).clamp_(max=80.0))
    return _weighted(p, -torch.log1p(ratio / 2))


def _rank(logits_TV: Tensor, target: Tensor) -> Tensor:
    return 1 + (logits_TV > logits_TV.gather(1, target)).sum(1)


@torch.no_grad()
def token_logprobs(model: PreTrainedModel, responses: Sequence[TokenizedResponse]) -> np.ndarray:
    """log p of every response token under one model, all responses end to end (float64, nats)."""
    head = output_head(model)
    parts = []
    for response in responses:
        hidden = hidden_states(model, response)
        target_T = torch.tensor(response.ids, device=hidden.device)
        for rows in _tiles(len(response.ids), head.weight.shape[0]):
            logp = torch.log_softmax(logits(head, hidden[rows]), dim=1)
            parts.append(logp.gather(1, target_T[rows][:, None])[:, 0].cpu().numpy())
    return np.concatenate(parts).astype(np.float64)


def hidden_states(model: PreTrainedModel, response: TokenizedResponse) -> Tensor:
    """What the output head reads at each response token; T x D."""
    weight = output_head(model).weight
    ids = [*response.prompt_ids, *response.ids]
    if max(ids) >= weight.shape[0]:
        raise ModelError(
            f"token id {max(ids)} is outside the model's vocabulary of {weight.shape[0]}: the responses "
            "were tokenized for another model"
        )
    input_ids = torch.tensor([ids], device=weight.device)
    output = body(model)(input_ids=input_ids, use_cache=False)
    # The state before a token predicts it.
    return output.last_hidden_state[0, len(response.prompt_ids) - 1 : -1]


def logits(head: OutputHead, hidden_TD: Tensor) -> Tensor:
    """The model's logits T x V: float64 on a CPU, float32 elsewhere."""
    dtype = torch.float64 if hidden_TD.device.type == "cpu" else torch.float32
    z = torch.mm(hidden_TD.to(head.weight.dtype), head.weight.t()).to(dtype)
    if head.bias is not None:
        z += head.bias.to(dtype)
    if head.logit_scale != 1.0:
        z *= head.logit_scale
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    return z


def _tiles(length: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, _TILE // vocabulary)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
