"""How a model computes: its kernels, what it keeps for the backward pass, whether it is compiled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from srft.model.model_config import ModelConfig
from srft.model.norms import use_fast_norms
from srft.model.output_head import unwrap
from srft.model.packed_attention import leave_out_of_compiled_code
from srft.model.products import use_fast_products


def prepare_compute(model: PreTrainedModel, config: ModelConfig) -> None:
    """Give ``model`` the kernels, the checkpointing and the compiled layers that the recipe asks
    for. Comes last, after adapters and the choice of attention."""
    base: Any = unwrap(model)
    base.srft_kernels = config.kernels
    if config.kernels == "auto":
        use_fast_products(model)
        use_fast_norms(model)
    if config.gradient_checkpointing:
        enable_checkpointing(model)
    if config.compile:
        compile_layers(model)


def enable_checkpointing(model: Any) -> None:
    # transformers is renaming this method; the older name warns where the newer exists.
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of the body, for any number of tokens.

    One layer's code serves all of its kind, so this takes a fraction of what compiling the whole
    model takes. Attention stays outside.
    """
    leave_out_of_compiled_code()
    for layer in _layers(model):
        layer.compile(dynamic=True)


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Where the layers' own forward runs: what has other shapes at every call would compile anew."""
    if any(layer._compiled_call_impl is not None for layer in _layers(model)):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in unwrap(model).modules() if isinstance(m, GradientCheckpointingLayer)]
