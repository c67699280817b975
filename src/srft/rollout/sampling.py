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


def sampling_logprobs(logits_AV: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities (float32 [A, V], nats) of the distribution that tokens are drawn from.

    Temperature first, then top-k, then top-p on what is left, then renormalised: the order of
    transformers' processors. Tokens tied with the k-th are kept. Tokens outside are -inf.
    With temperature 0 the plain distribution is returned (greedy decoding draws nothing; its
    reported log-probabilities are the model's own).
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
    return torch.log_softmax(logits, dim=-1)


def _keep_top_p(logits_AV: Tensor, top_p: float) -> Tensor:
    ordered, index = logits_AV.sort(dim=-1, descending=True, stable=True)
    probability = ordered.softmax(dim=-1)
    # A token stays if the mass before it is short of top_p; the first always does.
    before = probability.cumsum(dim=-1) - probability
    drop = torch.zeros_like(logits_AV, dtype=torch.bool).scatter(-1, index, before >= top_p)
    return logits_AV.masked_fill(drop, float("-inf"))


def draw(logits_AV: Tensor, uniform_A: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Token ids (int64 [A]) and their log-probabilities (float32 [A], nats).

    The token is the first whose cumulative probability exceeds the uniform number; the sum runs
    in float64, so that tokens of tiny probability in a large vocabulary keep their share.
    Temperature 0 takes the most probable token.
    """
    logprob_AV = sampling_logprobs(logits_AV, params)
    if params.temperature == 0.0:
        token_A1 = logprob_AV.argmax(dim=-1, keepdim=True)
    else:
        cumulative = logprob_AV.exp().cumsum(dim=-1, dtype=torch.float64)
        target = uniform_A[:, None] * cumulative[:, -1:]
        # A row of NaN yields index V; clamped so that the caller meets a NaN log-probability
        # and can say so, instead of an index out of range.
        token_A1 = torch.searchsorted(cumulative, target, right=True)
        token_A1 = token_A1.clamp_(max=logits_AV.shape[-1] - 1)
    return token_A1.squeeze(-1), logprob_AV.gather(-1, token_A1).squeeze(-1)
