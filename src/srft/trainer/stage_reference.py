"""A reference of a stage's own: the policy as it was when the stage began.

The frozen copy that a run keeps is overwritten then, and written to the run directory, so that a run
resumed in the middle of the stage is measured against the same policy.
"""

from __future__ import annotations

import shutil

import torch

from srft.config import SRFTConfig
from srft.errors import CheckpointError
from srft.model.saving import put_in_place
from srft.parallel.sharding import own_tensors
from srft.parallel.tensors import read_tensors, write_tensors
from srft.runs.run_dir import RunDir
from srft.trainer.setup import Setup


def _own(config: SRFTConfig, stage: int) -> bool:
    """Whether the stage has a reference of its own; that of the first is the base in any case."""
    return stage > 0 and config.resolved_stages[stage].reference == "stage"


@torch.no_grad()
def begin_stage(setup: Setup, stage: int, run: RunDir) -> None:
    """Makes the present policy the reference of a stage that asks for one, and keeps it in the run
    directory.

    Raises:
        CheckpointError: it could not be written.
    """
    if not _own(setup.config, stage):
        return
    policy, world, folder = setup.policy, setup.world, run.reference(stage)
    assert policy.reference is not None, "the set-up keeps a copy for stages that ask for one"
    writing = folder.with_name(f".writing-{folder.name}")

    def make_room() -> None:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)

    try:
        world.from_main(make_room, "the reference of a stage")
        with policy.reference() as frozen:
            present, kept = own_tensors(policy.model), own_tensors(frozen)
            for name, tensor in kept.items():
                tensor.copy_(present[name])
            write_tensors(writing, kept, world)
        world.from_main(lambda: put_in_place(writing, folder), "the reference of a stage")
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the reference of the stage could not be written ({error}). Free space or make "
            "the folder writable, then resume"
        ) from error


@torch.no_grad()
def restore_stage(setup: Setup, stage: int, run: RunDir) -> None:
    """The reference that ``begin_stage`` kept.

    Raises:
        CheckpointError: it is not there, or of another model.
    """
    if not _own(setup.config, stage):
        return
    assert setup.policy.reference is not None
    with setup.policy.reference() as frozen:
        read_tensors(run.reference(stage), own_tensors(frozen), setup.world)
