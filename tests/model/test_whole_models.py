"""Parts of a checkpoint beside its language model: kept on export, or refused before training."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.sweep.checks import VOCABULARY, _saved, _trainer, own_logits
from tests.model.sweep.tiny import tiny_config, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from srft.errors import ModelError


def multimodal(kind, folder):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(tiny_config(kind, VOCABULARY))
    return _saved(model.float().eval(), folder)


def test_a_vision_part_that_is_loaded_is_exported_as_it_was(tmp_path):
    base = multimodal("gemma3", tmp_path / "base")
    (base / "preprocessor_config.json").write_text('{"size": 4}')
    (base / "processor_config.json").write_text('{"image_seq_length": 16}')
    result = _trainer(base, tmp_path / "run").train()
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (result.model_dir / name).read_text() == (base / name).read_text()
    before, after = (load_file(folder / "model.safetensors") for folder in (base, result.model_dir))
    assert before.keys() == after.keys()
    vision = [name for name in before if "vision" in name]
    text = [name for name in before if "language_model" in name]
    assert vision and text
    assert all(torch.equal(before[name], after[name]) for name in vision)
    assert any(not torch.equal(before[name], after[name]) for name in text)


@pytest.mark.parametrize("kind", ["qwen3_5", "llama4"])
def test_one_that_is_not_loaded_is_refused_unless_the_text_alone_is_wanted(kind, tmp_path):
    base = multimodal(kind, tmp_path / "base")
    with pytest.raises(ModelError, match=r"without its parts vision.*model\.text_only=true"):
        _trainer(base, tmp_path / "run")
    trainer = _trainer(base, tmp_path / "text", model={"text_only": True})
    result = trainer.train()
    plain = AutoModelForCausalLM.from_pretrained(result.model_dir)
    trainer.model.eval()
    torch.testing.assert_close(
        own_logits(trainer.model, range(2, 12)), own_logits(plain, range(2, 12))
    )


def test_layers_that_the_class_does_not_read_are_named(tmp_path, caplog):
    """Such as those that predict further tokens."""
    base = _saved(tiny_model("glm4_moe", VOCABULARY), tmp_path / "base")
    file = base / "model.safetensors"
    extra = {"model.layers.92.eh_proj.weight": torch.zeros(4, 4)}
    save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        _trainer(base, tmp_path / "run").close()
    assert "1 tensors of its files have no place" in caplog.text
    assert "model.layers.92.eh_proj.weight" in caplog.text
