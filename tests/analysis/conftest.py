"""Tiny models with the lab's tokenizer, made once for the whole folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.toys import lab_tokenizer, save_lab_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """``base``, ``other`` and ``untied``: model folders with tokenizer."""
    root = tmp_path_factory.mktemp("models")
    models = {"base": (0, True), "other": (1, True), "untied": (2, False)}
    return {
        name: save_lab_model(root / name, "llama", seed=seed, tie_word_embeddings=tie)
        for name, (seed, tie) in models.items()
    }


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return lab_tokenizer()
