"""Runs that train adapters: what they keep, what they write, how they go on."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.toys import lab_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from srft.errors import CheckpointError, ModelError
from srft.evaluation.open_model import find_model, open_weights
from srft.model import loading
from srft.model.adapters import add_lora, has_adapters, save_adapter
from srft.model.loading import load_model
from srft.model.model_config import LoraConfig, ModelConfig
from srft.runs.files import read_jsonl
from srft.trainer import trainer as trainer_module
from srft.trainer.api import SRFTTrainer

peft = pytest.importorskip("peft")


def saved_weights(checkpoint):
    (file,) = (checkpoint / "weights").iterdir()
    return load_file(file)


@pytest.fixture
def lora(recipe, tiny_model, tmp_path):
    """``lora(name, **sections)``: a quick recipe that trains adapters, run directory ``name``."""

    def build(name, lora=None, model=None, **sections):
        model = {"path": str(tiny_model), "lora": {"rank": 4, **(lora or {})}, **(model or {})}
        run = {"dir": str(tmp_path / name), "export_dtype": "float32", "keep_checkpoints": 9}
        return recipe(model=model, run=run, **sections)

    return build


def test_a_run_moves_the_adapters_and_leaves_the_base(lora, tiny_model, tmp_path):
    trainer = SRFTTrainer(args=lora("run"))
    result = trainer.train()
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    ours = trainer.model.state_dict()
    for name, tensor in base.items():
        assert torch.equal(
            ours.get(name, ours.get(name.replace(".weight", ".base_layer.weight"))), tensor
        )
    saved = saved_weights(tmp_path / "run/checkpoints/step_000006")
    assert saved and all(".lora_" in name for name in saved)
    assert any(t.abs().max() > 0 for name, t in saved.items() if ".lora_B." in name)
    exported = AutoModelForCausalLM.from_pretrained(result.model_dir)
    ids = torch.arange(3, 23).view(2, 10)
    with torch.no_grad():
        ours, theirs = trainer.model(ids).logits, exported(ids).logits
        assert (ours - theirs).abs().max() < 1e-5
        assert (
            ours - AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits
        ).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_adapters_resume_bit_identically_with_dropout(lora, dtype, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    settings = {"lora": {"dropout": 0.2}, "model": {"dropout": True, "dtype": dtype}}
    SRFTTrainer(args=lora("whole", **settings)).train()
    config = lora("broken", **settings)
    original, calls = trainer_module.update, 0

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "update", dies)
        with pytest.raises(Killed):
            SRFTTrainer(args=config).train()
    SRFTTrainer(args=config).train(resume_from_checkpoint=True)
    whole, broken = (
        saved_weights(tmp_path / name / "checkpoints/step_000006") for name in ("whole", "broken")
    )
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert {tensor.dtype for tensor in whole.values()} == {torch.float32}
    whole, broken = (
        load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "broken")
    )
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_kl_is_taken_to_the_base_without_a_copy(lora, tmp_path):
    config = lora("run", objective={"kl_coefficient": 0.1})
    trainer = SRFTTrainer(args=config)
    with trainer.setup.policy.reference() as frozen:
        assert frozen is trainer.model
    trainer.train()
    kl = [
        row["kl_reference"]
        for row in read_jsonl(tmp_path / "run/metrics.jsonl")
        if "kl_reference" in row
    ]
    assert abs(kl[0]) < 1e-6 < kl[-1]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_an_export_of_the_adapters_alone_is_read_everywhere(lora, dtype, tmp_path):
    config = lora("run", {"export": "adapter"}, {"dtype": dtype})
    result = SRFTTrainer(args=config).train()
    files = {path.name for path in result.model_dir.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert not {"model.safetensors", "config.json"} & files
    AutoTokenizer.from_pretrained(result.model_dir)
    assert find_model(tmp_path / "run").place == str(result.model_dir)
    ids = torch.arange(3, 23).view(2, 10)
    outcomes = [
        load_model(ModelConfig(path=str(result.model_dir))),
        open_weights(find_model(tmp_path / "run")),
        open_weights(find_model(tmp_path / "run/checkpoints/step_000006")),
        AutoModelForCausalLM.from_pretrained(result.model_dir),
    ]
    with torch.no_grad():
        first, *others = (model.eval()(ids).logits for model in outcomes)
    assert all((first - other).abs().max() < 1e-5 for other in others)


def test_adapters_on_a_folder_of_adapters_are_not_exported_alone(lora, recipe, tmp_path):
    """They would name the base of the first ones, which they were not trained on."""
    first = SRFTTrainer(args=lora("first", {"export": "adapter"}, train={"steps": 1})).train()
    model = {"path": str(first.model_dir)}
    with pytest.raises(
        ModelError, match=r"holds adapters itself.*Set model\.lora\.export to merged"
    ):
        SRFTTrainer(args=lora("second", {"export": "adapter"}, model))
    trainer = SRFTTrainer(args=lora("third", model=model, train={"steps": 1}))
    exported = AutoModelForCausalLM.from_pretrained(trainer.train().model_dir)
    ids = torch.arange(3, 23).view(2, 10)
    with torch.no_grad():
        assert (trainer.model(ids).logits - exported(ids).logits).abs().max() < 1e-5


def test_adapters_of_a_model_of_another_vocabulary_are_not_exported_alone(lora, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<think>", "</think>"])
    model.resize_token_embeddings(len(tokenizer))
    config = lora("run", {"export": "adapter"})
    with pytest.raises(ModelError, match=r"another vocabulary.*Set model\.lora\.export to merged"):
        SRFTTrainer(model=model, processing_class=tokenizer, args=config)


def test_adapters_do_not_take_the_place_of_their_base(lora, tiny_model, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    config = lora("run", {"export": "adapter"}, {"path": str(base)}, method="sft")
    trainer = SRFTTrainer(args=config)
    before = sorted(path.name for path in base.iterdir())
    with pytest.raises(CheckpointError, match="where the base of these adapters lies"):
        trainer.save_model(base)
    assert sorted(path.name for path in base.iterdir()) == before
    trainer.close()


def test_exported_adapters_say_of_which_revision_their_base_is(tmp_path):
    model = lab_model("llama")
    add_lora(model, LoraConfig(rank=2), base="org/base", revision="v2")
    save_adapter(model, tmp_path)
    assert peft.PeftConfig.from_pretrained(tmp_path).revision == "v2"
    read = []

    def opened(config):
        read.append((config.path, config.revision))
        raise ModelError("there is no hub here")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelError, match="no hub"):
        patch.setattr(loading, "_model_config", opened)
        loading.open_model(ModelConfig(path=str(tmp_path)))
    assert read == [("org/base", "v2")]


def test_adapters_asked_for_twice_are_refused(recipe, tiny_model):
    """Those that the model has would be trained on, and nothing would say so."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    sizes = [peft.LoraConfig(r=rank, target_modules=["q_proj"]) for rank in (2, 4)]
    config = recipe(method="sft", run={"dir": None}, train={"steps": 1})
    SRFTTrainer(model=model, peft_config=sizes[0], args=config).close()
    with pytest.raises(ModelError, match="has adapters already"):
        SRFTTrainer(model=model, peft_config=sizes[1], args=config)
    kept = recipe(method="sft", run={"dir": None}, model={"lora": {"export": "adapter"}})
    SRFTTrainer(model=model, args=kept).close()


def test_a_model_that_peft_wrapped_is_trained(recipe, tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    config = recipe(train={"steps": 2})
    result = SRFTTrainer(model=wrapped, args=config, processing_class=tokenizer).train()
    saved = saved_weights(tmp_path / "run/checkpoints/step_000002")
    assert len(saved) == 4
    assert not has_adapters(AutoModelForCausalLM.from_pretrained(result.model_dir))
