"""The embedded engine: continuous batching over the very model that is being trained.

Every prompt is run once, whatever the size of its group; its keys and values are copied to the rows
of its rollouts. Finished rows are dropped at once and their places taken by waiting rollouts, so a
few long responses do not hold up the many short ones.

Deviations from transformers' ``generate``: random numbers depend on (seed + i, position) alone;
log-probabilities are those of the distribution sampled from.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srft.errors import RolloutError
from srft.model.cpu.lean import lean_decoder
from srft.model.cpu.products import rounded_weights
from srft.rollout.cache import CapturedPrompts, RowCache
from srft.rollout.cached_attention import (
    CURRENT_SLOT,
    causal_mask,
    rollout_attention,
    sampling_mode,
)
from srft.rollout.requests import check_finite, check_requests
from srft.rollout.response_end import STOP_TOKEN, StopRule, StopRules
from srft.rollout.rollout_config import RolloutConfig
from srft.rollout.rows import Rows, Ticket
from srft.rollout.sampling import draw
from srft.types import Completion, FinishReason, RolloutRequest, SamplingParams

OnCompletion = Callable[[int, int, Completion], None]


class EmbeddedEngine:
    """``RolloutEngine`` over a transformers model, in its process, with its present weights.

    ``build_engine`` has ``check_engine`` look whether the model's attention can be driven this way.
    ``generate`` raises RolloutError for requests that cannot fit or log-probabilities that are not
    finite.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config or RolloutConfig()
        self.stop_rules = StopRules(tokenizer)
        self._cache: RowCache | None = None
        # ``check_engine`` turns it off should it ever disagree with the model's own forward.
        self.use_lean = True

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """See ``RolloutEngine.generate``. Dropout is off and no gradient is recorded; the model's
        mode and attention are put back afterwards. With temperature 0 the log-probabilities are
        the model's own (temperature 1, nothing truncated)."""
        check_requests(self.model, requests, params)
        if not any(r.n for r in requests):
            return [[] for _ in requests]
        cache, self._cache = self._cache, None
        with sampling_mode(self.model):
            call = _Call(self, list(requests), params, on_completion, cache)
            # The lean decoder has rounded weights of its own.
            own = call.lean is None
            with rounded_weights(self.model, call.row_count) if own else nullcontext():
                results = call.run()
            if not self.config.free_cache:
                self._cache = call.cache
        return results

    def update_weights(self) -> None:
        """Nothing to do: the weights sampled from are the trainer's own, and nothing computed from
        them outlives a call of ``generate``."""

    def close(self) -> None:
        """Give the cache's memory back."""
        self._cache = None


