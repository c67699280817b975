"""Scripts for TRL's GRPOTrainer with the class's name changed, and what GRPOConfig's fields become."""

from __future__ import annotations

import dataclasses
import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from srft import SRFTTrainer
from srft.errors import ConfigError
from srft.objective.methods import get_method
from srft.runs.files import read_jsonl
from srft.trainer.trl_arguments import READ, SAME, WITHOUT_EFFECT, recipe_of

ON_CPU = {"use_cpu": True, "bf16": False}

# Three scripts with the calls of TRL's own (examples/scripts/gspo.py, trl/scripts/grpo.py and
# grpo_continuous_batching.py as of 1.16): parsers, reward functions, adapters, callbacks, what they do
# after training.
WITH_ADAPTERS = """
import torch
from datasets import load_dataset
from trl import (CLASS GRPOConfig, ModelConfig, ScriptArguments, TrlParser, get_peft_config,
                 get_quantization_config)
from trl.rewards import accuracy_reward, think_format_reward

parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
script_args, training_args, model_args = parser.parse_args_and_config()
training_args.model_init_kwargs = dict(
    revision=model_args.model_revision, attn_implementation=model_args.attn_implementation,
    dtype=getattr(torch, model_args.dtype),
)
train_dataset, eval_dataset = load_dataset("some/problems", split=["train[:5%]", "test[:5%]"])

def make_conversation(example):
    return {"prompt": [{"role": "system", "content": "Think."},
                       {"role": "user", "content": example["problem"]}]}

train_dataset = train_dataset.map(make_conversation).remove_columns(["messages", "problem"])
eval_dataset = eval_dataset.map(make_conversation).remove_columns(["messages", "problem"])
trainer = TRAINER(
    model=model_args.model_name_or_path, args=training_args,
    reward_funcs=[think_format_reward, accuracy_reward],
    train_dataset=train_dataset, eval_dataset=eval_dataset,
    quantization_config=get_quantization_config(model_args), peft_config=get_peft_config(model_args),
)
trainer.train()
trainer.save_model(training_args.output_dir)
if training_args.push_to_hub:
    trainer.push_to_hub(dataset_name=script_args.dataset_name)
"""
WITH_A_STREAM = """
from datasets import load_dataset
from transformers import EarlyStoppingCallback
from trl import CLASS GRPOConfig, ModelConfig, ScriptArguments, TrlParser, get_peft_config
from trl.rewards import get_soft_overlong_punishment

parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
script_args, training_args, model_args = parser.parse_args_and_config()
dataset = load_dataset(script_args.dataset_name, name=None, streaming=True)
trainer = TRAINER(
    model=model_args.model_name_or_path,
    reward_funcs=[get_soft_overlong_punishment(max_completion_len=8, soft_punish_cache=4)],
    args=training_args,
    train_dataset=dataset[script_args.dataset_train_split],
    eval_dataset=list(dataset[script_args.dataset_test_split]),
    peft_config=get_peft_config(model_args),
    callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
)
trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
trainer.accelerator.print("Training completed.")
trainer.save_model(training_args.output_dir)
print(trainer.evaluate()["eval_reward"], trainer.state.global_step)
"""
WITH_A_MODEL = """
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import CLASS GRPOConfig, RichProgressCallback

def correctness_reward(completions, reference_answer, **kwargs):
    return [float(ref in text[0]["content"]) for text, ref in zip(completions, reference_answer)]

def reward_len(completions, trainer_state, log_metric, **kwargs):
    log_metric("seen", trainer_state.global_step)
    return [-abs(5 - len(text[0]["content"])) / 5 for text in completions]

def make_conversation(example):
    return {"prompt": [{"role": "user", "content": example["problem"]}],
            "reference_answer": example["solution"]}

dataset = load_dataset("some/problems", "main", split="train")
dataset = dataset.map(make_conversation, remove_columns=dataset.column_names)
name = MODEL
trainer = TRAINER(
    model=AutoModelForCausalLM.from_pretrained(name),
    processing_class=AutoTokenizer.from_pretrained(name),
    reward_funcs=[correctness_reward, reward_len],
    args=GRPOConfig(output_dir="out", max_steps=2, per_device_train_batch_size=4, num_generations=2,
                    max_completion_length=8, logging_steps=1, beta=0.01, reward_weights=[1.0, 0.5],
                    loss_type="dr_grpo", scale_rewards="none", use_cpu=True, bf16=False),
    train_dataset=dataset,
    callbacks=[RichProgressCallback()],
)
trainer.train()
trainer.model.generate(trainer.processing_class("1 + 1", return_tensors="pt").input_ids, max_new_tokens=2)
trainer.save_model("out/final")
"""
COMMON = (
    *("--output_dir", "out", "--max_steps", "2", "--num_generations", "2", "--logging_steps", "1"),
    *("--max_completion_length", "8", "--per_device_train_batch_size", "4", "--use_cpu"),
    *("--bf16", "false", "--per_device_eval_batch_size", "2"),
)
SCRIPTS = {
    "adapters": (
        WITH_ADAPTERS,
        (*COMMON, "--use_peft", "--lora_target_modules", "q_proj", "v_proj", "--log_completions"),
    ),
    "a stream and early stopping": (
        WITH_A_STREAM,
        (
            *(*COMMON, "--eval_strategy", "steps", "--eval_steps", "1", "--dataset_name", "x"),
            *("--metric_for_best_model", "reward", "--load_best_model_at_end", "--save_steps", "1"),
        ),
    ),
    "a model and a callback": (WITH_A_MODEL, ()),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_for_trl_run_with_the_class_changed(name, tiny_model, rows, tmp_path, monkeypatch):
    made = [
        {
            "problem": row["prompt"],
            "solution": row["answer"],
            "messages": [],
            "prompt": row["prompt"],
        }
        for row in rows
    ]

    def load_dataset(path, *more, split=None, streaming=False, **settings):
        data = Dataset.from_list(made)
        if isinstance(split, list):
            return [data, data.select(range(4))]
        if split is not None:
            return data
        parts = {"train": data, "test": data.select(range(4))}
        return (
            {k: v.to_iterable_dataset() for k, v in parts.items()}
            if streaming
            else DatasetDict(parts)
        )

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    text, arguments = SCRIPTS[name]
    path = tmp_path / "script.py"
    changed = text.replace("TRAINER(", "SRFTTrainer(").replace("CLASS ", "")
    path.write_text(
        "from srft import SRFTTrainer\n" + changed.replace("MODEL", repr(str(tiny_model)))
    )
    named = ("--model_name_or_path", str(tiny_model)) if arguments else ()
    monkeypatch.setattr(sys, "argv", [str(path), *named, *arguments])
    trainer = runpy.run_path(str(path), run_name="__main__")["trainer"]
    assert isinstance(trainer, SRFTTrainer)
    assert len(read_jsonl(tmp_path / "out/metrics.jsonl")) == 2
    folder = tmp_path / "out" / ("final" if name == "a model and a callback" else "")
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "qwen3"
    assert trainer.args.method == "grpo" and trainer.args.train.prompts_per_step == 2


def test_trls_own_command_runs_with_the_class_changed(tiny_model, rows, tmp_path, monkeypatch):
    """The file of the installed TRL that `trl grpo` runs: nothing but the class's name differs."""
    own = Path(importlib.util.find_spec("trl.scripts.grpo").origin).read_text()
    changed = own.replace(
        "from trl import GRPOTrainer, ", "from srft import SRFTTrainer\n    from trl import "
    )
    changed = changed.replace("trainer = GRPOTrainer(", "trainer = SRFTTrainer(")
    assert changed.count("SRFTTrainer") == 2 and "trainer.end()" in changed
    data = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": r["prompt"]}], "solution": r["answer"]}
            for r in rows
        ]
    )
    parts = DatasetDict({"train": data, "test": data.select(range(4))})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: parts)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(changed)
    (tmp_path / "my_rewards.py").write_text(
        "def short(completions, **_): return [-float(len(c[0]['content'])) for c in completions]\n"
    )
    more = (
        "--dataset_name",
        "x",
        "--reward_funcs",
        "my_rewards.short",
        "accuracy_reward",
        "--use_peft",
    )
    arguments = [
        "--model_name_or_path",
        str(tiny_model),
        *COMMON,
        *more,
        "--eval_strategy",
        "steps",
    ]
    monkeypatch.setattr(
        sys, "argv", ["script.py", *arguments, "--eval_steps", "1", "--lora_r", "2"]
    )
    runpy.run_path(str(tmp_path / "script.py"), run_name="__main__")
    assert len(read_jsonl(tmp_path / "out/metrics.jsonl")) == 2
    assert (tmp_path / "out/adapter_config.json").exists() or (
        tmp_path / "out/config.json"
    ).exists()


