"""The parts of a causal language model: the body that makes hidden states, the head after it, configs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from srft.errors import ModelError
from srft.model.divergence import Logits


@dataclass(frozen=True)
class OutputHead:
    """logits = cap(logit_scale (hidden weight_VD^T + bias_V)) with cap(z) = c tanh(z / c), c the
    ``softcap``. ``before``: layers between the body and the head (ModernBERT's decoder)."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0
    before: nn.Module | None = None

    def logits(self, states_TD: Tensor, temperature: float) -> Logits:
        """What the logits after these states are made of."""
        return Logits(
            states_TD, self.weight, self.bias, self.softcap, self.logit_scale, temperature
        )


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside adapters, a compiled module or a data-parallel wrapper."""
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "get_base_model"):
            if getattr(inner.active_peft_config, "is_prompt_learning", False):
                raise ModelError(
                    "prompt-learning adapters put virtual tokens before every sequence, which "
                    "scoring does not support: use LoRA or another adapter of weights"
                )
            inner = inner.get_base_model()
        elif hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module
        else:
            raise ModelError(f"{type(inner).__name__} is not a transformers model")
    return inner


def attention_configs(model: nn.Module) -> list[Any]:
    """Every config that names the attention of a part of ``model``."""
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    # Modules keep sub-configs (a multimodal model's text part) that no PreTrainedModel owns.
    for config in list(configs.values()):
        text = config.get_text_config()
        configs[id(text)] = text
    return list(configs.values())


def body(model: nn.Module) -> nn.Module:
    """What makes the hidden states that the output head reads."""
    base = unwrap(model)
    # Llama 4 takes itself for its decoder, ModernBERT its output layer; some with a vision part take the
    # whole language model for it.
    for part in (base.get_decoder(), base.base_model, *base.children()):
        if isinstance(part, PreTrainedModel) and part is not base:
            return part if part.get_output_embeddings() is None else body(part)
    raise ModelError(
        f"{type(base).__name__} does not say which part of it makes hidden states: it is not "
        "a causal language model this package can train"
    )


def output_head(model: nn.Module) -> OutputHead:
    """The output head of ``model``, whose weight carries gradient to where it is trained.

    Raises ModelError where the model has none. Models whose logits are made in a way not known
    here are found out by :func:`srft.model.scoring.check_scoring`.
    """
    base = unwrap(model)
    module = base.get_output_embeddings()
    if module is None:
        raise ModelError(f"{type(base).__name__} has no output head: it cannot predict tokens")
    weight, bias = _weight_and_bias(module)
    config = base.config.get_text_config(decoder=True)
    cap = next((c for name in _CAPS if (c := getattr(config, name, None)) is not None), None)
    inner = getattr(base, "lm_head", None)
    return OutputHead(
        weight=weight,
        bias=bias,
        before=inner if getattr(base, "decoder", None) is module and module is not inner else None,
        softcap=None if cap is None else float(cap),
        logit_scale=_logit_scale(base, config),
    )


def trained_beyond_head(model: nn.Module) -> list[str]:
    """Names of parameters that are to be trained but stand between the body and the logits, where scoring
    knows of none: it would compute without them, and give them no gradient."""
    base = unwrap(model)
    head = base.get_output_embeddings()
    known = [body(model), base.base_model, output_head(model).before]
    inside = {
        id(p) for part in known if part is not None and part is not base for p in part.parameters()
    }
    # Of the head what ``_weight_and_bias`` reads, and adapters on it.
    read = (
        ("weight", "bias", "logit_scale")
        if hasattr(head, "logit_scale_factor")
        else ("weight", "bias")
    )
    inside |= {id(getattr(head, name, None)) for name in read}
    if hasattr(head, "base_layer") or hasattr(head, "modules_to_save"):
        inside |= {id(p) for p in head.parameters()}
    return [n for n, p in base.named_parameters() if p.requires_grad and id(p) not in inside]


# What Gemma, RecurrentGemma and xLSTM call the number that caps their logits.
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def _logit_scale(base: PreTrainedModel, config: Any) -> float:
    """Cohere and Falcon-H1 multiply logits, Granite divides, HyperCLOVA X multiplies by a number
    of the same name, MiniCPM3 and Inkling divide the hidden states."""
    if hasattr(config, "logits_mup_width_multiplier"):
        return 1.0 / float(config.logits_mup_width_multiplier)
    if config.model_type.startswith("cohere"):
        scale = getattr(base, "logit_scale", None)
        return 1.0 if scale is None else float(scale)
    if hasattr(config, "lm_head_multiplier"):
        return float(config.lm_head_multiplier)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type.startswith("hyperclovax") else 1.0 / float(scaling)


def _weight_and_bias(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer, adapters on it included."""
    if hasattr(module, "modules_to_save"):
        active = module.active_adapters
        chosen = module.original_module
        if active and not module.disable_adapters and active[0] in module.modules_to_save:
            chosen = module.modules_to_save[active[0]]
        return _weight_and_bias(chosen)
    if not hasattr(module, "base_layer"):
        weight: Tensor = module.weight
        if hasattr(module, "logit_scale_factor"):  # Dory's learned scale of each token
            weight = weight * (module.logit_scale * module.logit_scale_factor)[:, None]
        return weight, getattr(module, "bias", None)
    weight, bias = _weight_and_bias(module.base_layer)
    if module.disable_adapters or module.merged:
        return weight, bias
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        dropout = module.lora_dropout[name]
        if getattr(dropout, "p", 0.0) > 0 or module.use_dora.get(name, False):
            raise ModelError(
                "an adapter on the output head with dropout or DoRA cannot be scored: set "
                "lora_dropout to 0 without DoRA, or leave the head out of the adapter"
            )
        weight = weight + module.get_delta_weight(name).to(weight.dtype)
    return weight, bias
