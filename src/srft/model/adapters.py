"""Low-rank adapters: putting them in, looking past them, adding them up.

peft replaces the adapted linear layers inside the model by layers that hold the original as
``base_layer``; the model keeps its class. So everything that works on the model (packed rows, the
fused head, the sampler) works on it with adapters, and what differs is what is here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.experimental import implicit_replication
from transformers.pytorch_utils import Conv1D

from srft.errors import ModelError
from srft.model.model_config import LoraConfig
from srft.model.output_head import unwrap
from srft.model.weight_files import frozen_copy, parts_aside

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ADAPTER = "default"
Reference = Callable[[], AbstractContextManager[nn.Module]]
"""``with reference() as frozen:`` the policy as it was before training, without gradient."""


def add_lora(model: PreTrainedModel, config: LoraConfig, base: str | None = None) -> None:
    """Put adapters into ``model``, in place, and freeze everything else. B starts at zero, so the
    model computes what it did. base: where the model came from, for those who load the adapters.

    Raises ModelError where peft is missing, no module has one of the names, or the embedding or
    the output head is among them.
    """
    peft = _peft()
    targets = config.target_modules
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_linear_names(model) if targets == "all-linear" else list(targets),
        use_rslora=config.rslora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base or model.name_or_path or None,
    )
    try:
        with parts_aside(model, "cpu"):
            peft.inject_adapter_in_model(settings, model, _ADAPTER)
    except ValueError as error:
        known = ", ".join(_linear_names(model))
        raise ModelError(
            f"model.lora.target_modules: {str(error).splitlines()[0]} Linear layers of this model: {known}"
        ) from error
    check_adapters(model)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            "adapters (model.lora) need peft: pip install 'srft[peft]', or leave model.lora out"
        ) from error
    return peft


def _linear_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of all linear layers but the output head."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


def check_adapters(model: nn.Module) -> None:
    """Raise ModelError where ``model`` carries adapters that cannot be added to its weights: others
    than LoRA, or on the embedding or the output head (their weights are often one, and the engines
    hold them apart)."""
    base = unwrap(model)
    outside = (base.get_input_embeddings(), base.get_output_embeddings())
    for name, module in base.named_modules():
        wrapped = hasattr(module, "modules_to_save")
        if wrapped or (_is_adapted(module) and any(module is o for o in outside)):
            raise ModelError(
                f"an adapter on {name}: embedding, output head and modules trained whole are not "
                "supported; leave them out of target_modules and modules_to_save"
            )
        if _is_adapted(module) and (not hasattr(module, "lora_A") or any(module.use_dora.values())):
            raise ModelError(f"{name}: adapters other than LoRA without DoRA are not supported")


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "active_adapters")


def has_adapters(model: nn.Module) -> bool:
    """Whether some layer of ``model`` carries an adapter."""
    return any(_is_adapted(module) for module in model.modules())


def trained_names(model: nn.Module) -> set[str] | None:
    """Names of the parameters that training changes where ``model`` has adapters; None: all."""
    if not has_adapters(model):
        return None
    return {name for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` as its base, in evaluation mode; afterwards as it was."""
    layers: list[Any] = [module for module in model.modules() if _is_adapted(module)]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for module, training in modes:
            module.training = training


def frozen_reference(model: nn.Module) -> Reference:
    """The present policy for later: the base under the adapters where there are some (they must
    not have been trained yet), a copy of the whole model where not."""
    if has_adapters(model):
        return partial(adapters_off, model)
    frozen = frozen_copy(model, lambda parameter: parameter.detach().clone())
    return lambda: nullcontext(frozen)