def test_trls_rloo_is_refused_with_what_differs():
    from trl import RLOOConfig

    with pytest.raises(ConfigError, match=r"RLOOConfig; give SRFTConfig\(method='rloo'.* KL term"):
        SRFTTrainer(args=RLOOConfig(**ON_CPU))


def test_every_field_is_read_named_or_refused_when_it_is_set():
    fields = {field.name for field in dataclasses.fields(GRPOConfig)}
    groups = [SAME.keys(), READ, WITHOUT_EFFECT]
    assert all(group <= fields for group in groups), "fields of the installed TRL"
    assert sum(map(len, groups)) == len(set().union(*groups)), "each stands in one group"
    with pytest.raises(ConfigError, match=r"has no counterpart here: num_iterations=2, top_p=0\.9"):
        recipe_of(GRPOConfig(max_steps=1, num_iterations=2, top_p=0.9, **ON_CPU), [])
    recipe, notes = recipe_of(GRPOConfig(max_steps=1, run_name="mine", **ON_CPU), [])
    assert notes == ["GRPOConfig.run_name='mine' has no effect here"]
    assert recipe.objective.average == "token" and recipe.model.gradient_checkpointing


def test_steps_and_batches_are_those_that_trl_makes_of_it(tiny_model, tmp_path):
    """TRL's own counts, from its trainer: prompts of one generation batch, and optimizer steps."""
    data = Dataset.from_list([{"prompt": f"{n} + 1"} for n in range(24)])
    settings = {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 4, "num_generations": 2,
        "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_train_epochs": 3,
        "report_to": "none", "max_completion_length": 4, **ON_CPU,
    }  # fmt: skip
    args = GRPOConfig(**settings)
    theirs = GRPOTrainer(
        model=str(tiny_model), reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args, train_dataset=data,
    )  # fmt: skip
    recipe, _ = recipe_of(args, data)
    batch = next(iter(theirs.get_train_dataloader()))
    assert recipe.train.prompts_per_step == len({row["prompt"] for row in batch})
    assert recipe.train.optimizer_steps_per_batch == 2
    theirs.args.max_steps = -1
    counted = theirs.set_initial_training_values(args, theirs.get_train_dataloader())
    max_steps = counted[-1]
    assert recipe.train.steps * 2 == max_steps


