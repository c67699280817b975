"""Attention over sequences laid end to end, for every model that uses transformers' interface.

A packed forward runs the model on one row ``[1, N]``: embeddings, norms, projections and MLPs work
on N real tokens. Only attention must keep sequences apart. transformers lets an attention function
make the masks that go with it, one for each kind of layer; ours is a single element that carries the
layout of the row and what its layers see of a sequence: all before a token, a window or a chunk. So
each layer is told what the model's own code tells it, also where gradient checkpointing runs layers
again inside the backward pass, and where models drop unknown keywords on the way.

Inside attention the rows are gathered into a few right-padded batches of similar length, where a
causal mask is all that is needed (a real query never sees the padding after it), or given to a
variable-length kernel on a CUDA device that has one. With any other mask the same function serves
ordinary padded forwards and generation with a cache.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    causal_mask_function,
    sdpa_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from srft.errors import ModelError
from srft.model.cpu.attention import half_attention, takes
from srft.model.output_head import body

PACKED_ATTENTION = "srft_packed"

# A bucket takes sequences down to this share of its longest, or this many tokens shorter.
_BUCKET_SHARE = 0.8
_BUCKET_SLACK = 16

_MARK_SHAPE = (1, 1, 1, 1)


@dataclass(frozen=True)
class PackedLayout:
    """Where the sequences of a packed row are.

    cu_seqlens (int32, S + 1), max_length and expand_P as in ``PackedBatch``; shrink_N (int64): a
    place among the P of each token. buckets: (sequences, padded length) of each right-padded batch.
    pad_Q (int64): for each of the Q padded places, buckets after one another, which of the N tokens
    fills it (any token, past a sequence's end). unpad_N (int64): a place among the Q of each token.
    Where a shared prompt has several places its queries give the same result in each, and one is
    read. Index pairs are None where nothing has to move.
    """

    cu_seqlens: Tensor
    max_length: int
    expand_P: Tensor | None
    shrink_N: Tensor | None
    buckets: tuple[tuple[int, int], ...]
    pad_Q: Tensor | None
    unpad_N: Tensor | None


@dataclass(frozen=True)
class _Seen:
    """What a token sees of its own sequence, itself included: the last ``window`` tokens, those of its
    ``chunk`` up to itself, or all up to itself where both are None."""

    window: int | None = None
    chunk: int | None = None

    def pairs(self, q: Tensor, k: Tensor) -> Tensor:
        """Whether the token at place ``q`` sees that at ``k``."""
        seen = k <= q
        if self.window is not None:
            seen = seen & (k > q - self.window)
        if self.chunk is not None:
            seen = seen & (k // self.chunk == q // self.chunk)
        return seen


_running: ContextVar[PackedLayout | None] = ContextVar("layout of the row that runs", default=None)


@contextmanager
def packed_rows(layout: PackedLayout) -> Iterator[None]:
    """Masks made meanwhile are of a row laid out so."""
    token = _running.set(layout)
    try:
        yield
    finally:
        _running.reset(token)


def run_packed(
    body: torch.nn.Module, input_ids_N: Tensor, position_ids_N: Tensor, layout: PackedLayout
) -> Tensor:
    """Hidden states [N, D] of a packed row under a model's body that has packed attention."""
    with packed_rows(layout):
        output = body(
            input_ids=input_ids_N[None],
            attention_mask=torch.ones_like(input_ids_N[None]),
            position_ids=position_ids_N[None],
            use_cache=False,
        )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def packed_mask(
    *, mask_function: Callable[..., Any], local_size: int | None = None, **kwargs: Any
) -> Tensor | None:
    """transformers' mask interface: in a packed row the mask that carries its layout, else a usual one."""
    layout = _running.get()
    if layout is None:
        return sdpa_mask(mask_function=mask_function, local_size=local_size, **kwargs)
    mask = torch.ones(_MARK_SHAPE, dtype=torch.bool, device=layout.cu_seqlens.device).as_subclass(
        _PackedMask
    )
    mask.row, mask.seen = layout, _what_is_seen(mask_function, local_size, layout)
    return mask


class _PackedMask(Tensor):
    """What stands for the mask of a packed row. A slice of it, or a copy, is as good as itself."""

    row: PackedLayout
    seen: _Seen

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, cls) and isinstance(args[0], cls):
            vars(result).update(vars(args[0]))
        return result


def _what_is_seen(
    mask_function: Callable[..., Any], size: int | None, layout: PackedLayout
) -> _Seen:
    """Which of the patterns known here ``mask_function`` is, found out at the places where they differ.

    Raises ModelError where it is none of them.
    """
    if mask_function is causal_mask_function:
        return _Seen()
    known = [_Seen()] if size is None else [_Seen(window=size), _Seen(chunk=size)]
    edge = 2 if size is None else size
    places = {0, 1, edge - 2, edge - 1, edge, edge + 1, 2 * edge - 1, 2 * edge, 2 * edge + 1}
    within = sorted(p for p in places if 0 <= p < layout.max_length)
    place = torch.tensor(within, device=layout.cu_seqlens.device)
    q, k, first = place[:, None], place[None, :], place.new_zeros(1, 1)
    found = mask_function(first, first, q, k).expand(len(place), len(place))
    for seen in known:
        if torch.equal(found, seen.pairs(q, k)):
            return seen
    raise ModelError(
        "some layers see neither all tokens before theirs, nor a window or a chunk of them, so "
        "sequences cannot be packed: set model.attention=padded"
    )


