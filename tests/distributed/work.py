"""What the processes of the distributed tests do."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback

from srft.config import parse_config
from srft.environments import tools as tools_module
from srft.model.adapters import whole
from srft.model.loading import load_model, load_tokenizer
from srft.model.model_config import ModelConfig
from srft.parallel.parallel_config import ParallelConfig
from srft.parallel.sharding import cut_parameters, full_tensors, put_tensors, shard, whole_copy
from srft.parallel.world import join_world
from srft.runs.files import read_jsonl
from srft.trainer import update as update_module
from srft.trainer.api import SRFTTrainer
from srft.trainer.checkpoint import Checkpointer, load_newest, restore
from srft.trainer.models import build_policy
from srft.trainer.optimization import build_optimizer
from srft.trainer.train_config import TrainConfig

Recipe = Mapping[str, Any]


def a_third(prompts, completions, **columns):
    """Right for about a third of completions, so that groups are mixed."""
    return [float(len(text) % 3 == 0) for text in completions]


def never(completions, **columns):
    return [0.0] * len(completions)


REWARDS = {"a_third": a_third, "never": never}


def train(
    recipe: Recipe, rows: Sequence[Any], reward: str = "a_third", resume: bool = False
) -> Path:
    """One run; its directory."""
    trainer = SRFTTrainer(
        args=parse_config(dict(recipe)),
        train_dataset=list(rows),
        eval_dataset=list(rows[:5]),
        reward_funcs=REWARDS[reward],
    )
    return trainer.train(resume_from_checkpoint=resume).run_dir


def train_all(recipes: Sequence[Recipe], rows: Sequence[Any], reward: str) -> None:
    """Several runs one after another in the same processes."""
    for recipe in recipes:
        train(recipe, rows, reward)


class Wishes(TrainerCallback):
    """Evaluates after the first step, saves after that evaluation, and ends an epoch after the second."""

    def on_log(self, args, state, control, **given):
        control.should_evaluate |= state.global_step == 1
        control.should_epoch_stop |= state.global_step == 2

    def on_evaluate(self, args, state, control, **given):
        control.should_save |= state.global_step == 1


def train_with_wishes(recipe: Recipe, rows: Sequence[Any]) -> tuple[list[int], list[str], float]:
    """A run with a callback that asks for more after each event: the steps that were evaluated, the
    checkpoints, and the epochs."""
    trainer = SRFTTrainer(
        args=parse_config(dict(recipe)),
        train_dataset=list(rows),
        eval_dataset=list(rows[:2]),
        reward_funcs=never,
        callbacks=[Wishes],
    )
    run = trainer.train().run_dir
    evaluated = [record["step"] for record in read_jsonl(run / "evaluation.jsonl")]
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    return evaluated, kept, trainer.sampler.epoch


def logged(run_dir: Path) -> list[dict]:
    """Metrics without what depends on the clock or on how work is divided."""
    rows = read_jsonl(Path(run_dir) / "metrics.jsonl")
    left_out = ("time/", "tokens_per_second", "total/seconds", "train/micro_batches")
    return [{k: v for k, v in row.items() if not k.startswith(left_out)} for row in rows]


def carry_on(
    model_path: str, source: Path | None, target: Path, replicate: int, background: bool
) -> dict[str, numpy.ndarray]:
    """Restores from ``source``, or makes two optimizer steps where there is none; saves to
    ``target``. Every tensor of the state, whole."""
    world = join_world(ParallelConfig(replicate=replicate), torch.device("cpu"))
    model = load_model(ModelConfig(path=model_path))
    shard(model, world, ParallelConfig(), None)
    optimizer = build_optimizer(model, TrainConfig(learning_rate=0.1))
    if source is None:
        for step in range(2):
            for i, parameter in enumerate(model.parameters()):
                torch.manual_seed(100 * step + i)
                parameter.grad = _distributed_like(torch.randn(parameter.shape), parameter)
            optimizer.step()
    else:
        checkpoint, _ = load_newest(source, world)
        restore(checkpoint, model, optimizer, world)
    saver = Checkpointer(target, 2, world, background)
    saver.save(7, model, optimizer, {"logs": {}})
    if background:  # what is trained on meanwhile is not what was saved
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
    saver.wait()
    checkpoint, _ = load_newest(target, world)
    restore(checkpoint, model, optimizer, world)
    names = dict(model.named_parameters())
    moments = {
        f"{kind}.{name}": whole(value)
        for name, parameter in names.items()
        for kind, value in optimizer.state[parameter].items()
    }
    tensors = {**dict(full_tensors(model)), **moments}
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}


def load_all(cases: Mapping[str, tuple[Mapping[str, Any], int]]) -> dict[str, tuple[Any, ...]]:
    """``load`` of each case."""
    return {name: load(*case) for name, case in cases.items()}


def load(settings: Mapping[str, Any], replicate: int) -> tuple[dict[str, Any], ...]:
    """A model as one process loads it, as this process's parts of it were read, and a whole copy of
    the parts: every tensor and what they compute; and how many numbers were read."""
    world = join_world(ParallelConfig(replicate=replicate), torch.device("cpu"))
    config = ModelConfig(**settings)
    torch.manual_seed(0)
    one = load_model(config)
    torch.manual_seed(0)
    parts = load_model(config, cut=partial(cut_parameters, world=world))
    read = sum(p.to_local().numel() for p in parts.parameters() if isinstance(p, DTensor))
    copied = whole_copy(parts, torch.device("cpu"))
    shard(parts, world, ParallelConfig(), None)
    found = [_everything(model) for model in (one, parts, copied)]
    return *found, {"read": read}


def _everything(model: Any) -> dict[str, Any]:
    """Every tensor under every of its names, whether it is trained, and logits."""
    with torch.no_grad():
        logits = model(torch.arange(3, 23)[None]).logits
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tensors = {**parameters, **dict(model.named_buffers()), "logits": logits}
    return {
        "tensors": {n: whole(t.detach()).float().numpy().copy() for n, t in tensors.items()},
        "dtypes": {name: str(tensor.dtype) for name, tensor in tensors.items()},
        "trained": {name for name, p in parameters.items() if p.requires_grad},
        "tied": len(parameters) - len(list(model.parameters())),
    }


def load_policy(recipe: Recipe) -> None:
    """What a run does first."""
    config = parse_config(dict(recipe))
    world = join_world(config.parallel, torch.device("cpu"))
    with world.together("setting up"):
        tokenizer = load_tokenizer(config.model)
        build_policy(config, None, tokenizer, torch.device("cpu"), world, False)


def _distributed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)


def train_with_fault(
    recipe: Recipe, rows: Sequence[Any], module: str, name: str, at: Mapping[int, int]
) -> None:
    """A run in which each rank of ``at`` is killed at its so-and-so-manieth call of a function, or,
    where that is negative, stops there for good."""
    call = at.get(int(os.environ["RANK"]), 0)
    found = importlib.import_module(module)
    original = getattr(found, name)
    calls = 0

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == abs(call):
            if call < 0:
                time.sleep(3600)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(found, name, faulty)
    train(recipe, rows)


def train_with_infinite_reward(recipe: Recipe, rows: Sequence[Any]) -> None:
    """One process has a reward that is none in the second step."""
    calls = 0

    def reward(completions: Sequence[str], **columns: Any) -> list[float]:
        nonlocal calls
        calls += 1
        bad = calls == 2 and os.environ["RANK"] == "1"
        return [float("inf") if bad else float(len(text) % 3 == 0) for text in completions]

    REWARDS["infinite"] = reward
    train(recipe, rows, "infinite")


def train_with_broken_loss(recipe: Recipe, rows: Sequence[Any]) -> None:
    """One process has a loss that is none in the second step."""
    original = update_module.compute_loss
    calls = 0

    def compute_loss(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, metrics = original(*arguments)
        return loss * (float("nan") if calls == 2 and os.environ["RANK"] == "1" else 1.0), metrics

    update_module.compute_loss = compute_loss
    train(recipe, rows)


def train_with_failing_reward(recipe: Recipe, rows: Sequence[Any]) -> None:
    """One process's reward function fails in the second step."""
    calls = 0

    def reward(completions: Sequence[str], **columns: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 2 and os.environ["RANK"] == "1":
            raise LookupError("no such book")
        return [float(len(text) % 3 == 0) for text in completions]

    REWARDS["failing"] = reward
    train(recipe, rows, "failing")


def use_tools_and_go_on(recipe: Recipe, rows: Sequence[Any], folder: Path) -> dict[str, Any]:
    """A run whose rollouts call a tool, and what is asked of its trainer after ``train``."""
    from tests.environments.conftest import add, random_reader

    tools_module.reader = random_reader  # this process is the test's own
    trainer = SRFTTrainer(
        args=parse_config(dict(recipe)),
        train_dataset=list(rows),
        eval_dataset=list(rows[:3]),
        reward_funcs=a_third,
        tools=[add],
    )
    trainer.train()
    found: dict[str, Any] = {
        "evaluated": trainer.evaluate(),
        "predicted": trainer.predict(list(rows[3:6])).predictions,
    }
    trainer.save_model(folder)
    before = {name: tensor.clone() for name, tensor in full_tensors(trainer.model)}
    put_tensors(trainer.model, {name: tensor + 1 for name, tensor in before.items()})
    found["put"] = all(torch.equal(t, before[n] + 1) for n, t in full_tensors(trainer.model))
    trainer.end()
    return found
