"""The shorter decoding step: the same numbers as the model's own forward, and only where it holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from srft.model.cpu.lean import LeanDecoder, lean_decoder
from srft.model.cpu.products import rounds_weights
from srft.rollout.cached_attention import rollout_attention
from srft.rollout.check import gaps
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.engine import build_engine
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams

REQUESTS = [RolloutRequest((5, 6, 7), 3, 0), RolloutRequest((9, 8, 7, 6, 5, 4, 3), 3, 50)]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("llama", {"sliding_window": 4}),  # which Llama ignores
        ("mistral", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("qwen3", {}),
    ],
)
def test_it_equals_the_models_own_forward(build_model, add_hook, tokenizer, kind, changes):
    model = build_model(kind, **changes)
    for parameter in model.parameters():  # biases and norms start at constants
        nn.init.normal_(parameter, std=0.3) if parameter.dim() == 1 else None
    params = SamplingParams(max_tokens=30)
    engine = EmbeddedEngine(model, tokenizer, RolloutConfig(max_rows=4))
    assert engine.use_lean and isinstance(
        lean_decoder(model, 40, 8, rollout_attention), LeanDecoder
    )
    lean = engine.generate(REQUESTS, params)
    assert lean_decoder(add_hook(model), 40, 8, rollout_attention) is None
    own = engine.generate(REQUESTS, params)
    for a, b in zip(lean, own, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.token_ids == y.token_ids
            assert torch.allclose(torch.tensor(x.logprobs), torch.tensor(y.logprobs), atol=1e-5)


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {}),
        ("qwen3", {}),
    ],
)
def test_in_bfloat16_it_is_as_near_to_float32_as_the_models_own_forward(
    build_model, tokenizer, kind, changes
):
    model = build_model(kind, **changes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3) if parameter.dim() == 1 else None
    params = SamplingParams(max_tokens=30)
    apart = []
    with torch.autocast("cpu", torch.bfloat16):
        if not rounds_weights():
            pytest.skip("this processor does not multiply bfloat16 numbers")
        assert lean_decoder(model, 40, 8, rollout_attention) is not None
    for lean in (True, False):
        engine = EmbeddedEngine(model, tokenizer, RolloutConfig(max_rows=4))
        engine.use_lean = lean
        with torch.autocast("cpu", torch.bfloat16):
            found = engine.generate(REQUESTS, params)
        apart.append(gaps(model, REQUESTS, found, params))
    assert 1e-5 < apart[0].mean() < 1.25 * apart[1].mean() + 1e-3
    assert apart[0].max() < 2 * apart[1].max() + 1e-3


def _patch(model):
    model.model.layers[0].mlp.forward = lambda x: 2 * x


def _adapter(model):
    model.model.layers[1].self_attn.q_proj = nn.Sequential(model.model.layers[1].self_attn.q_proj)


def _parametrized(model):
    parametrize.register_parametrization(model.model.layers[0].mlp.up_proj, "weight", nn.Identity())


def _rope(model):
    model.config.rope_parameters["rope_type"] = "dynamic"


def _hook(model):
    model.model.norm.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "change", [_patch, _adapter, _parametrized, _rope, _hook, lambda m: m.bfloat16()]
)
def test_anything_unusual_leaves_the_step_to_the_model(llama, change):
    assert lean_decoder(llama, 10, 8, rollout_attention) is not None
    change(llama)
    assert lean_decoder(llama, 10, 8, rollout_attention) is None


def test_other_architectures_and_autocast_leave_the_step_to_the_model(llama, build_model):
    assert lean_decoder(build_model("gemma2"), 10, 8, rollout_attention) is None
    with torch.autocast("cpu", torch.float16):
        assert lean_decoder(llama, 10, 8, rollout_attention) is None


def test_a_lean_step_that_disagrees_is_switched_off_at_start_up(llama, tokenizer, monkeypatch):
    step = LeanDecoder.step
    monkeypatch.setattr(LeanDecoder, "step", lambda self, *a: -step(self, *a))
    engine = build_engine(llama, tokenizer, RolloutConfig())
    assert not engine.use_lean