def packed_layout(cu_seqlens: Tensor, expand_P: Tensor | None = None) -> PackedLayout:
    """Plan the buckets for sequences cut at ``cu_seqlens`` (int32, S + 1; reads it on the host),
    the tokens of which are ``expand_P`` (see ``PackedBatch``) where prompts are shared."""
    bounds = cu_seqlens.tolist()
    starts = bounds[:-1]
    lengths = [stop - start for start, stop in pairwise(bounds)]
    buckets: list[list[int]] = []
    for s in sorted(range(len(lengths)), key=lambda s: (-lengths[s], s)):
        longest = lengths[buckets[-1][0]] if buckets else 0
        if lengths[s] < min(longest * _BUCKET_SHARE, longest - _BUCKET_SLACK) or not buckets:
            buckets.append([])
        buckets[-1].append(s)
    pads: list[Tensor] = []
    unpad_P = torch.empty(bounds[-1], dtype=torch.int64)
    offset = 0
    for bucket in buckets:
        width = lengths[bucket[0]]
        place = torch.arange(width)
        start = torch.tensor([starts[s] for s in bucket])[:, None]
        length = torch.tensor([lengths[s] for s in bucket])[:, None]
        pads.append((start + torch.minimum(place, length - 1)).flatten())
        for row, s in enumerate(bucket):
            unpad_P[starts[s] : starts[s] + lengths[s]] = (
                offset + row * width + torch.arange(lengths[s])
            )
        offset += len(bucket) * width
    pad_Q = torch.cat(pads)
    device = cu_seqlens.device
    shrink_N = None
    if expand_P is not None:
        shrink_N = _first_places(expand_P.cpu())
        pad_Q, unpad_P = expand_P.cpu()[pad_Q], unpad_P[shrink_N]
        shrink_N = shrink_N.to(device)
    moves = pad_Q.shape != unpad_P.shape or not torch.equal(pad_Q, torch.arange(len(pad_Q)))
    return PackedLayout(
        cu_seqlens=cu_seqlens,
        max_length=max(lengths),
        expand_P=expand_P,
        shrink_N=shrink_N,
        buckets=tuple((len(bucket), lengths[bucket[0]]) for bucket in buckets),
        pad_Q=pad_Q.to(device) if moves else None,
        unpad_N=unpad_P.to(device) if moves else None,
    )


def _first_places(expand_P: Tensor) -> Tensor:
    """For each of the N tokens the first place of ``expand_P`` that holds it."""
    places = torch.arange(len(expand_P))
    first_N = torch.full((int(expand_P.max()) + 1,), len(expand_P))
    return first_N.scatter_reduce(0, expand_P, places, "amin")


