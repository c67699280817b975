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

_BATCH = 8_192
"""Tokens in one forward pass."""


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
    found: list[dict[str, list[np.ndarray]]] = [{} for _ in responses]
    both = zip(hidden_states(before, responses), hidden_states(after, responses), strict=True)
    for (row, hidden_before), (_, hidden_after) in both:
        target_T = torch.tensor(responses[row].own, device=hidden_before.device)
        for part in tiles(len(target_T), sizes[0]):
            figures = distribution_shift(
                logits(heads[0], hidden_before[part]),
                logits(heads[1], hidden_after[part]),
                target_T[part],
            )
            for name, value_T in figures.items():
                found[row].setdefault(name, []).append(value_T.cpu().numpy())
        found[row]["sequence_T"] = [np.full(len(target_T), row)]
        found[row]["position_T"] = [np.arange(len(target_T))]
        found[row]["token_T"] = [np.asarray(responses[row].own)]
    names = found[0].keys()
    return TokenShift(
        **{name: np.concatenate([a for one in found for a in one[name]]) for name in names}
    )


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
        "jsd_T": _to_mixture(p, logp, logq)
        .add_(_to_mixture(q, logq, logp))
        .sum(1)
        .div_(2)
        .clamp_(min=0),
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
def token_figures(
    model: PreTrainedModel, responses: Sequence[TokenizedResponse]
) -> tuple[np.ndarray, np.ndarray]:
    """log p and H of every response token under one model, all responses end to end (float64, nats)."""
    head = output_head(model)
    found: list[list[np.ndarray]] = [[] for _ in responses]
    for row, hidden in hidden_states(model, responses):
        target_T = torch.tensor(responses[row].own, device=hidden.device)
        for part in tiles(len(target_T), head.weight.shape[0]):
            logp = torch.log_softmax(logits(head, hidden[part]), dim=1)
            taken_T = logp.gather(1, target_T[part][:, None])[:, 0]
            both = torch.stack([taken_T, _weighted(logp.exp(), -logp).sum(1)])
            found[row].append(both.double().cpu().numpy())
    logprob_T, entropy_T = np.concatenate([array for one in found for array in one], axis=1)
    return logprob_T, entropy_T


def token_logprobs(model: PreTrainedModel, responses: Sequence[TokenizedResponse]) -> np.ndarray:
    """log p of every response token."""
    return token_figures(model, responses)[0]


def hidden_states(
    model: PreTrainedModel, responses: Sequence[TokenizedResponse], budget: int = _BATCH
) -> Iterator[tuple[int, Tensor]]:
    """(row, what the output head reads at each own token of that response; T x D), longest first.

    Responses of similar length run together, padded on the right, at most ``budget`` tokens of
    prompt, response and padding in one pass. The order depends on the responses alone, so two
    models' states can be taken in step.

    Raises:
        ModelError: a token id outside the model's vocabulary.
    """
    weight = output_head(model).weight
    highest = max(max(*r.prompt_ids, *r.ids) for r in responses)
    if highest >= weight.shape[0]:
        raise ModelError(
            f"token id {highest} is outside the model's vocabulary of {weight.shape[0]}: the responses "
            "were tokenized for another model"
        )
    length = [len(r.prompt_ids) + len(r.ids) for r in responses]
    order = sorted(range(len(responses)), key=lambda row: (-length[row], row))
    while order:
        count = max(1, budget // length[order[0]])
        rows, order = order[:count], order[count:]
        width = length[rows[0]]
        input_ids = torch.zeros((len(rows), width), dtype=torch.int64)
        mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            r = responses[row]
            input_ids[i, : length[row]] = torch.tensor([*r.prompt_ids, *r.ids])
            mask[i, : length[row]] = 1
        device = weight.device
        output = body(model)(
            input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False
        )
        for i, row in enumerate(rows):
            # The state before a token predicts it.
            r = responses[row]
            states = output.last_hidden_state[i, len(r.prompt_ids) - 1 : length[row] - 1]
            yield row, states if r.mask is None else states[torch.tensor(r.mask)]


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


def tiles(length: int, vocabulary: int) -> Iterator[slice]:
    """Slices of the tokens such that a tile of logits stays small."""
    step = max(1, _TILE // vocabulary)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
