"""Checkpoints that are either whole or absent.

A checkpoint is a folder ``checkpoints/step_000123`` with

    weights.safetensors   every parameter and persistent buffer, in the precision it is trained in;
                          of a model with adapters these alone
    optimizer.pt          optimizer state and torch's random state (tensors only: read with weights_only)
    state.json            step, sampler position, byte offsets of the logs, and whatever else resumes a run
    manifest.json         SHA-256 of the three, so that a damaged checkpoint is noticed

It is written under a temporary name, flushed to the disk, and renamed: a process killed at any
moment leaves the previous checkpoint as the newest one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from srft.errors import CheckpointError
from srft.model.adapters import trained_names
from srft.model.loading import first_not_finite

_FORMAT = 1
_PREFIX = "step_"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint that was read: tensors on the CPU."""

    path: Path
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    torch_rng: Tensor
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes ``folder/step_<step>`` and removes all but the ``keep`` newest.

    Raises:
        CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    target = folder / f"{_PREFIX}{step:06d}"
    temporary = folder / f".writing-{target.name}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(model_tensors(model), temporary / "weights.safetensors")
        torch.save(
            {"optimizer": optimizer.state_dict(), "torch_rng": torch.get_rng_state()},
            temporary / "optimizer.pt",
        )
        (temporary / "state.json").write_text(json.dumps({"format": _FORMAT, **state}))
        sums = {name: _sha256(temporary / name) for name in _FILES}
        (temporary / "manifest.json").write_text(json.dumps(sums, indent=1))
        for path in [*temporary.iterdir(), temporary]:
            fsync(path)
        if target.exists():  # a damaged one that a resume passed over
            shutil.rmtree(target)
        temporary.rename(target)
        fsync(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save reports a full disk as RuntimeError, safetensors as SafetensorError.
        shutil.rmtree(temporary, ignore_errors=True)
        previous = [path.name for path in list_checkpoints(folder)]
        kept = (
            f"the previous checkpoint {previous[-1]} is untouched"
            if previous
            else "there is none yet"
        )
        raise CheckpointError(
            f"{target}: the checkpoint could not be written ({error}); {kept}. "
            "Free space or make the folder writable, then resume."
        ) from error
    # Older ones, and what a process killed while writing has left.
    for old in [*list_checkpoints(folder)[:-keep], *folder.glob(".writing-*")]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once (tied ones under their first name) and every persistent buffer; where
    ``model`` has adapters, only what is trained: the rest is the base's, which stays as it was."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    trained = trained_names(model)
    if trained is not None:
        return {name: parameters[name].contiguous() for name in parameters if name in trained}
    known = {id(p) for p in model.parameters()}
    every_name = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in every_name and id(tensor) not in known
    }
    return {name: tensor.contiguous() for name, tensor in {**parameters, **buffers}.items()}


def restore_model(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies ``weights`` into ``model`` in place.

    Raises:
        CheckpointError: the names or shapes are not this model's.
    """
    own = model_tensors(model)
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise CheckpointError(
            f"the checkpoint is of another model: {len(odd)} tensors differ, such as {odd[0]}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != weights[name].shape:
                raise CheckpointError(
                    f"the checkpoint is of another model: {name} is {tuple(weights[name].shape)} there, "
                    f"{tuple(tensor.shape)} here"
                )
            tensor.copy_(weights[name])


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders of finished checkpoints, oldest first (not yet checked for damage)."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def load_newest(folder: Path) -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that is damaged.

    Raises:
        CheckpointError: there is none.
    """
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    detail = f": {' '.join(damaged)}" if damaged else ""
    raise CheckpointError(f"{folder}: no checkpoint to resume from{detail}")


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint.

    Raises:
        CheckpointError: a file is missing, altered or cut short.
    """
    try:
        sums = json.loads((path / "manifest.json").read_text())
        for name in _FILES:
            if _sha256(path / name) != sums[name]:
                raise CheckpointError(
                    f"{path / name}: damaged (its checksum is not the one recorded)."
                )
        tensors = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        state = json.loads((path / "state.json").read_text())
        if state.pop("format") != _FORMAT:
            raise CheckpointError(f"{path}: written by another version of srft.")
        weights = load_file(path / "weights.safetensors")
        if (odd := first_not_finite(weights)) is not None:
            raise CheckpointError(f"{path}: {odd} holds numbers that are not finite.")
        return Checkpoint(
            path,
            weights,
            tensors["optimizer"],
            tensors["torch_rng"],
            state,
        )
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged or incomplete ({error}).") from error


_FILES = ("weights.safetensors", "optimizer.pt", "state.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flushes one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
