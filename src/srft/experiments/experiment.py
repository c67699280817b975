"""What an experiment is: data. Arms that are trained from one base recipe and compared.

An arm changes the base recipe in what it is there to compare, and in nothing else: same base model,
problems, learning rate, batch and number of steps, unless the arm says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from srft.config import SRFTConfig, load_config, parse_config
from srft.errors import ConfigError
from srft.lab import QUICKSTART

SMALL = (
    "data.train=lab-hard",
    "data.eval=lab-hard",
    "data.limit=200",
    "data.eval_limit=160",
    "rollout.max_tokens=80",
    "evaluation.max_tokens=80",
    "train.steps=40",
    "train.prompts_per_step=4",
    "train.learning_rate=5e-4",
    "evaluation.temperature=0.6",
    "evaluation.at_start=false",
    "evaluation.every_steps=0",
    "evaluation.best_metric=null",
    "run.samples_every=0",
    "run.samples_prompts=1",
    "run.checkpoint_every=20",
    "run.keep_checkpoints=1",
)
"""What makes the quickstart small enough to be run a hundred times, and hard enough that methods
differ also where they are decoded greedily (docs/experiments.md says how it was chosen)."""

_NOT_FOR_ALL = ("method", "objective", "stages")


@dataclass(frozen=True)
class Leg:
    """One stage of an arm: ``share`` of the experiment's steps (above 1: more than all of them)."""

    method: str
    share: float
    objective: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One way to train.

    method, objective: as in a recipe. stages: several methods in turn instead. steps: the arm's
    budget as a multiple of the experiment's steps. recipe: further settings, section by section.
    demonstrations: "self-made" takes verified rollouts of the base model in place of the expert's
    traces, "expert-same" the expert's on just the prompts that have a self-made one. untrained: the
    base model itself, evaluated once.
    """

    name: str
    method: str = ""
    objective: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Leg, ...] = ()
    steps: float = 1.0
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    demonstrations: Literal["expert", "expert-same", "self-made"] = "expert"
    untrained: bool = False

    def __post_init__(self) -> None:
        assert bool(self.method) + bool(self.stages) + self.untrained == 1, self.name

    @property
    def folder(self) -> str:
        """The name as a folder of any file system."""
        return re.sub(r"[^\w.+=-]+", "-", self.name.replace("->", "-then-")).strip("-")


@dataclass(frozen=True)
class Experiment:
    """Arms, and the one (``reference``) that the others are compared with.

    recipe: settings of every arm. keep_models: export each run's final model, and keep its
    checkpoints. then: what to do with the runs, for the reader.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    reference: str = "srft"
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keep_models: bool = False
    then: str = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        folders = {arm.folder.lower() for arm in self.arms}
        assert len(folders) == len(names), f"{self.name}: two arms with one name"
        assert self.reference in names, f"{self.name}: no arm {self.reference}"


def base_recipe(experiment: Experiment, overrides: Sequence[str] = ()) -> SRFTConfig:
    """The recipe that every arm starts from: quickstart, made small, the experiment's, the user's.

    Raises:
        ConfigError: a wrong setting, or one that the arms decide.
    """
    for override in overrides:
        if override.split("=")[0].split(".")[0] in _NOT_FOR_ALL:
            raise ConfigError(
                f"{override}: method, objective and stages are what the arms of {experiment.name} "
                "differ in; leave it out, or train it by `srft train`"
            )
    own = [f"{s}.{k}={v}" for s, part in experiment.recipe.items() for k, v in part.items()]
    return load_config(QUICKSTART, [*SMALL, *own, *overrides])


def arm_recipe(
    arm: Arm,
    base: SRFTConfig,
    *,
    seed: int,
    folder: Path,
    keep_model: bool = False,
    data: str | None = None,
) -> SRFTConfig:
    """The whole recipe of one run. ``data``: training file in place of the base recipe's.

    Raises:
        ConfigError: settings that contradict each other or that the arm's method does not read.
    """
    values = base.model_dump(mode="json", exclude_unset=True)
    for key in _NOT_FOR_ALL:
        values.pop(key, None)
    total = base.train.steps
    if arm.stages:
        values["train"].pop("steps", None)
        values["stages"] = [
            {
                "method": leg.method,
                "steps": max(1, round(total * leg.share)),
                "objective": dict(leg.objective),
            }
            for leg in arm.stages
        ]
    else:
        values["method"] = arm.method or "sft"
        values["objective"] = dict(arm.objective)
        values["train"]["steps"] = max(1, round(total * arm.steps))
    for name, part in arm.recipe.items():
        values.setdefault(name, {}).update(part)
    if arm.untrained:
        # One step of a size that changes no weight: what is evaluated is the base model.
        values["train"] |= {"steps": 1, "learning_rate": 1e-12, "warmup_steps": 0}
    if data is not None:
        values["data"] |= {"train": data, "limit": None}
    values["train"]["seed"] = seed
    values.setdefault("run", {}).update(
        dir=str(folder), live="never", export=keep_model, export_dtype="float32"
    )
    return parse_config(values, f"arm {arm.name}")
