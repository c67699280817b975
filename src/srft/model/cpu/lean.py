"""A shorter way through one decoding step, for float32 weights of the Llama family: in small models, and
of any size where products are in bfloat16.

There much of a step is Python, casts and kernel start-up, not arithmetic. Here a step is the same
arithmetic in fewer, larger operations: query, key and value in one product, gate and up in one product,
rotation of queries and keys together from a table. Cache and attention are the sampler's. The weights are
read from the model at the start of every ``generate`` call. Anything unusual (a hook, an adapter, a patched
module, another dtype or architecture) and the model's own forward is used instead.

Shape suffixes: A active rows, D width, H query heads, K key/value heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from srft.model.cpu.norms import is_plain_norm
from srft.model.cpu.products import FastLinear, FrozenLinear, rounds_weights

_ARCHITECTURES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
_TORCH_MODULES = (nn.Linear, FastLinear, nn.Embedding, nn.ModuleList, nn.SiLU)
# Types whose frequencies do not depend on the length of the sequence, so that a table holds.
_FIXED_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
# Above this many parameters the arithmetic in float32 dominates, and a second copy of most weights is too
# much. Under autocast to bfloat16 there is a copy in any case, of half the size.
MOST_PARAMETERS = 50_000_000


Attention = Callable[..., tuple[Tensor, None]]


@dataclass(frozen=True)
class _Layer:
    attention: Any
    qkv: FrozenLinear
    head_scale: Tensor | None
    head_epsilon: float
    output: FrozenLinear
    gate_up: FrozenLinear
    down: FrozenLinear
    norm_1: nn.Module
    norm_2: nn.Module
    window: int | None


class LeanDecoder:
    """The decoding step of one model with its weights of this moment. Use ``lean_decoder``."""

    def __init__(self, model: Any, positions: int, rows: int, attention: Attention) -> None:
        base = model.model
        self.attention = attention
        self.embedding = base.embed_tokens.weight
        self.final_norm = base.norm

        def frozen(*linears: nn.Linear) -> FrozenLinear:
            weight, bias = _side_by_side(linears)
            fast = isinstance(linears[0], FastLinear)
            return FrozenLinear(weight, bias, rows, fast, rounded=rounds_weights())

        self.head = frozen(model.lm_head)
        self.layers = [_read_layer(layer, frozen) for layer in base.layers]
        first = base.layers[0].self_attn
        self.heads = model.config.num_attention_heads
        self.kv_heads = model.config.num_key_value_heads
        self.size = first.head_dim
        self.scaling = first.scaling
        position = torch.arange(positions, device=self.embedding.device)[None]
        cos, sin = base.rotary_emb(self.embedding, position)
        half = self.size // 2
        # rotate_half(x) * sin is swap_halves(x) * sin with the first half of sin negated.
        signed = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
        self.rotation = torch.stack((cos[0], signed[0]), dim=1)[:, :, None]

    def step(self, token_A: Tensor, position_A: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
        """Logits [A, V] after one more token per row, whose keys and values go to the cache."""
        hidden = functional.embedding(token_A, self.embedding)
        cos, sin = self.rotation.index_select(0, position_A).unbind(1)
        both = self.heads + self.kv_heads
        half = self.size // 2
        for number, layer in enumerate(self.layers):
            normed = _norm(layer.norm_1, hidden)
            qkv = layer.qkv(normed).view(len(token_A), both + self.kv_heads, self.size)
            qk = qkv[:, :both].float()
            if layer.head_scale is not None:
                qk = functional.rms_norm(qk, (self.size,), None, layer.head_epsilon)
                qk = qk * layer.head_scale
            swapped = torch.cat((qk[..., half:], qk[..., :half]), dim=-1)
            qk = torch.addcmul(qk * cos, swapped, sin)
            keys, values = cache.update(qk[:, self.heads :, None], qkv[:, both:, None], number)
            out, _ = self.attention(
                layer.attention,
                qk[:, : self.heads, None],
                keys,
                values,
                mask,
                scaling=self.scaling,
                sliding_window=layer.window,
            )
            out = out.view(len(token_A), -1)
            hidden = layer.output.plus(hidden, out)
            normed = _norm(layer.norm_2, hidden)
            gate, up = layer.gate_up(normed).chunk(2, -1)
            inner = functional.silu(gate).mul_(up)
            hidden = layer.down.plus(hidden, inner)
        return self.head(_norm(self.final_norm, hidden))


def lean_decoder(model: Any, positions: int, rows: int, attention: Attention) -> LeanDecoder | None:
    """A decoder for positions 0..positions and ``rows`` rows at most, or None where the model's own
    forward is to be used. attention: as transformers' interface has it."""
    if type(model).__name__ not in _ARCHITECTURES or not _plain(model):
        return None
    rope = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type")
    usual = rope in _FIXED_ROPE and model.config.hidden_act == "silu"
    return LeanDecoder(model, positions, rows, attention) if usual else None


def _plain(model: Any) -> bool:
    """Whether every module is exactly what it says: no hook, patch, adapter, other dtype."""
    parameters = list(model.parameters())
    rounded = rounds_weights()
    if not rounded and sum(p.numel() for p in parameters) > MOST_PARAMETERS:
        return False
    if any(type(p) is not nn.Parameter or p.dtype != torch.float32 for p in parameters):
        return False
    if torch.is_autocast_enabled(parameters[0].device.type) and not rounded:
        return False
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return False
        kind = type(module)
        leaf = next(module.children(), None) is None
        known = kind in _TORCH_MODULES or kind.__module__.startswith("transformers.")
        if not known or (
            leaf and hasattr(module, "variance_epsilon") and not is_plain_norm(module)
        ):
            return False
    return True


def _read_layer(layer: Any, frozen: Callable[..., FrozenLinear]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    scale, epsilon = None, 0.0
    if hasattr(attention, "q_norm"):
        groups = (attention.q_proj.out_features, attention.k_proj.out_features)
        heads = [n // attention.head_dim for n in groups]
        norms = (attention.q_norm, attention.k_norm)
        scale = torch.cat([n.weight.expand(h, -1) for n, h in zip(norms, heads, strict=True)])
        epsilon = attention.q_norm.variance_epsilon
    # Mistral's attention reads its window from the config; Llama's ignores whatever stands there.
    source = attention.config if type(attention).__name__ == "MistralAttention" else attention
    window = getattr(source, "sliding_window", None)
    return _Layer(
        attention=attention,
        qkv=frozen(attention.q_proj, attention.k_proj, attention.v_proj),
        head_scale=scale,
        head_epsilon=epsilon,
        output=frozen(attention.o_proj),
        gate_up=frozen(mlp.gate_proj, mlp.up_proj),
        down=frozen(mlp.down_proj),
        norm_1=layer.input_layernorm,
        norm_2=layer.post_attention_layernorm,
        window=window,
    )


def _side_by_side(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of one linear layer that does the work of several over the same input."""
    if len(linears) == 1:
        return linears[0].weight, linears[0].bias
    weight = torch.cat([linear.weight for linear in linears])
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return weight, torch.cat(biases) if biases else None


def _norm(norm: Any, x: Tensor) -> Tensor:
    return functional.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)
