"""What every engine asks of the requests before it starts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch

from srft.errors import RolloutError, RolloutNotFinite
from srft.model.positions import context_length, described_limit
from srft.types import Completion, RolloutRequest, SamplingParams


def request_seed(*parts: int) -> int:
    """A 62-bit seed from a few integers: the same everywhere, whatever the order of generation."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def check_requests(model: Any, requests: Sequence[RolloutRequest], params: SamplingParams) -> None:
    """RolloutError for an empty prompt, a token the model has no embedding for, or a prompt that
    with ``max_tokens`` exceeds the model's context; the message names the request."""
    if params.max_tokens < 1:
        raise RolloutError(f"max_tokens is {params.max_tokens}; sampling needs at least 1")
    limit = context_length(model.config)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    for number, request in enumerate(requests):
        length = len(request.prompt_ids)
        if request.n < 0:
            raise RolloutError(f"request {number} asks for {request.n} completions")
        if length == 0:
            raise RolloutError(
                f"request {number} has an empty prompt; give it at least one token, such as the "
                "beginning-of-sequence token"
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocabulary:
            raise RolloutError(
                f"request {number} holds a token id outside the model's vocabulary of "
                f"{vocabulary}; model and tokenizer do not match"
            )
        most = request.most_tokens(params)
        if limit is not None and length + most > limit:
            raise RolloutError(
                f"request {number}: prompt of {length} tokens + max_tokens={most} "
                f"exceeds {described_limit(model.config)}; or lower rollout.max_tokens to "
                f"{max(limit - length, 0)}, or drop longer prompts from the data"
            )


def check_finite(completion: Completion, request: int, sample: int) -> None:
    """RolloutNotFinite if a log-probability is not a finite number."""
    if not all(map(math.isfinite, completion.logprobs)):
        raise RolloutNotFinite(
            f"rollout {sample} of request {request}: the model's log-probabilities are not finite; "
            "its weights have diverged (lower the learning rate, or go back to an earlier "
            "checkpoint)"
        )


def computes_in_float32(model: Any) -> bool:
    """Whether the model's products are rounded to float32 (or finer) where this is called: not
    under autocast, whatever dtype its weights have."""
    wide = model.dtype in (torch.float32, torch.float64)
    return wide and not torch.is_autocast_enabled(next(model.parameters()).device.type)
