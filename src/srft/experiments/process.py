"""One run in a process of its own, and the process that makes one run after another."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from srft.config import SRFTConfig, parse_config
from srft.data.reading import source_files
from srft.evaluation.open_model import find_model, weights_digest
from srft.model.model_config import is_lab
from srft.paths import local_path
from srft.rewards.functions import source_digest
from srft.runs.files import to_json, write_whole
from srft.runs.lock import hold
from srft.terminal import Terminal, visible
from srft.trainer.setup import build_methods

FINISHED = "finished.json"
LOG = "log.txt"
GREEDY = "greedy.jsonl"
"""In a run directory: the evaluation at the end once more, each token the likeliest."""
_ADDED = (("train", "demonstrations_per_step", 0),)
"""Settings that came after runs had been published, with the value that means what was done before: it is
not part of a digest, so that these runs are still known."""
HEAVY = ("checkpoints", "model", "best", "refused")
"""What is not copied with a run's records."""


@dataclass(frozen=True)
class Job:
    """One arm under one seed. ``digest`` stands for all that its outcome depends on. untrained: the run
    is there for its evaluation alone."""

    arm: str
    seed: int
    config: SRFTConfig
    folder: Path
    digest: str
    untrained: bool = False

    @property
    def name(self) -> str:
        return f"{self.arm}/seed{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a run ended; ``error`` is one sentence where it failed."""

    status: Literal["finished", "failed", "stopped"]
    error: str | None = None


@dataclass(frozen=True)
class Ledger:
    """What became of each job, in the order of the plan, and the signal that ended the work early."""

    outcomes: Mapping[str, Outcome]
    stopped_by: str | None = None


class Runner(Protocol):
    """Whatever makes runs, one at a time."""

    def run(self, job: Job) -> Outcome: ...

    def interrupt(self) -> bool:
        """Ask the current run to stop where it can be resumed; False where there is none yet."""
        ...

    def close(self) -> None: ...


def recipe_digest(config: SRFTConfig) -> str:
    """Sixteen hexadecimal digits of the recipe without its run section, its methods' switches, the base
    model's and the teacher's weights, and what stands in the files it names (data, the chat template,
    functions for rewards and tools): two runs with the same digest have the same outcome, also where a
    method's defaults have changed in between."""
    values = yaml.safe_load(config.to_yaml())
    values.pop("run")
    for section, key, before in _ADDED:
        if values[section].get(key) == before:
            del values[section][key]
    values["switches"] = [m.switches.model_dump(mode="json") for m in build_methods(config)]
    values["weights"] = weights_digest(find_model(config.model.path or "", config.model))
    path = config.model.path or ""
    if not is_lab(path) and local_path(path).exists():  # where it stands is another matter
        values["model"]["path"] = values["weights"]
    if config.teacher.path:
        values["teacher"]["path"] = weights_digest(find_model(config.teacher.path))
    named = config.data.chat_template not in ("auto", "none")
    for key in ("train", "eval", "chat_template") if named else ("train", "eval"):
        values["data"][key] = _content(values["data"][key])
    values["evaluation"]["dataset"] = _content(values["evaluation"]["dataset"])
    factory = config.environment.factory or ()
    paths = [spec.function for spec in config.reward.rewards if spec.function]
    paths += config.environment.tools
    paths += [factory] if isinstance(factory, str) else dict(factory).values()
    if paths:
        values["functions"] = {path: source_digest(path) for path in paths}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _content(source: Any) -> Any:
    """What stands for a source of data: the digest of its file, of a folder's those by their names, else
    the source itself; for several, what stands for each."""
    if isinstance(source, Mapping):
        return {name: _content(value) for name, value in source.items()}
    if isinstance(source, list):
        return [_content(value) for value in source]
    if source is None:
        return None
    files, place = source_files(source), local_path(source)
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    if place in digests:
        return digests[place]
    return {str(path.relative_to(place)): value for path, value in digests.items()} or source


def finished_digest(folder: Path) -> str | None:
    """The digest of the finished run in ``folder``; None where there is none."""
    path = folder / FINISHED
    return json.loads(path.read_text())["digest"] if path.is_file() else None


