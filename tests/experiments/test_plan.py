"""Experiments are data that can be checked before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from srft.cli import _LAB_EXPERIMENTS
from srft.errors import ConfigError
from srft.experiments.catalog import EXPERIMENTS, QUESTIONS, read_experiments
from srft.experiments.command import with_arms
from srft.experiments.experiment import Arm, Experiment, Leg, arm_recipe, base_recipe
from srft.experiments.runner import check_arms
from srft.objective.methods import METHODS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_of_every_experiment_is_a_recipe_its_method_accepts(name, tmp_path):
    experiment = EXPERIMENTS[name]
    check_arms(experiment, base_recipe(experiment), tmp_path)


def test_the_tables_hold_what_the_paper_compares():
    assert {arm.name for arm in EXPERIMENTS["methods"].arms} == set(METHODS)
    arms = {name: {arm.name for arm in found.arms} for name, found in EXPERIMENTS.items()}
    assert {"sft", "rl", "sft->rl", "rl->sft", "rl->sft+kl", "srft"} < arms["table1"]
    assert {"base", "sft", "grpo", "dr-grpo", "sft->rl", "sft+rl", "luffy"} < arms["table2"]
    assert {"w_SFT = 1", "w_RL = 1", "without SFT"} < arms["table3"]
    assert len(QUESTIONS) == 6
    assert {*EXPERIMENTS} - {*QUESTIONS} == {*_LAB_EXPERIMENTS} - {"questions"}


def test_arms_are_read_as_they_are_written():
    text = """
base: {train: {steps: 7}}
experiments:
  own:
    title: Mine
    reference: a
    arms: [{name: a, stages: [[sft, 0.5], [grpo, 2, {clip_low: 0.1}]]}, srft, {name: b, untrained: true}]
"""
    (own,) = read_experiments(text).values()
    assert own.arms[0].stages == (Leg("sft", 0.5), Leg("grpo", 2, {"clip_low": 0.1}))
    assert own.arms[1] == Arm("srft", "srft") and own.arms[2].untrained
    assert base_recipe(own).train.steps == 7
    assert base_recipe(own, ["train.steps=8"]).train.steps == 8


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


def test_a_users_recipe_replaces_the_built_in_one_and_its_sizes(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "method: grpo\nmodel: {path: lab}\ndata: {train: lab-deep, eval: {near: lab, far: lab-deep}}\n"
        "reward: exact\nrollout: {max_tokens: 33}\ntrain: {steps: 7, learning_rate: 1.0e-3}\n"
    )
    verdict = EXPERIMENTS["verdict"]
    base = base_recipe(verdict, ["train.prompts_per_step=5"], mine)
    assert (base.train.steps, base.train.prompts_per_step, base.rollout.max_tokens) == (7, 5, 33)
    assert base.train.schedule == "constant" and base.data.limit is None
    assert base.run.keep_checkpoints == 1  # the experiment's own section
    arm = next(a for a in verdict.arms if a.name == "srft")
    config = arm_recipe(arm, base, seed=0, folder=tmp_path)
    assert (config.method, config.data.train, config.train.steps) == ("srft", "lab-deep", 7)


def test_arms_can_be_chosen_and_bring_what_they_need():
    chosen = with_arms(EXPERIMENTS["verdict"], ["sft->srft", "chord"])
    assert [arm.name for arm in chosen.arms] == ["sft", "sft->grpo", "chord", "sft->srft"]
    assert with_arms(EXPERIMENTS["verdict"], []) == EXPERIMENTS["verdict"]
    other = with_arms(EXPERIMENTS["verdict"], ["chord"], "sft->srft")
    assert [arm.name for arm in other.arms] == ["sft", "chord", "sft->srft"]
    assert other.reference == "sft->srft"
    with pytest.raises(ConfigError, match="--reference: credit has no arm 'grop'; did you mean"):
        with_arms(EXPERIMENTS["credit"], [], "grop")
    with pytest.raises(ConfigError, match=r"no arm .srtf..*srft"):
        with_arms(EXPERIMENTS["credit"], ["srtf"])
