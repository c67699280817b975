"""A policy gives its model back as it was."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from tests.toys import tiny_model, word_tokenizer

from srft.errors import ModelError
from srft.model.loading import prepare
from srft.model.model_config import ModelConfig
from srft.model.policy import Policy
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.engine import build_engine
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams

FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gpt_oss", "gpt2", "phi", "mamba"]
LENGTHS = ((3, 30), (1, 1), (8, 9), (2, 4), (8, 9))


def as_it_is(model: torch.nn.Module) -> tuple[object, ...]:
    return (
        [
            (type(m), m.training, getattr(m, "gradient_checkpointing", None))
            for m in model.modules()
        ],
        [m._compiled_call_impl for m in model.modules()],
        model.config._attn_implementation,
        sorted(name for m in model.modules() for name in vars(m) if "srft" in name),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [True, False])
def test_a_model_comes_back_as_it_was(family, training, monkeypatch) -> None:
    from srft.model.cpu import products

    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    model = tiny_model(family).train(training)
    before, ids = as_it_is(model), torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13]])
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(ids).logits
    config = ModelConfig(gradient_checkpointing=True, compile=True)
    policy = Policy(model, word_tokenizer(), config, put_back=prepare(model, config))
    assert as_it_is(model) != before
    build_engine(model, policy.tokenizer, RolloutConfig()).generate(
        [RolloutRequest((5, 6, 7), 2, 0)], SamplingParams(max_tokens=3)
    )
    policy.close()
    assert as_it_is(model) == before
    torch.save(model, io.BytesIO())
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            torch.testing.assert_close(same.eval()(ids).logits, logits)


def test_it_comes_back_where_preparing_fails() -> None:
    model = tiny_model("mamba")
    before = as_it_is(model)
    with pytest.raises(ModelError, match="padded or auto"):
        prepare(model, ModelConfig(attention="packed"))
    assert as_it_is(model) == before
    model = tiny_model("llama")
    before = as_it_is(model)
    model.activation_checkpointing_enable = None  # what a model without checkpointing comes to
    model.gradient_checkpointing_enable = None
    with pytest.raises(TypeError):
        prepare(model, ModelConfig(gradient_checkpointing=True))
    assert as_it_is(model) == before


def test_sampling_that_fails_leaves_nothing_behind() -> None:
    model = tiny_model("llama")
    put_back = prepare(model, ModelConfig())

    def fail(*_: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        EmbeddedEngine(model, word_tokenizer()).generate(
            [RolloutRequest((5, 6, 7), 2, 0)], SamplingParams(max_tokens=3), fail
        )
    put_back()
    pickle.dumps(model)
