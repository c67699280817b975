"""Recipes that train with stand-in vLLM servers."""

from __future__ import annotations

import pytest
from tests.rollout.fake_vllm import FakeServer

from srft.model.loading import load_model, load_tokenizer
from srft.model.model_config import ModelConfig


@pytest.fixture
def servers(tiny_model):
    config = ModelConfig(path=str(tiny_model))
    started = [FakeServer(load_model(config), load_tokenizer(config)) for _ in range(2)]
    yield started
    for server in started:
        server.stop()


@pytest.fixture
def by_servers(recipe, servers, tmp_path):
    """``by_servers(ahead=..., **sections)``: a recipe for the stand-in servers."""

    def build(ahead=0, rollout=None, **sections):
        settings = {
            "engine": "vllm-server",
            "servers": [server.url for server in servers],
            "server": {"check_every_s": 0.05, "wait_s": 60, "shared_memory": str(tmp_path)},
            "ahead": ahead,
        }
        return recipe(rollout={**settings, **(rollout or {})}, **sections)

    return build
