"""SRFTTrainer as users of transformers and TRL know a trainer."""

from __future__ import annotations

import copy
import itertools
import json
import math
from functools import partial

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import (
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
)

from srft import SRFTConfig, SRFTTrainer
from srft.errors import CheckpointError, ConfigError, DataError, ModelError, RewardError
from srft.evaluation.open_model import environment_of, find_model
from srft.lab import lab_train
from srft.runs.files import read_jsonl
from srft.runs.run_dir import choose_run_dir
from srft.trainer.callbacks import TRL_NAMES
from srft.trainer.checkpoint import list_checkpoints
from srft.trainer.given import Given

KEEP = {"failed_demonstrations": "keep"}


def thirds(completions, **columns):
    return [float(len(text) % 3 == 0) for text in completions]


class Told(TrainerCallback):
    """Notes every event, and what it was given."""

    def __init__(self, steer=None):
        self.events, self.given, self.logs, self.steer = [], {}, [], steer

    def _note(self, event, args, state, control, **given):
        self.events.append((event, state.global_step))
        self.given[event] = {"args": args, "state": state, **given}
        if self.steer is not None:
            self.steer(event, state, control)

    def named(self, event):
        return [step for name, step in self.events if name == event]


for _event in (
    *("on_init_end", "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end"),
    *("on_step_begin", "on_step_end", "on_log", "on_evaluate", "on_save", "on_predict"),
):
    setattr(Told, _event, lambda self, *a, _event=_event, **k: self._note(_event, *a, **k))


@pytest.fixture
def start(recipe, rows):
    def build(callbacks=(), reward_funcs=thirds, **sections):
        sections = {"method": "grpo", "reward": KEEP, "train": {"steps": 3}, **sections}
        return SRFTTrainer(
            args=recipe(**sections),
            train_dataset=rows,
            eval_dataset=rows[:4],
            reward_funcs=reward_funcs,
            callbacks=list(callbacks),
        )

    return build


def test_callbacks_are_told_in_transformers_order(start):
    told = Told()
    trainer = start([told], evaluation={"every_steps": 2})
    trainer.train()
    assert told.events == [
        ("on_init_end", 0),
        ("on_train_begin", 0),
        ("on_epoch_begin", 0),
        *[("on_step_begin", 0), ("on_step_end", 1), ("on_log", 1)],
        *[("on_step_begin", 1), ("on_step_end", 2), ("on_log", 2)],
        *[("on_evaluate", 2), ("on_save", 2)],
        *[("on_step_begin", 2), ("on_step_end", 3), ("on_log", 3)],
        *[("on_evaluate", 3), ("on_save", 3)],
        *[("on_epoch_end", 3), ("on_train_end", 3)],
    ]
    given = told.given["on_step_end"]
    assert given["model"] is trainer.model and given["optimizer"] is trainer.optimizer
    assert given["processing_class"] is trainer.tokenizer
    assert isinstance(given["args"], TrainingArguments) and given["args"].max_steps == 3
    logs = told.given["on_log"]["logs"]
    assert {*TRL_NAMES.values(), "loss", "learning_rate"} <= logs.keys()
    assert logs["reward"] == logs["reward/mean"]
    metrics = told.given["on_evaluate"]["metrics"]
    assert {"eval_accuracy", "eval_reward", "eval_mean_tokens"} <= metrics.keys()
    assert [row["step"] for row in trainer.state.log_history] == [1, 2, 2, 3, 3]


def test_the_control_is_obeyed(start):
    def steer(event, state, control):
        if event == "on_step_end":
            control.should_evaluate = state.global_step == 1
            control.should_save = state.global_step == 3
            control.should_log = state.global_step != 2
            control.should_training_stop = state.global_step == 4

    told = Told(steer)
    trainer = start([told], train={"steps": 9}, run={"checkpoint_every": 2})
    result = trainer.train()
    assert result.step == 4 and result.stopped_by == "callback"
    assert result.model_dir is not None, (
        "a run that a callback ends is exported like one that is done"
    )
    assert told.named("on_evaluate") == [1, 4] and told.named("on_save") == [3, 4]
    assert told.named("on_log") == [1, 3, 4]
    assert len(read_jsonl(result.run_dir / "metrics.jsonl")) == 4, "the log has every step"


def test_an_epoch_is_ended_where_a_callback_says_so(start, rows):
    def steer(event, state, control):
        control.should_epoch_stop |= event == "on_step_end" and state.global_step == 2

    told = Told(steer)
    trainer = start([told], train={"steps": 4, "prompts_per_step": 4})
    trainer.train()
    assert told.named("on_epoch_begin") == [0, 2] and told.named("on_epoch_end") == [2, 4]
    assert trainer.sampler.epoch == 1 + 8 / len(rows)