@torch.no_grad()
def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the whole model as an engine without adapters holds it.

    The names are those of the base model's ``state_dict`` (tied weights under each of theirs) and
    come in its order, so that query, key and value of a layer follow one another. An adapted
    matrix is W + scale B A, made when it is asked for and in the dtype of W (that of the rest of
    the model where W is held in four bits); anything else is the model's own tensor, not a copy.
    Without adapters it is the ``state_dict``. Shards (DTensor) are gathered whole, one at a time:
    every rank must run through the iterator.

    Raises ModelError for adapters that cannot be added up (see :func:`check_adapters`).
    """
    check_adapters(model)
    base = unwrap(model)
    reshard(base)
    changed: dict[str, Any] = {n: m for n, m in base.named_modules() if _is_changed(m)}
    for name, tensor in base.state_dict().items():
        owner = _owner(name, changed)
        if owner is None:
            yield name, whole(tensor)
        elif name in (f"{owner}.weight", f"{owner}.base_layer.weight"):
            yield f"{owner}.weight", _merged(changed[owner], base.dtype)
        elif name in (f"{owner}.bias", f"{owner}.base_layer.bias"):
            yield f"{owner}.bias", whole(tensor)


def reshard(model: nn.Module) -> None:
    """Give gathered weights back where ``model`` is sharded, so that its parameters are the shards
    again: a forward pass without a backward pass may leave them gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _is_changed(module: nn.Module) -> bool:
    """Whether the module's weight is not simply its parameter: adapted, or held in four bits."""
    return _is_adapted(module) or _is_quantized(module)


def four_bit_matrices(model: nn.Module) -> set[nn.Parameter]:
    """The frozen matrices that bitsandbytes holds in four bits."""
    return {module.weight for module in model.modules() if _is_quantized(module)}  # type: ignore[misc]


def _is_quantized(module: nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def keep_four_bits_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking its matrices at the first forward pass in evaluation mode on
    CPUs with AVX512-BF16: the repacked product is rounded to bfloat16 and has no backward pass, so
    that training after sampling would go silently wrong."""
    for module in model.modules():
        if _is_quantized(module) and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _owner(name: str, changed: Mapping[str, nn.Module]) -> str | None:
    """The outermost of ``changed`` that the tensor ``name`` belongs to."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix in changed), None)


def _merged(layer: Any, dtype: torch.dtype) -> Tensor:
    linear = layer.base_layer if _is_adapted(layer) else layer
    if _is_quantized(linear):
        import bitsandbytes

        four_bit = linear.weight
        weight = bitsandbytes.functional.dequantize_4bit(four_bit.data, four_bit.quant_state)
        weight = weight.to(dtype)
    else:
        weight = whole(linear.weight)
    if linear is layer:
        return weight
    total = weight.float()
    for adapter in layer.active_adapters:
        a, b = (whole(part[adapter].weight).float() for part in (layer.lora_A, layer.lora_B))
        delta = (b @ a) * layer.scaling[adapter]
        total = total + (delta.t() if layer.fan_in_fan_out else delta)
    return total.to(weight.dtype)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which this process may hold a part (all processes call together)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def adapter_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the adapters as peft writes them; shards as in ``merged_weights``."""
    base: Any = unwrap(model)
    state = _peft().get_peft_model_state_dict(base, adapter_name=_active(base))
    for name, tensor in state.items():
        yield f"base_model.model.{name}", whole(tensor)


def save_adapter(
    model: nn.Module, folder: Path, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as ``PeftModel.save_pretrained``
    does. tensors: the ``adapter_weights``, where they have been gathered."""
    from safetensors.torch import save_file

    base: Any = unwrap(model)
    found = dict(adapter_weights(model)) if tensors is None else tensors
    save_file(
        {name: tensor.contiguous() for name, tensor in found.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = copy.copy(base.peft_config[_active(base)])
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _active(base: Any) -> str:
    (name,) = base.peft_config
    return str(name)


def merge_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Add the adapters in ``folder`` to the weights of ``model``.

    Raises ModelError where they do not fit it.
    """
    peft = _peft()
    try:
        with parts_aside(model, "cpu"):
            adapted = peft.PeftModel.from_pretrained(model, folder)
        with implicit_replication():  # each process adds what belongs to its part of a weight
            merged = adapted.merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{folder}: the adapters do not fit their base model: {error}") from error
    assert merged is model
