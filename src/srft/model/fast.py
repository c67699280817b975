"""How a model computes: its kernels, what it keeps for the backward pass, whether it is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from srft.errors import ModelError
from srft.model.cpu.norms import use_fast_norms
from srft.model.cpu.products import use_fast_products
from srft.model.model_config import ModelConfig
from srft.model.output_head import attention_configs, unwrap
from srft.model.packed_attention import leave_out_of_compiled_code


def prepare_compute(model: PreTrainedModel, config: ModelConfig) -> None:
    """Give ``model`` the kernels, the checkpointing and the compiled layers that the recipe asks
    for. Comes last, after adapters and the choice of attention."""
    if config.kernels == "auto":
        use_fast_products(model)
        use_fast_norms(model)
    if config.gradient_checkpointing is True:
        enable_checkpointing(model)
    if config.compile:
        compile_layers(model)


# What is set on modules, beside their class, by what is below and by whoever trains or samples.
_CHANGED = (
    "training",
    "gradient_checkpointing",
    "_gradient_checkpointing_func",
    "_compiled_call_impl",
)


def restorer(model: PreTrainedModel) -> Callable[[], None]:
    """Notes how ``model`` is now. What is returned puts it back, whatever has been prepared or run
    since: the classes of its layers, attention, modes, checkpointing, compiled code. Weights and
    adapters stay, and so do modules that FSDP has cut."""
    layers = [
        (module, type(module), {key: vars(module)[key] for key in _CHANGED if key in vars(module)})
        for module in model.modules()
    ]
    attention = [(c, c._attn_implementation_internal) for c in attention_configs(model)]

    def put_back() -> None:
        for module, kind, values in layers:
            if not isinstance(module, FSDPModule):
                module.__class__ = kind
            for key in _CHANGED:
                vars(module).pop(key, None)
            vars(module).update(values)
        for config, name in attention:
            config._attn_implementation_internal = name

    return put_back


def enable_checkpointing(model: Any) -> None:
    hooked = hasattr(model, "_require_grads_hook")
    # transformers is renaming this method; the older name warns where the newer exists.
    newer = getattr(model, "activation_checkpointing_enable", None)
    try:
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"{error} Set model.gradient_checkpointing=false") from error
    if hasattr(model, "_require_grads_hook") and not hooked:
        # Its hook on the embedding serves the reentrant kind alone, and keeps the model from being pickled.
        model.disable_input_require_grads()


@contextmanager
def training_mode(model: nn.Module, noise: bool) -> Iterator[None]:
    """Training mode, and evaluation mode afterwards. Without ``noise`` (dropout, jitter) only those parts
    are in training mode that recompute their activations for the backward pass, without their own."""
    model.train()
    silenced: list[tuple[nn.Module, dict[str, float]]] = []
    if not noise:
        for module in model.modules():
            module.training = bool(getattr(module, "gradient_checkpointing", False))
            own = vars(module) if module.training else {}
            found = {k: v for k, v in own.items() if _is_noise(k) and isinstance(v, float)}
            silenced.append((module, found))
            own.update(dict.fromkeys(found, 0.0))
    try:
        yield
    finally:
        for module, found in silenced:
            vars(module).update(found)
        model.eval()


def _is_noise(name: str) -> bool:
    return "drop" in name or "jitter" in name


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
