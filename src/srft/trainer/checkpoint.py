"""Checkpoints that are either whole or absent, for any number of processes.

A checkpoint is a folder ``checkpoints/step_000123`` with

    weights/*.safetensors     every parameter and persistent buffer, in the precision it is trained in;
                              of a model with adapters these alone
    optimizer/*.safetensors   AdamW's moments, and torch's random states (host, GPU) of each process
    state.json                step, sampler position, byte offsets of the logs, and what else resumes a run
    manifest.json             SHA-256 of every file, so that a damaged checkpoint is noticed

Each process writes its own parts (``parallel/tensors.py``), and any number of processes can go on from
them. The folder is written under a temporary name, flushed to the disk, and renamed by the main process
once all have finished, and only then does an older one go: killed at any moment, a whole one is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from srft.errors import CheckpointError
from srft.memory.free import release
from srft.model.loading import first_not_finite
from srft.model.saving import fsync, put_in_place
from srft.parallel.sharding import own_tensors
from srft.parallel.tensors import layout, read_tensors, write_tensors
from srft.parallel.world import ALONE, World
from srft.paths import local_path
from srft.runs.run_dir import RunDir, step_of

_FORMAT = 3
_PREFIX = "step_"
_PARTS = ("weights", "optimizer")
_RANDOM = ("random", "random_cuda")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint whose checksums are right; ``restore`` reads its tensors. later: those after it,
    where it is not the newest that a run goes on from."""

    path: Path
    state: dict[str, Any]
    later: tuple[Path, ...] = ()

    def drop_later(self) -> None:
        """Removes those after it: the run takes their steps again."""
        for path in self.later:
            shutil.rmtree(path)


class Checkpointer:
    """Writes checkpoints to ``folder`` and keeps the ``keep`` newest.

    With ``background``, ``save`` returns once it has copied everything to the host's memory, and a
    thread does the rest, one checkpoint at a time: a kill then costs at most the steps since the one
    before. Errors come with the next ``save`` or ``wait``.
    """

    def __init__(self, folder: Path, keep: int, world: World = ALONE, background: bool = False):
        self.folder, self.keep = folder, keep
        # A thread's collectives must not mix with those of the loop.
        self.world = world.apart() if background else world
        self._thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: Future[Path] | None = None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
    ) -> None:
        """Writes ``step_<step>``; all processes call together.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        tensors = {
            "weights": own_tensors(model),
            "optimizer": {
                **_moments(model, optimizer),
                **_random_states(model, self.world.rank),
            },
        }
        self.wait()
        release()
        if self._thread is None:
            save_checkpoint(self.folder, step, tensors, state, self.keep, self.world)
            return
        # What dcp.async_save does, with the checksums and the renaming in the thread as well.
        stager = DefaultStager(StagingOptions(False, False, False, False))
        staged: Any = {part: stager.stage(dict(found)) for part, found in tensors.items()}
        stager.close()
        self._pending = self._thread.submit(
            save_checkpoint, self.folder, step, staged, state, self.keep, self.world
        )

    def wait(self) -> None:
        """Until what was begun is on the disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
    world: World = ALONE,
) -> Path:
    """Writes ``folder/step_<step>`` and removes all but the ``keep`` newest."""
    target = folder / f"{_PREFIX}{step:06d}"
    temporary = folder / f".writing-{target.name}"
    problem = None
    try:
        if world.main:
            shutil.rmtree(temporary, ignore_errors=True)
            for part in _PARTS:
                (temporary / part).mkdir(parents=True)
    except OSError as error:
        problem = str(error)
    try:
        _agree(problem, world)
        for part in _PARTS:
            write_tensors(temporary / part, tensors[part], world)
        _agree(_finish(temporary, target, state, world), world)
    except CheckpointError as error:
        if world.main:
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
    if world.main:
        # Older ones, and what a process killed while writing has left. Newer ones do not count: they
        # are damaged, or this run would have gone on from them.
        found = list_checkpoints(folder)
        old = found[: found.index(target) + 1][:-keep]
        for path in [*old, *folder.glob(".writing-*"), *folder.glob(f".{_PREFIX}*.old")]:
            shutil.rmtree(path, ignore_errors=True)
    return target


