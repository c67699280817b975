"""Evaluation during training, and the model that was best at it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from srft.errors import ConfigError, DataError
from srft.runs.files import read_jsonl
from srft.trainer import trainer as trainer_module
from srft.trainer.api import SRFTTrainer
from srft.trainer.evaluating import Evaluator, measured


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("mode", "figures", "best"), [
    ("max", [0.1, 0.5, 0.3], 4),
    ("min", [0.1, 0.5, 0.05], 6),
    ("max", [math.nan, 0.5, math.nan], 4),
])  # fmt: skip
def test_the_best_model_is_the_one_of_the_best_evaluation(
    recipe, tmp_path, monkeypatch, mode, figures, best
):
    told = iter(figures)
    evaluate = Evaluator.evaluate

    def scripted(self, step, progress, stop):
        metrics = evaluate(self, step, progress, stop)
        names = measured("lab", [i.example for i in self._setup.evaluation["lab"].problems], 1)
        assert set(metrics) == {f"eval/{name}" for name in ("accuracy", *names)}
        return {**metrics, "eval/lab/mean_tokens": next(told)}

    monkeypatch.setattr(Evaluator, "evaluate", scripted)
    at = {}
    export = SRFTTrainer._export

    def remembered(self, folder):
        written = export(self, folder)
        at[self.train_state.step] = weights(folder)
        return written

    monkeypatch.setattr(trainer_module.TrainingLoop, "_export", remembered)
    evaluation = {"every_steps": 2, "best_metric": "lab/mean_tokens", "best_mode": mode}
    SRFTTrainer(args=recipe(data={"eval": "lab", "eval_limit": 6}, evaluation=evaluation)).train()
    run = tmp_path / "run"
    assert [r["step"] for r in read_jsonl(run / "evaluation.jsonl")] == [2, 4, 6]
    kept = weights(run / "best")
    assert all(torch.equal(kept[name], at[best][name]) for name in kept)
    last = weights(run / "model")
    assert best == 6 or not all(torch.equal(kept[name], last[name]) for name in kept)


def test_a_figure_that_is_not_measured_is_refused_before_training(recipe):
    evaluation = {"every_steps": 2, "best_metric": "lab/accuracy/chian"}
    with pytest.raises(ConfigError, match="did you mean 'lab/accuracy/chain'"):
        SRFTTrainer(args=recipe(data={"eval": "lab", "eval_limit": 6}, evaluation=evaluation))


@pytest.fixture
def run(recipe, tmp_path, monkeypatch):
    """``run(figures, steps, resume, **evaluation)``: the trainer of a run, or of its resume, that is
    evaluated after every step and then told these figures."""

    def build(figures, steps, resume=None, metric="lab/mean_tokens", limit=6, **evaluation):
        told = iter(figures)
        figure = {"eval/accuracy": 0.0, "eval/lab/mean_tokens": 0.0}
        monkeypatch.setattr(
            Evaluator, "evaluate", lambda *_: {**figure, f"eval/{metric}": next(told)}
        )
        trainer = SRFTTrainer(
            args=recipe(
                method="sft",
                data={"eval": "lab", "eval_limit": limit},
                evaluation={"every_steps": 1, "best_metric": metric, **evaluation},
                train={"steps": steps},
                run={"checkpoint_every": 1, "keep_checkpoints": 9, "export": False},
            )
        )
        trainer.train(resume and (resume is True or tmp_path / "run/checkpoints" / resume))
        return trainer

    return build


def exported_after(folder: Path) -> int:
    (line,) = [line for line in (folder / "README.md").read_text().split("\n") if "in all" in line]
    return int(line.split(" steps in all")[0].split()[-1])


@pytest.mark.parametrize(("changed", "best"), [
    ({}, 50.0),
    ({"metric": "accuracy"}, 3.0),
    ({"best_mode": "min"}, 2.0),
    ({"limit": 5}, 3.0),
])  # fmt: skip
def test_a_best_of_another_figure_is_not_compared_with(run, tmp_path, changed, best):
    run([1.0, 50.0], 2)
    trainer = run([3.0, 2.0], 4, True, **changed)
    assert trainer.train_state.best == trainer.state.best_metric == best
    assert exported_after(tmp_path / "run/best") == {50.0: 2, 3.0: 3, 2.0: 4}[best]


def test_a_checkpoint_that_does_not_know_of_what_its_best_is_goes_on(run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "measure", None)
        run([1.0, 50.0], 2)
    assert run([3.0], 3, True).train_state.best == 50.0


def test_a_best_model_of_a_step_that_is_to_be_taken_again_is_removed(run, tmp_path, capsys):
    best = tmp_path / "run/best"
    run([0.1, 0.5, 0.3, 0.9], 4)
    assert exported_after(best) == 4
    trainer = run([], 3, "step_000003")
    assert not best.exists() and trainer.train_state.best is trainer.state.best_metric is None
    said = "".join(capsys.readouterr()).replace("\n", " ")
    assert "best held the model of a later step and was removed" in said
    assert run([0.2], 4, True).train_state.best == 0.2 and exported_after(best) == 4


def test_a_best_model_of_an_earlier_step_stays(run, tmp_path):
    run([0.1, 0.5, 0.3, 0.2], 4)
    assert run([0.4], 4, "step_000003").train_state.best == 0.5
    assert exported_after(tmp_path / "run/best") == 2


def test_the_base_is_not_the_best_that_was_trained(run, tmp_path):
    """As transformers has it; nothing of it would be kept, and the last model taken for the best."""
    trainer = run([0.9, 0.5, 0.3], 2, at_start=True)
    assert trainer.train_state.best == trainer.state.best_metric == 0.5
    assert exported_after(tmp_path / "run/best") == 1


def test_a_resume_that_is_refused_leaves_what_came_after_its_checkpoint(
    run, recipe, tmp_path, rows
):
    run([0.1, 0.5, 0.9], 3)
    folder = tmp_path / "run"
    args = recipe(
        method="sft", data={"limit": 19}, train={"steps": 3}, evaluation={"best_metric": None}
    )
    with pytest.raises(DataError, match="the dataset now has"):
        SRFTTrainer(args=args).train(folder / "checkpoints/step_000001")
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["step_000001", "step_000002", "step_000003"]
    assert exported_after(folder / "best") == 3


@pytest.fixture
def loads_best(tmp_path, rows, monkeypatch):
    """``loads_best(model, **arguments)``: a trainer that is to end with the best model, that of step 1."""
    trl = pytest.importorskip("trl")
    told = iter([0.9, 0.5])
    evaluate = Evaluator.evaluate
    monkeypatch.setattr(
        Evaluator, "evaluate", lambda *a: {**evaluate(*a), "eval/eval/reward": next(told)}
    )

    def build(model, **more):
        args = trl.GRPOConfig(
            output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=6,
            per_device_eval_batch_size=6, num_generations=3, max_completion_length=12,
            learning_rate=1e-2, lr_scheduler_type="constant", eval_strategy="steps",
            eval_steps=1, save_steps=1,
            load_best_model_at_end=True, metric_for_best_model="eval_reward", use_cpu=True,
            bf16=False, report_to="none", **more,
        )  # fmt: skip
        return SRFTTrainer(
            model=model,
            args=args,
            train_dataset=rows[:8],
            eval_dataset=rows[:2],
            reward_funcs=lambda completions, **_: [float(len(c) % 3) for c in completions],
        )

    return build


def test_the_best_model_with_code_of_its_own_is_loaded_at_the_end(
    loads_best, tiny_model, tmp_path, monkeypatch
):
    """By its own class: Auto classes would ask at the terminal whether its code may run, and fail."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code")
    )
    folder = shutil.copytree(tiny_model, tmp_path / "own")
    (folder / "modeling_own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "OwnForCausalLM"}
    config["auto_map"] = {auto: f"modeling_own.{name}" for auto, name in classes.items()}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    trainer = loads_best(str(folder), trust_remote_code=True)
    trainer.train()
    best, last = weights(tmp_path / "run/best"), weights(tmp_path / "run/model")
    ours = trainer.model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in best.items())
    assert not all(torch.equal(ours[name], tensor) for name, tensor in last.items())


OWN_CODE = """
from transformers import Qwen3Config, Qwen3ForCausalLM

class OwnConfig(Qwen3Config):
    model_type = "own"

class OwnForCausalLM(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


def test_the_best_of_a_model_with_adapters_is_refused_before_training(loads_best, tiny_model):
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="load_best_model_at_end: not with adapters"):
        loads_best(wrapped)
