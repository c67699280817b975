"""What an experiment is: data. Arms that are trained from one base recipe and compared.

An arm changes the base recipe in what it is there to compare, and in nothing else: same base model,
problems, learning rate, batch and number of steps, unless the arm says otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from srft.config import SRFTConfig, load_config, parse_config
from srft.errors import ConfigError
from srft.lab import QUICKSTART
from srft.objective.methods import get_method
from srft.runs.files import flatten

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
    base model itself, evaluated once. start: the arm, of one method, that is trained first, whole and at
    its own rate; its steps come on top.
    """

    name: str
    method: str = ""
    objective: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Leg, ...] = ()
    steps: float = 1.0
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    demonstrations: Literal["expert", "expert-same", "self-made"] = "expert"
    untrained: bool = False
    start: str = ""

    def __post_init__(self) -> None:
        assert bool(self.method) + bool(self.stages) + self.untrained == 1, self.name
        assert not self.start or self.method, f"{self.name}: only an arm of one method has a start"

    @property
    def folder(self) -> str:
        """The name as a folder of any file system."""
        return re.sub(r"[^\w.+=-]+", "-", self.name.replace("->", "-then-")).strip("-")


@dataclass(frozen=True)
class Experiment:
    """Arms, and the one (``reference``) that the others are compared with.

    base, recipe: settings of every arm, on top of the quickstart's: those that experiments share, and
    the experiment's own. keep_models: export each run's final model, and keep its checkpoints. rates:
    multiples of the recipe's learning rate of which each arm takes the best, found under ``validation``:
    settings by which the evaluation is on problems held out of the training data. then: what to do with the
    runs, for the reader.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    reference: str = "srft"
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    base: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keep_models: bool = False
    rates: tuple[float, ...] = ()
    validation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    then: str = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        folders = {arm.folder.lower() for arm in self.arms}
        assert len(folders) == len(names), f"{self.name}: two arms have the same name"
        assert self.reference in names, f"{self.name}: no arm {self.reference}"
        assert all(arm.start in ("", *names) for arm in self.arms), (
            f"{self.name}: a start that is no arm"
        )

    def start_of(self, arm: Arm) -> Arm | None:
        """The arm that ``arm`` goes on from."""
        return next((other for other in self.arms if other.name == arm.start), None)


def base_recipe(
    experiment: Experiment, overrides: Sequence[str] = (), recipe: Path | None = None
) -> SRFTConfig:
    """The recipe that every arm starts from: the quickstart's, the experiment's, the user's settings; or
    ``recipe``, a user's own, with the user's settings. Of the experiment's it then takes the section ``run``
    alone: model, problems and sizes are the user's.

    Raises:
        ConfigError: a wrong setting, or one that the arms decide.
    """
    for override in overrides:
        if override.split("=")[0].split(".")[0] in _NOT_FOR_ALL:
            raise ConfigError(
                f"{override}: method, objective and stages are what the arms of {experiment.name} "
                "differ in; leave it out, or train it by `srft train`"
            )
    own = {**flatten(experiment.base), **flatten(experiment.recipe)}
    if recipe is not None:
        own = {key: value for key, value in own.items() if key.startswith("run.")}
    # Where rates are tried, whatever the user's problems are, they are not looked at.
    tried = {} if experiment.rates else flatten(experiment.validation)
    return load_config(recipe or QUICKSTART, [*_settings(own), *overrides, *_settings(tried)])


def _settings(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def arm_recipe(
    arm: Arm,
    base: SRFTConfig,
    *,
    seed: int,
    folder: Path,
    keep_model: bool = False,
    data: str | None = None,
    start: Arm | None = None,
) -> SRFTConfig:
    """The whole recipe of one run. ``data``: training file in place of the base recipe's. ``start``: the
    arm that is trained first.

    Raises:
        ConfigError: settings that contradict each other or that the arm's method does not read.
    """
    values = base.model_dump(mode="json", exclude_unset=True)
    for key in _NOT_FOR_ALL:
        values.pop(key, None)
    total = base.train.steps
    if start is not None:
        values["train"].pop("steps", None)
        values["stages"] = [_leg(start, base), _leg(arm, base)]
    elif arm.stages:
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


def _leg(arm: Arm, base: SRFTConfig) -> dict[str, Any]:
    """An arm of one method as a stage. A reference that its loss reads is the policy it begins with."""
    train = arm.recipe.get("train", {})
    stage = {
        "method": arm.method,
        "steps": max(1, round(base.train.steps * arm.steps)),
        "objective": dict(arm.objective),
        "learning_rate": train.get("learning_rate", base.train.learning_rate),
    }
    if get_method(arm.method, arm.objective).reads_reference(base.teacher.frozen):
        stage["reference"] = "stage"
    return stage