def test_max_steps_of_a_batch_of_few_prompts_are_all_made(tiny_model, rows, tmp_path):
    """TRL divides completions: two optimizer steps of four from one prompt's eight."""
    made = []
    count = register_optimizer_step_post_hook(lambda *_: made.append(1))
    trainer = SRFTTrainer(
        model=str(tiny_model),
        reward_funcs=lambda completions, **_: [float(n % 2) for n in range(len(completions))],
        args=GRPOConfig(
            output_dir=str(tmp_path / "run"), max_steps=8, num_generations=8,
            per_device_train_batch_size=2, steps_per_generation=4, max_completion_length=4,
            report_to="none", save_strategy="no", **ON_CPU,
        ),
        train_dataset=rows,
    )  # fmt: skip
    trainer.train()
    count.remove()
    assert trainer.args.train.prompts_per_step == 1 and trainer.args.train.steps == 2
    assert len(made) == 8


ON_VLLM = {"use_vllm": True, "vllm_mode": "server"}


@pytest.mark.parametrize(
    ("settings", "switches"),
    [
        # In CISPO epsilon_high is the bound itself; epsilon and delta are not read.
        ({"loss_type": "cispo", "epsilon_high": 5.0}, {"clip_high": 4.0}),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "epsilon": 0.1, "delta": 2.0},
         {"clip_high": 4.0}),
        ({"epsilon": 0.1}, {"clip_low": 0.1, "clip_high": 0.1, "ratio_cap": None}),
        ({"epsilon": 0.1, "epsilon_high": 0.3, "delta": 2.0},
         {"clip_low": 0.1, "clip_high": 0.3, "ratio_cap": 2.0}),
        ({"beta": 0.04}, {"kl_coefficient": 0.04, "kl_estimator": "k3-ratio"}),
        ({"beta": 0.04, "use_bias_correction_kl": False}, {"kl_estimator": "k3"}),
        ({"use_bias_correction_kl": False}, {"kl_coefficient": 0.0, "kl_estimator": "k3"}),
        # None is no bound, not no correction; the lower bound holds in both modes.
        (ON_VLLM, {"importance_cap": 3.0, "importance_floor": 0.0}),
        ({**ON_VLLM, "vllm_importance_sampling_clip_max": None,
          "vllm_importance_sampling_clip_min": 0.5},
         {"importance_cap": 1e30, "importance_floor": 0.5, "importance_mode": "mask"}),
        ({**ON_VLLM, "vllm_importance_sampling_mode": "token_truncate",
          "vllm_importance_sampling_clip_min": 0.5},
         {"importance_cap": 3.0, "importance_floor": 0.5, "importance_mode": "truncate"}),
        ({**ON_VLLM, "vllm_importance_sampling_correction": False}, {"importance_cap": None}),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error:objective")
