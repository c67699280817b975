"""Every method of the table runs in the one loop."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from tests.toys import save_lab_model

from srft.errors import ConfigError
from srft.objective.methods import METHODS, get_method
from srft.objective.preparation import prepare
from srft.runs.files import read_jsonl
from srft.trainer.api import SRFTTrainer


def a_third(prompts, completions, **columns):
    """Right for about a third of completions, so that groups are mixed."""
    return [float(len(text) % 3 == 0) for text in completions]


def of_rollouts(prompts, completions, **columns):
    """The same, but it does not apply to texts as long as demonstrations."""
    return [None if len(text) > 40 else float(len(text) % 3 == 0) for text in completions]


def run(config, reward=a_third):
    trainer = SRFTTrainer(args=config, reward_funcs=reward)
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
        reward={"failed_demonstrations": "keep"},
        teacher={"path": str(teacher)} if get_method(name).teacher == "model" else {},
    )
    result, moved, metrics = run(config)
    assert result.step == 3 and not result.stopped_by
    assert moved
    assert all(row["method"] == name and math.isfinite(row["loss"]) for row in metrics)
    assert not (result.run_dir / "refused").exists()
    assert sum(key.startswith("gradient/norm/") for key in metrics[0]) >= 1
    assert not any(key.startswith("gradient/") for key in metrics[1])


@pytest.mark.parametrize("name", [n for n, e in METHODS.items() if e.rollouts and e.demonstrations])
def test_demonstrations_to_which_no_reward_applies_leave_the_rest_as_it_is(recipe, teacher, name):
    config = recipe(
        method=name,
        train={"steps": 1},
        reward={"failed_demonstrations": "keep"},
        teacher={"path": str(teacher)} if get_method(name).teacher == "model" else {},
    )
    result, moved, (row,) = run(config, of_rollouts)
    assert moved and not (result.run_dir / "refused").exists()
    assert math.isfinite(row["loss"])
    assert "demo/reward_mean" not in row and row["reward/std"] > 0


def test_several_optimizer_steps_on_one_batch_use_the_old_policy(recipe):
    config = recipe(
        method="grpo",
        train={"steps": 2, "optimizer_steps_per_batch": 2, "learning_rate": 0.05},
        reward={"failed_demonstrations": "keep"},
    )
    _, _, metrics = run(config)
    assert any(row["ratio/rollouts/max"] != 1.0 for row in metrics)


def test_more_optimizer_steps_than_a_batch_has_sequences_are_refused(recipe):
    for method, most in (("sft", 2), ("grpo", 6), ("srft", 8), ("relift", 2)):
        train = {"prompts_per_step": 2, "optimizer_steps_per_batch": 9}
        config = recipe(method=method, train=train, reward={"failed_demonstrations": "keep"})
        with pytest.raises(
            ConfigError, match=rf"steps_per_batch=9: .*{method} has at most {most} seq"
        ):
            SRFTTrainer(args=config)


def test_further_demonstrations_are_trained_on_without_rollouts(recipe, monkeypatch):
    """Each in its turn, whatever the prompts of the step are."""
    config = recipe(
        method="sft+rl",
        data={"limit": 10},
        train={"steps": 4, "prompts_per_step": 2, "demonstrations_per_step": 5},
        reward={"failed_demonstrations": "keep"},
    )
    trainer = SRFTTrainer(args=config, reward_funcs=a_third)
    steps = []
    collect = trainer.collector.step

    def noted(*arguments):
        steps.append(collect(*arguments))
        return steps[-1]

    monkeypatch.setattr(trainer.collector, "step", noted)
    metrics = read_jsonl(trainer.train().run_dir / "metrics.jsonl")
    drawn = [step.rows[2:] for step in steps]
    assert sorted(drawn[0] + drawn[1]) == sorted(drawn[2] + drawn[3]) == list(range(10))
    assert (drawn[0] + drawn[1])[:8] != [row for step in steps for row in step.rows[:2]]
    assert [[len(r) for r in step.rollouts] for step in steps] == [[3, 3, 0, 0, 0, 0, 0]] * 4
    for step, row in zip(steps, metrics, strict=True):
        shown = [demo for demos in step.demos for demo in demos]
        assert len(shown) == 7 and len({s.group for s in step.sequences}) == 7
        assert row["tokens/demos"] == sum(len(s.response_ids) for s in shown)
        assert row["groups/sampled"] == 2
    assert [row["demo/epoch"] for row in metrics] == [0.5, 1.0, 1.5, 2.0]


def test_further_demonstrations_that_no_method_would_be_given_are_refused(recipe):
    for method in ("sft", "grpo", "uft"):
        config = recipe(method=method, train={"demonstrations_per_step": 3})
        with pytest.raises(ConfigError, match=rf"demonstrations_per_step.*{method} would ignore"):
            SRFTTrainer(args=config)
    stages = [{"method": "sft", "steps": 1}, {"method": "srft", "steps": 1}]
    config = recipe(stages=stages, train={"demonstrations_per_step": 3})
    metrics = read_jsonl(SRFTTrainer(args=config).train().run_dir / "metrics.jsonl")
    assert [row["demo/epoch"] for row in metrics] == [0.0, 3 / 40]


def test_refill_samples_more_prompts_when_groups_do_not_differ(recipe):
    config = recipe(
        method="dapo",
        train={"steps": 1, "max_refill_rounds": 2},
        reward={"failed_demonstrations": "keep"},
        alarms={"no-reward": {"steps": 1}},
    )
    trainer = SRFTTrainer(
        args=config, reward_funcs=lambda completions, **_: [0.0] * len(completions)
    )
    result = trainer.train()
    (metrics,) = read_jsonl(result.run_dir / "metrics.jsonl")
    assert trainer.sampler.state_dict()["position"] == metrics["groups/sampled"] == 3 * 4
    assert metrics["train/tokens"] == 0
    assert metrics["reward/accuracy"] == 0 and metrics["groups/all_wrong"] == 1
    tokens = round(metrics["rollout/length_mean"] * 12 * 3)
    assert metrics["rollout/tokens"] == metrics["total/rollout_tokens"] == tokens > 36
    assert any("no-reward" in e["message"] for e in read_jsonl(result.run_dir / "events.jsonl"))


def test_a_refilled_group_is_compared_with_itself_alone(recipe):
    """Prompts that take the place of dropped ones are groups of their own, however many rounds it takes."""

    def half(prompts, completions, **columns):
        mixed = [zlib.crc32(str(prompt).encode()) % 3 == 0 for prompt in prompts]
        return [float(m and len(t) % 3 == 0) for m, t in zip(mixed, completions, strict=True)]

    config = recipe(
        method="dapo",
        train={"steps": 2, "prompts_per_step": 6, "max_refill_rounds": 6},
        reward={"failed_demonstrations": "keep"},
    )
    trainer = SRFTTrainer(args=config, reward_funcs=half)
    method, seen = trainer.setup.methods[0], []
    collect = trainer.collector.step

    def noted(*arguments):
        seen.append(collect(*arguments))
        return seen[-1]

    trainer.collector.step = noted
    trainer.train()
    assert any(collected.sampled_groups > len(collected.rollouts) > 1 for collected in seen)
    for collected in seen:
        numbers = [{r.sequence.group for r in rollouts} for rollouts in collected.rollouts]
        assert len(set.union(*numbers)) == len(numbers) == sum(map(len, numbers))
        table, _ = prepare(method, collected.sequences)
        rewards = [torch.tensor([r.sequence.reward for r in g]) for g in collected.rollouts]
        alone = torch.cat([(r - r.mean()) / r.std() for r in rewards])
        torch.testing.assert_close(table.advantage_S.float(), alone.float(), atol=1e-4, rtol=1e-4)


def test_unsolved_prompts_are_trained_once_a_batch_has_come_together(recipe):
    config = recipe(
        method="relift",
        train={"steps": 2, "interleave_prompts": 6},
        reward={"failed_demonstrations": "keep"},
    )
    trainer = SRFTTrainer(
        args=config, reward_funcs=lambda completions, **_: [0.0] * len(completions)
    )
    result = trainer.train()
    first, second = read_jsonl(result.run_dir / "metrics.jsonl")
    assert "interleave/loss" not in first and second["interleave/train/tokens"] > 0
    assert len(trainer.train_state.unsolved) == 2


def test_of_unsolved_prompts_no_more_wait_than_there_are_rows_and_the_oldest_go(recipe):
    config = recipe(
        method="relift",
        data={"limit": 5},
        rollout={"group_size": 2, "max_tokens": 4},
        train={"steps": 4, "interleave_prompts": 1},
        reward={"failed_demonstrations": "keep"},
    )
    trainer = SRFTTrainer(
        args=config, reward_funcs=lambda completions, **_: [0.0] * len(completions)
    )
    drawn, collect = [], trainer.collector.step

    def noted(*arguments):
        found = collect(*arguments)
        drawn.extend(found.rows)
        return found

    trainer.collector.step = noted
    trainer.train()
    assert len(drawn) == 16 and trainer.train_state.unsolved == drawn[-4:], "one of five is trained"


def test_stages_follow_one_another_and_a_plateau_ends_one_early(recipe):
    config = recipe(
        stages=[
            {"method": "sft", "steps": 2, "learning_rate": 1e-2},
            {"method": "grpo", "steps": 6, "plateau": 2},
            {"method": "srft", "steps": 1},
        ],
        reward={"failed_demonstrations": "keep"},
    )
    trainer = SRFTTrainer(
        args=config, reward_funcs=lambda completions, **_: [1.0] * len(completions)
    )
    result = trainer.train()
    metrics = read_jsonl(result.run_dir / "metrics.jsonl")
    # A reward that never changes is a plateau as soon as two windows of two steps are full.
    assert [row["method"] for row in metrics] == ["sft"] * 2 + ["grpo"] * 4 + ["srft"]
    assert [row["learning_rate"] for row in metrics] == [1e-2] * 2 + [1e-3] * 5


@pytest.mark.parametrize("method", ["sft", "dft"])
def test_a_plateau_ends_a_supervised_stage(recipe, monkeypatch, method):
    """Weights that no longer move fit the demonstrations no better, the same ones at every step."""
    config = recipe(
        data={"limit": 4},
        stages=[{"method": method, "steps": 12, "plateau": 3}, {"method": "grpo", "steps": 1}],
        reward={"failed_demonstrations": "keep"},
    )
    trainer = SRFTTrainer(args=config, reward_funcs=a_third)
    real_step = trainer.optimizer.step
    monkeypatch.setattr(
        trainer.optimizer, "step", lambda: real_step() if trainer.train_state.step < 4 else None
    )
    result = trainer.train()
    methods = [row["method"] for row in read_jsonl(result.run_dir / "metrics.jsonl")]
    # Steps 1 to 5 see better and better weights; from step 8 on the last three are the same.
    assert methods.count(method) < 12 and methods[-1] == "grpo"
    (note,) = read_jsonl(result.run_dir / "events.jsonl")
    assert note["message"].endswith(f"plateau, stage {method} ends")


def test_a_supervised_stage_that_still_learns_goes_on(recipe):
    config = recipe(
        data={"limit": 4},
        stages=[{"method": "dft", "steps": 8, "plateau": 2}],
        reward={"failed_demonstrations": "keep"},
    )
    result = SRFTTrainer(args=config, reward_funcs=a_third).train()
    assert result.step == 8


def test_a_step_without_rollouts_does_not_mix_another_figure_into_a_plateau():
    from srft.objective.methods import get_method
    from srft.trainer.plateau import watched_value

    both = {"reward/mean": 0.5, "logprob/demos": -2.0}
    assert watched_value(get_method("srft"), both) == 0.5
    assert watched_value(get_method("srft"), {"logprob/demos": -2.0}) is None
    assert watched_value(get_method("sft"), both) == -2.0
    assert watched_value(get_method("sft"), {"logprob/demos": None}) is None


def test_what_functions_log_has_a_prefix_of_its_own_and_overwrites_nothing(recipe):
    def reward(prompts, completions, log_metric, **columns):
        for name in ("loss", "step", "reward/mean", "{name}", "a/b"):
            log_metric(name, 1e6)
        return [float(len(text) % 3 == 0) for text in completions]

    config = recipe(method="grpo", train={"steps": 1}, reward={})
    result = SRFTTrainer(args=config, reward_funcs=reward).train()
    (row,) = read_jsonl(result.run_dir / "metrics.jsonl")
    assert row["step"] == 1 and abs(row["loss"]) < 1e3 and row["reward/mean"] <= 1
    logged = {key: value for key, value in row.items() if key.startswith("user/")}
    assert logged == dict.fromkeys(
        ["user/loss", "user/step", "user/reward/mean", "user/{name}", "user/a/b"], 1e6
    )


def test_an_alarm_watches_evaluations_and_what_functions_log(recipe):
    def reward(prompts, completions, log_metric, **columns):
        log_metric("judge", 3.0)
        return [0.0] * len(completions)

    config = recipe(
        method="grpo",
        train={"steps": 3},
        data={"eval_fraction": 0.1},
        evaluation={"at_start": True, "every_steps": 1},
        reward={"failed_demonstrations": "keep"},
        alarms={
            "lazy-judge": {"metric": "user/judge", "at_least": 3, "steps": 3},
            "no-better": {"metric": "eval/accuracy", "at_most": 0.0, "steps": 4},
        },
    )
    result = SRFTTrainer(args=config, reward_funcs=reward).train()
    assert {row["n"] for row in read_jsonl(result.run_dir / "evaluation.jsonl")} == {1}
    said = [event["message"] for event in read_jsonl(result.run_dir / "events.jsonl")]
    assert {text.split(":")[1].split()[1] for text in said} >= {"lazy-judge", "no-better"}
