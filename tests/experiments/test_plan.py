"""Experiments are data that can be checked before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from srft.errors import ConfigError
from srft.experiments.catalog import EXPERIMENTS, QUESTIONS
from srft.experiments.experiment import Arm, Experiment, Leg, arm_recipe, base_recipe
from srft.experiments.runner import check_arms
from srft.objective.methods import METHODS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_of_every_experiment_is_a_recipe_its_method_accepts(name, tmp_path):
    experiment = EXPERIMENTS[name]
    check_arms(experiment, base_recipe(experiment), tmp_path)


def test_the_tables_hold_what_the_paper_compares():
    assert {arm.name for arm in EXPERIMENTS["methods"].arms} == set(METHODS)
    assert {"sft", "rl", "sft->rl", "rl->sft", "rl->sft+kl", "srft"} < {
        a.name for a in EXPERIMENTS["table1"].arms
    }
    assert {"base", "sft", "grpo", "dr-grpo", "sft->rl", "sft+rl", "luffy", "relift", "srft"} < {
        arm.name for arm in EXPERIMENTS["table2"].arms
    }
    assert {"w_SFT = 1", "w_RL = 1", "without SFT"} < {
        arm.name for arm in EXPERIMENTS["table3"].arms
    }
    assert len(QUESTIONS) == 6


def test_arms_differ_in_what_they_say_and_in_nothing_else(experiment, tmp_path):
    base = base_recipe(experiment)
    one, other = (
        arm_recipe(Arm(name, name), base, seed=3, folder=tmp_path).model_dump()
        for name in ("srft", "grpo")
    )
    assert {key for key in one if one[key] != other[key]} == {"method"}
    assert one["train"]["seed"] == 3 and one["run"]["dir"] == str(tmp_path)


def test_budgets_follow_the_number_of_steps(experiment, tmp_path):
    base = base_recipe(experiment, ["train.steps=40"])
    staged = Arm("both", stages=(Leg("sft", 0.25), Leg("grpo", 1.0, {"clip_low": 0.1})))
    config = arm_recipe(staged, base, seed=0, folder=tmp_path)
    assert [(s.method, s.steps) for s in config.resolved_stages] == [("sft", 10), ("grpo", 40)]
    assert config.stages[1].objective.clip_low == 0.1
    assert arm_recipe(Arm("twice", "sft", steps=2), base, seed=0, folder=tmp_path).total_steps == 80


def test_overrides_may_not_say_what_the_arms_say(experiment):
    for wrong in ("method=grpo", "objective.clip_low=0.1", "stages=[]"):
        with pytest.raises(ConfigError, match="arms of small differ"):
            base_recipe(experiment, [wrong])


def test_names_of_arms_become_distinct_folder_names(tmp_path):
    assert Arm("sft->rl", "sft").folder == "sft-then-rl"
    assert Arm("pi / (pi + 0.1)", "srft").folder == "pi-pi-+-0.1"
    with pytest.raises(AssertionError, match="two arms"):
        Experiment("x", "X", (Arm("a b", "srft"), Arm("a/b", "srft")), reference="a b")


def test_other_demonstrations_replace_the_training_file(experiment, tmp_path: Path):
    base = base_recipe(experiment)
    config = arm_recipe(Arm("srft", "srft"), base, seed=0, folder=tmp_path, data="own.jsonl")
    assert config.data.train == "own.jsonl" and config.data.limit is None
    assert config.data.eval == base.data.eval
