"""A model handed over from Python is trained and comes back as it was, but for its weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.toys import lab_model
from transformers import AutoTokenizer

from srft import SRFTTrainer
from srft.errors import ConfigError, ModelError
from srft.model.given import adopt
from srft.model.loading import load_model
from srft.model.model_config import ModelConfig
from srft.trainer import trainer as trainer_module


def as_it_is(model):
    return [(type(m), m.training) for m in model.modules()], model.config._attn_implementation


@pytest.fixture
def start(recipe, tiny_model):
    def build(model, /, **sections):
        return SRFTTrainer(
            model=model,
            args=recipe(train={"steps": 1}, **sections),
            processing_class=AutoTokenizer.from_pretrained(tiny_model),
        )

    return build


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_after_training_it_is_copied_saved_and_pickled(start, family, tmp_path):
    model = lab_model(family).train()
    before, weights = as_it_is(model), copy.deepcopy(model.state_dict())
    start(model).train()
    assert as_it_is(model) == before
    assert any(not torch.equal(weights[k], v) for k, v in model.state_dict().items())
    torch.save(model, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = model.eval()(ids).logits
        for same in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(same.eval()(ids).logits, expected)


def test_after_a_failure_too(start, monkeypatch):
    model = lab_model()
    before = as_it_is(model)

    def fail(*args, **kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(trainer_module, "update", fail)
    with pytest.raises(RuntimeError, match="broken"):
        start(model).train()
    assert as_it_is(model) == before
    pickle.dumps(model)


def test_after_a_failure_in_setting_up_too(start):
    model = lab_model()
    before = as_it_is(model)
    with pytest.raises(ConfigError, match="exceed the model's window"):
        start(model, rollout={"max_tokens": 1000})
    assert as_it_is(model) == before
    with pytest.raises(ConfigError, match="no evaluation data"):
        start(model, evaluation={"at_start": True})
    assert as_it_is(model) == before


def test_close_gives_it_back_untrained(start):
    model = lab_model()
    before = as_it_is(model)
    trainer = start(model)
    assert as_it_is(model) != before
    trainer.close()
    assert as_it_is(model) == before


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mixtral"])
def test_it_is_changed_as_one_that_is_loaded_would_be(family, tmp_path):
    settings = ModelConfig(rope_theta=50.0, max_position_embeddings=96)
    # Of width 64, so that Gemma's scale of embeddings, its root, is the same number in halves.
    model = lab_model(family, hidden_size=64).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = load_model(settings.model_copy(update={"path": str(tmp_path)}))
    plain = load_model(ModelConfig(path=str(tmp_path)))
    put_back = adopt(model, settings)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        ours, theirs, other = (m(ids).logits for m in (model, loaded, plain))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.max_position_embeddings == loaded.config.max_position_embeddings == 96
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - other).abs().max() > 1e-2
    put_back()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_small_steps_move_a_model_in_half_precision(start):
    """Updates of 1e-6 are below the spacing of bfloat16 numbers."""
    model = lab_model().to(torch.bfloat16)
    trainer = start(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert {p.dtype for p in before.values()} == {torch.float32}
    moved = {}
    trainer.evaluator.evaluate = lambda *a, **k: {}
    trainer._export = lambda folder: moved.update(
        {name: (p != before[name]).float().mean().item() for name, p in model.named_parameters()}
    )
    trainer.train()
    assert sum(moved.values()) / len(moved) > 0.9
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_adapters_that_it_brings_along_are_trained_in_float32(start, dtype):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    model = peft.get_peft_model(lab_model().to(torch.bfloat16), config)
    trainer = start(model, model={"dtype": dtype})
    dtypes = {p.requires_grad: p.dtype for p in trainer.model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    trainer.train()


def test_positions_that_are_weights_are_not_changed_silently():
    with pytest.raises(ModelError, match="GPT2LMHeadModel does not have: leave them out"):
        adopt(lab_model("gpt2"), ModelConfig(max_position_embeddings=64))
    with pytest.raises(ModelError, match="no single rotary base"):
        adopt(lab_model("gpt2"), ModelConfig(rope_theta=1e4))


def test_the_tokenizer_that_was_given_keeps_its_template(recipe, tiny_model, tmp_path):
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    before = tokenizer.chat_template
    args = recipe(data={"chat_template": str(tmp_path / "own.jinja")})
    trainer = SRFTTrainer(model=lab_model(), args=args, processing_class=tokenizer)
    assert tokenizer.chat_template == before != trainer.tokenizer.chat_template
    trainer.close()