def test_early_stopping_counts_over_a_resume(start, monkeypatch, tmp_path):
    """The reward of the evaluation never rises: patience 2 ends the run at the third evaluation, also where
    it was stopped between the first and the second."""
    monkeypatch.setattr("torch.optim.AdamW.step", lambda *a, **k: None)

    def run(name, steps, resume=None):
        stopping = EarlyStoppingCallback(early_stopping_patience=2)
        trainer = start(
            [stopping],
            train={"steps": steps},
            evaluation={"every_steps": 1, "best_metric": "eval/reward", "temperature": 0},
            run={"dir": str(name), "checkpoint_every": 1, "export": False},
        )
        return trainer.train(resume_from_checkpoint=resume)

    whole = run(tmp_path / "one", 8)
    assert (whole.step, whole.stopped_by) == (3, "callback")
    assert run(tmp_path / "two", 2).step == 2
    assert run(tmp_path / "two", 8, resume=True).step == 3


def test_a_checkpoint_that_is_not_there_is_not_a_beginning(start, tmp_path):
    trainer = start([], run={"dir": str(tmp_path / "run")})
    for path, words in (
        ("nowhere/checkpoint-3", "is no checkpoint"),
        ("step_000009", "there are none"),
    ):
        with pytest.raises(CheckpointError, match=words):
            trainer.train(resume_from_checkpoint=tmp_path / "run" / "checkpoints" / path)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_event_that_never_comes_is_said(start):
    class Waiting(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            pass

    trainer = start([Waiting])
    assert any("Waiting.on_substep_end is never called" in note for note in trainer.setup.notes)
    trainer.close()
    trainer = start([Told()])
    assert not any("never called" in note for note in trainer.setup.notes)
    assert trainer.pop_callback(Told) is not None and trainer.pop_callback(Told) is None
    trainer.close()


def test_it_is_used_after_training_and_gives_the_model_back_each_time(recipe, rows, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).train()
    before = [(type(m), m.training) for m in model.modules()]
    trainer = SRFTTrainer(
        model, thirds, recipe(method="grpo", reward=KEEP, train={"steps": 2}), rows, rows[:4]
    )
    result = trainer.train()
    assert [(type(m), m.training) for m in model.modules()] == before
    last = read_jsonl(result.run_dir / "evaluation.jsonl")[-1]
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == last["accuracy"], "same seed, same weights"
    assert [(type(m), m.training) for m in model.modules()] == before
    found = trainer.predict(rows[:3])
    assert len(found.predictions) == 3 and found.label_ids == [row["answer"] for row in rows[:3]]
    for row, one in zip(rows, found.predictions, strict=False):
        assert one["prompt"] == row["prompt"]
        assert one["reward"] == thirds([one["completion"]])[0] == one["rewards"]["thirds"]
    assert found.metrics["test_reward"] == sum(p["reward"] for p in found.predictions) / 3
    folder = trainer.save_model(result.run_dir)
    saved = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert (folder / "metrics.jsonl").is_file() and (folder / "checkpoints").is_dir()
    with pytest.raises(ConfigError, match="already holds a run"):
        trainer.train()
    assert trainer.train(resume_from_checkpoint=True).step == 2


def test_a_resume_from_a_named_checkpoint_drops_what_came_after(start):
    run = {"checkpoint_every": 1, "keep_checkpoints": 5, "export": False}
    whole = start(run=run, train={"steps": 4}).train()
    lines = read_jsonl(whole.run_dir / "metrics.jsonl")
    checkpoints = whole.run_dir / "checkpoints"
    with pytest.raises(CheckpointError, match="no such checkpoint; there are step_000001"):
        start(run=run, train={"steps": 4}).train(str(checkpoints / "step_000009"))
    with pytest.raises(CheckpointError, match="no checkpoint of the run in"):
        start(run=run, train={"steps": 4}).train(str(whole.run_dir.parent / "other/checkpoint-2"))
    trainer = start(run=run, train={"steps": 3})
    assert trainer.train(str(checkpoints / "step_000002")).step == 3
    assert [p.name for p in sorted(checkpoints.iterdir())] == [f"step_00000{n}" for n in (1, 2, 3)]
    again = read_jsonl(whole.run_dir / "metrics.jsonl")
    assert [row["loss"] for row in again] == [row["loss"] for row in lines[:3]]


def test_figures_of_ones_own_are_logged(start):
    class Mine(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            trainer.log({"mine": 10.0 + state.global_step})

    told = Told()
    trainer = start([Mine(), told])
    result = trainer.train()
    assert [r["user/mine"] for r in read_jsonl(result.run_dir / "metrics.jsonl")] == [10, 11, 12]
    assert [row["mine"] for row in trainer.state.log_history if "mine" in row] == [10, 11, 12]


def test_an_optimizer_of_ones_own(recipe, rows, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    args = recipe(method="sft", train={"steps": 3}, run={"export": False})
    trainer = SRFTTrainer(model, None, args, rows, optimizers=(optimizer, schedule))
    result = trainer.train()
    rates = [row["learning_rate"] for row in read_jsonl(result.run_dir / "metrics.jsonl")]
    assert rates == [0.5, 0.25, 0.125] and trainer.optimizer is optimizer

    other = AutoModelForCausalLM.from_pretrained(tiny_model)
    part = torch.optim.SGD(other.lm_head.parameters(), lr=0.5)
    with pytest.raises(ConfigError, match=r"does not hold model\.embed_tokens|does not hold model"):
        SRFTTrainer(
            other, None, recipe(method="sft", run={"dir": None}), rows, optimizers=(part, None)
        )
    whole = torch.optim.SGD(other.parameters(), lr=0.5)
    stages = [{"method": "sft", "steps": 1}, {"method": "sft", "steps": 1, "learning_rate": 1e-5}]
    with pytest.raises(ConfigError, match=r"stages\[1\]\.learning_rate: an optimizer is given"):
        SRFTTrainer(other, None, recipe(stages=stages), rows, optimizers=(whole, None))
    with pytest.raises(ConfigError, match="a scheduler is given without"):
        SRFTTrainer(other, None, recipe(method="sft"), rows, optimizers=(None, schedule))


SCHEDULERS = {
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 - step / 4),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, total_steps=5),
    "none": lambda o: None,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_ones_own_goes_on_at_its_rate_after_a_resume(
    recipe, rows, tiny_model, tmp_path, name
):
    kind = torch.optim.AdamW if name == "one cycle" else torch.optim.SGD

    def used(folder, steps, resume=None):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        optimizer = kind(model.parameters(), lr=0.5)
        seen = []

        def see(*_):
            (group,) = optimizer.param_groups
            seen.append((group["lr"], group.get("betas")))

        optimizer.register_step_pre_hook(see)
        args = recipe(
            method="sft",
            train={"steps": steps, "warmup_steps": 4},
            run={"dir": str(tmp_path / folder), "export": False},
        )
        optimizers = (optimizer, SCHEDULERS[name](optimizer))
        SRFTTrainer(model, None, args, rows, optimizers=optimizers).train(resume)
        return seen

    whole = used("whole", 4)
    assert used("part", 2) + used("part", 4, resume=True) == whole
    assert len({rate for rate, _ in whole}) == 4
    one, two = (read_jsonl(tmp_path / folder / "metrics.jsonl") for folder in ("whole", "part"))
    assert [row["loss"] for row in one] == [row["loss"] for row in two]
    assert [row["learning_rate"] for row in two] == [rate for rate, _ in whole]


class Counting(torch.optim.SGD):
    """Has its count of steps and what it makes of its rate in its groups, as Prodigy and others do."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.param_groups[0].update(k=0, d=1.0)

    def step(self, closure=None):
        group = self.param_groups[0]
        group["k"] += 1
        group["d"] /= 1 + group["k"]
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-group["lr"] * group["d"])


def test_an_optimizer_that_keeps_its_state_in_its_groups_goes_on_after_a_resume(
    recipe, rows, tiny_model, tmp_path
):
    def trained(folder, steps, resume=None):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        args = recipe(
            method="sft",
            train={"steps": steps, "schedule": "constant"},
            run={"dir": str(tmp_path / folder), "export": False},
        )
        optimizer = Counting(model.parameters())
        SRFTTrainer(model, None, args, rows, optimizers=(optimizer, None)).train(resume)
        return model.state_dict(), optimizer.param_groups[0]["k"]

    trained("part", 2)
    (ours, count), (whole, _) = trained("part", 4, True), trained("whole", 4)
    assert count == 4
    assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())


# -- data ---------------------------------------------------------------------------------------


def endless(counted):
    for number in itertools.count():
        counted.append(number)
        yield dict(lab_train(40)[number % 40])


@pytest.mark.parametrize("kind", ["generator", "datasets"])
def test_an_endless_stream_is_read_as_far_as_the_run_needs(recipe, kind):
    counted = []
    data = endless(counted)
    if kind == "datasets":
        data = IterableDataset.from_generator(endless, gen_kwargs={"counted": counted})
    args = recipe(method="sft", train={"steps": 3, "prompts_per_step": 2})
    trainer = SRFTTrainer(args=args, train_dataset=data)
    assert len(trainer.setup.train) == 6
    if kind == "generator":
        assert len(counted) == 6
    trainer.close()
    with pytest.raises(
        DataError, match=r"a stream, which need not end: set args\.data\.eval_limit"
    ):
        SRFTTrainer(args=args, train_dataset=list(lab_train(4)), eval_dataset=endless([]))
    limited = recipe(method="sft", data={"eval_limit": 3})
    trainer = SRFTTrainer(args=limited, train_dataset=list(lab_train(4)), eval_dataset=endless([]))
    assert len(trainer.setup.evaluation["eval"].problems) == 3
    trainer.close()


def test_dictionaries_of_datasets(recipe, rows):
    split = {
        name: Dataset.from_list(rows[a:b]) for name, a, b in [("train", 0, 9), ("test", 9, 12)]
    }
    trainer = SRFTTrainer(args=recipe(method="sft"), train_dataset=DatasetDict(split))
    assert len(trainer.setup.train) == 9
    assert len(trainer.setup.evaluation["eval"].problems) == 3
    trainer.close()
    both = {"easy": rows[:2], "hard": rows[2:5]}
    trainer = SRFTTrainer(args=recipe(method="sft"), train_dataset=rows, eval_dataset=both)
    assert {k: len(v.problems) for k, v in trainer.setup.evaluation.items()} == {
        "easy": 2,
        "hard": 3,
    }
    assert {"eval_easy_accuracy", "eval_hard_reward"} <= trainer.evaluate().keys()
    trainer.close()
    with pytest.raises(DataError, match="the splits all and none is called train"):
        SRFTTrainer(args=recipe(method="sft"), train_dataset={"all": rows})


# -- what is refused -----------------------------------------------------------------------------


def test_rewards_named_twice_are_refused(recipe, rows):
    with pytest.raises(
        ConfigError, match=r"reward_funcs are given and the recipe names .*\(exact\)"
    ):
        SRFTTrainer(args=recipe(), train_dataset=rows, reward_funcs=thirds)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"train": {"stepz": 5}}, r"args: train\.stepz: unknown key; did you mean 'steps'"),
        ({"train": {"steps": "many"}}, r"args: train\.steps: Input should be a valid integer"),
        (
            {"learning_rate": 1e-5},
            r"args: learning_rate: unknown key; did you mean 'train\.learning_rate'\?",
        ),
        (7, "args: is of type int; give an SRFTConfig, a dict of its sections"),
    ],
)
def test_wrong_args_get_our_messages(args, words, rows):
    with pytest.raises(ConfigError, match=words):
        SRFTTrainer(args=args, train_dataset=rows)


def test_a_wrong_recipe_gets_them_where_it_is_made():
    with pytest.raises(
        ConfigError, match=r"SRFTConfig: train\.stepz: unknown key; did you mean 'steps'"
    ):
        SRFTConfig(train={"stepz": 5})
    assert SRFTConfig(train={"steps": 5}).train.steps == 5


def test_a_dict_of_sections_is_a_recipe(recipe, rows):
    values = recipe(method="sft", train={"steps": 1}).model_dump(exclude_unset=True)
    result = SRFTTrainer(args=values, train_dataset=rows).train()
    environment = json.loads((result.run_dir / "environment.json").read_text())
    digest = Given(train=rows).described()["data_digest"]
    told = {"data": [f"{type(rows).__name__} given in Python"], "data_digest": digest}
    assert environment["given"] == told
    assert not environment_of(find_model(result.run_dir)).tools  # data are no tools
    assert math.isfinite(result.metrics["loss"])


def _near(scale):
    def near(completions, **kwargs):
        return [-scale * len(text) for text in completions]

    return near


def _short(completions, **kwargs):
    return [-float(len(text)) for text in completions]


class _Longest:
    def __init__(self, most):
        self.most = most

    def __call__(self, completions, **kwargs):
        return [float(len(text) < self.most) for text in completions]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rewards": _short}, {"rewards": _near(1.0)}),
        ({"rewards": _near(1.0)}, {"rewards": _near(2.0)}),
        ({"rewards": [_short, "math"]}, {"rewards": [_short, "exact"]}),
        ({"rewards": [_short], "weights": [1.0]}, {"rewards": [_short], "weights": [2.0]}),
        ({"rewards": partial(_short, most=1)}, {"rewards": partial(_short, most=2)}),
        ({"rewards": _Longest(3)}, {"rewards": _Longest(4)}),
        ({"train": lab_train(2, 0)}, {"train": lab_train(2, 1)}),
        ({"train": {"train": lab_train(2, 0)}}, {"train": {"train": lab_train(3, 0)}}),
        ({"evaluation": lab_train(2, 0)}, {"evaluation": lab_train(2, 1)}),
    ],
)
def test_what_is_given_is_told_apart_from_what_another_run_was_given(one, other):
    """Reports took runs with other rewards and data for seeds of one method."""
    assert Given(**one).described() != Given(**other).described()
    assert Given(**one).described() == Given(**copy.deepcopy(one)).described()


def test_functions_without_source_and_streams_are_named():
    stream = iter(lab_train(2, 0))
    assert Given(rewards=len, train=stream).described() == {
        "rewards": ["len"],
        "data": ["list_iterator given in Python"],
    }
    assert len(list(stream)) == len(lab_train(2, 0)), "a stream may be read once"


def test_an_evaluation_that_fails_at_the_end_loses_no_step(start):
    class Fails(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_loss"]  # there is none

    trainer = start([Fails()], run={"checkpoint_every": 0})
    with pytest.raises(KeyError):
        trainer.train()
    assert [p.name for p in list_checkpoints(trainer.run.checkpoints)] == ["step_000003"]
    again = start([], run={"checkpoint_every": 0})
    assert again.train(resume_from_checkpoint=True).evaluations[-1]["step"] == 3


def test_the_same_trainer_does_not_begin_anew_with_weights_that_have_moved(start):
    calls = []

    def judge(completions, **columns):
        calls.append(len(completions))
        if len(calls) > 2:
            raise ValueError("judge was down")
        return [float(i % 2) for i in range(len(completions))]

    trainer = start([], reward_funcs=judge, run={"checkpoint_every": 0})
    with pytest.raises(RewardError):
        trainer.train()
    with pytest.raises(CheckpointError, match="before a checkpoint was written"):
        trainer.train(resume_from_checkpoint=True)
    assert len(read_jsonl(trainer.run.metrics)) == trainer.train_state.step > 0


def test_a_callback_that_is_added_later_is_given_arguments_too(start):
    seen = []

    class Looks(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append(args.output_dir)

    trainer = start()
    trainer.add_callback(Looks)
    trainer.train()
    assert seen == [str(trainer.run.path)]


def test_what_scripts_call_at_their_end(start):
    trainer = start()
    result = trainer.train()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", {"a": 1})
    trainer.save_metrics("eval", {"b": 2.5})
    trainer.save_state()
    written = json.loads((trainer.run.path / "all_results.json").read_text())
    assert written == {"a": 1, "b": 2.5}
    state = json.loads((trainer.run.path / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_saving_among_other_files_leaves_them(start, tmp_path, monkeypatch):
    """As transformers' save_model does; the folder was replaced as a whole, whatever it held."""
    trainer = start()
    (trainer.run.model).mkdir()
    (trainer.run.model / "mine.txt").write_text("x")
    trainer.train()
    place = tmp_path / "outputs"
    (place / "run1").mkdir(parents=True)
    (place / "run1" / "metrics.jsonl").write_text("x")
    (place / "model-00001-of-00002.safetensors").write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(place)
    for folder in (place, link, trainer.run.model):
        trainer.save_model(folder)
        assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0
    assert (place / "run1" / "metrics.jsonl").is_file() and link.is_symlink()
    assert not (place / "model-00001-of-00002.safetensors").exists()
    assert (trainer.run.model / "mine.txt").is_file()
    monkeypatch.chdir(place)
    trainer.save_model(".")
    trainer.save_model(tmp_path / "own")
    first = (tmp_path / "own").stat().st_ino
    trainer.save_model(tmp_path / "own")  # nothing but a model: replaced as a whole
    assert (tmp_path / "own").stat().st_ino != first
    assert sorted(p.name for p in place.iterdir() if p.name[0] == ".") == []
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert trainer.save_model("~/final") == tmp_path / "home" / "final"


def test_runs_begun_in_one_second_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = []
    for _ in range(3):
        run = choose_run_dir(None, ["srft"])
        run.path.mkdir(parents=True)
        made.append(run.path)
    assert len(set(made)) == 3
    assert len(choose_run_dir(None, ["srft-official"] * 40).path.name) < 130
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choose_run_dir("~/out", []).path == tmp_path / "out"
    with pytest.raises(ModelError, match="the model of this run is"):
        folder = tmp_path / "run" / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        SRFTTrainer(model=str(tmp_path / "run"), args={"data": {"train": "lab"}})
