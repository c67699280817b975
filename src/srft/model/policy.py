"""A language model with everything that its scores depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srft.data.packing import PackedBatch
from srft.model.adapters import Reference, whole
from srft.model.divergence import Logits
from srft.model.experts import Balance, load_of, router_logits
from srft.model.loading import autocast_dtype, compute_context
from srft.model.model_config import ModelConfig
from srft.model.output_head import output_head, unwrap
from srft.model.packed_attention import packs
from srft.model.scoring import Against, TokenScores, score, states


@dataclass(frozen=True)
class Policy:
    """What is trained, what a penalty is measured to, or a teacher: a model and how it computes.

    config: the dtypes and kernels it was prepared with. temperature: divides the logits. reference:
    the policy as it was before training, for methods that ask for it. source_dtype: the precision of
    the files it came from. gather_dtype: the dtype in which sharded weights are gathered, where that
    is another than theirs. balance: of experts, where it is trained. put_back: see ``close``.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig = field(default_factory=ModelConfig)
    temperature: float = 1.0
    reference: Reference | None = None
    source_dtype: torch.dtype | None = None
    gather_dtype: torch.dtype | None = None
    balance: Balance | None = None
    put_back: Callable[[], None] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt stands once before all its responses (``pack``)."""
        return packs(unwrap(self.model))

    def at(self, temperature: float) -> Policy:
        """The same policy at another temperature."""
        return replace(self, temperature=temperature)

    def trains_with_noise(self, rollouts: bool) -> bool:
        """Whether dropout and the like act while a method with or without ``rollouts`` is trained."""
        setting = self.config.dropout
        return not rollouts if setting == "auto" else setting

    def computes_in(self) -> tuple[torch.dtype | None, ...]:
        """Precisions that take part in its products."""
        return self.gather_dtype, self.model.dtype, autocast_dtype(self.config, self.device)

    def compute(self) -> AbstractContextManager[Any]:
        """What every forward pass runs in: autocast, or nothing."""
        return compute_context(self.config, self.device)

    def score(self, packed: PackedBatch, against: Against | None = None) -> TokenScores:
        """(logprob_T, entropy_T) of the response tokens, with gradient outside ``no_grad``; with
        ``against`` the divergence from a teacher as well."""
        with self.compute(), ExitStack() as stack:
            logits = stack.enter_context(router_logits(self.model)) if self.balance else []
            scores = score(
                self.model,
                packed,
                temperature=self.temperature,
                kernels=self.config.kernels,
                against=against,
            )
        if self.balance is None:
            return scores
        return replace(scores, load=load_of(logits, packed, self.balance.top_k))

    @torch.no_grad()
    def logits(self, packed: PackedBatch, states_only: bool = False) -> Logits:
        """What this policy's logits at the response tokens are made of, without gradient. Of a sharded
        model the output head is gathered whole, by all processes together, unless ``states_only``."""
        with self.compute():
            made = output_head(self.model).logits(states(self.model, packed), self.temperature)
        if states_only:
            return made
        bias = None if made.bias_V is None else whole(made.bias_V)
        return replace(made, weight_VD=whole(made.weight_VD), bias_V=bias)

    @torch.no_grad()
    def reference_logprob(self, packed: PackedBatch) -> torch.Tensor | None:
        """logprob_T under the policy of before training, or None where nobody asked for it."""
        if self.reference is None:
            return None
        frozen: Any
        with self.reference() as frozen:
            return replace(self, model=frozen, balance=None).score(packed).logprob_T

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def close(self) -> None:
        """Gives the model back as it was, but for its weights: classes of layers, attention, modes."""
        if self.put_back is not None:
            self.put_back()
