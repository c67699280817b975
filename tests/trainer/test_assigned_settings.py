"""Settings that are assigned after the recipe was made are looked at as those that it was made of."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from srft import SRFTConfig, SRFTTrainer
from srft.config import load_config
from srft.errors import ConfigError
from srft.trainer.alarms import BUILT_IN

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def bounded(section: BaseModel, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every number of a recipe that has a lower bound of 0 or more, and can be assigned."""
    found: list[tuple[str, ...]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found += bounded(value, (*prefix, name))
        lower = [getattr(rule, "ge", getattr(rule, "gt", None)) for rule in field.metadata]
        if any(bound is not None and bound >= 0 for bound in lower):
            found.append((*prefix, name))
    return found


NUMBERS = bounded(SRFTConfig())


def assign(recipe: SRFTConfig, key: tuple[str, ...], value: object) -> None:
    place = recipe
    for part in key[:-1]:
        place = getattr(place, part)
    setattr(place, key[-1], value)


def test_there_are_such_numbers() -> None:
    assert len(NUMBERS) > 40
    assert {("train", "learning_rate"), ("objective", "weight_sft"), ("reward", "timeout_s")} <= {
        *NUMBERS
    }


@pytest.mark.parametrize("key", NUMBERS, ids=".".join)
def test_a_negative_number_is_refused_by_name(key: tuple[str, ...]) -> None:
    recipe = SRFTConfig()
    assign(recipe, key, -1)
    with pytest.raises(ConfigError, match=".".join(key)):
        recipe.rechecked()


def test_the_trainer_looks(tmp_path: Path) -> None:
    recipe = SRFTConfig(run={"dir": str(tmp_path / "run")})
    recipe.train.learning_rate = -1.0
    with pytest.raises(ConfigError, match=r"train\.learning_rate: Input should be greater than 0"):
        SRFTTrainer("lab", args=recipe)
    assert not (tmp_path / "run").exists()


def test_settings_that_no_longer_agree_are_refused() -> None:
    recipe = SRFTConfig(method="sft")
    recipe.stages = [{"method": "sft", "steps": 2}]  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="stages are given together with method"):
        recipe.rechecked()
    greedy = SRFTConfig()
    greedy.rollout.temperature = 0
    with pytest.raises(ConfigError, match="greedy"):
        greedy.rechecked()


def test_what_was_assigned_is_read_as_a_recipe_reads_it() -> None:
    recipe = SRFTConfig()
    recipe.train.learning_rate = "1e-4"  # type: ignore[assignment]
    recipe.data.train = Path("rows.jsonl")  # type: ignore[assignment]
    recipe.objective = {"entropy_coefficient": 0.01}  # type: ignore[assignment]
    checked = recipe.rechecked()
    assert (checked.train.learning_rate, checked.data.train) == (1e-4, "rows.jsonl")
    assert checked.objective.model_fields_set == {"entropy_coefficient"}
    assert checked.train.model_fields_set == {"learning_rate"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_the_same_after_it(path: Path) -> None:
    recipe = load_config(path)
    checked = recipe.rechecked()
    assert checked == recipe
    assert checked.to_yaml() == recipe.to_yaml()


def test_an_alarm_that_is_changed_is_changed_in_this_recipe_alone() -> None:
    name = next(iter(BUILT_IN))
    before = BUILT_IN[name].action
    recipe = SRFTConfig()
    recipe.alarms[name].action = "stop"
    assert recipe.rechecked().alarms[name].action == "stop"
    assert BUILT_IN[name].action == SRFTConfig().alarms[name].action == before != "stop"