@dataclass(frozen=True)
class _Options:
    """What a model asks of its attention. ``sinks`` (one per head) are logits without a value that
    join each softmax."""

    scale: float
    dropout: float
    seen: _Seen
    softcap: float | None
    sinks: Tensor | None

    @property
    def plain(self) -> bool:
        return self.softcap is None and self.sinks is None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, H, Q, d] -> ([B, Q, H, d], None)."""
    mark = attention_mask if isinstance(attention_mask, _PackedMask) else None
    options = _Options(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout,
        seen=_Seen() if mark is None else mark.seen,
        softcap=softcap,
        sinks=s_aux,
    )
    name = type(module).__name__
    if mark is None:
        if _running.get() is not None or _lost_layout(attention_mask, key):
            raise ModelError(
                f"{name} makes its own attention mask, or changes the one it is given, so sequences "
                "cannot be packed: set model.attention=padded"
            )
        if options.plain:
            return sdpa_attention_forward(
                module,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=scaling,
                is_causal=is_causal,
                **kwargs,
            )
        return _softmax_attention(query, key, value, attention_mask, options), None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if kwargs.get("position_bias") is not None or not causal:
        raise ModelError(
            f"{name} adds a bias to attention or is not causal, which packed attention does not "
            "honour: set model.attention=padded"
        )
    # The interface hands over [1, H, N, d] views of [N, H, d] memory.
    rows = [x.squeeze(0).transpose(0, 1) for x in (query, key, value)]
    kernel = _varlen_kernel() if query.is_cuda else None
    if kernel is not None and _kernel_takes(rows, options):
        out_NHd = _varlen_attention(kernel, rows, mark.row, options)
    else:
        out_NHd = _bucket_attention(rows, mark.row, options)
    return out_NHd.unsqueeze(0), None


def _lost_layout(mask: Tensor | None, key: Tensor) -> bool:
    """Whether a single-element mask comes without its layout (one key alone has such a mask)."""
    return mask is not None and mask.shape == _MARK_SHAPE and key.shape[-2] != 1


def _bucket_attention(rows: list[Tensor], layout: PackedLayout, options: _Options) -> Tensor:
    """[N, H, d] each of query, key, value -> [N, H, d]."""
    if layout.pad_Q is not None:
        rows = [x.index_select(0, layout.pad_Q) for x in rows]
    outputs: list[Tensor] = []
    start = 0
    for count, width in layout.buckets:
        stop = start + count * width
        query, key, value = (
            x[start:stop].unflatten(0, (count, width)).transpose(1, 2) for x in rows
        )
        out = _causal_attention(query, key, value, options)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
        start = stop
    out_QHd = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return out_QHd if layout.unpad_N is None else out_QHd.index_select(0, layout.unpad_N)


def _causal_attention(query: Tensor, key: Tensor, value: Tensor, options: _Options) -> Tensor:
    """[B, H, L, d] -> [B, H, L, d], right-padded, so that causality hides the padding."""
    place = torch.arange(query.shape[2], device=query.device)
    limit = options.seen.window or options.seen.chunk
    mask = None
    if limit is not None and limit < len(place):
        mask = options.seen.pairs(place[:, None], place[None, :])
    if not options.plain:
        out_BLHd = _softmax_attention(query, key, value, mask, options)
        return out_BLHd.transpose(1, 2)
    if takes(query) and options.dropout == 0.0:
        return half_attention(query, key, value, mask, options.scale)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=options.dropout,
        scale=options.scale,
        is_causal=mask is None,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: _Options
) -> Tensor:
    """Attention written out, for what fused kernels lack: soft-capped scores (Gemma 2) and sinks
    (GPT-OSS). [B, H, Q, d], mask boolean and broadcastable to [B, H, Q, K] or None for causal;
    returns [B, Q, H, d]. Memory grows with Q * K."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * options.scale
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    q, k = scores.shape[-2:]
    if mask is None:
        mask = torch.ones((q, k), dtype=torch.bool, device=query.device).tril(k - q)
    scores = scores.float() if scores.dtype != torch.float64 else scores
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if options.sinks is not None:
        sinks = options.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    weights = functional.dropout(weights.to(value.dtype), options.dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous()


@functools.cache
def _varlen_kernel() -> Callable[..., Any] | None:
    """PyTorch's variable-length attention, where this version's takes windows and shared heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= known.keys() else None


def _kernel_takes(rows: list[Tensor], options: _Options) -> bool:
    query, key, value = rows
    half = (torch.bfloat16, torch.float16)
    is_half = query.dtype in half or (
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") in half
    )
    width = query.shape[-1]
    same_width = width == key.shape[-1] == value.shape[-1]
    return (
        is_half
        and options.plain
        and options.dropout == 0.0
        and options.seen.chunk is None
        and same_width
        and width % 8 == 0
        and width <= 256
    )


def _varlen_attention(
    kernel: Callable[..., Any], rows: list[Tensor], layout: PackedLayout, options: _Options
) -> Tensor:
    if torch.is_autocast_enabled("cuda"):
        rows = [x.to(torch.get_autocast_dtype("cuda")) for x in rows]
    if layout.expand_P is not None:
        rows = [x.index_select(0, layout.expand_P) for x in rows]
    query, key, value = (x.contiguous() for x in rows)
    out_PHd = kernel(
        query,
        key,
        value,
        layout.cu_seqlens,
        layout.cu_seqlens,
        layout.max_length,
        layout.max_length,
        scale=options.scale,
        window_size=(-1 if options.seen.window is None else options.seen.window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out_PHd if layout.shrink_N is None else out_PHd.index_select(0, layout.shrink_N)


def packs(model: PreTrainedModel) -> bool:
    """Whether ``model`` runs packed rows: :func:`use_packed_attention` has set its attention."""
    return _text_config(model)._attn_implementation == PACKED_ATTENTION


def can_pack(model: PreTrainedModel) -> bool:
    """Whether everything the model asks of attention reaches it by keyword.

    That is what transformers demands of flash attention too, so its flag is taken, except where
    layers are no attention over a whole sequence, a window or chunks (recurrent, state-space). A model
    with other parts may lack it for their sake: with text alone the language model's own counts.
    """
    config = _text_config(model)
    text: Any = body(model)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        text._supports_flash_attn
        and model._can_set_attn_implementation()
        and layers <= {"full_attention", "sliding_attention", "chunked_attention"}
        and getattr(config, "is_causal", True)
    )


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make the model run packed rows; what else it does (padding, generation) stays as it was."""
    model.set_attn_implementation(PACKED_ATTENTION)


def use_padded_attention(model: PreTrainedModel) -> None:
    """Take :func:`use_packed_attention` back."""
    if packs(model):
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")


def leave_out_of_compiled_code() -> None:
    """Its buckets differ in every row: what is compiled for one would never be used again."""
    outside = torch.compiler.disable(packed_attention)
    ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, outside)


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_mask)
