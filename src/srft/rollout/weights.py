"""The trainer's weights as vLLM takes them: every tensor whole, under its name in a checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from srft.errors import RolloutError


def named_weights(
    model: nn.Module, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight, detached, in ``dtype`` (None: as they are).

    Shards are gathered, which every rank of the mesh has to take part in: all ranks iterate to the
    end. Tied weights come under each of their names, since an engine may keep a packed copy for
    each. An adapter (peft) is added to its base weight, which itself stays as it is. Names are
    those that ``save_pretrained`` would write.
    """
    for name, tensor in _checkpoint_names(model, _merged(model)).items():
        whole = _whole(tensor.detach())
        yield name, whole.to(dtype) if dtype is not None and whole.is_floating_point() else whole


def _whole(tensor: Tensor) -> Tensor:
    gather = getattr(tensor, "full_tensor", None)
    return gather() if callable(gather) else tensor


def _checkpoint_names(model: Any, state: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """transformers renames and fuses weights of some architectures when it loads them; engines
    know the names in the files."""
    from transformers.core_model_loading import revert_weight_conversion

    base = model.get_base_model() if hasattr(model, "peft_config") else model
    reverted: Mapping[str, Tensor] = revert_weight_conversion(base, state)
    return reverted


def _merged(model: Any) -> dict[str, Tensor]:
    """The state dict, with adapters added to the weights they belong to."""
    if not hasattr(model, "peft_config"):
        return dict(model.state_dict())
    base = model.get_base_model()
    layers = {
        name: module for name, module in base.named_modules() if hasattr(module, "base_layer")
    }
    merged: dict[str, Tensor] = {}
    for name, tensor in base.state_dict().items():
        owner, inside = _adapted_layer(name, layers)
        if owner is None:
            merged[name] = tensor
        elif inside.startswith("base_layer."):
            own = inside.removeprefix("base_layer.")
            added = _added(layers[owner], name) if own == "weight" else None
            merged[f"{owner}.{own}"] = tensor if added is None else _whole(tensor) + added
    return merged


def _adapted_layer(name: str, layers: Mapping[str, Any]) -> tuple[str | None, str]:
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        owner = ".".join(parts[:end])
        if owner in layers:
            return owner, ".".join(parts[end:])
    return None, name


def _added(layer: Any, name: str) -> Tensor | None:
    """What the active adapters add to a layer's weight; None where they are merged already."""
    if layer.merged or getattr(layer, "disable_adapters", False):
        return None
    if not hasattr(layer, "get_delta_weight"):
        raise RolloutError(
            f"{name}: adapters of kind {type(layer).__name__} cannot be added to the base weight for "
            "vLLM; use LoRA, or rollout.engine=embedded"
        )
    with torch.no_grad():
        deltas = [layer.get_delta_weight(adapter) for adapter in layer.active_adapters]
    return sum(deltas[1:], deltas[0]).detach() if deltas else None


class MemoryFile:
    """Weights as one safetensors file in a folder that lives in memory; the newest only.

    vLLM's workers on this machine read it by its path. What a killed process left is removed.
    """

    def __init__(self, folder: str) -> None:
        self.parent = Path(folder)
        if not self.parent.is_dir():
            raise RolloutError(
                f"rollout.server.shared_memory: {folder} is no folder; name one that lives in memory"
            )
        for path in self.parent.glob("srft-weights-*-*"):
            if not Path("/proc", path.name.split("-")[2]).exists():
                shutil.rmtree(path, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"srft-weights-{os.getpid()}-", dir=folder))

    def write(self, weights: Mapping[str, Tensor]) -> Path:
        """Replaces what was there.

        Raises:
            RolloutError: the folder has no room for the weights.
        """
        path = self.folder / "model.safetensors"
        path.unlink(missing_ok=True)  # a reader that has it open keeps the old one
        try:
            # Copies, since the format refuses tensors that share memory (tied ones).
            save_file({name: tensor.cpu().clone() for name, tensor in weights.items()}, path)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            raise RolloutError(
                f"{path}: the weights could not be written ({error}); make the file system in memory "
                "larger, or name another folder with rollout.server.shared_memory"
            ) from error
        return path

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
