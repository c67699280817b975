"""Low-rank adapters: putting them in, looking past them, adding them up.

peft replaces the adapted layers inside the model by layers that hold the original as ``base_layer``
(stacks of experts by one such layer for each of their parameters, one around the other); the model
keeps its class. So everything that works on the model (packed rows, the fused head, the sampler) works
on it with adapters, and what differs is what is here.
"""

from __future__ import annotations

import copy
import logging
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
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from srft.errors import ModelError
from srft.model.model_config import LoraConfig
from srft.model.output_head import body, unwrap
from srft.model.weight_files import frozen_copy, parts_aside

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_ADAPTER = "default"
_NAMES_OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
Reference = Callable[[], AbstractContextManager[nn.Module]]
"""``with reference() as frozen:`` the policy as it was before training, without gradient."""


def add_lora(
    model: PreTrainedModel,
    config: LoraConfig,
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Put adapters into ``model``, in place, and freeze everything else. B starts at zero, so the
    model computes what it did. They are float32 whatever the model is, since an update may be smaller
    than the spacing of half precision. base, revision: where the model came from, for those who load
    the adapters.

    Raises ModelError where peft is missing, no module has one of the names, or the embedding or
    the output head is among them.
    """
    peft = _peft()
    linear = _linear_layers(model)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_targets(model, linear, config),
        target_parameters=list(config.target_parameters) or None,
        use_rslora=config.rslora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base or model.name_or_path or None,
        revision=revision,
    )
    try:
        with parts_aside(model, "cpu"):
            peft.inject_adapter_in_model(settings, model, _ADAPTER)
    except ValueError as error:
        raise ModelError(
            f"model.lora: {str(error).splitlines()[0]} Linear layers of this model: {_listed(linear)}"
        ) from error
    check_adapters(model)
    if model.dtype in (torch.bfloat16, torch.float16):
        _hold_in_float32(model)
    _tell_what_stays_frozen(model)


class _Rounding(nn.Linear):
    """Part of an adapter beside weights of half precision: its products are of that precision too. (peft
    would have a float32 copy of the input for each adapted matrix.)"""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight.to(input.dtype))


def _hold_in_float32(model: nn.Module) -> None:
    layers: list[Any] = [module for module in model.modules() if _is_adapted(module)]
    for layer in layers:
        layer.cast_input_dtype_enabled = False
        for part in (layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]):
            part.weight.data = part.weight.data.float()
            part.__class__ = _Rounding


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            "adapters (model.lora) need peft: pip install 'srft[peft]', or leave model.lora out"
        ) from error
    return peft


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers that can be adapted, by name: those of the body, but not the output of Mamba's
    mixer, whose fused kernel reads the weight past the adapter, nor those beside experts of whose names
    peft (also when it loads an adapter) takes the experts'."""
    text, head = body(model), model.get_output_embeddings()
    taken = _NAMES_OF_EXPERTS if _experts(text) else ()
    bypassed = [m.out_proj for m in text.modules() if hasattr(m, "conv1d") and hasattr(m, "D")]
    inside = {id(module) for module in text.modules()} - {id(m) for m in (head, *bypassed)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        # Routers of some mixtures are linear layers that return something else.
        and not (isinstance(module, nn.Linear) and _is_of_an_architecture(module))
        and id(module) in inside
        and name.rpartition(".")[2] not in taken
    }


def _is_of_an_architecture(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("transformers.models.") and kind.__name__ != "FalconLinear"


def _targets(model: nn.Module, linear: Mapping[str, nn.Module], config: LoraConfig) -> list[str]:
    """What peft is told: last parts of names, or whole ones where other modules are called so too."""
    if config.target_modules == "all-linear":
        wanted = set(linear)
    else:
        ends = tuple(f".{name}" for name in config.target_modules)
        wanted = {name for name in linear if f".{name}".endswith(ends)}
        if missing := [e[1:] for e in ends if not any(f".{n}".endswith(e) for n in wanted)]:
            raise ModelError(
                f"model.lora.target_modules: no linear layer that can be adapted is called "
                f"{', '.join(missing)}; this model has {_listed(linear)}. Experts are adapted by "
                "model.lora.target_parameters"
            )
    short = {name.rpartition(".")[2] for name in wanted}
    called_so = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in short}
    return sorted(short if called_so == wanted else wanted)


def _listed(linear: Mapping[str, nn.Module]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in linear}))


def _experts(model: nn.Module) -> dict[str, nn.Parameter]:
    """Stacks of matrices, by name."""
    return {
        f"{name}.{own}": parameter
        for name, module in model.named_modules()
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and not isinstance(module, nn.Conv1d)
    }


