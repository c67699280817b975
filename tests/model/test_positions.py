"""Rotary frequencies that change with a sequence's length: fixed by model.rope_length, or refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.model.sweep.checks import VOCABULARY, _saved, _trainer, own_logits, score_gap
from tests.model.sweep.tiny import tiny_model
from transformers import AutoModelForCausalLM

from srft.errors import ConfigError, ModelError, RolloutError
from srft.model.given import adopt
from srft.model.loading import load_model
from srft.model.model_config import ModelConfig
from srft.model.positions import context_length
from srft.rollout.requests import check_requests
from srft.types import RolloutRequest, SamplingParams

SWITCH = 32  # half of the window of longrope; the window of dynamic
ROPES = {
    "phi3": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.5, 2.0, 3.0, 4.0],
        },
        "original_max_position_embeddings": SWITCH,
        "max_position_embeddings": 2 * SWITCH,
    },
    "phimoe": {  # transformers takes the short factors at every length, and scales otherwise beyond
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 1.1, 1.2, 1.3],
            "short_mscale": 1.1,
            "long_mscale": 1.6,
            "original_max_position_embeddings": SWITCH,
        },
        "max_position_embeddings": 2 * SWITCH,
    },
    "llama": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
        "max_position_embeddings": SWITCH,
    },
}
IDS = torch.randint(2, 258, (60,), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.fixture(params=sorted(ROPES))
def base(request, tmp_path) -> Path:
    model = tiny_model(request.param, VOCABULARY, **copy.deepcopy(ROPES[request.param]))
    return _saved(model, tmp_path / "base")


def _own(base: Path):
    """Anew each time: dynamic frequencies remember the longest sequence that was seen."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def _settings(base: Path, **changes) -> ModelConfig:
    return ModelConfig(path=str(base), **changes)


def test_the_model_itself_changes_with_the_length(base):
    beginning, whole = (own_logits(_own(base), IDS[:n])[:20] for n in (20, 60))
    assert (beginning - whole).abs().max() > 1e-2


def test_sequences_beyond_the_change_are_refused_before_training(base, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)change with the length.*model\.rope_length"):
        _trainer(base, tmp_path / "run", rollout={"group_size": 2, "max_tokens": 20})
    asked = [RolloutRequest(tuple(IDS[:20]), 1, 0)]
    with pytest.raises(RolloutError, match=r"model\.rope_length"):
        check_requests(_own(base), asked, SamplingParams(max_tokens=20))


@pytest.mark.parametrize("attention", ["packed", "padded"])
def test_below_it_nothing_depends_on_the_neighbours(base, attention):
    model = load_model(_settings(base, attention=attention))
    assert context_length(model.config) == SWITCH
    assert score_gap(model, _own(base), ((20, 12), (3, 5), (1, 31))) < 1e-5


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize("given", [False, True])
def test_one_length_for_all_is_what_the_model_does_at_that_length(base, attention, given, tmp_path):
    settings = _settings(base, rope_length=60, attention=attention)
    if given:
        model = _own(base)
        adopt(model, settings)
    else:
        model = load_model(settings)
    ours, theirs = own_logits(model, IDS), own_logits(_own(base), IDS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "export")
    # In every mixture of lengths, and so for whoever loads the export.
    plain = _own(tmp_path / "export")
    assert score_gap(model, plain, ((30, 30), (3, 5), (20, 13))) < 1e-5
    torch.testing.assert_close(own_logits(plain, IDS), theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        own_logits(plain, IDS[:20]), theirs[:20], rtol=1e-5, atol=1e-5
    )  # no look ahead


def test_a_run_beyond_the_change(base, tmp_path):
    trainer = _trainer(
        base,
        tmp_path / "run",
        model={"rope_length": 48},
        rollout={"group_size": 2, "max_tokens": 24},
    )
    result = trainer.train()
    plain = _own(result.model_dir)
    trainer.model.eval()
    for size in (10, 45):
        torch.testing.assert_close(
            own_logits(trainer.model, IDS[:size]), own_logits(plain, IDS[:size])
        )


def test_the_window_alone_changes_no_frequency(base):
    settings = _settings(base, max_position_embeddings=40)
    if "llama" in _own(base).config.model_type:
        with pytest.raises(ModelError, match="rope_length in place of"):
            load_model(settings)
    else:
        short = IDS[:30]
        torch.testing.assert_close(
            own_logits(load_model(settings), short), own_logits(_own(base), short)
        )


def test_refused_where_length_changes_nothing(tmp_path):
    base = _saved(tiny_model("qwen3", VOCABULARY), tmp_path / "base")
    with pytest.raises(ModelError, match=r"leave model\.rope_length out"):
        load_model(_settings(base, rope_length=64))
    with pytest.raises(ValueError, match="changed rope_length"):
        ModelConfig(path="x", rope_length=8, lora={"export": "adapter"})
