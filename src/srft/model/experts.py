"""Keeping the experts of a mixture busy alike: the loss that transformers adds for it, over a whole step.

    loss = coefficient x E x sum_e f_e P_e

with f_e the share of routed (token, layer) pairs that go to expert e (top k count k times), P_e its mean
probability, and E experts (Fedus et al., 2021, equations 4 to 6). transformers takes both over one forward
pass; here they are those of the whole optimizer step, so that how a batch is cut changes nothing. f has
no gradient and is counted in a pass beforehand; what each micro-batch then adds is linear in its tokens.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srft.data.packing import PackedBatch
from srft.errors import ModelError
from srft.model.model_config import ModelConfig
from srft.model.output_head import attention_configs, body, unwrap

_ARGUMENTS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


@dataclass(frozen=True)
class Load:
    """Over all layers and some tokens: how often each expert was chosen, the sum of its probabilities
    (with gradient outside ``no_grad``), and how many pairs of token and layer that are."""

    chosen_E: Tensor
    probability_E: Tensor
    pairs: float


@dataclass(frozen=True)
class Balance:
    """The loss as a model asks for it."""

    coefficient: float
    top_k: int

    def loss(self, load: Load, whole: Load) -> Tensor:
        """What one micro-batch adds to the loss of a step whose load is ``whole``."""
        share_E = whole.chosen_E / whole.pairs
        mean = (share_E * load.probability_E).sum() / whole.pairs
        return self.coefficient * len(share_E) * mean


def balance_of(model: nn.Module, config: ModelConfig) -> Balance | None:
    """By ``model.router_aux_loss_coef``; where that is none, by the model's own coefficient if its config
    has ``output_router_logits``, which is how transformers switches the loss on.

    Raises ModelError where it is asked for and cannot be had.
    """
    base = unwrap(model)
    text = base.config.get_text_config(decoder=True)
    coefficient = config.router_aux_loss_coef
    if coefficient is None and getattr(text, "output_router_logits", False):
        coefficient = _first(("router_aux_loss_coef", "aux_loss_coef"), base, text)
    if not coefficient:
        return None
    top_k = _first(("num_experts_per_tok",), base, text)
    if not _is_known(base) or not _routers(base) or top_k is None:
        raise ModelError(
            f"model type {base.config.model_type!r} has no load-balancing loss: set "
            "model.router_aux_loss_coef=0"
        )
    if config.compile:
        raise ModelError(
            "the load-balancing loss of experts reads routers inside layers, which compiled ones "
            "do not show: set model.compile=false, or model.router_aux_loss_coef=0"
        )
    return Balance(coefficient, int(top_k))


def _first(names: Sequence[str], *holders: Any) -> Any:
    """The first attribute of one of these names; the model's own come before its config's, where DBRX and
    JetMoE have others."""
    found = (getattr(holder, name, None) for holder in holders for name in names)
    return next((value for value in found if value is not None), None)


def _is_known(base: nn.Module) -> bool:
    """Whether the loss of this type is the one above (Doge's is of other arguments)."""
    own = getattr(sys.modules[type(base).__module__], "load_balancing_loss_func", None)
    return own is not None and [*inspect.signature(own).parameters] == _ARGUMENTS


def _routers(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """The modules that transformers reads router logits from, and at which place of their output."""
    records = (getattr(body(model), "_can_record_outputs", None) or {}).get("router_logits") or []
    found = []
    for record in records if isinstance(records, list) else [records]:
        kind: Any = getattr(record, "target_class", record)
        index = getattr(record, "index", 0)
        found += [(module, index) for module in model.modules() if isinstance(module, kind)]
    return found


@contextmanager
def router_logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the routers of ``model`` say in a forward pass, [tokens, E] of each layer."""
    found: list[Tensor] = []

    def keep(index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            logits = output[index] if isinstance(output, tuple) else output
            found.append(logits.flatten(0, -2))

        return hook

    hooks = [module.register_forward_hook(keep(index)) for module, index in _routers(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def load_of(logits: Sequence[Tensor], packed: PackedBatch, top_k: int) -> Load:
    """The load by the N tokens of ``packed``, padding left out where there was some."""
    device = packed.input_ids_N.device
    place_N = torch.arange(packed.num_tokens, device=device)
    if len(logits[0]) != packed.num_tokens:
        place_N = packed.padded_places()
    if not packed.rows:
        place_N = place_N[:0]  # a token that stands in for none
    chosen_E = torch.zeros(logits[0].shape[-1], device=device)
    probability_E = chosen_E.clone()
    for layer in logits:
        weights = layer.float().softmax(-1)[place_N]
        chosen = weights.topk(top_k, dim=-1).indices.flatten()
        chosen_E += torch.bincount(chosen, minlength=len(chosen_E))
        probability_E = probability_E + weights.sum(0)
    return Load(chosen_E, probability_E, float(len(place_N) * len(logits)))


@contextmanager
def without_router_logits(model: nn.Module) -> Iterator[None]:
    """While the forward pass of the whole model is not to compute a loss over them of its own, which
    fails where attention gets a mask of several dimensions."""
    asked = [c for c in attention_configs(model) if getattr(c, "output_router_logits", False)]
    for config in asked:
        config.output_router_logits = False
    try:
        yield
    finally:
        for config in asked:
            config.output_router_logits = True