def _tell_what_stays_frozen(model: nn.Module) -> None:
    layers: list[Any] = [module for module in model.modules() if _is_stack(module)]
    adapted = {id(layer.get_param()) for layer in layers}
    frozen = {n: p for n, p in _experts(model).items() if id(p) not in adapted}
    if frozen:
        share = sum(p.numel() for p in frozen.values()) / sum(p.numel() for p in model.parameters())
        names = sorted({".".join(name.split(".")[-3:]) for name in frozen})
        logger.warning(
            "model.lora leaves the experts frozen, %.0f %% of the model, and dense layers beside them: "
            "model.lora.target_parameters=[%s] adapts the experts",
            100 * share,
            ", ".join(names),
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


def adapter_rank(model: nn.Module) -> int | None:
    """The rank of the adapters of ``model`` where whoever reads peft's file can apply them beside weights
    of its own. None: there are none, or only their sum with the weights will do (stacks of experts,
    transposed layers, ranks or scales by layer, a start that changes the base)."""
    layers: list[Any] = [module for module in model.modules() if _is_adapted(module)]
    if not layers or any(_is_stack(layer) or layer.fan_in_fan_out for layer in layers):
        return None
    base: Any = unwrap(model)
    config = base.peft_config[_active(base)]
    special = config.rank_pattern or config.alpha_pattern or config.bias != "none"
    return None if special or isinstance(config.init_lora_weights, str) else int(config.r)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` as its base, in evaluation mode; afterwards as it was."""
    layers: list[Any] = [module for module in model.modules() if _is_adapted(module)]
    modes = [(module, module.training) for module in model.modules()]
    # peft lets every part of an adapter be trained where it is switched on.
    trained = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    model.eval()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, trains in trained:
            parameter.requires_grad_(trains)
        for module, training in modes:
            module.training = training


def frozen_reference(model: nn.Module) -> Reference:
    """The present policy for later: the base under the adapters where it is that and stays so, a copy
    of the whole model where not (matrices of four bits, which nothing changes, are shared)."""
    if _is_its_base(model):
        return partial(adapters_off, model)
    same = four_bit_matrices(model)
    frozen = frozen_copy(model, lambda p: p if p in same else p.detach().clone())
    return lambda: nullcontext(frozen)


def _is_its_base(model: nn.Module) -> bool:
    """Whether ``model`` has adapters which change nothing yet, and nothing is trained but these."""
    layers: list[Any] = [module for module in model.modules() if _is_adapted(module)]
    parts = [part for layer in layers for part in layer.lora_B.values()]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    zero = not any(parameter.any() for part in parts for parameter in part.parameters())
    return bool(layers) and zero and all(".lora_" in name for name in trained)


@torch.no_grad()
def merged_weights(model: nn.Module, adapted: bool = True) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the whole model as an engine without adapters holds it; of the base under them where
    not ``adapted``.

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
    modules = dict(base.named_modules())
    for name, tensor in base.state_dict().items():
        plain = _plain_name(name, modules)
        if plain is not None:
            yield plain, _merged(name, tensor, modules, base.dtype, adapted)


def reshard(model: nn.Module) -> None:
    """Give gathered weights back where ``model`` is sharded, so that its parameters are the shards
    again: a forward pass without a backward pass may leave them gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


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


def _is_stack(module: nn.Module) -> bool:
    """Whether this adapts one parameter of a module, a stack of experts."""
    return _is_adapted(module) and hasattr(module, "parameter_name")


def _plain_name(name: str, modules: Mapping[str, nn.Module]) -> str | None:
    """The name of a tensor of ``state_dict`` in the model without adapters; None: it belongs to an
    adapter, or to what four bits are scaled with."""
    kept: list[str] = []
    module = modules[""]
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if _is_quantized(module) and part == "weight" and depth + 1 < len(parts):
            return None
        if _is_adapted(module):
            if part != "base_layer":
                return None
        else:
            kept.append(part)
        module = modules.get(".".join(parts[: depth + 1]), module)
    return ".".join(kept)


def _merged(
    name: str, tensor: Tensor, modules: Mapping[str, nn.Module], dtype: torch.dtype, adapted: bool
) -> Tensor:
    """The tensor ``name`` with what adapts it, where that is asked for."""
    path, _, own = name.rpartition(".")
    holder = modules[path]
    if own == "weight" and _is_quantized(holder):
        import bitsandbytes

        four_bit: Any = holder.weight
        weight = bitsandbytes.functional.dequantize_4bit(four_bit.data, four_bit.quant_state)
        weight = weight.to(dtype)
    else:
        weight = whole(tensor)
    total = weight
    while adapted and path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
        layer: Any = modules[path]
        if own == getattr(layer, "parameter_name", "weight"):
            for adapter in layer.active_adapters:
                total = total.float() + _delta(layer, adapter)
    return total.to(weight.dtype)


def _delta(layer: Any, adapter: str) -> Tensor:
    """What one adapter adds to its matrix, or to its stack of matrices."""
    a, b = (whole(part[adapter].weight).float() for part in (layer.lora_A, layer.lora_B))
    scale = layer.scaling[adapter]
    if not _is_stack(layer) or layer.num_experts == 1:
        delta = (b @ a) * scale
        return delta.t() if layer.fan_in_fan_out else delta
    a_ERI = a.unflatten(0, (layer.num_experts, -1))
    b_ORE = b.unflatten(1, (-1, layer.num_experts))
    # Stacks are [experts, out, in], or the other way round.
    made = "ore,eri->eoi" if layer._did_swap_in_out_features else "ore,eri->eio"
    return torch.einsum(made, b_ORE, a_ERI) * scale


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which this process may hold a part (all processes call together)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def adapter_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the adapters as peft writes them; shards as in ``merged_weights``."""
    base: Any = unwrap(model)
    state = _peft().get_peft_model_state_dict(base, adapter_name=_active(base))
    for name, tensor in state.items():
        yield f"base_model.model.{name}", whole(tensor)


def adapter_base(model: nn.Module) -> str | None:
    """What those who load the adapters of ``model`` are told that they belong to."""
    base: Any = unwrap(model)
    name = base.peft_config[_active(base)].base_model_name_or_path
    return str(name) if name else None


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