def _agree(problem: str | None, world: World) -> None:
    """Goes on where no process has a problem."""
    found = world.first(problem, "a checkpoint")
    if found is not None:
        raise CheckpointError(found)


def _finish(temporary: Path, target: Path, state: Mapping[str, Any], world: World) -> str | None:
    """Checksums, small files, flushing and renaming; what went wrong in this process, if anything."""
    problem = None
    sums: dict[str, str] = {}
    try:
        files = sorted(temporary.glob("*/*"))
        sums = {_name(files[i], temporary): _seal(files[i]) for i in world.share(len(files))}
    except OSError as error:
        problem = str(error)
    found = world.gather((problem, sums), "a checkpoint's checksums")
    problem = next((p for p, _ in found if p is not None), None)
    if problem is not None or not world.main:
        return problem
    try:
        small = temporary / "state.json"
        small.write_text(json.dumps({"format": _FORMAT, **state}))
        every = {name: value for _, part in found for name, value in part.items()}
        every["state.json"] = _seal(small)
        (temporary / "manifest.json").write_text(json.dumps(dict(sorted(every.items())), indent=1))
        put_in_place(temporary, target)
    except OSError as error:
        return str(error)
    return None


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    world: World = ALONE,
) -> None:
    """Weights, moments and random state of ``checkpoint``, in place.

    Raises:
        CheckpointError: the names or shapes are not this model's.
    """
    read_tensors(checkpoint.path / "weights", own_tensors(model), world)
    folder = checkpoint.path / "optimizer"
    stored = layout(folder)
    parameters = dict(model.named_parameters())
    into: dict[str, Tensor] = {}
    state: dict[str, dict[str, Tensor]] = {}
    for key, (size, dtype) in stored.items():
        kind, _, name = key.partition(".")
        if kind in _RANDOM:
            into[key] = torch.zeros(size, dtype=dtype)
            continue
        if name not in parameters:
            raise CheckpointError(f"{folder}: of another model: {name} is not a parameter here")
        like = parameters[name].detach()
        fits = size == like.shape and kind != "step"
        into[key] = torch.zeros_like(like, dtype=dtype) if fits else torch.zeros(size, dtype=dtype)
        state.setdefault(name, {})[kind] = into[key]
    read_tensors(folder, into, world)
    _set_moments(model, optimizer, state)
    rank = world.rank % sum(key.startswith("random.") for key in stored)
    torch.set_rng_state(into[f"random.{rank}"])
    device = next(model.parameters()).device
    if device.type == "cuda" and f"random_cuda.{rank}" in into:
        torch.cuda.set_rng_state(into[f"random_cuda.{rank}"], device)


