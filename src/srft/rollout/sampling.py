"""Drawing tokens: counter-based uniforms, truncated distributions, inverse-CDF sampling.

Shape suffixes: A active rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from srft.types import SamplingParams

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK_64 = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele, Lea and Flood 2014): a bijection of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: list[int], length: int) -> np.ndarray:
    """float64 [len(seeds), length] in [0, 1): entry (s, t) depends on ``seeds[s]`` and t alone.

    Row s is the splitmix64 stream whose state is the hash of the seed, so the streams of
    neighbouring seeds (``seed + i`` within a group) have nothing in common. Seeds are taken
    modulo 2**64. 53 random bits each.
    """
    seed = np.array([s & _MASK_64 for s in seeds], dtype=np.uint64)[:, None]
    counter = np.arange(1, length + 1, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):
        # Mixed twice: a stream that started at the bare seed would be a shifted copy of the
        # stream of any seed that lies a multiple of _GOLDEN away.
        state = _mix(_mix(seed + _GOLDEN) ^ np.uint64(0xD1B54A32D192ED03))
        bits = _mix(state + counter * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


# Probabilities are summed over blocks of this many tokens first: one pass over the vocabulary in
# float32, and float64 only over the blocks and inside the one that is drawn.
_BLOCK = 256


def sampling_logits(logits_AV: Tensor, params: SamplingParams) -> Tensor:
    """Logits (float32 [A, V]) of the distribution that tokens are drawn from.

    Temperature first, then top-k, then top-p on what is left: the order of transformers'
    processors. Tokens tied with the k-th are kept. Tokens outside are -inf. With temperature 0 the
    plain logits are returned (greedy decoding draws nothing; its reported log-probabilities are the
    model's own).
    """
    logits = logits_AV.float()
    if params.temperature not in (0.0, 1.0):
        logits = logits / params.temperature
    if params.temperature > 0.0:
        if 0 < params.top_k < logits.shape[-1]:
            kth = logits.topk(params.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, float("-inf"))
        if params.top_p < 1.0:
            logits = _keep_top_p(logits, params.top_p)
    return logits


def sampling_logprobs(logits_AV: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities (float32 [A, V], nats) of that distribution; -inf outside."""
    return torch.log_softmax(sampling_logits(logits_AV, params), dim=-1)


def _keep_top_p(logits_AV: Tensor, top_p: float) -> Tensor:
    ordered, index = logits_AV.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    # A token stays if the mass before it is short of top_p; the first always does.
    before = probability.cumsum(dim=-1) - probability
    drop = torch.zeros_like(logits_AV, dtype=torch.bool).scatter(-1, index, before >= top_p)
    return logits_AV.masked_fill(drop, float("-inf"))


def draw(logits_AV: Tensor, uniform_A: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Token ids (int64 [A]) and their log-probabilities (float32 [A], nats).

    The token is the first whose cumulative probability exceeds the uniform number; sums over blocks
    run in float64, so that tokens of tiny probability in a large vocabulary keep their share.
    Temperature 0 takes the most probable token.
    """
    logits = sampling_logits(logits_AV, params)
    top_A1 = logits.amax(dim=-1, keepdim=True)
    # In place where it is a copy already: on a CPU new memory takes longer than the arithmetic.
    shifted = logits - top_A1 if logits is logits_AV else logits.sub_(top_A1)
    token_A1 = shifted.argmax(dim=-1, keepdim=True) if params.temperature == 0.0 else None
    weight_AV = shifted.exp_()
    cumulative_AB = _block_sums(weight_AV).cumsum(dim=-1)
    total_A1 = cumulative_AB[:, -1:]
    if token_A1 is None:
        token_A1 = _inverse(weight_AV, cumulative_AB, uniform_A[:, None] * total_A1)
    logprob_A1 = weight_AV.gather(-1, token_A1).double().log() - total_A1.log()
    return token_A1.squeeze(-1), logprob_A1.float().squeeze(-1)


def _block_sums(weight_AV: Tensor) -> Tensor:
    """Sums over blocks of tokens, float64 [A, blocks]."""
    rows, vocabulary = weight_AV.shape
    whole = vocabulary // _BLOCK * _BLOCK
    sums = weight_AV[:, :whole].reshape(rows, whole // _BLOCK, _BLOCK).sum(dim=-1)
    if whole < vocabulary:
        sums = torch.cat([sums, weight_AV[:, whole:].sum(dim=-1, keepdim=True)], dim=-1)
    return sums.double()


def _inverse(weight_AV: Tensor, cumulative_AB: Tensor, target_A1: Tensor) -> Tensor:
    """The first token at which the running sum of weights exceeds the target, int64 [A, 1]."""
    vocabulary, device = weight_AV.shape[-1], weight_AV.device
    if vocabulary <= _BLOCK:
        return _within(weight_AV.double().cumsum(dim=-1), target_A1)
    # A row of NaN yields an index past the end; clamped so that the caller meets a NaN
    # log-probability and can say so, instead of an index out of range.
    block_A1 = torch.searchsorted(cumulative_AB, target_A1, right=True)
    block_A1 = block_A1.clamp_(max=cumulative_AB.shape[-1] - 1)
    before_A1 = cumulative_AB.gather(-1, (block_A1 - 1).clamp(min=0))
    rest_A1 = target_A1 - torch.where(block_A1 > 0, before_A1, 0.0)
    token_AK = block_A1 * _BLOCK + torch.arange(_BLOCK, device=device)
    inside_AK = weight_AV.gather(-1, token_AK.clamp(max=vocabulary - 1)).double()
    running_AK = inside_AK.masked_fill_(token_AK >= vocabulary, 0.0).cumsum(dim=-1)
    return (block_A1 * _BLOCK + _within(running_AK, rest_A1)).clamp_(max=vocabulary - 1)


def _within(running_AK: Tensor, rest_A1: Tensor) -> Tensor:
    """The place in a block at which the running sum exceeds what is left of the target."""
    # The block's sum was rounded to float32: what is left may exceed it by that.
    rest_A1 = torch.minimum(rest_A1, running_AK[:, -1:] * (1 - 1e-15))
    place_A1 = torch.searchsorted(running_AK, rest_A1, right=True)
    return place_A1.clamp_(max=running_AK.shape[-1] - 1)
