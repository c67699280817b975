"""The trainer's weights as vLLM takes them: every tensor whole, under its name in a checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from srft.errors import RolloutError
from srft.model.adapters import merged_weights, save_adapter
from srft.model.output_head import unwrap
from srft.model.weight_files import precisions


def named_weights(
    model: nn.Module, dtype: torch.dtype | None = None, adapted: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every weight as a model in ``dtype`` holds it (None: as they are), under the names
    that ``save_pretrained`` would write.

    Adapters are added to their base weights (left out where not ``adapted``) and tied weights come
    under each of their names, since an engine may keep a packed copy for each. Shards are gathered,
    which every rank of the mesh has to take part in: all ranks iterate to the end.
    """
    base = unwrap(model)
    yield from _as_in_files(base, _cast(merged_weights(model, adapted), base, dtype))


def _cast(
    weights: Iterator[tuple[str, Tensor]], base: PreTrainedModel, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    precision = None if dtype is None else precisions(base, dtype)
    for name, tensor in weights:
        yield (
            name,
            tensor.to(precision(name)) if precision and tensor.is_floating_point() else tensor,
        )


def _as_in_files(model: Any, weights: Iterator[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """transformers renames and fuses the weights of some architectures as it loads them; engines
    know the names in the files. Only there all weights have to be at hand at once."""
    from transformers.core_model_loading import revert_weight_conversion

    nothing: dict[str, Tensor] = {}
    if revert_weight_conversion(model, nothing) is nothing:
        return weights
    reverted: Mapping[str, Tensor] = revert_weight_conversion(model, dict(weights))
    return reverted.items()


class MemoryFile:
    """Weights as one safetensors file in a folder that lives in memory; the newest only.

    vLLM's workers on this machine read it by its path. What a killed process left is removed.
    """

    def __init__(self, folder: str) -> None:
        self.parent = Path(folder)
        if not self.parent.is_dir():
            raise RolloutError(
                f"rollout.server.shared_memory: {folder} is not a folder; name one on a file system in memory"
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
            raise self._full(path, error) from error
        return path

    def write_adapter(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> Path:
        """The adapters of ``model`` (``tensors``) as a folder of peft's, in place of what was there.

        Raises:
            RolloutError: there is no room for them.
        """
        path = self.folder / "adapter"
        shutil.rmtree(path, ignore_errors=True)
        try:
            path.mkdir()
            save_adapter(model, path, tensors)
        except (OSError, SafetensorError) as error:
            raise self._full(path, error) from error
        return path

    def _full(self, path: Path, error: Exception) -> RolloutError:
        return RolloutError(
            f"{path}: the weights could not be written ({error}); make the file system in memory "
            "larger, or name another folder with rollout.server.shared_memory"
        )

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
