"""The Python class, as users of TRL would call it."""

from __future__ import annotations

import math

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from srft import SRFTConfig, SRFTTrainer
from srft.runs.files import read_jsonl


def test_the_trainer_takes_a_model_a_dataset_and_a_function(recipe, rows, tiny_model):
    seen = {}

    def mine(prompts, completions, answer, family, completion_ids, **columns):
        seen.update(prompt=prompts[0], completion=completions[0], family=family[0], more=columns)
        return [float(len(ids) % 2) for ids in completion_ids]

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    args: SRFTConfig = recipe(train={"steps": 2}, reward={"failed_demonstrations": "keep"})
    args = args.model_copy(update={"data": args.data.model_copy(update={"train": "unused"})})
    trainer = SRFTTrainer(
        model=model,
        train_dataset=Dataset.from_list(rows),
        reward_funcs=mine,
        args=args,
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    result = trainer.train()
    assert trainer.model is model
    assert isinstance(seen["prompt"], str) and isinstance(seen["completion"], str)
    assert seen["family"] in {row["family"] for row in rows}
    assert all(math.isfinite(row["loss"]) for row in read_jsonl(result.run_dir / "metrics.jsonl"))


def test_trl_reward_functions_work_unchanged(recipe, rows):
    from trl.rewards import get_soft_overlong_punishment, think_format_reward

    chat = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "demonstration": f"<think>{row['demonstration']}</think> {row['answer']}",
        }
        for row in rows
    ]
    punish = get_soft_overlong_punishment(max_completion_len=12, soft_punish_cache=4)
    trainer = SRFTTrainer(
        train_dataset=chat,
        reward_funcs=[think_format_reward, punish],
        args=recipe(train={"steps": 1}, reward={"failed_demonstrations": "keep"}),
    )
    result = trainer.train()
    (metrics,) = read_jsonl(result.run_dir / "metrics.jsonl")
    assert metrics["reward/mean"] <= 1.0 and metrics["train/tokens"] > 0


def test_the_exported_model_is_the_trained_one(recipe):
    trainer = SRFTTrainer(args=recipe())
    result = trainer.train()
    again = AutoModelForCausalLM.from_pretrained(result.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(result.model_dir)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids = tokenizer("a = 1 + 1 ; a ?", return_tensors="pt").input_ids
    assert torch.allclose(again(ids).logits, trainer.model(ids).logits, atol=1e-5)
    card = (result.model_dir / "README.md").read_text()
    assert "srft (6 steps)" in card and "learning_rate" in card


def test_two_runs_of_one_recipe_are_the_same_to_the_bit(recipe, tmp_path):
    states = []
    for name in ("one", "two"):
        trainer = SRFTTrainer(args=recipe(run={"dir": str(tmp_path / name)}, train={"steps": 2}))
        trainer.train()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