def _random_states(model: nn.Module, rank: int) -> dict[str, Tensor]:
    """Torch's, which dropout draws from."""
    device = next(model.parameters()).device
    cuda = (
        {f"random_cuda.{rank}": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    )
    return {f"random.{rank}": torch.get_rng_state(), **cuda}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``<kind>.<parameter>``."""
    return {
        f"{kind}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        # What bitsandbytes' eight bits stand for: constants, which all parameters share.
        if not kind.startswith("qmap")
    }


def _set_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Through ``load_state_dict``, which numbers parameters and puts tensors where they belong."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    numbered = {i: dict(state[name]) for i, name in enumerate(order) if name in state}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def check_untrained(step: int, folder: str | None) -> None:
    """Raises CheckpointError where a resumed run cannot begin anew: the trainer has made ``step`` steps, so
    that its weights have moved, or no ``folder`` was named, so that it would be another run."""
    if folder is None:
        raise CheckpointError(
            "run.dir (TRL's output_dir) is not set: which run is to be continued?"
        )
    if step:
        raise CheckpointError(
            f"the training ended after step {step} and before a checkpoint was written: make the trainer "
            "anew, and set run.checkpoint_every lower"
        )


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders of finished checkpoints, oldest first (not yet checked for damage). One that stepped
    aside for another of the same step counts where that one did not take its place."""
    aside = {p.name[1:].removesuffix(".old"): p for p in folder.glob(f".{_PREFIX}*.old")}
    found = {**aside, **{path.name: path for path in folder.glob(f"{_PREFIX}*") if path.is_dir()}}
    steps = {step: path for name, path in found.items() if (step := step_of(name)) is not None}
    return [steps[step] for step in sorted(steps)]


def named_checkpoint(run: RunDir, path: Path) -> str | None:
    """The name of the checkpoint at ``path``, one of ``run``'s; None where ``path`` is the run itself: the
    newest.

    Raises:
        CheckpointError: it is not there, or is another run's.
    """
    where = local_path(path).resolve()
    if where in (run.path.resolve(), run.checkpoints.resolve()):
        return None
    there = [checkpoint.name for checkpoint in list_checkpoints(run.checkpoints)]
    if where.parent != run.checkpoints.resolve():
        raise CheckpointError(
            f"{path}: is no checkpoint of the run in {run.path}; set run.dir (output_dir) to the run it "
            "belongs to, or give its exported model as the model of a new run"
        )
    if where.name not in there:
        raise CheckpointError(
            f"{path}: there is no such checkpoint; there are {', '.join(there) or 'none'}"
        )
    return where.name


def load_newest(
    folder: Path, world: World = ALONE, until: str | None = None
) -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that is damaged. ``until``: the newest
    that counts.

    Raises:
        CheckpointError: there is none, or the one named by ``until`` is damaged.
    """
    if until is not None:
        checkpoint = read_checkpoint(folder / until, world)
        found = list_checkpoints(folder) if world.main else []
        after = [p.name for p in found].index(until) + 1 if found else 0
        return replace(checkpoint, later=tuple(found[after:])), []
    damaged: list[str] = []
    names = world.from_main(lambda: [p.name for p in list_checkpoints(folder)], "checkpoints")
    for name in reversed(names):
        try:
            return read_checkpoint(folder / name, world), damaged
        except CheckpointError as error:
            damaged.append(str(error))
    detail = f": {' '.join(damaged)}" if damaged else ""
    raise CheckpointError(f"{folder}: no checkpoint to resume from{detail}")


def read_checkpoint(path: Path, world: World = ALONE) -> Checkpoint:
    """Verifies one checkpoint, each process a share of its files.

    Raises:
        CheckpointError: in every process, where a file is missing, altered or cut short.
    """
    problem, state = None, {}
    try:
        sums = sorted(json.loads((path / "manifest.json").read_text()).items())
        there = {_name(p, path) for p in path.rglob("*") if p.is_file()} - {"manifest.json"}
        if there != {name for name, _ in sums}:
            problem = f"{path}: damaged (its files are not those of its manifest)."
        for name, expected in (sums[i] for i in world.share(len(sums))):
            if _sha256(path / name) != expected:
                problem = f"{path / name}: damaged (its checksum is not the one recorded)."
            elif name.startswith("weights/") and (odd := first_not_finite(load_file(path / name))):
                problem = f"{path}: {odd} holds non-finite numbers."
        state = json.loads((path / "state.json").read_text())
        if state.pop("format") != _FORMAT:
            problem = f"{path}: written by another version of srft."
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        problem = problem or f"{path}: damaged or incomplete ({error})."
    _agree(problem, world)
    return Checkpoint(path, state)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _seal(path: Path) -> str:
    """Flushes a file to the disk and returns its checksum."""
    fsync(path)
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
