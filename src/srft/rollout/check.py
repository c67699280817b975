"""Proving at start-up that the embedded engine sees what a plain forward pass sees."""

from __future__ import annotations

import torch

from srft.errors import RolloutError
from srft.rollout.attention import sampling_mode, sliding_layers_seen
from srft.rollout.config import RolloutConfig
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.requests import context_length
from srft.types import RolloutRequest, SamplingParams

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_PROMPT_LENGTHS = (7, 3)
_NEW_TOKENS = 4


def check_engine(engine: EmbeddedEngine) -> None:
    """Sample a few tokens greedily and compare their log-probabilities with those of a plain
    forward pass without cache or padding. RolloutError where the model is of a kind the embedded
    engine does not drive, fails under it, or where the two disagree (more than 1e-3 nats in
    float32, 0.5 in a half precision)."""
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
    tolerance = 1e-3 if engine.model.dtype in (torch.float32, torch.float64) else 0.5
    try:
        with sliding_layers_seen() as windows:
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
    generator = torch.Generator().manual_seed(0)
    vocabulary = engine.model.get_input_embeddings().weight.shape[0]
    size = min(vocabulary, len(engine.tokenizer))
    limit = context_length(engine.model) or 1 << 30
    prompts = [
        tuple(torch.randint(0, size, (min(length, limit - 1),), generator=generator).tolist())
        for length in _PROMPT_LENGTHS
    ]
    params = SamplingParams(
        temperature=0.0, max_tokens=min(_NEW_TOKENS, limit - max(map(len, prompts)))
    )
    requests = [RolloutRequest(p, n=2, seed=0) for p in prompts]
    # Three rows for four rollouts, so that one joins later.
    narrow = RolloutConfig(max_rows=3, check=False, free_cache=True)
    probe = EmbeddedEngine(engine.model, engine.tokenizer, narrow)
    probe.use_lean = engine.use_lean
    groups = probe.generate(requests, params)
    worst = 0.0
    device = next(engine.model.parameters()).device
    with sampling_mode(engine.model, attention="eager"):
        for request, group in zip(requests, groups, strict=True):
            for completion in group:
                ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]], device=device)
                logits = engine.model(input_ids=ids, use_cache=False).logits[0].float()
                length = len(completion.token_ids)
                plain = logits[-length - 1 : -1].log_softmax(-1)
                chosen = plain.gather(-1, ids[0, -length:, None]).squeeze(-1).cpu()
                gap = (chosen - torch.tensor(completion.logprobs)).abs().max().item()
                worst = gap if gap != gap else max(worst, gap)
    return worst
