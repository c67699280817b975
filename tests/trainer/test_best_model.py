"""Evaluation during training, and the model that was best at it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srft.errors import ConfigError
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
