"""A model cut over processes by FSDP2, and back to whole tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from srft.model.adapters import four_bit_matrices, reshard, trained_names, whole
from srft.model.output_head import body, unwrap
from srft.model.weight_files import frozen_copy, parts_aside
from srft.parallel.parallel_config import ParallelConfig
from srft.parallel.world import World

M = TypeVar("M", bound=nn.Module)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cut_parameters(model: nn.Module, world: World) -> None:
    """Makes each parameter of ``model``, which has no memory for them yet (the meta device), the part
    that ``shard`` will give this process, so that no more of it is read.

    Stacks of matrices stay whole where some process would have none to stack.
    """
    assert world.mesh is not None
    placements = [Shard(0)] if world.mesh.ndim == 1 else [Replicate(), Shard(0)]
    parts = world.mesh.size(world.mesh.ndim - 1)
    cut: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            rows = parameter.shape[0] if parameter.ndim > 2 else parts
            if rows <= -(-rows // parts) * (parts - 1):
                continue
            if id(parameter) not in cut:
                local = distribute_tensor(
                    parameter.detach(), world.mesh, placements, src_data_rank=None
                )
                cut[id(parameter)] = nn.Parameter(local, parameter.requires_grad)
            setattr(module, name, cut[id(parameter)])


def shard(
    model: nn.Module, world: World, config: ParallelConfig, autocast: torch.dtype | None
) -> torch.dtype | None:
    """Cuts ``model`` in place over ``world.mesh``, layer by layer; nothing in a world of one. What has
    been cut before it was read (``cut_parameters``) is taken as it is, and matrices of four bits,
    which are frozen, stay whole in every process.

    ``autocast`` is the dtype of matrix products, which ``gather_dtype=auto`` follows. Returned is the
    one that layers compute in, where it is another than the parameters'.
    """
    if world.size == 1:
        return None
    dtype = autocast if config.gather_dtype == "auto" else _DTYPES[config.gather_dtype]
    options: dict[str, Any] = {
        "mesh": world.mesh,
        "reshard_after_forward": config.reshard_after_forward,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=_DTYPES[config.reduce_dtype]
        ),
        "ignored_params": four_bit_matrices(model),
    }
    with parts_aside(model, "meta"):  # FSDP2 looks at what it has been given at the first pass
        for layer in reversed(_layers(model)):  # inner ones first
            fully_shard(layer, **options)
        fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The loss of every micro-batch is already divided by counts over all ranks, so gradients
            # are to be added, not averaged. Plain sums only: gloo knows no scaled ones.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return dtype


def _layers(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time: what transformers says must not be split, else
    the entries of the body's longest list of modules."""
    names = getattr(unwrap(model), "_no_split_modules", None) or ()
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if layers:
        return layers
    lists = [module for module in body(model).modules() if isinstance(module, nn.ModuleList)]
    longest: Any = max(lists, key=len, default=[])
    return list(longest)


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once (tied ones under their first name) and every persistent buffer, as this
    process holds them: DTensors where the model is sharded. Where it has adapters, only what is
    trained: the rest is the base's, which stays as it was."""
    reshard(model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    trained = trained_names(model)
    if trained is not None:
        return {name: tensor for name, tensor in parameters.items() if name in trained}
    every_name = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {
        name: tensor for name, tensor in model.state_dict().items() if name not in every_name
    }
    return {**parameters, **buffers}


def full_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of everything in ``own_tensors``, gathered one at a time. All processes
    have to go through it together; in a world of one the tensors are the model's own."""
    for name, tensor in own_tensors(model).items():
        yield name, whole(tensor)


@torch.no_grad()
def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies whole ``tensors`` into everything in ``own_tensors``, each process its parts."""
    for name, own in own_tensors(model).items():
        new = tensors[name].to(own.device, own.dtype)
        if isinstance(own, DTensor):
            new = distribute_tensor(new, own.device_mesh, own.placements, src_data_rank=None)
        own.copy_(new)


def whole_copy(model: M, device: torch.device) -> M:
    """A frozen copy of ``model``, which has not been through ``shard``, with every parameter whole.
    Matrices of four bits, which nothing changes, are those of ``model``."""
    same = four_bit_matrices(model)

    def copied(parameter: nn.Parameter) -> Tensor:
        if parameter in same:
            return parameter
        return whole(parameter).to(device, copy=not isinstance(parameter, DTensor))

    new: Any = frozen_copy(model, copied)
    return new.to(device)


def total_norm(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm over all tensors and processes; 0.0 where there are none."""
    tensors = list(tensors)
    return float(whole(torch.nn.utils.get_total_norm(tensors))) if tensors else 0.0