class _Call:
    """One call of ``generate``: the requests, the rows that run, what is done."""

    def __init__(
        self,
        engine: EmbeddedEngine,
        requests: list[RolloutRequest],
        params: SamplingParams,
        on_completion: OnCompletion | None,
        cache: RowCache | None,
    ) -> None:
        self.model, self.config = engine.model, engine.config
        self.requests, self.params, self.on_completion = requests, params, on_completion
        self.device = next(engine.model.parameters()).device
        self.forward_arguments = _forward_arguments(engine.model)
        self.row_count, self.slots = _cache_size(self.config, requests, params)
        rows, slots = self.row_count, self.slots
        self.lean = None
        if engine.use_lean:
            self.lean = lean_decoder(engine.model, slots, rows, rollout_attention)
        self.cache = cache
        self.rows = Rows(self.row_count, params.max_tokens, self.device)
        self.stop: StopRule | None = None
        self.engine = engine
        self.to_prefill = deque(r for r in range(len(requests)) if requests[r].n)
        self.waiting: deque[Ticket] = deque()
        self.results: list[list[Completion | None]] = [[None] * r.n for r in requests]

    def run(self) -> list[list[Completion]]:
        while True:
            self._admit()
            if not self.rows.active:
                break
            self._step()
        done = [[c for c in group if c is not None] for group in self.results]
        assert [len(group) for group in done] == [r.n for r in self.requests]
        return done

    def _admit(self) -> None:
        """Give free rows to waiting rollouts; drop those that end with their first token."""
        # Filling rows costs a little each time, so wait for a handful unless the batch is empty.
        handful = max(1, self.row_count // 16)
        while self.waiting or self.to_prefill:
            free = self.row_count - self.rows.active
            if free < handful and not 0 < len(self.waiting) <= free:
                return
            if not self.waiting:
                self._prefill()
            count = min(free, len(self.waiting))
            self._start([self.waiting.popleft() for _ in range(count)])
            self._finish()

    def _prefill(self) -> None:
        """One forward pass over as many waiting prompts as the token budget allows."""
        chosen: list[int] = []
        width = 0
        while self.to_prefill:
            wider = max(width, len(self.requests[self.to_prefill[0]].prompt_ids))
            if chosen and wider * (len(chosen) + 1) > self.config.prefill_tokens:
                break
            width = wider
            chosen.append(self.to_prefill.popleft())
        prompts = [self.requests[r].prompt_ids for r in chosen]
        padded = torch.tensor([[p[0]] * (width - len(p)) + list(p) for p in prompts])
        start = torch.tensor([width - len(p) for p in prompts])
        position = (torch.arange(width) - start[:, None]).clamp_(min=0)
        captured = CapturedPrompts()
        self.prompt_logits = self._forward(
            padded.to(self.device),
            position.to(self.device),
            self._prompt_mask(start, width),
            captured,
        )
        self.captured = captured
        self.waiting.extend(
            Ticket(request=r, sample=i, prompt=p)
            for p, r in enumerate(chosen)
            for i in range(self.requests[r].n)
        )
        if self.stop is None:
            self._allocate()

    def _prompt_mask(self, start: Tensor, width: int) -> Tensor:
        """Additive [P, 1, width, width]: causal, padding on the left unseen.

        A padding position sees itself, so that no softmax is empty and no NaN is stored. Without
        padding there is a mask too: attention that is a model's own takes none for full attention."""
        if not start.any():
            return causal_mask(width, self.model.dtype, self.device)
        slot = torch.arange(width)
        seen = (slot[None, :] <= slot[:, None])[None] & (
            slot[None, None, :] >= start[:, None, None]
        )
        seen |= torch.eye(width, dtype=torch.bool)
        mask = torch.zeros(seen.shape, dtype=self.model.dtype).masked_fill_(~seen, float("-inf"))
        return mask[:, None].to(self.device)

    def _allocate(self) -> None:
        dtype, vocabulary = self.captured.keys[0].dtype, self.prompt_logits.shape[-1]
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)  # attention multiplies them so
        shape = self.captured.shape()
        needed = (self.row_count, self.slots, dtype, self.device)
        if self.cache is None or not self.cache.resize(*needed):
            self.cache = RowCache(shape, *needed)
        self.stop = self.engine.stop_rules.get(self.model, self.params, vocabulary, self.device)

    def _start(self, tickets: list[Ticket]) -> None:
        """Copy the prompts' keys and values to new rows and sample their first tokens."""
        rows, cache = self.rows, self.cache
        assert cache is not None
        width = self.captured.keys[0].shape[2]
        if not rows.active:
            cache.clear(width)
        elif cache.slot < width:
            cache.lay_out(self._lengths(), at_least=width)
        index = torch.tensor([t.prompt for t in tickets], device=self.device)
        before = rows.active
        new = rows.add(tickets, self.requests)
        cache.fill(before, self.captured, index, self._lengths()[new])
        self._sample(new, self.prompt_logits.index_select(0, index))
        self._recompose()

    def _lengths(self) -> Tensor:
        return torch.from_numpy(self.rows.lengths()).to(self.device)

    def _recompose(self) -> None:
        """Recompute what depends on which rows are active: positions, first slot, layout."""
        rows, cache = self.rows, self.cache
        assert cache is not None
        if not rows.active:
            return
        lengths = self._lengths()
        cache.first = cache.slot - int(rows.lengths().max())
        if cache.needs_layout():
            cache.lay_out(lengths)
        cache.set_active(rows.active)
        self.position = lengths[:, None]

    def _step(self) -> None:
        """Feed the last token of every active row, sample the next one, settle what ended."""
        rows, cache = self.rows, self.cache
        assert cache is not None
        if cache.slot == cache.span:
            self._recompose()
        mask = cache.open_slot()
        CURRENT_SLOT.set(cache.slot)
        column = rows.tokens[: rows.active, rows.column, None]
        if self.lean is not None:
            logits = self.lean.step(column[:, 0], self.position[:, 0], mask, cache)
        else:
            logits = self._forward(column, self.position, mask, cache)
        cache.slot += 1
        rows.clock += 1
        self.position += 1
        self._sample(slice(0, rows.active), logits)
        self._finish()

    def _forward(
        self, input_ids: Tensor, position_ids: Tensor, mask: Tensor | None, cache: Any
    ) -> Tensor:
        logits: Tensor = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **self.forward_arguments,
        ).logits
        return logits[:, -1]

    def _sample(self, where: slice, logits_AV: Tensor) -> None:
        rows, column = self.rows, self.rows.column
        token, logprob = draw(logits_AV, rows.uniforms[where, column], self.params)
        rows.tokens[where, column] = token
        rows.logprobs[where, column] = logprob

    def _finish(self) -> None:
        """Hand out the rows whose last token ended them and close the gaps they leave."""
        rows, stop, cache = self.rows, self.stop, self.cache
        assert stop is not None and cache is not None
        # The one synchronisation with the device in a step.
        codes = stop.table[rows.tokens[: rows.active, rows.column]].cpu().numpy()
        full = rows.full()
        hits = np.flatnonzero((codes != 0) | full).tolist()
        if not hits:
            return
        finished = []
        for row, (token_ids, logprobs) in zip(hits, rows.history(hits), strict=True):
            by_token = codes[row] == STOP_TOKEN
            stopped = by_token or (codes[row] != 0 and stop.ends_string(token_ids))
            if stopped or full[row]:
                finished.append(row)
                text = stop.text(token_ids, by_token)
                reason: FinishReason = "stop" if stopped else "length"
                self._hand_out(row, Completion(tuple(token_ids), tuple(logprobs), text, reason))
        if not finished:
            return
        moved = rows.remove(finished)
        if moved is not None:
            cache.move(*moved)
        self._recompose()

    def _hand_out(self, row: int, completion: Completion) -> None:
        request, sample = int(self.rows.request[row]), int(self.rows.sample[row])
        check_finite(completion, request, sample)
        self.results[request][sample] = completion
        if self.on_completion is not None:
            self.on_completion(request, sample, completion)


