"""The tokens that end a text, whatever else a recipe adds to them."""

from __future__ import annotations

from typing import Any


def end_token_ids(tokenizer: Any, generation_config: Any = None) -> tuple[int, ...]:
    """The tokenizer's EOS, then those of the model's ``generation_config``, each once."""
    found: list[int] = []
    for source in (tokenizer, generation_config):
        ids = getattr(source, "eos_token_id", None)
        found += [] if ids is None else [ids] if isinstance(ids, int) else ids
    return tuple(dict.fromkeys(found))