def train_one(recipe: str, digest: str) -> str | None:
    """Trains by a recipe (YAML) in its run.dir, resumed where it has a checkpoint, and marks the run
    as finished. Returns the name of the signal that stopped it, or None.

    What it would have printed goes to log.txt in the run directory.
    """
    config = parse_config(yaml.safe_load(recipe), "experiment")
    assert config.run.dir is not None
    folder = Path(config.run.dir)
    resume = any(folder.glob("checkpoints/step_*"))
    with hold(folder, "an experiment") as lock:
        if not resume:  # it was killed before its first checkpoint
            lock.clear()
        return _train(config, folder, resume, digest)


def _train(config: SRFTConfig, folder: Path, resume: bool, digest: str) -> str | None:
    from srft.trainer.api import SRFTTrainer

    with (folder / LOG).open("a", encoding="utf-8") as log:
        try:
            trainer = SRFTTrainer(args=config, console=Terminal(file=log, width=120))
            result = trainer.train(resume_from_checkpoint=resume)
        except Exception:
            log.write(visible(traceback.format_exc()))
            raise
    if result.stopped_by:
        return result.stopped_by
    _evaluate_greedily(trainer, folder)
    _mark_finished(folder, digest, trainer.model)
    return None


def _evaluate_greedily(trainer: Any, folder: Path) -> None:
    """The evaluation at the end once more, each token the likeliest: what the model knows, apart from
    how much probability it leaves elsewhere."""
    from srft.trainer.evaluating import record

    step, confidence = trainer.train_state.step, trainer.args.evaluation.confidence
    lines = [to_json(record(result, step, confidence)) for result in trainer.evaluate_greedily()]
    write_whole(folder / GREEDY, "\n".join(lines) + "\n")


def _mark_finished(folder: Path, digest: str, model: Any) -> None:
    refused = len(list((folder / "refused").glob("*.pt")))
    figures = {"digest": digest, "parameters": compute_parameters(model), "refused": refused}
    write_whole(folder / FINISHED, json.dumps(figures))


def compute_parameters(model: Any) -> int:
    """Parameters that take part in a matrix product for each token: all but the input embedding,
    with the output head, also where the two are tied."""
    total = sum(p.numel() for p in model.parameters())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    return total if tied else total - embedding.weight.numel()


def slim(folder: Path) -> None:
    """Removes what is large from a finished run."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    shutil.rmtree(folder / "best", ignore_errors=True)


class ProcessRunner:
    """Runs jobs in one spawned process that keeps its imports from run to run. If it dies, the job in
    hand has failed and the next one gets a new process."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._pid: int | None = None

    def run(self, job: Job) -> Outcome:
        try:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    1, mp_context=get_context("spawn"), initializer=_begin
                )
                self._pid = self._pool.submit(os.getpid).result()
            stopped = self._pool.submit(_train_or_leave, job.config.to_yaml(), job.digest).result()
        except BrokenProcessPool:
            self.close()
            return Outcome("failed", "its process died (out of memory, or killed from outside)")
        # Whatever went wrong in one run must not take the others with it; the log has the traceback.
        except Exception as error:  # noqa: BLE001
            return Outcome("failed", f"{type(error).__name__}: {error}")
        if stopped:
            return Outcome("stopped")
        if not job.config.run.export:
            slim(job.folder)
        return Outcome("finished")

    def interrupt(self) -> bool:
        if self._pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
        return True

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._pool = self._pid = None


def _begin() -> None:
    """Runs side by side are faster on one thread each, and a thread count is part of the rounding."""
    import torch

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_stop_with_parent, daemon=True).start()


def _stop_with_parent() -> None:
    """A process whose parent has died would wait for work for ever: it ends, a run of its where it can be
    resumed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _train_or_leave(recipe: str, digest: str) -> str | None:
    """``train_one``; ends the process where nobody is left to hear of it."""
    try:
        return train_one(recipe, digest)
    finally:
        parent = parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)
