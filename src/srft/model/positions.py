"""Positions: how long a sequence may be, and rotary frequencies that change with a sequence's length.

Two kinds of scaling turn every position of a sequence otherwise once it is long: longrope has a second
set of factors beyond its original window (Phi-3.5, Phi-4-mini), dynamic NTK a base that grows with the
length. There a token's log-probability depends on what comes after it, and in transformers on the other
sequences of the batch too, so no such sequence is sampled or trained on. ``model.rope_length`` takes the
frequencies of one length for all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from srft.errors import ModelError
from srft.model.model_config import ModelConfig

_LONG = ("factor", "mscale")  # what longrope has one of for short and one for long sequences


def context_length(model_config: Any) -> int | None:
    """Longest sequence in tokens that may be sampled or scored: the positions the model was built for,
    or those up to which its rotary frequencies stay as they are. None where nothing limits it."""
    text = model_config.get_text_config(decoder=True)
    window = getattr(text, "max_position_embeddings", None)
    limits = [window] if isinstance(window, int) and window > 0 else []
    return min([*limits, *_switches(text)], default=None)


def described_limit(model_config: Any) -> str:
    """``context_length`` in words, with what can be set to raise it."""
    limit = context_length(model_config)
    if limit in _switches(model_config.get_text_config(decoder=True)):
        return (
            f"{limit} tokens, beyond which the model's rotary frequencies (rope_type longrope or dynamic) "
            "change with the length of the sequence, and with them the log-probabilities of all its tokens: "
            "set model.rope_length to the longest sequence there is, whose frequencies all then have"
        )
    return f"the model's window of {limit} tokens: set model.max_position_embeddings to change it"


def override_positions(model_config: Any, config: ModelConfig) -> None:
    """Writes the window and the rotary frequencies that the recipe asks for into ``model_config``.

    Raises ModelError where the model has none that could be changed so."""
    text = model_config.get_text_config(decoder=True)
    kind = text.model_type
    if config.max_position_embeddings is not None:
        for rope in rotary_settings(text):
            if "dynamic" in rope["rope_type"]:
                raise ModelError(
                    f"{config.path}: rotary frequencies of model type {kind!r} follow from its window "
                    "(rope_type dynamic): set model.rope_length in place of model.max_position_embeddings"
                )
            # What follows from the ratio of both windows stays as the model was trained.
            if rope["rope_type"] in ("longrope", "yarn") and rope.get("factor") is None:
                original = rope["original_max_position_embeddings"]
                rope["factor"] = text.max_position_embeddings / original
        text.max_position_embeddings = config.max_position_embeddings
    if config.rope_theta is not None:
        own = getattr(text, "rope_parameters", None)
        if not isinstance(own, dict) or "rope_theta" not in own:
            raise ModelError(
                f"{config.path}: model type {kind!r} has no single rotary base, so "
                "model.rope_theta cannot be set: leave it out"
            )
        own["rope_theta"] = config.rope_theta
    if config.rope_length is not None:
        if not _switches(text):
            raise ModelError(
                f"{config.path}: rotary frequencies of model type {kind!r} do not depend on a sequence's "
                "length (no rope_type longrope or dynamic): leave model.rope_length out"
            )
        _fix_frequencies(text, config.rope_length)


def rotary_settings(text: Any) -> Iterator[dict[str, Any]]:
    """The settings of rotary positions: one, or one for each kind of layer."""
    own = getattr(text, "rope_parameters", None)
    if isinstance(own, dict):
        for rope in (own, *own.values()):
            if isinstance(rope, dict) and isinstance(rope.get("rope_type"), str):
                yield rope


def _switches(text: Any) -> list[int]:
    """Lengths beyond which frequencies are others."""
    found = []
    for rope in rotary_settings(text):
        if "dynamic" in rope["rope_type"]:
            found.append(int(text.max_position_embeddings))
        elif rope["rope_type"] == "longrope" and any(
            rope.get(f"short_{part}") != rope.get(f"long_{part}") for part in _LONG
        ):
            found.append(int(rope["original_max_position_embeddings"]))
    return found


def _fix_frequencies(text: Any, length: int) -> None:
    """Those of a sequence of ``length`` tokens for all, in words that every library understands."""
    window = text.max_position_embeddings
    for rope in rotary_settings(text):
        if "dynamic" in rope["rope_type"]:
            share = rope.get("partial_rotary_factor", 1.0)
            head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
            dim, factor = int(head * share), rope.pop("factor")
            grown = factor * max(length, window) / window - (factor - 1)
            rope["rope_theta"] *= grown ** (dim / (dim - 2))
            rope["rope_type"] = "default"
            text.max_position_embeddings = max(length, window)
        elif rope["rope_type"] == "longrope":
            beyond = length > rope["original_max_position_embeddings"]
            for part in _LONG:
                if f"long_{part}" in rope:
                    chosen = rope[f"long_{part}" if beyond else f"short_{part}"]
                    rope[f"long_{part}"] = rope[f"short_{part}"] = copy.copy(chosen)
