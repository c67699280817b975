"""What is exported is the whole model, and stops where it was taught to stop."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.sweep.tiny import tiny_model
from tests.toys import byte_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

from srft.errors import CheckpointError, ModelError
from srft.model import saving
from srft.model.adapters import add_lora, merged_weights
from srft.model.given import adopt
from srft.model.loading import open_model
from srft.model.model_config import LoraConfig, ModelConfig
from srft.model.saving import save_model
from srft.rollout.vllm_weights import named_weights

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 23).view(2, 10)).logits


def moved(model):
    """With adapters that say something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.2)
    return model


# Dense layers beside experts, experts alone, experts stored [in, out].
@pytest.mark.parametrize("kind", ["glm4_moe", "qwen3_moe", "mixtral", "llama4_text"])
@pytest.mark.parametrize("stacks", [[], EXPERTS])
def test_adapters_on_mixtures_of_experts_are_exported_with_all_experts(
    kind, stacks, tmp_path, caplog
):
    base = tiny_model(kind, 272)
    model = copy.deepcopy(base)
    add_lora(model, LoraConfig(rank=4, target_parameters=stacks))
    assert ("leaves the experts frozen" in caplog.text) == (not stacks)
    trained = sum(
        p.numel() for n, p in moved(model).named_parameters() if "experts" in n and "lora" in n
    )
    assert (trained > 0) == bool(stacks)
    assert not torch.allclose(logits(model), logits(base), atol=1e-2)
    assert [n for n, _ in merged_weights(model)] == list(base.state_dict())
    folder = save_model(model, byte_tokenizer(), tmp_path / "out")
    again, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=2e-5)


def test_the_experts_names_alone_are_refused_with_the_setting(tmp_path):
    with pytest.raises(ModelError, match="target_parameters"):
        add_lora(tiny_model("glm4_moe", 272), LoraConfig(target_modules=["gate_proj"]))


@pytest.mark.parametrize("kind", ["bamba", "falcon_h1", "gemma3n_text", "zamba2", "phimoe"])
def test_all_linear_layers_of_hybrids_are_adapted(kind, tmp_path):
    base = tiny_model(kind, 272)
    model = copy.deepcopy(base)
    add_lora(model, LoraConfig(rank=4))
    folder = save_model(moved(model), byte_tokenizer(), tmp_path / "out")
    assert not torch.allclose(logits(model), logits(base), atol=1e-2)
    again = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("damage", ["lost", "shape"])
def test_files_that_are_not_the_whole_model_are_refused(damage, tmp_path, monkeypatch):
    write = saving._save_weights

    def damaged(model, folder, *more):
        write(model, folder, *more)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        name = "model.layers.1.mlp.up_proj.weight"
        wrong = tensors.pop(name)[:-1]
        save_file(
            tensors | ({name: wrong.clone()} if damage == "shape" else {}), file, {"format": "pt"}
        )

    monkeypatch.setattr(saving, "_save_weights", damaged)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        save_model(tiny_model("llama", 272), byte_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# A bias that chooses experts (a buffer), and routers of a type that holds them in float32 (parameters).
@pytest.mark.parametrize(
    ("kind", "kept"),
    [("deepseek_v3", "e_score_correction_bias"), ("ernie4_5_moe", "mlp.gate.weight")],
)
@pytest.mark.parametrize("lora", [False, True])
def test_what_stays_float32_in_half_precision_is_not_rounded(kind, kept, lora, tmp_path):
    model = tiny_model(kind, 272)
    torch.manual_seed(1)
    expected = {
        name: tensor.normal_(5.0, 0.1).clone()
        for name, tensor in model.state_dict().items()
        if name.endswith(kept)
    }
    assert expected and all(tensor.dtype == torch.float32 for tensor in expected.values())
    folder = save_model(model, byte_tokenizer(), tmp_path / "base", dtype=torch.bfloat16)
    loaded = open_model(ModelConfig(path=str(folder)))
    if lora:
        add_lora(loaded, LoraConfig(rank=4, target_modules=["o_proj"]))
    save_model(loaded, byte_tokenizer(), tmp_path / "out", dtype=torch.bfloat16)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert half.dtype == torch.bfloat16
    sent = dict(named_weights(loaded, torch.bfloat16))
    for name, tensor in expected.items():
        assert torch.equal(half.state_dict()[name], tensor) and torch.equal(sent[name], tensor)
    given = model.to(torch.float64)
    adopt(given, ModelConfig(dtype="bfloat16"))
    assert {n: t.dtype for n, t in given.named_parameters()} == {
        n: t.dtype for n, t in half.named_parameters()
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
        {"early_stopping": True},
        {"length_penalty": 0.5, "temperature": 0.5},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"repetition_penalty": 1.3},
    ],
)
def test_no_generation_settings_keep_a_model_from_being_written(settings, tmp_path):
    model = tiny_model("llama", 272)
    own = model.generation_config = GenerationConfig(eos_token_id=7, **settings)
    folder = save_model(model, byte_tokenizer(), tmp_path / "out", end_token_ids=(5, 7))
    assert model.generation_config is own
    written = GenerationConfig.from_pretrained(folder)
    assert written.eos_token_id == [5, 7]
    assert written.repetition_penalty == own.repetition_penalty


def test_a_folder_of_adapters_says_where_texts_end(tmp_path):
    model = tiny_model("llama", 272)
    add_lora(model, LoraConfig(rank=4))
    folder = save_model(
        model, byte_tokenizer(), tmp_path / "out", adapters_only=True, end_token_ids=(5, 7)
    )
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [5, 7]