def _forward_arguments(model: Any) -> dict[str, Any]:
    """``logits_to_keep=1`` where the model takes it: no logits for positions nobody reads."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    takes = "logits_to_keep" in inspect.signature(base.forward).parameters
    return {"logits_to_keep": 1} if takes else {}


def _cache_size(
    config: RolloutConfig, requests: list[RolloutRequest], params: SamplingParams
) -> tuple[int, int]:
    """(rows, slots) of the cache for these requests; RolloutError if not one row fits."""
    total = sum(r.n for r in requests)
    longest = max(len(r.prompt_ids) + r.most_tokens(params) for r in requests if r.n)
    budget = config.cache_tokens
    rows = min(config.rows, total)
    if rows == total and (budget is None or rows * longest <= budget):
        return rows, longest
    # Rows that join later need room after the present slot. With a quarter to spare, the window
    # moves back to the front once in that many steps at most.
    slots = longest + max(16, longest // 4)
    if budget is not None:
        rows = min(rows, budget // slots)
    if rows == 0:
        raise RolloutError(
            f"rollout.cache_tokens={budget} is less than one row needs: {slots} slots (longest "
            f"prompt + max_tokens = {longest}, and a quarter); raise cache_tokens or lower "
            "max_tokens"
        )
    return rows, slots
