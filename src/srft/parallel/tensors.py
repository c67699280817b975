"""Named tensors in a folder, written and read by any number of processes.

PyTorch's distributed checkpoint (DCP) does the work: each process writes the parts it holds and reads
the parts it needs, however many processes wrote them. Its own storage keeps the plan of a checkpoint
in a pickle, which runs whatever code somebody has put there when it is opened; its safetensors storage,
used here, keeps the place of each part in the files' JSON headers. Nothing is ever unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from srft.errors import CheckpointError
from srft.parallel.world import ALONE, World

FILE_BYTES = 256 * 2**20
"""What one process puts into a file, unless a single tensor is larger."""

Layout = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Shape and dtype of each tensor in a folder."""


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], world: World = ALONE) -> None:
    """Writes ``tensors`` (DTensors, or the same plain tensor in every process) to ``folder``, which
    is there and empty. All processes call together and see the same folder.

    Raises:
        CheckpointError: in every process, where one of them could not write.
    """
    files = _files(tensors, world.size)
    writer = dcp.HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
    state: dict[str, Any] = {name: t.contiguous() for name, t in tensors.items()}
    with _dcp_errors(folder):
        dcp.save(
            state,
            storage_writer=writer,
            process_group=world.group,
            no_dist=world.size == 1,
        )


class _Files(dict[str, int]):
    """The number, from 1, of the file that each tensor's parts go to; one process's serve all."""

    def __missing__(self, name: str) -> int:
        return 1  # what another process alone has


def _files(tensors: Mapping[str, Tensor], size: int) -> _Files:
    """Files that are not too large: one is made in memory, twice, before it is written."""
    number, filled = 1, 0.0
    numbers = _Files()
    for name, tensor in tensors.items():
        part = tensor.nbytes / (size if isinstance(tensor, DTensor) else 1)
        if filled and filled + part > FILE_BYTES:
            number, filled = number + 1, 0.0
        filled += part
        numbers[name] = number
    return numbers


def read_tensors(folder: Path, into: Mapping[str, Tensor], world: World = ALONE) -> None:
    """Copies what ``folder`` holds into the tensors of ``into``, in place, each process its parts.

    Raises:
        CheckpointError: a name or a shape is another one, or a file cannot be read.
    """
    found = layout(folder)
    odd = [*sorted(found.keys() - into.keys()), *sorted(into.keys() - found.keys())]
    if odd:
        raise CheckpointError(
            f"{folder}: of another model: {len(odd)} tensors differ, such as {odd[0]}"
        )
    for name, tensor in into.items():
        if found[name][0] != tensor.shape:
            raise CheckpointError(
                f"{folder}: of another model: {name} is {tuple(found[name][0])} there, "
                f"{tuple(tensor.shape)} here"
            )
    with _dcp_errors(folder):
        dcp.load(
            dict(into),
            storage_reader=dcp.HuggingFaceStorageReader(str(folder)),
            process_group=world.group,
            no_dist=world.size == 1,
        )


def layout(folder: Path) -> Layout:
    """What is in ``folder``, from the headers of its safetensors files.

    Raises:
        CheckpointError: one cannot be read.
    """
    with _dcp_errors(folder):
        found = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {}
    for name, entry in found.items():
        assert isinstance(entry, TensorStorageMetadata)
        tensors[name] = (entry.size, entry.properties.dtype)
    return tensors


@contextmanager
def _dcp_errors(folder: Path) -> Iterator[None]:
    """DCP wraps errors of all ranks, traceback and all; a user is told the first one's message."""
    with warnings.catch_warnings():
        # It says with each call that there is one process.
        warnings.filterwarnings("ignore", module="torch.distributed.checkpoint")
        try:
            yield
        except dcp.CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            raise CheckpointError(f"{folder}: {first}") from error
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: {error}") from error
