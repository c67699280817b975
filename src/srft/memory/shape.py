"""What a model weighs, from its config alone: counted on the meta device, traced on fake tensors.

Nothing is guessed about architectures: parameters are counted on the model's own modules without
storage, and what a layer keeps for its backward pass is what autograd asks to have saved when the
model's own code runs on fake tensors, one layer deep and two layers deep.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig
from transformers.integrations import moe
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from srft.errors import ModelError
from srft.memory.architectures import ARCHITECTURES
from srft.model.adapters import add_lora
from srft.model.cpu.norms import use_fast_norms
from srft.model.loading import resolved_config
from srft.model.model_config import ModelConfig
from srft.model.output_head import body
from srft.model.positions import override_positions
from srft.model.weight_files import reader_of

_ATTENTION = "srft_planned"
_TOKENS = 67
"""A prime, so that no activation has the shape of a weight."""


@dataclass(frozen=True)
class ModelShape:
    """Counts of numbers, not of bytes.

    parameters: all; trained: those with gradient; matrices: in linear layers of the body (those
    that autocast copies and four bits hold); outer: outside the layers (embedding, head, norms);
    largest_layer: of one layer; layers: how many. head: vocabulary x width. kv_width: keys and
    values of one token in all layers.
    """

    name: str
    parameters: int
    trained: int
    matrices: int
    outer: int
    largest_layer: int
    layers: int
    hidden: int
    vocabulary: int
    intermediate: int
    kv_width: int
    fused_copies: int
    window: int | None
    config: Any
    known: bool

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden


def read_config(config: ModelConfig) -> tuple[Any, bool]:
    """The model's config with the recipe's changes, and whether it came from the built-in table.

    Raises ModelError where it can be read neither there nor at ``config.path``.
    """
    known = ARCHITECTURES.get(config.path)
    if known is None:
        return resolved_config(config)[1], False
    values = copy.deepcopy(known)
    model_config = AutoConfig.for_model(values.pop("model_type"), **values)
    override_positions(model_config, config)
    return model_config, True


def measure_shape(config: ModelConfig, given: Any = None) -> ModelShape:
    """Count the model of a recipe, or of a config that is ``given``. Raises ModelError (see
    ``read_config``)."""
    model_config, known = read_config(config) if given is None else (given, False)
    text = model_config.get_text_config(decoder=True)
    try:
        with torch.device("meta"):
            model: Any = reader_of(model_config, config.text_only).from_config(
                model_config, trust_remote_code=config.trust_remote_code
            )
    except ValueError as error:
        raise ModelError(f"{config.path}: cannot be planned: {error}") from error
    parameters = sum(p.numel() for p in model.parameters())
    part = body(model)
    stack = decoder_layers(part)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in stack]
    matrices = sum(m.weight.numel() for layer in stack for m in _linears(layer))
    fused = sum(
        m.weight.numel()
        for layer in stack
        for name, m in layer.named_modules()
        if isinstance(m, nn.Linear)
        and name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    )
    if config.lora:
        with torch.random.fork_rng([]):
            add_lora(model, config.lora)
    head = model.get_output_embeddings()
    reached = {p for m in (part, head) if m is not None for p in m.parameters()}
    trained = sum(p.numel() for p in reached if p.requires_grad)
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return ModelShape(
        name=config.path,
        parameters=parameters,
        trained=trained,
        matrices=matrices,
        outer=parameters - sum(sizes),
        largest_layer=max(sizes),
        layers=len(stack),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        intermediate=getattr(text, "intermediate_size", 4 * text.hidden_size),
        kv_width=2 * kv_heads * size * len(stack),
        fused_copies=fused,
        window=getattr(text, "max_position_embeddings", None),
        config=model_config,
        known=known,
    )


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The longest list of modules of a body: its layers."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    longest: Any = max(lists, key=len)
    return list(longest)


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


@dataclass(frozen=True)
class Kept:
    """Bytes kept for the backward pass. layer: of each token in each layer; outside: of each token
    before and after the layers; residual: of each token, what checkpointing keeps of a layer."""

    layer: float
    outside: float
    residual: float


def kept_for_backward(
    shape: ModelShape, config: ModelConfig, dtype: torch.dtype, autocast: torch.dtype | None,
    padding: float,
) -> Kept:  # fmt: skip
    """Trace what autograd saves. dtype is that of weights; autocast that of products, or None.
    padding: places in attention for each token (shared prompts stand there once for each rollout,
    and rows are padded to their bucket's longest).

    Raises ModelError where the model's code does not run on fake tensors.
    """
    how = config.model_dump_json(include={"lora", "kernels"})
    key = (shape.config.to_json_string(), how, dtype, autocast, round(padding, 3))
    if key not in _TRACED:
        with torch.random.fork_rng(
            []
        ):  # noise that a model has for training is drawn on fake tensors too
            try:
                _TRACED[key] = _trace(partial(_saved, shape, config, dtype, autocast, padding))
            except Exception as error:  # of every kind: it is the model's own code that runs
                first = str(error).strip().partition("\n")[0] or type(error).__name__
                raise ModelError(f"{config.path}: cannot be planned: {first}") from error
    layer, outside = _TRACED[key]
    return Kept(layer, outside, shape.hidden * (dtype if autocast is None else _WIDE).itemsize)


_TRACED: dict[Any, tuple[float, float]] = {}
"""What was traced in this process: hints ask for the same again and again."""

_WIDE = torch.float32  # the residual stream under autocast


def _trace(trace: Callable[[int, int], int]) -> tuple[float, float]:
    """Bytes of a token (in a layer, outside the layers), from one and two layers and two lengths."""
    one, two = ([trace(n, tokens) for tokens in (_TOKENS, 2 * _TOKENS)] for n in (1, 2))
    first = (one[1] - one[0]) / _TOKENS
    layer = (two[1] - two[0]) / _TOKENS - first
    return layer, first - layer


def _saved(
    shape: ModelShape, config: ModelConfig, dtype: torch.dtype, autocast: torch.dtype | None,
    padding: float, layers: int, tokens: int,
) -> int:  # fmt: skip
    """Bytes of distinct storages that are saved, parameters and their copies aside."""
    small = copy.deepcopy(shape.config)
    text = small.get_text_config(decoder=True)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types)[:layers]
    # A short vocabulary: the embedding is not what is traced.
    text.vocab_size, text.pad_token_id = 64, None
    seen: dict[int, int] = {}
    alive: list[Tensor] = []
    with torch.device("meta"):
        model: Any = reader_of(small, config.text_only).from_config(small, dtype=dtype)
    if config.lora:
        add_lora(model, config.lora)
    model.set_attn_implementation(_ATTENTION)
    if config.kernels == "auto":
        use_fast_norms(model)
    model.train()
    with FakeTensorMode():
        _fake(model)
        own = {id(p.untyped_storage()._cdata) for p in model.parameters()}
        weights = {tuple(p.shape) for p in model.parameters()} | {
            tuple(p.shape[::-1]) for p in model.parameters()
        }

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            known = isinstance(tensor, nn.Parameter) or tuple(tensor.shape) in weights
            if not known and storage._cdata not in own:
                alive.append(tensor)
                seen[storage._cdata] = storage.nbytes()
            return tensor

        ids = torch.zeros((1, tokens), dtype=torch.int64)
        mask = torch.ones((1, 1, 1, 1), dtype=torch.bool)
        mask.planned_padding = padding  # type: ignore[attr-defined]
        with (
            _any_dtype_of_experts(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=autocast, enabled=autocast is not None),
        ):
            body(model)(input_ids=ids, attention_mask=mask, position_ids=ids, use_cache=False)
    return sum(seen.values())


def _any_dtype_of_experts() -> AbstractContextManager[Any]:
    """Products of experts by transformers' own operator, which keeps what torch's grouped one keeps: that has
    no other dtype than bfloat16 on fake tensors."""
    return patch.object(moe, "_can_use_grouped_mm", lambda *_: False, create=True)


def _fake(model: nn.Module) -> None:
    """Fake tensors on the CPU in place of those on the meta device, which autocast does not know."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                empty = torch.empty(p.shape, dtype=p.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused kernel keeps: its inputs, its output, a number a query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, places = query.shape[:3]
        # Laid out as kernels do, so that the next layer's view of it is no copy.
        out = query.new_empty((batch, places, heads, value.shape[3])).transpose(1, 2)
        total = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("planning traces the forward pass only")


def _planned_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **_: Any
) -> tuple[Tensor, None]:
    padding = attention_mask.planned_padding
    tokens = query.shape[2]
    places = torch.zeros(max(tokens, round(tokens * padding)), dtype=torch.int64)
    if padding > 1:
        query, key, value = (x.index_select(2, places) for x in (query, key, value))
    out = _FusedAttention.apply(query, key, value).transpose(1, 2)
    if padding > 1:
        out = out.index_select(1, places[:tokens])
    return out, None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _planned_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, sdpa_mask)
