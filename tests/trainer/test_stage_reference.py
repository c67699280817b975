"""A reference of a stage's own: the policy as it was when the stage began, also after a kill."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from srft.errors import ConfigError
from srft.runs.files import read_jsonl
from srft.trainer.api import SRFTTrainer

UNUSED = {"failed_demonstrations": "keep"}
ANCHORED = {"kl_coefficient": 0.5, "weight_rollout": 0.0}
RL_THEN_SFT = [
    {"method": "grpo", "steps": 2, "learning_rate": 5e-3},
    {"method": "sft+rl", "steps": 3, "objective": ANCHORED, "reference": "stage"},
]


def a_third(prompts, completions, **columns):
    return [float(len(text) % 3 == 0) for text in completions]


def metrics(result):
    return read_jsonl(result.run_dir / "metrics.jsonl")


def weights(result):
    return load_file(result.run_dir / "model" / "model.safetensors")


def test_the_kl_of_a_stage_begins_at_zero_where_its_reference_is_its_own(recipe):
    first = {}
    for kind in ("stage", "base"):
        stages = [RL_THEN_SFT[0], {**RL_THEN_SFT[1], "reference": kind}]
        config = recipe(stages=stages, reward=UNUSED)
        config.run.dir += kind
        first[kind] = metrics(SRFTTrainer(args=config, reward_funcs=a_third).train())[2]
    assert first["stage"]["kl_reference"] == pytest.approx(0.0, abs=1e-7)
    assert first["base"]["kl_reference"] > 1e-5


def test_a_run_killed_within_the_stage_goes_on_with_the_same_reference(recipe):
    config = recipe(
        stages=RL_THEN_SFT, reward=UNUSED, run={"checkpoint_every": 1, "keep_checkpoints": 9}
    )
    whole = SRFTTrainer(args=config, reward_funcs=a_third).train()
    expected, ours = weights(whole), metrics(whole)
    for step in (4, 5):
        shutil.rmtree(whole.run_dir / "checkpoints" / f"step_{step:06d}")
    shutil.rmtree(whole.run_dir / "model")
    again = SRFTTrainer(args=config, reward_funcs=a_third).train(resume_from_checkpoint=True)
    assert [row["loss"] for row in metrics(again)] == [row["loss"] for row in ours]
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("stages", "more", "words"),
    [
        (
            [RL_THEN_SFT[0], {"method": "sft", "steps": 1, "reference": "stage"}],
            {},
            "reads no reference",
        ),
        (RL_THEN_SFT, {"model": {"lora": {"rank": 2}}}, "the model under the adapters"),
        (
            [*RL_THEN_SFT, {"method": "grpo", "steps": 1, "objective": {"kl_coefficient": 0.1}}],
            {},
            "has replaced it",
        ),
    ],
)
def test_a_reference_that_cannot_be_had_is_refused(recipe, stages, more, words):
    with pytest.raises(ConfigError, match=words):
        SRFTTrainer(args=recipe(stages=stages, reward=UNUSED, **more), reward_funcs=a_third)


def test_it_is_refused_to_a_model_that_brings_adapters_along(recipe, tiny_model):
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    config = recipe(stages=RL_THEN_SFT, reward=UNUSED)
    with pytest.raises(ConfigError, match=r"stages\[1\]\.reference: with adapters"):
        SRFTTrainer(model=wrapped, args=config, reward_funcs=a_third)
