"""Tiny random models, tokenizers and sequences as factories."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.toys import random_sequences, tiny_model, word_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from srft.types import TrainingSequence


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return word_tokenizer


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    return tiny_model


@pytest.fixture
def make_sequences() -> Callable[..., list[TrainingSequence]]:
    return random_sequences
