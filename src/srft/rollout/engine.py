"""Choosing the engine that a recipe names."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from srft.errors import RolloutError
from srft.rollout.config import RolloutConfig
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.generate import GenerateEngine

logger = logging.getLogger(__name__)


def build_engine(
    model: Any, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig
) -> EmbeddedEngine | GenerateEngine:
    """The engine the config names. A model that the embedded one cannot drive gets ``generate``,
    and a warning that says why and that it is slower."""
    if config.engine == "embedded":
        try:
            return EmbeddedEngine(model, tokenizer, config)
        except RolloutError as error:
            logger.warning(
                "rollout.engine=generate is used (several times slower for responses of uneven "
                "length), because the embedded sampler refused the model: %s",
                error,
            )
    return GenerateEngine(model, tokenizer, config)
