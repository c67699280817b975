"""Log-probability and entropy of the response tokens of packed sequences under a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from srft.data.packing import PackedBatch
from srft.model.divergence import Logits, divergence
from srft.model.experts import Load
from srft.model.head import Kernels, fused_logprob_entropy
from srft.model.output_head import body, output_head, unwrap
from srft.model.packed_attention import packed_layout, packs, run_packed


@dataclass(frozen=True)
class TokenScores:
    """logprob_T and entropy_T (nats, float32): of each response token, and of the distribution it
    was predicted from; divergence_T: from a teacher's distribution there, where one was given; load: of
    experts, where their balance is trained. All carry gradient outside ``no_grad``."""

    logprob_T: Tensor
    entropy_T: Tensor
    divergence_T: Tensor | None = None
    load: Load | None = None


@dataclass(frozen=True)
class Against:
    """A teacher's distributions that the policy's are compared with, at the tokens where taught_T is
    True: the teacher's logits there, or, where the policy teaches itself, the states that its own head
    turns into logits. beta and top_k are those of :func:`srft.model.divergence.divergence`."""

    taught_T: Tensor
    teacher: Logits | Tensor
    beta: float
    top_k: int | None


def score(
    model: nn.Module,
    packed: PackedBatch,
    *,
    temperature: float = 1.0,
    kernels: Kernels = "auto",
    chunk_tokens: int | None = None,
    chunk_vocab: int | None = None,
    against: Against | None = None,
) -> TokenScores:
    """Score the response tokens of ``packed``, which lies on the model's device.

    The body runs once over the N packed tokens (or over a right-padded batch, where the model does
    not pack); the output head sees the T hidden states that predict response tokens, and logits
    never exist as a whole. Works with tied and untied heads, under adapters, with gradient
    checkpointing, sharded by FSDP2 and under ``no_grad``. ``temperature`` divides the logits. kernels
    and chunk sizes are those of :func:`srft.model.head.fused_logprob_entropy`.
    """
    options: dict[str, Any] = {
        "against": against,
        "temperature": temperature,
        "kernels": kernels,
        "chunk_tokens": chunk_tokens,
        "chunk_vocab": chunk_vocab,
    }
    return TokenScores(*_inside(model, _score, packed, **options))


def states(model: nn.Module, packed: PackedBatch) -> Tensor:
    """The hidden states that predict the response tokens of ``packed``, states_TD, without gradient."""
    with torch.no_grad():
        found: Tensor = _inside(model, _states, packed)
    return found


def _inside(
    model: nn.Module, function: Callable[..., Any], packed: PackedBatch, **options: Any
) -> Any:
    """``function(model, packed)`` with all weights at hand.

    Body and head are used apart, and FSDP gathers what is outside the layers only around ``forward``.
    """
    if not isinstance(model, FSDPModule):
        return function(model, packed, **options)
    with _forward_is(model, partial(function, model)):
        return model(packed, **options)


def _states(model: nn.Module, packed: PackedBatch) -> Tensor:
    hidden = _hidden_packed if packs(unwrap(model)) else _hidden_padded
    states_TD, before = hidden(model, packed), output_head(model).before
    return states_TD if before is None else before(states_TD)


def _score(
    model: nn.Module, packed: PackedBatch, against: Against | None, **options: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    hidden, head = _states(model, packed), output_head(model)
    logprob_T, entropy_T = fused_logprob_entropy(
        hidden,
        head.weight,
        packed.target_T,
        bias_V=head.bias,
        softcap=head.softcap,
        logit_scale=head.logit_scale,
        **options,
    )
    if against is None:
        return logprob_T, entropy_T, None
    own = head.logits(hidden[against.taught_T], options["temperature"])
    teacher = against.teacher
    if isinstance(teacher, Tensor):
        teacher = replace(own, hidden_TD=teacher)
    found_T = divergence(own, teacher, against.beta, against.top_k)
    places = against.taught_T.nonzero().flatten()
    return logprob_T, entropy_T, torch.zeros_like(logprob_T).index_put((places,), found_T)


@contextmanager
def _forward_is(model: Any, function: Callable[..., Any]) -> Iterator[None]:
    before = vars(model).get("forward")
    model.forward = function
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def _hidden_packed(model: nn.Module, packed: PackedBatch) -> Tensor:
    layout = packed_layout(packed.cu_seqlens, packed.expand_P)
    hidden = run_packed(body(model), packed.input_ids_N, packed.position_ids_N, layout)
    return hidden.index_select(0, packed.predict_T)


def _hidden_padded(model: nn.Module, packed: PackedBatch) -> Tensor:
    assert packed.expand_P is None, "prompts are shared in packed rows only"
    device = packed.input_ids_N.device
    place_N = packed.padded_places()
    shape = (len(packed.cu_seqlens) - 1, packed.max_length)
    input_ids = torch.zeros(shape, dtype=torch.int64, device=device)
    input_ids.view(-1)[place_N] = packed.input_ids_N
    attention_mask = torch.zeros(shape, dtype=torch.int64, device=device)
    attention_mask.view(-1)[place_N] = 1
    output = body(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return output.last_hidden_state.flatten(0, 1).index_select(0, place_N[packed.predict_T])
