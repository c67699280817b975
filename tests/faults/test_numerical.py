"""Numbers that are none: refused, kept for looking at, and never in the weights."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from srft.config import parse_config
from srft.errors import AlarmError, CheckpointError, ConfigError, ModelError, NumericalError
from srft.model import policy as policy_module
from srft.report.gather import gather_summary
from srft.rewards.reward_config import RewardConfig
from srft.runs.files import read_jsonl
from srft.runs.reading import read_runs
from srft.trainer import checkpoint as checkpoints
from srft.trainer.alarms import BUILT_IN, Alarm, raised
from srft.trainer.api import SRFTTrainer
from srft.types import Completion

NAN, INF = math.nan, math.inf
POISONS = pytest.mark.parametrize("poison", [NAN, INF, -INF])


def every_other(prompts, completions, **columns):
    return [float(i % 2) for i in range(len(completions))]


class Faulty:
    """A trainer whose step number ``at`` (from 0) meets a poisoned number somewhere."""

    def __init__(self, config, at=1, reward_funcs=None):
        self.trainer = SRFTTrainer(args=config, reward_funcs=reward_funcs)
        self.run_dir = self.trainer.run.path
        self.at = at
        self.before: dict[str, torch.Tensor] = {}
        self.after: dict[str, torch.Tensor] = {}
        step = self.trainer._train_step

        def watched():
            hit = self.trainer.train_state.step == self.at
            if hit:
                self.before = self.weights()
            metrics = step()
            if hit:
                self.after = self.weights()
            return metrics

        self.trainer._train_step = watched

    @property
    def now(self) -> bool:
        return self.trainer.train_state.step == self.at

    def weights(self):
        return {n: p.detach().clone() for n, p in self.trainer.model.named_parameters()}

    def run_and_check(self, words: str) -> None:
        """The poisoned step changes nothing and is kept; the others train."""
        start = self.weights()
        result = self.trainer.train()
        assert result.step == self.trainer.total_steps
        assert self.before and all(torch.equal(v, self.after[n]) for n, v in self.before.items())
        end = load_file(result.model_dir / "model.safetensors")
        assert all(v.isfinite().all() for v in end.values())
        assert any(not torch.equal(v, start[n]) for n, v in end.items())
        events = read_jsonl(self.run_dir / "events.jsonl")
        (event,) = [event for event in events if "alarm" not in event["message"]]
        assert event["level"] == "warning" and words in event["message"]
        kept = torch.load(self.run_dir / f"refused/step_{self.at:06d}.pt", weights_only=True)
        assert kept["reason"] in event["message"]
        assert kept["sequences"] and all(s["response_ids"] for s in kept["sequences"])


@pytest.fixture
def quick(recipe):
    return recipe(train={"steps": 3}, rollout={"group_size": 2, "max_tokens": 6})


@POISONS
def test_gradients(quick, poison):
    run = Faulty(quick)
    parameter = next(run.trainer.model.parameters())
    parameter.register_hook(lambda g: g * poison if run.now else None)
    run.run_and_check("gradient norm")


@POISONS
def test_rewards(quick, poison):
    runs = []

    def reward(prompts, completions, **columns):
        worst = poison if runs and runs[0].now else 0.0
        return [worst, *(float(i % 2) for i in range(len(completions) - 1))]

    quick = quick.model_copy(update={"reward": RewardConfig(failed_demonstrations="keep")})
    run = Faulty(quick, reward_funcs=reward)
    runs.append(run)
    run.run_and_check("lab[train]:")


@POISONS
def test_log_probabilities_of_any_engine(quick, poison):
    run = Faulty(quick)
    engine = run.trainer.setup.engine

    class Poisoned:
        def generate(self, requests, params, on_completion=None):
            groups = engine.generate(requests, params, on_completion)
            if run.now:
                first: Completion = groups[0][0]
                groups[0][0] = replace(first, logprobs=(poison, *first.logprobs[1:]))
            return groups

        update_weights, close = engine.update_weights, engine.close

    run.trainer.collector.setup = replace(run.trainer.setup, engine=Poisoned())
    run.run_and_check("log-probability")


@pytest.mark.parametrize("method", ["srft", "grpo"])
@pytest.mark.parametrize("figure", ["entropy_T", "logprob_T"])
def test_scores_even_where_no_term_reads_them(recipe, monkeypatch, method, figure):
    config = recipe(
        method=method,
        train={"steps": 3},
        rollout={"group_size": 2, "max_tokens": 6},
        reward={"failed_demonstrations": "keep"},
    )
    run = Faulty(config, reward_funcs=every_other)
    original = policy_module.score

    def poisoned(*args, **kwargs):
        scores = original(*args, **kwargs)
        if not run.now:
            return scores
        return replace(scores, **{figure: getattr(scores, figure) * NAN})

    monkeypatch.setattr(policy_module, "score", poisoned)
    run.run_and_check("")


def test_the_policy_to_stop_stops(recipe):
    config = recipe(train={"steps": 3, "on_nonfinite": "stop"})
    run = Faulty(config)
    next(run.trainer.model.parameters()).register_hook(lambda g: g * NAN if run.now else None)
    with pytest.raises(NumericalError, match="gradient norm nan"):
        run.trainer.train()


@pytest.mark.parametrize(("poisoned", "last"), [((1, 2, 3, 4, 5), 4), ((1, 2, 4, 5), None)])
def test_more_refused_steps_in_a_row_than_allowed_end_the_run(recipe, poisoned, last):
    config = recipe(
        train={"steps": 6, "max_nonfinite": 2}, rollout={"group_size": 2, "max_tokens": 6}
    )
    trainer = SRFTTrainer(args=config)
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda g: g * NAN if trainer.train_state.step in poisoned else None)
    if last is None:  # the step between them begins the count anew
        assert trainer.train().step == 6
        return
    with pytest.raises(NumericalError, match=f"step {last}: .*, 3 in a row"):
        trainer.train()


def test_weights_that_break_down_end_the_run_and_spare_the_checkpoint(recipe, tmp_path):
    """Whatever poisons the weights themselves cannot be refused: the run ends, resumable."""
    config = recipe(train={"steps": 30, "max_nonfinite": 2}, run={"checkpoint_every": 1})
    run = Faulty(config, at=2)
    step = run.trainer._train_step

    def poisoned():
        if run.now:
            with torch.no_grad():
                next(run.trainer.model.parameters()).fill_(NAN)
        return step()

    run.trainer._train_step = poisoned
    with pytest.raises(
        NumericalError, match=r"step 3 the weight model.embed_tokens.weight is non-finite"
    ):
        run.trainer.train()
    found, said = checkpoints.load_newest(tmp_path / "run/checkpoints")
    assert found.path.name == "step_000002" and not said
    assert SRFTTrainer(args=recipe(train={"steps": 4})).train(resume_from_checkpoint=True).step == 4


def test_a_model_that_is_not_finite_is_refused_at_the_start(recipe, tiny_model, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][0, 0] = NAN
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{name} holds non-finite numbers"):
        SRFTTrainer(args=recipe(model={"path": str(folder)}))


def test_a_checkpoint_that_is_not_finite_is_passed_over(recipe, tmp_path):
    SRFTTrainer(args=recipe(train={"steps": 4})).train()
    folder = tmp_path / "run/checkpoints"
    newest = checkpoints.list_checkpoints(folder)[-1]
    trainer = SRFTTrainer(args=recipe(train={"steps": 4}))
    with torch.no_grad():
        next(trainer.model.parameters())[0, 0] = INF
    state = {**checkpoints.read_checkpoint(newest).state}
    checkpoints.Checkpointer(folder, 2).save(4, trainer.model, trainer.optimizer, state)
    trainer.setup.close()
    found, said = checkpoints.load_newest(folder)
    assert found.path.name == "step_000002"
    assert "non-finite" in said[0] and "step_000004" in said[0]


# -- alarms ------------------------------------------------------------------------------------

SICK = {
    "entropy-exploded": ("rollout/entropy", 4.0, 0.5),
    "entropy-collapsed": ("rollout/entropy", 0.0001, 0.5),
    "no-reward": ("reward/accuracy", 0.0, 0.1),
    "all-truncated": ("rollout/truncated", 1.0, 0.2),
    "engine-mismatch": ("mismatch/abs", 0.4, 1e-6),
    "teacher-apart": ("teacher/kl", 3.0, 0.1),
    "gradient-exploded": ("train/gradient_norm", 1e5, 1.0),
}


def test_the_table_here_covers_every_built_in_alarm():
    assert SICK.keys() == BUILT_IN.keys()


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_alarm_names_the_metric_and_the_cause_once_an_episode(name):
    metric, sick, well = SICK[name]
    alarm, streaks, heard = BUILT_IN[name], {}, []
    values = [sick] * (alarm.steps + 3) + [well] + [sick] * alarm.steps + [well]
    for step, value in enumerate(values):
        found = list(raised(BUILT_IN, {metric: value}, streaks))
        heard += [(step, message) for _, message in found]
    assert [step for step, _ in heard] == [alarm.steps - 1, 2 * alarm.steps + 3]
    assert all(name in m and metric in m and alarm.cause in m for _, m in heard)
    assert streaks == {}


def test_missing_and_undefined_figures_neither_raise_nor_reset():
    rule = {"x": Alarm(metric="loss", at_least=1.0, steps=2)}
    streaks: dict[str, int] = {}
    seen = [
        list(raised(rule, m, streaks)) for m in ({"loss": 2.0}, {}, {"loss": NAN}, {"loss": 2.0})
    ]
    assert [len(found) for found in seen] == [0, 0, 0, 1]


def test_recipes_change_rules_and_add_their_own():
    config = parse_config(
        {
            "alarms": {
                "no-reward": {"steps": 2, "action": "stop"},
                "slow": {"metric": "time/score", "at_least": 60},
            }
        }
    )
    assert config.alarms["no-reward"] == BUILT_IN["no-reward"].model_copy(
        update={"steps": 2, "action": "stop"}
    )
    assert config.alarms["slow"].at_least == 60 and len(config.alarms) == len(BUILT_IN) + 1
    with pytest.raises(ConfigError, match="did you mean 'no-reward'"):
        parse_config({"alarms": {"no-rewards": {"steps": 2}}})
    with pytest.raises(ConfigError, match="at_least or at_most"):
        parse_config({"alarms": {"slow": {"metric": "time/score"}}})


def test_an_alarm_is_heard_everywhere_and_survives_a_resume(recipe, tmp_path):
    """Twelve tokens never hold an answer: no rollout of the random model is right."""
    rule = {"no-reward": {"steps": 4}}
    rule |= {name: {"action": "ignore"} for name in ("all-truncated", "entropy-exploded")}
    one = recipe(alarms=rule, run={"dir": str(tmp_path / "one")})
    console = SimpleNamespace(lines=[])
    trainer = SRFTTrainer(args=one)
    trainer.console.print = lambda *text, **_: console.lines.append(" ".join(map(str, text)))
    trainer.train()
    (event,) = read_jsonl(tmp_path / "one/events.jsonl")
    assert event["step"] == 4 and "no-reward" in event["message"]
    assert any("alarm no-reward" in line for line in console.lines)
    assert "no-reward" in str(gather_summary(read_runs([tmp_path / "one"]))["runs"][0]["events"])
    # Stopped after the third step, when the streak stands at two at the last checkpoint.
    other = recipe(alarms=rule, run={"dir": str(tmp_path / "other")})
    trainer = SRFTTrainer(args=other)
    step = trainer._train_step
    trainer._train_step = lambda: (
        step() if trainer.train_state.step < 3 else (_ for _ in ()).throw(EOFError)
    )
    with pytest.raises(EOFError):
        trainer.train()
    SRFTTrainer(args=other).train(resume_from_checkpoint=True)
    assert read_jsonl(tmp_path / "other/events.jsonl") == [event]


def test_an_alarm_may_stop_the_run(recipe, tmp_path):
    config = recipe(alarms={"no-reward": {"steps": 3, "action": "stop"}})
    with pytest.raises(AlarmError, match=r"no-reward.*verifier"):
        SRFTTrainer(args=config).train()
    assert AlarmError.exit_code == 9
    assert checkpoints.list_checkpoints(tmp_path / "run/checkpoints")[-1].name == "step_000002"
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        checkpoints.load_newest(tmp_path / "nothing")
