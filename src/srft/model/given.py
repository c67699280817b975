"""A model handed over from Python, changed as one that is loaded would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from srft.errors import ModelError
from srft.model.adapters import has_adapters
from srft.model.loading import parameter_dtype
from srft.model.model_config import ModelConfig
from srft.model.output_head import unwrap
from srft.model.positions import override_positions
from srft.model.weight_files import precisions


def adopt(model: PreTrainedModel, config: ModelConfig) -> Callable[[], None]:
    """Gives ``model`` the dtype, the rotary base and the window of the recipe. What is returned gives its
    parameters the dtypes back that they had.

    Adapters that it brings along become float32, as those are that a recipe makes; under them
    ``dtype: auto`` leaves frozen weights in their own.

    Raises ModelError where positions are to be changed that are weights, or are not rotary.
    """
    if any((config.rope_theta, config.rope_length, config.max_position_embeddings)):
        override_positions(model.config, config)
        if not _renew_rotary(model):
            raise ModelError(
                "model.rope_theta, rope_length and max_position_embeddings change rotary positions, "
                f"which {type(model).__name__} does not have: leave them out"
            )
    precision = precisions(unwrap(model), parameter_dtype(config))
    adapted = has_adapters(model)
    before: dict[str, torch.dtype] = {}
    for name, parameter in model.named_parameters():
        wide = adapted and (parameter.requires_grad or ".lora_" in name)
        if parameter.is_floating_point() and (wide or not adapted or config.dtype != "auto"):
            before[name] = parameter.dtype
            parameter.data = parameter.data.to(torch.float32 if wide else precision(name))

    def put_back() -> None:
        for name, parameter in model.named_parameters():
            old = before.get(name.replace(".base_layer.", "."), before.get(name))
            if old is not None and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(old)

    return put_back


def _renew_rotary(model: nn.Module) -> bool:
    """Computes all rotary frequencies anew from the config; whether there are any."""
    found = False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            own: Any = child
            buffers = dict(own.named_buffers(recurse=False))
            if hasattr(own, "config") and any(key.endswith("inv_freq") for key in buffers):
                device = next(iter(buffers.values())).device
                setattr(parent, name, type(own)(own.config).to(device))
                found = True
    return found