def test_the_loss_is_the_one_that_trl_makes_of_the_settings(settings, switches):
    """The switches as such are compared with TRL's loss in tests/objective/test_against_trl.py."""
    recipe, _ = recipe_of(GRPOConfig(max_steps=1, **ON_CPU, **settings), [])
    (stage,) = recipe.resolved_stages
    found = get_method(stage.method, stage.objective).switches
    assert {name: getattr(found, name) for name in switches} == switches


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss_type": "cispo"}, r"epsilon_high .* is 0\.2: below 1"),
        ({"loss_type": "sapo"}, "loss_type: 'sapo' has no counterpart here; there are grpo, dapo"),
        ({"lr_scheduler_type": "polynomial"}, "lr_scheduler_type: 'polynomial' has no counterpart"),
        ({"max_steps": -1}, "max_steps: not set, and the rows of train_dataset cannot be counted"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2, "num_generations": 4,
          "per_device_train_batch_size": 4}, "steps_per_generation=3 is no multiple of"),
        ({"model_init_kwargs": {"max_memory": 3}}, "model_init_kwargs: max_memory=3 has no counter"),
    ],
)  # fmt: skip
def test_what_cannot_be_translated_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        recipe_of(GRPOConfig(**{"max_steps": 2, **ON_CPU, **settings}), iter([]))


def test_adapters_of_peft_are_translated_or_refused(tiny_model, recipe, rows):
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    def start(**given):
        trainer = SRFTTrainer(args=recipe(method="sft"), train_dataset=rows, **given)
        trainer.close()
        return trainer.args.model.lora

    lora = start(peft_config=LoraConfig(r=4, lora_alpha=8, use_rslora=True, task_type="CAUSAL_LM"))
    assert (lora.rank, lora.alpha, lora.rslora) == (4, 8, True)
    assert sorted(lora.target_modules) == ["q_proj", "v_proj"], "as peft has it for Qwen3"
    with pytest.raises(ConfigError, match="peft_config: use_dora=True is not done here"):
        start(peft_config=LoraConfig(use_dora=True))
    with pytest.raises(
        ConfigError, match="weights of four bits cannot be trained; give peft_config"
    ):
        start(quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    with pytest.raises(ConfigError, match="here there is four bits alone"):
        start(peft_config=LoraConfig(), quantization_config=BitsAndBytesConfig(load_in_8bit=True))
