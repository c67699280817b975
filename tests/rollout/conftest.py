"""Tiny models of several architectures and a byte-level tokenizer for the sampler's tests."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from tests.rollout.serving import ends_of_logs
from tests.toys import byte_tokenizer, tiny_model
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)


def byte_model(kind: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Any:
    """A model over the byte-level vocabulary; a context of 64 is soon full."""
    own = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    if kind != "mamba":
        own["max_position_embeddings"] = 64
    return tiny_model(kind, seed=7, **{**own, **changes})


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def hooked(model: Any) -> Any:
    """The model with a hook that does nothing: its own forward must be used for every step."""
    model.model.norm.register_forward_hook(lambda *_: None)
    return model


@pytest.fixture(params=["llama", "qwen3", "gemma2", "mistral", "gpt2", "qwen3-own", "mistral-own"])
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> Any:
    kind, _, own = request.param.partition("-")
    built = byte_model(kind, tokenizer)
    return hooked(built) if own else built


@pytest.fixture
def llama(tokenizer: PreTrainedTokenizerFast) -> Any:
    return byte_model("llama", tokenizer)


@pytest.fixture
def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """``build_model(kind, **config changes)``."""
    return lambda kind, **changes: byte_model(kind, tokenizer, **changes)


@pytest.fixture
def add_hook() -> Any:
    return hooked


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what the vLLM servers said."""
    report = yield
    if report.failed:
        report.sections += ends_of_logs()
    return report
