"""Parts of a checkpoint beside its language model: kept on export, or left out where that is asked for."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.sweep.checks import VOCABULARY, _saved, _trainer, own_logits
from tests.model.sweep.tiny import tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from srft.memory.shape import measure_shape
from srft.model.model_config import ModelConfig
from srft.model.output_head import output_head
from srft.model.packed_attention import packs, use_packed_attention
from srft.model.saving import _without_weights
from srft.model.weight_files import reader_of


def multimodal(kind, folder):
    return _saved(tiny_model(kind, VOCABULARY), folder)


# One whose causal language model is the whole, one that has none, and one of which it is the text part alone.
@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl", "llama4"])
def test_a_vision_part_is_exported_as_it_was(kind, tmp_path):
    try:
        tiny_model(kind, VOCABULARY)(torch.tensor([[2, 3]]))
    except AttributeError as error:  # so it is in transformers 5.24.0 with Llama 4
        pytest.skip(f"transformers' own model fails on tokens alone: {error}")
    base = multimodal(kind, tmp_path / "base")
    (base / "preprocessor_config.json").write_text('{"size": 4}')
    (base / "processor_config.json").write_text('{"image_seq_length": 16}')
    result = _trainer(base, tmp_path / "run").train()
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (result.model_dir / name).read_text() == (base / name).read_text()
    before, after = (load_file(folder / "model.safetensors") for folder in (base, result.model_dir))
    assert before.keys() == after.keys()
    vision = [name for name in before if "visi" in name or "visual" in name]
    text = [name for name in before if name not in vision]
    assert vision and text
    assert all(torch.equal(before[name], after[name]) for name in vision)
    assert any(not torch.equal(before[name], after[name]) for name in text)


@pytest.mark.parametrize("kind", ["qwen3_5", "llama4"])
def test_the_text_part_alone_where_it_is_wanted(kind, tmp_path):
    base = multimodal(kind, tmp_path / "base")
    trainer = _trainer(base, tmp_path / "text", model={"text_only": True})
    result = trainer.train()
    plain = AutoModelForCausalLM.from_pretrained(result.model_dir)
    assert not any("visi" in name or "visual" in name for name in plain.state_dict())
    trainer.model.eval()
    torch.testing.assert_close(
        own_logits(trainer.model, range(2, 12)), own_logits(plain, range(2, 12))
    )


def test_memory_is_that_of_the_text_part_where_that_alone_is_trained(tmp_path):
    """Deeper than the text part, the vision part has the longest list of layers."""
    deep = {"vision_config": {"depth": 5}, "text_config": {"num_hidden_layers": 2}}
    config = tiny_config("qwen2_5_vl", VOCABULARY, **deep)
    shape = measure_shape(ModelConfig(path="given"), config)
    model = reader_of(config).from_config(config)
    text = (model.model.language_model, model.lm_head)
    assert shape.layers == 2
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.trained == sum(p.numel() for part in text for p in part.parameters())


def test_parts_beside_the_text_need_not_know_packed_attention():
    """SAM's layers choose their attention by name when they are made."""
    model = tiny_model("deepseek_vl_hybrid", VOCABULARY)
    use_packed_attention(model)
    assert _without_weights(model).config.text_config._attn_implementation == "eager"
    assert packs(model)


def test_a_scale_of_logits_that_the_config_leaves_out_is_one():
    assert output_head(tiny_model("cohere_compass", VOCABULARY)).logit_scale == 1.0


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (
            "glm4_moe",
            "model.layers.92.eh_proj.weight",
        ),  # predicts further tokens; the class skips it
        ("llama", "value_head.weight"),  # the class does not know it
    ],
)
def test_tensors_that_the_class_does_not_read_are_named(kind, name, tmp_path, caplog):
    base = _saved(tiny_model(kind, VOCABULARY), tmp_path / "base")
    file = base / "model.safetensors"
    save_file({**load_file(file), name: torch.zeros(4, 4)}, file, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        _trainer(base, tmp_path / "run").close()
    assert "1 tensors of its files have no place" in caplog.text and name in caplog.text
