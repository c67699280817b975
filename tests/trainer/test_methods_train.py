"""Every method of the table runs in the one loop."""

from __future__ import annotations

import math

import pytest
import torch
from tests.toys import save_lab_model

from srft.objective.methods import METHODS, get_method
from srft.runs.files import read_jsonl
from srft.trainer.trainer import SRFTTrainer


def a_third(prompts, completions, **columns):
    """Right for about a third of completions, so that groups are mixed."""
    return [float(len(text) % 3 == 0) for text in completions]


def run(config):
    trainer = SRFTTrainer(args=config, reward_funcs=a_third)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    result = trainer.train()
    moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])]
    return result, moved, read_jsonl(result.run_dir / "metrics.jsonl")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_lab_model(tmp_path_factory.mktemp("teacher"), initializer_range=0.2, seed=7)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_moves_the_weights_and_stays_finite(recipe, teacher, name):
    config = recipe(
        method=name,
        train={"steps": 3, "gradient_analysis_every": 2},
        reward={"function": "unused:unused", "failed_demonstrations": "keep"},
        teacher={"path": str(teacher)} if get_method(name).teacher == "model" else {},
    )
    result, moved, metrics = run(config)
    assert result.step == 3 and not result.stopped_by
    assert moved
    assert all(row["method"] == name and math.isfinite(row["loss"]) for row in metrics)
    assert not (result.run_dir / "refused").exists()
    assert sum(key.startswith("gradient/norm/") for key in metrics[0]) >= 1
    assert not any(key.startswith("gradient/") for key in metrics[1])


def test_several_optimizer_steps_on_one_batch_use_the_old_policy(recipe):
    config = recipe(
        method="grpo",
        train={"steps": 2, "optimizer_steps_per_batch": 2, "learning_rate": 0.05},
        reward={"function": "unused:unused", "failed_demonstrations": "keep"},
    )
    _, _, metrics = run(config)
    assert any(row["ratio/rollouts/max"] != 1.0 for row in metrics)


def test_refill_samples_more_prompts_when_groups_do_not_differ(recipe):
    config = recipe(
        method="dapo",
        train={"steps": 1, "max_refill_rounds": 2},
        reward={"function": "unused:unused", "failed_demonstrations": "keep"},
    )
    trainer = SRFTTrainer(
        args=config, reward_funcs=lambda completions, **_: [0.0] * len(completions)
    )
    result = trainer.train()
    (metrics,) = read_jsonl(result.run_dir / "metrics.jsonl")
    assert trainer.sampler.state_dict()["position"] == 3 * 4
    assert metrics["train/tokens"] == 0


def test_unsolved_prompts_are_trained_once_a_batch_has_come_together(recipe):
    config = recipe(
        method="relift",
        train={"steps": 2, "interleave_prompts": 6},
        reward={"function": "unused:unused", "failed_demonstrations": "keep"},
    )
    trainer = SRFTTrainer(
        args=config, reward_funcs=lambda completions, **_: [0.0] * len(completions)
    )
    result = trainer.train()
    first, second = read_jsonl(result.run_dir / "metrics.jsonl")
    assert "interleave/loss" not in first and second["interleave/train/tokens"] > 0
    assert len(trainer.state.unsolved) == 2


def test_stages_follow_one_another_and_a_plateau_ends_one_early(recipe):
    config = recipe(
        stages=[
            {"method": "sft", "steps": 2, "learning_rate": 1e-2},
            {"method": "grpo", "steps": 6, "plateau": 2},
            {"method": "srft", "steps": 1},
        ],
        reward={"function": "unused:unused", "failed_demonstrations": "keep"},
    )
    trainer = SRFTTrainer(
        args=config, reward_funcs=lambda completions, **_: [1.0] * len(completions)
    )
    result = trainer.train()
    metrics = read_jsonl(result.run_dir / "metrics.jsonl")
    # A reward that never changes is a plateau as soon as two windows of two steps are full.
    assert [row["method"] for row in metrics] == ["sft"] * 2 + ["grpo"] * 4 + ["srft"]
    assert [row["learning_rate"] for row in metrics] == [1e-2] * 2 + [1e-3] * 5
