"""The model is handed back to the trainer as it was, and refused if it cannot be driven."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from srft.errors import RolloutError
from srft.rollout.check import check_engine
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.engine import build_engine
from srft.rollout.generate import GenerateEngine
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams

REQUESTS = [RolloutRequest((5, 6, 7), 4, 0), RolloutRequest((9, 8, 7, 6, 5, 4, 3), 4, 50)]
PARAMS = SamplingParams(max_tokens=12)


def state_of(model):
    return (
        [m.training for m in model.modules()],
        model.config._attn_implementation,
        [getattr(m, "gradient_checkpointing", None) for m in model.modules()],
    )


def test_mode_attention_and_checkpointing_are_restored_and_training_goes_on(llama, tokenizer):
    llama.train()
    llama.model.layers[0].eval()  # a frozen layer stays in evaluation mode
    for module in llama.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    before = state_of(llama)
    engine = EmbeddedEngine(llama, tokenizer, RolloutConfig())
    engine.generate(REQUESTS, PARAMS)
    assert state_of(llama) == before
    llama(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert all(p.grad is not None for p in llama.parameters())


def test_dropout_is_off_while_sampling(tokenizer, llama):
    llama.config.attention_dropout = 0.5
    for layer in llama.model.layers:
        layer.self_attn.attention_dropout = 0.5
    engine = EmbeddedEngine(llama.train(), tokenizer, RolloutConfig())
    assert engine.generate(REQUESTS, PARAMS) == engine.generate(REQUESTS, PARAMS)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_call_leaves_model_and_engine_usable(llama, tokenizer, error):
    llama.train()
    engine = EmbeddedEngine(llama, tokenizer, RolloutConfig())
    expected = engine.generate(REQUESTS, PARAMS)
    before = state_of(llama)

    def interrupt(*_):
        raise error

    with pytest.raises(error):
        engine.generate(REQUESTS, PARAMS, interrupt)
    assert state_of(llama) == before
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert engine.generate(REQUESTS, PARAMS) == expected
    engine.close()
    assert engine.generate(REQUESTS, PARAMS) == expected


def test_the_trainers_own_attention_function_is_put_back(llama, tokenizer):
    AttentionInterface.register("test_packed", lambda *_, **__: pytest.fail("was called"))
    llama.config._attn_implementation = "test_packed"
    EmbeddedEngine(llama, tokenizer, RolloutConfig()).generate(REQUESTS, PARAMS)
    assert llama.config._attn_implementation == "test_packed"


def test_the_start_up_check_refuses_attention_that_is_not_the_models(llama, tokenizer, monkeypatch):
    from srft.rollout import cached_attention

    wrong = lambda *a, **k: cached_attention.rollout_attention(*a, **{**k, "scaling": 0.1})  # noqa: E731
    monkeypatch.setitem(AttentionInterface._global_mapping, cached_attention.ATTENTION_NAME, wrong)
    with pytest.raises(RolloutError, match="differ by"):
        check_engine(EmbeddedEngine(llama, tokenizer))


def test_an_attention_argument_that_is_not_known_is_refused(llama, tokenizer):
    attention = llama.model.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *a, **k: forward(*a, **k, s_aux=torch.zeros(4))
    with pytest.raises(RolloutError, match="s_aux"):
        check_engine(EmbeddedEngine(llama, tokenizer))


def test_a_model_without_attention_falls_back_with_a_warning(build_model, tokenizer, caplog):
    model = build_model("mamba")
    with caplog.at_level(logging.WARNING):
        engine = build_engine(model, tokenizer, RolloutConfig())
    assert isinstance(engine, GenerateEngine)
    assert "rollout.engine=generate is used" in caplog.text
    groups = engine.generate([RolloutRequest((5, 6, 7), 3, 0)], PARAMS)
    assert [len(g) for g in groups] == [3]


def test_chunked_attention_is_refused_by_its_config(llama, tokenizer):
    llama.config.layer_types = ["chunked_attention", "full_attention"]
    with pytest.raises(RolloutError, match="chunked_attention"):
        check_engine(EmbeddedEngine(llama, tokenizer))


@pytest.mark.parametrize("name", ["embedded", "generate"])
def test_float32_weights_under_autocast_are_sampled_from(build_model, tokenizer, name):
    """What a GPU does by default: halves differ from float32 by more than float32's own rounding."""
    model = build_model("qwen3", hidden_size=64, initializer_range=0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        engine = build_engine(model, tokenizer, RolloutConfig(engine=name))
        assert type(engine).__name__.lower().startswith(name)
        groups = engine.generate(REQUESTS, PARAMS)
    assert all(len(group) == 4 for group in groups)
    if name == "embedded":  # as attention multiplies them, and as the plan of memory counts them
        assert engine._cache.store.dtype == torch.bfloat16
