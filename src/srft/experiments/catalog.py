"""The experiments of ``experiments.yaml``, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from srft.experiments.experiment import Arm, Experiment, Leg
from srft.experiments.teacher import FOLDER
from srft.objective.methods import METHODS


def read_experiments(text: str) -> dict[str, Experiment]:
    """YAML as ``experiments.yaml`` explains it."""
    found = yaml.safe_load(text)
    return {
        name: Experiment(
            name,
            **{
                **entry,
                "arms": tuple(map(_arm, _names(entry["arms"]))),
                "rates": tuple(entry.get("rates", ())),
            },
            base=found.get("base") or {},
        )
        for name, entry in found["experiments"].items()
    }


def _names(arms: Any) -> Any:
    return METHODS if arms == "methods" else arms


def _arm(value: str | Mapping[str, Any]) -> Arm:
    if isinstance(value, str):
        learns = METHODS[value].teacher == "model"
        return Arm(value, value, recipe={"teacher": {"path": FOLDER}} if learns else {})
    return Arm(**{**value, "stages": tuple(Leg(*leg) for leg in value.get("stages", ()))})


EXPERIMENTS = read_experiments(Path(__file__).with_name("experiments.yaml").read_text("utf-8"))
QUESTIONS = tuple(name for name in EXPERIMENTS if name.startswith("question"))
