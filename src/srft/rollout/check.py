"""Proving at start-up that an engine samples from the trainer's weights, as a plain forward pass sees
them: the log-probabilities it reports against ours for the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from srft.errors import RolloutError
from srft.model.output_head import unwrap
from srft.model.packed_attention import packs
from srft.model.positions import context_length
from srft.model.scoring_check import telling
from srft.rollout.cached_attention import sampling_mode, sliding_layers_seen
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.requests import computes_in_float32
from srft.rollout.rollout_config import RolloutConfig
from srft.rollout.sampling import sampling_logprobs
from srft.rollout.vllm_wire import engine_dtype
from srft.types import Completion, RolloutRequest, SamplingParams

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_PROMPT_LENGTHS = (7, 3)
# Of prompts that need no padding: one, and two of one length.
_EVEN_LENGTHS = ((5,), (6, 6))
_NEW_TOKENS = 4
_WEIGHT_TOKENS = 16


# Nats on average that rounding explains, by the coarser precision of engine and trainer (measured:
# docs/rollouts.md).
_ROUNDING = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}


def allowed_mismatch(
    config: RolloutConfig, computes: Iterable[torch.dtype | None], device: str
) -> float | None:
    """``rollout.max_mismatch`` for a trainer that computes in these precisions; None: unlimited."""
    if config.ahead:
        return None
    if config.max_mismatch is not None:
        return config.max_mismatch
    dtypes = {dtype for dtype in computes if dtype is not None}
    if config.engine in ("vllm", "vllm-server"):
        dtypes.add(engine_dtype(config.vllm, device))
        if device != "cpu":
            dtypes.add(torch.float16)  # kernels of two libraries, neither of which promises float32
    return max(_ROUNDING.get(dtype, _ROUNDING[torch.float32]) for dtype in dtypes)


def check_engine(engine: EmbeddedEngine) -> None:
    """Sample a few tokens greedily, beyond windows made small meanwhile, and compare their
    log-probabilities with those of a plain forward pass without cache or padding. RolloutError where
    the model is of a kind the embedded engine does not drive, fails under it, or where the two
    disagree (more than 1e-3 nats in float32, 0.5 where products are halves)."""
    config = engine.model.config.get_text_config()
    layers = list(getattr(config, "layer_types", None) or [])
    strange = sorted(set(layers) - _KNOWN_LAYERS)
    if strange or getattr(config, "attention_chunk_size", None):
        raise RolloutError(
            f"{type(engine.model).__name__} has layers of kind "
            f"{', '.join(strange) or 'chunked attention'}; the embedded sampler drives "
            "full_attention and sliding_attention layers"
        )
    if not getattr(config, "is_causal", True):
        raise RolloutError("the model's config says is_causal=false; rollouts need a causal model")
    tolerance = 1e-3 if computes_in_float32(engine.model) else 0.5
    try:
        with sliding_layers_seen() as windows, telling(engine.model):
            worst = _disagreement(engine)
            if not worst <= tolerance and engine.use_lean:
                engine.use_lean = False
                worst = _disagreement(engine)
    # Whatever a model of another build raises on a cache or mask it does not expect (any kind of
    # error) means the same: it is not driven this way, and the user is told why.
    except Exception as error:
        raise RolloutError(
            f"{type(engine.model).__name__} does not run under the embedded sampler: "
            f"{type(error).__name__}: {error}"
        ) from error
    if len(windows) < layers.count("sliding_attention"):
        raise RolloutError(
            f"{type(engine.model).__name__} has sliding_attention layers but tells its attention "
            "function no window"
        )
    if not worst <= tolerance:
        raise RolloutError(
            f"log-probabilities of the embedded sampler and of a plain forward pass of "
            f"{type(engine.model).__name__} differ by {worst:.3g} nats (at most {tolerance} "
            "expected): its attention cannot be driven through the attention interface"
        )


def _disagreement(engine: EmbeddedEngine) -> float:
    """Largest difference in nats; NaN if either side is not a number."""
    # Three rows for four rollouts, so that one joins later.
    narrow = RolloutConfig(max_rows=3, check=False, free_cache=True)
    probe = EmbeddedEngine(engine.model, engine.tokenizer, narrow)
    probe.use_lean = engine.use_lean
    found = []
    for lengths in (_PROMPT_LENGTHS, *_EVEN_LENGTHS):
        requests, params = probes(
            engine.model, engine.tokenizer, SamplingParams(0.0), _NEW_TOKENS, lengths
        )
        found.append(gaps(engine.model, requests, probe.generate(requests, params), params))
    return float(torch.cat(found).max())


def check_weights(
    model: Any,
    tokenizer: Any,
    generate: Callable[[Sequence[RolloutRequest], SamplingParams], list[list[Completion]]],
    sampling: SamplingParams,
    *,
    exact: bool,
    where: str,
) -> None:
    """Samples a few tokens the way the run will and compares their log-probabilities with ours.

    exact: both sides compute in float32, so that no difference above 1e-3 nats is rounding; else
    the mean over the tokens is compared with 0.15 nats. ``where`` names the engine.

    Raises:
        RolloutError: they differ.
    """
    requests, params = probes(model, tokenizer, sampling, _WEIGHT_TOKENS)
    gap_T = gaps(model, requests, generate(requests, params), params)
    found, tolerance = (gap_T.max(), 1e-3) if exact else (gap_T.mean(), 0.15)
    if not found.item() <= tolerance:
        raise RolloutError(
            f"{where} does not sample from the trainer's weights: for the same {len(gap_T)} tokens its "
            f"log-probabilities and the trainer's differ by {gap_T.mean().item():.3g} nats on average, "
            f"{gap_T.max().item():.3g} at most ({tolerance} allowed). Was it started for this model and "
            "recipe (docs/rollouts.md)? For an architecture that vLLM computes differently use "
            "rollout.engine=embedded; rollout.check=false trains anyway"
        )


def probes(
    model: Any,
    tokenizer: Any,
    sampling: SamplingParams,
    new_tokens: int,
    lengths: Sequence[int] = _PROMPT_LENGTHS,
) -> tuple[list[RolloutRequest], SamplingParams]:
    """Random prompts, with two rollouts each where their lengths differ, sampled as ``sampling`` says
    but short."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    size = min(vocabulary, len(tokenizer))
    limit = context_length(model.config) or 1 << 30
    prompts = [
        tuple(torch.randint(0, size, (min(length, limit - 1),), generator=generator).tolist())
        for length in lengths
    ]
    most = min(new_tokens, limit - max(map(len, prompts)))
    # Not truncated: at the edge of top-p, rounding decides what is inside.
    short = replace(sampling, max_tokens=most, top_p=1.0, top_k=0)
    count = min(2, len(set(lengths)))
    return [RolloutRequest(p, n=count, seed=0) for p in prompts], short


def gaps(
    model: Any,
    requests: Sequence[RolloutRequest],
    groups: Sequence[Sequence[Completion]],
    params: SamplingParams,
) -> Tensor:
    """|engine's log-prob - ours| in nats of every sampled token, by plain forward passes without
    cache or padding; NaN where either is not a number."""
    device = next(model.parameters()).device
    found = []
    # What cannot be replaced (Falcon's with ALiBi) is asked as it is.
    attention = "eager" if packs(unwrap(model)) else None
    with sampling_mode(model, attention=attention):
        for request, group in zip(requests, groups, strict=True):
            for completion in group:
                ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]], device=device)
                logits = model(input_ids=ids, use_cache=False).logits[0]
                length = len(completion.token_ids)
                plain = sampling_logprobs(logits[-length - 1 : -1], params)
                chosen = plain.gather(-1, ids[0, -length:, None]).squeeze(-1).cpu()
                found.append((chosen - torch.tensor(completion.logprobs)).abs())
    return torch.cat(found)
