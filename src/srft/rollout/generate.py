"""The fallback engine: transformers' ``generate``, for models the embedded engine cannot drive.

Slower: prompts are run once per rollout, finished rows stay in the batch until the longest is done,
and the cache is whatever the model brings. Tokens are drawn by our sampler from the same seeds, so
a rollout is the same as the embedded engine's, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from srft.rollout.cached_attention import sampling_mode
from srft.rollout.requests import check_finite, check_requests, computes_in_float32
from srft.rollout.response_end import MAY_END_STRING, STOP_TOKEN, StopRule, StopRules
from srft.rollout.rollout_config import RolloutConfig
from srft.rollout.sampling import draw, uniforms
from srft.types import Completion, RolloutRequest, SamplingParams

# Whose step with a cache does not clamp Mamba's time step as their forward pass does.
_WITHOUT_CACHE = ("nemotron_h", "zamba2")


class GenerateEngine:
    """``RolloutEngine`` that calls ``model.generate``. ``on_completion`` is called as each batch of
    ``max_rows`` rollouts ends."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config or RolloutConfig()
        self.stop_rules = StopRules(tokenizer)
        # Whether prompts of different lengths are padded to run together.
        self.pads = True
        self.caches = model.config.get_text_config().model_type not in _WITHOUT_CACHE

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_completion: Callable[[int, int, Completion], None] | None = None,
    ) -> list[list[Completion]]:
        """See ``RolloutEngine.generate``. RolloutError for requests that cannot fit."""
        check_requests(self.model, requests, params)
        results: list[list[Any]] = [[None] * request.n for request in requests]
        with sampling_mode(self.model, attention=None):
            for batch in self._batches(requests):
                completions = self._batch([requests[r] for r, _ in batch], batch, params)
                for (r, i), completion in zip(batch, completions, strict=True):
                    check_finite(completion, r, i)
                    results[r][i] = completion
                    if on_completion is not None:
                        on_completion(r, i, completion)
        return results

    def _batches(self, requests: Sequence[RolloutRequest]) -> Iterator[list[tuple[int, int]]]:
        """(request, sample) of the rollouts that run together."""
        alike: dict[int, list[tuple[int, int]]] = {}
        for r, request in enumerate(requests):
            key = 0 if self.pads else len(request.prompt_ids)
            alike.setdefault(key, []).extend((r, i) for i in range(request.n))
        for pairs in alike.values():
            for begin in range(0, len(pairs), self.config.rows):
                yield pairs[begin : begin + self.config.rows]

    @property
    def exact(self) -> bool:
        """Whether rounding is that of float32."""
        return computes_in_float32(self.model)

    def parts(self) -> list[tuple[str, Any]]:
        """What the start-up check samples from (``check.check_weights``)."""
        return [("rollout.engine=generate", self.generate)]

    def update_weights(self) -> None:
        """Nothing to do: the weights sampled from are the trainer's own."""

    def close(self) -> None:
        """Nothing is held between calls."""

    def _batch(
        self,
        requests: list[RolloutRequest],
        pairs: list[tuple[int, int]],
        params: SamplingParams,
    ) -> list[Completion]:
        device = next(self.model.parameters()).device
        width = max(len(r.prompt_ids) for r in requests)
        gaps = [width - len(r.prompt_ids) for r in requests]
        ids = [
            [r.prompt_ids[0]] * gap + list(r.prompt_ids)
            for r, gap in zip(requests, gaps, strict=True)
        ]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        stop = self.stop_rules.get(self.model, params, vocabulary, device)
        seeds = [request.seed + i for request, (_, i) in zip(requests, pairs, strict=True)]
        limits = [request.most_tokens(params) for request in requests]
        sampler = _Sampler(params, seeds, width, device)
        criterion = _Criterion(stop, width)
        with _unchanged_scores(self.model):
            self.model.generate(
                torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                do_sample=False,
                num_beams=1,
                use_cache=self.caches,
                max_new_tokens=max(limits),
                # Never met: the stop rule ends rows, so every row keeps producing real tokens.
                eos_token_id=None,
                pad_token_id=0,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([criterion]),
            )
        return [
            self._completion(stop, tokens[:most], logprobs[:most])
            for most, tokens, logprobs in zip(limits, *sampler.drawn(), strict=True)
        ]

    def _completion(self, stop: StopRule, tokens: list[int], logprobs: list[float]) -> Completion:
        """Cut one row, which ran until the whole batch had ended, at its own end."""
        length, by_token, stopped = stop.first_end(tokens)
        kept = tokens[:length]
        return Completion(
            token_ids=tuple(kept),
            logprobs=tuple(logprobs[:length]),
            text=stop.text(kept, by_token),
            finish_reason="stop" if stopped else "length",
        )


@contextmanager
def _unchanged_scores(model: Any) -> Iterator[None]:
    """Without the model's own generation settings (a repetition penalty, suppressed tokens): rollouts
    are drawn from the distribution that the trainer scores them under."""
    own = model.generation_config
    model.generation_config = GenerationConfig(cache_implementation=own.cache_implementation)
    try:
        yield
    finally:
        model.generation_config = own


class _Sampler(LogitsProcessor):
    """Draws each token itself and leaves ``generate``'s argmax no other choice."""

    def __init__(
        self, params: SamplingParams, seeds: list[int], width: int, device: torch.device
    ) -> None:
        self.params, self.width = params, width
        self.uniforms = torch.from_numpy(uniforms(seeds, params.max_tokens)).to(device)
        self.tokens: list[Tensor] = []
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.width
        token, logprob = draw(scores, self.uniforms[:, step], self.params)
        self.tokens.append(token)
        self.logprobs.append(logprob)
        return torch.full_like(scores, float("-inf")).scatter_(1, token[:, None], 0.0)

    def drawn(self) -> tuple[list[list[int]], list[list[float]]]:
        return torch.stack(self.tokens, 1).tolist(), torch.stack(self.logprobs, 1).tolist()


class _Criterion(StoppingCriteria):
    """Ends the batch when every row has met the stop rule."""

    def __init__(self, stop: StopRule, width: int) -> None:
        self.stop, self.width = stop, width
        self.done: np.ndarray | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        codes = self.stop.table[input_ids[:, -1]].cpu().numpy()
        if self.done is None:
            self.done = np.zeros(len(codes), dtype=bool)
        self.done |= codes == STOP_TOKEN
        for row in np.flatnonzero((codes == MAY_END_STRING) & ~self.done):
            self.done[row] = self.stop.ends_string(input_ids[row, self.width :].tolist())
        return torch.full(
            (len(codes),), bool(self.done.all()), dtype=torch.bool, device=input_ids.device
        )
