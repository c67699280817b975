"""A model handed over from Python is trained and comes back as it was, but for its weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.toys import lab_model
from transformers import AutoTokenizer

from srft import SRFTTrainer
from srft.errors import ConfigError
from srft.trainer import trainer as trainer_module


def as_it_is(model):
    return [(type(m), m.training) for m in model.modules()], model.config._attn_implementation


@pytest.fixture
def start(recipe, tiny_model):
    def build(model, **sections):
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


def test_the_tokenizer_that_was_given_keeps_its_template(recipe, tiny_model, tmp_path):
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    before = tokenizer.chat_template
    args = recipe(data={"chat_template": str(tmp_path / "own.jinja")})
    trainer = SRFTTrainer(model=lab_model(), args=args, processing_class=tokenizer)
    assert tokenizer.chat_template == before != trainer.tokenizer.chat_template
    trainer.close()
