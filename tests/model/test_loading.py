"""Models load as configured, save whole or not at all, and say what is wrong when they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from srft.errors import CheckpointError, ModelError
from srft.model import saving, weight_files
from srft.model.loading import (
    autocast_dtype,
    check_vocabulary,
    compute_context,
    load_model,
    load_tokenizer,
)
from srft.model.model_config import ModelConfig
from srft.model.packed_attention import packs
from srft.model.saving import save_model


@pytest.fixture
def folder(tmp_path, make_model, make_tokenizer) -> Path:
    model = make_model("llama")
    return save_model(model, make_tokenizer(eos_token="<eos>"), tmp_path / "model")


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_saved_model_loads_with_transformers_and_with_us(folder, make_model) -> None:
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors"} <= names
    assert "srft" not in (folder / "config.json").read_text()
    original = make_model("llama").state_dict()
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ours = load_model(ModelConfig(path=str(folder)))
    for name, tensor in original.items():
        assert torch.equal(plain.state_dict()[name], tensor)
        assert torch.equal(ours.state_dict()[name], tensor)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    assert packs(ours)


@pytest.mark.parametrize(("name", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_parameters_have_the_dtype_asked_for(folder, name, dtype) -> None:
    model = load_model(ModelConfig(path=str(folder), dtype=name))
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_autocast_is_off_on_a_cpu_unless_asked_for() -> None:
    assert autocast_dtype(ModelConfig(), "cpu") is None
    assert autocast_dtype(ModelConfig(autocast="bfloat16"), "cpu") == torch.bfloat16
    assert autocast_dtype(ModelConfig(autocast="bfloat16", dtype="bfloat16"), "cpu") is None
    assert autocast_dtype(ModelConfig(autocast="float32"), "cpu") is None
    with compute_context(ModelConfig(autocast="bfloat16"), "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_position_overrides_reach_the_model(folder) -> None:
    plain = load_model(ModelConfig(path=str(folder)))
    longer = load_model(
        ModelConfig(path=str(folder), rope_theta=40_000.0, max_position_embeddings=16_384)
    )
    assert longer.config.max_position_embeddings == 16_384
    half = torch.arange(0, 8, 2) / 8
    torch.testing.assert_close(plain.model.rotary_emb.inv_freq, 10_000.0**-half)
    torch.testing.assert_close(longer.model.rotary_emb.inv_freq, 40_000.0**-half)


def test_padded_attention_is_left_to_transformers(folder) -> None:
    assert not packs(load_model(ModelConfig(path=str(folder), attention="padded")))


def test_checkpointing_is_on_only_in_training(folder) -> None:
    model = load_model(ModelConfig(path=str(folder), gradient_checkpointing=True))
    assert model.model.layers[0].gradient_checkpointing


def test_packed_attention_is_refused_where_it_cannot_be(
    tmp_path, make_model, make_tokenizer
) -> None:
    path = save_model(make_model("mamba"), make_tokenizer(), tmp_path / "model")
    assert not packs(load_model(ModelConfig(path=str(path))))
    with pytest.raises(ModelError, match="'mamba' cannot run packed"):
        load_model(ModelConfig(path=str(path), attention="packed"))


def test_no_path_is_refused() -> None:
    with pytest.raises(ModelError, match=r"set model\.path"):
        load_model(ModelConfig())


def test_a_folder_without_a_model_is_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(ModelConfig(path=str(tmp_path)))


def test_a_transformers_that_has_no_place_to_cut_at_is_warned_of(
    folder, monkeypatch, caplog
) -> None:
    cuts: list[PreTrainedModel] = []
    load_model(ModelConfig(path=str(folder)), cut=cuts.append)
    assert len(cuts) == 1 and not caplog.records
    monkeypatch.setattr(weight_files, "_PLACE", "a_place_of_another_version")
    load_model(ModelConfig(path=str(folder)), cut=cuts.append)
    assert len(cuts) == 1 and "every process has read all weights" in caplog.text
    assert not hasattr(PreTrainedModel, "a_place_of_another_version")


def test_an_unknown_name_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"no/such-model.*Check model\.path"):
        load_model(ModelConfig(path="no/such-model"))


def test_a_model_of_another_kind_is_refused(folder) -> None:
    edit_json(folder / "config.json", model_type="vit")
    with pytest.raises(ModelError, match="'vit' is not a causal language model"):
        load_model(ModelConfig(path=str(folder)))
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"})
    with pytest.raises(ModelError, match=r"brings one as code.*trust_remote_code=true"):
        load_model(ModelConfig(path=str(folder)))


def test_a_model_type_that_nobody_knows_is_refused(folder) -> None:
    edit_json(folder / "config.json", model_type="not-a-model")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(ModelConfig(path=str(folder)))


def test_absent_weights_are_refused(folder) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the weights"):
        load_model(ModelConfig(path=str(folder)))


def test_pickled_weights_are_refused_unless_asked_for(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="use_safetensors=false"):
        load_model(ModelConfig(path=str(folder)))
    load_model(ModelConfig(path=str(folder), use_safetensors=False))


@pytest.mark.parametrize("kind", ["missing", "misshapen"])
def test_incomplete_weights_are_refused(folder, kind) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if kind == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][:, :4].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError):
        load_model(ModelConfig(path=str(folder)))


def test_a_tokenizer_without_an_end_is_refused(tmp_path, make_tokenizer) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_an_absent_tokenizer_is_refused(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"needs model\.tokenizer"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


def test_padding_falls_back_to_the_end_token(tmp_path, make_tokenizer) -> None:
    make_tokenizer(eos_token="<eos>").save_pretrained(tmp_path)
    assert load_tokenizer(ModelConfig(path=str(tmp_path))).pad_token == "<eos>"
    chosen = load_tokenizer(ModelConfig(path=str(tmp_path), pad_token="<pad>"))
    assert chosen.pad_token_id == 0
    with pytest.raises(ModelError, match="not in the vocabulary"):
        load_tokenizer(ModelConfig(path=str(tmp_path), pad_token="<none>"))


def test_a_tokenizer_too_large_for_the_model_is_refused(make_model, make_tokenizer) -> None:
    model = make_model("llama")
    check_vocabulary(model, make_tokenizer(size=50))
    check_vocabulary(model, make_tokenizer(size=61))
    with pytest.raises(ModelError, match="up to 61 but the model embeds only 61"):
        check_vocabulary(model, make_tokenizer(size=62))


def test_saving_over_an_older_model_replaces_it(folder, make_model, make_tokenizer) -> None:
    (folder / "model-00001-of-00002.safetensors").write_text("old")
    save_model(make_model("qwen3"), make_tokenizer(), folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("failing", ["put_in_place", "_save_weights"])
def test_a_failed_save_leaves_the_older_model(
    folder, make_model, make_tokenizer, monkeypatch, failing
) -> None:
    def fail(*args) -> None:
        raise OSError("no space left on device")

    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(saving, failing, fail)
    with pytest.raises(CheckpointError, match="no space"):
        save_model(make_model("qwen3"), make_tokenizer(), folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_sampling_settings_do_not_prevent_saving(tmp_path, make_model, make_tokenizer) -> None:
    model = make_model("llama")
    model.generation_config.temperature = 0.6
    path = save_model(model, make_tokenizer(), tmp_path / "model")
    assert json.loads((path / "generation_config.json").read_text())["temperature"] == 0.6
    assert not model.generation_config.do_sample


def test_weights_can_be_written_in_another_precision(tmp_path, make_model, make_tokenizer) -> None:
    model = make_model("qwen3")
    path = save_model(
        model,
        make_tokenizer(),
        tmp_path / "model",
        dtype=torch.bfloat16,
        files={"README.md": "hello"},
    )
    assert {t.dtype for t in load_file(path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
    assert (path / "README.md").read_text() == "hello"
    assert model.dtype == torch.float32
    assert "lm_head.weight" not in load_file(path / "model.safetensors")


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        ModelConfig(pth="x")
