"""Choosing the engine that a recipe names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from srft.errors import RolloutError, SRFTError
from srft.model.scoring_check import telling
from srft.rollout.check import check_engine, check_weights
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.generate import GenerateEngine
from srft.rollout.rollout_config import RolloutConfig
from srft.types import Completion, RolloutEngine, RolloutRequest, SamplingParams

Generate = Callable[[Sequence[RolloutRequest], SamplingParams], list[list[Completion]]]

logger = logging.getLogger(__name__)


class Checkable(RolloutEngine, Protocol):
    """What the start-up check asks of an engine: its parts that hold weights of their own, by name,
    each with a way to sample from it; and whether it computes in float32 as the trainer does."""

    model: Any
    tokenizer: Any

    @property
    def exact(self) -> bool: ...
    def parts(self) -> Iterable[tuple[str, Generate]]: ...


def build_engine(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: RolloutConfig,
    longest: int | None = None,
) -> RolloutEngine:
    """The engine the config names, holding the weights of ``model``, which is checked (unless
    ``config.check`` is off). A model that the embedded one cannot drive gets ``generate``, and a
    warning that says why and that it is slower.

    longest: longest sequence that will be asked for, in tokens; None: the model's window.

    Raises:
        ConfigError: the engine is not installed.
        RolloutError: it does not start, cannot be reached, or holds other weights.
    """
    if config.engine == "vllm":
        from srft.rollout.vllm_local import VLLMEngine

        return _checked(VLLMEngine(model, tokenizer, config, longest), config)
    if config.engine == "vllm-server":
        from srft.rollout.vllm_server import VLLMServerEngine

        return _checked(VLLMServerEngine(model, tokenizer, config), config)
    if config.engine == "embedded":
        engine = EmbeddedEngine(model, tokenizer, config)
        try:
            if config.check:
                check_engine(engine)
            return engine
        except RolloutError as error:
            logger.warning(
                "rollout.engine=generate is used (several times slower for responses of uneven "
                "length), because the embedded sampler refused the model: %s",
                error,
            )
    with telling(model):
        return _generate_engine(model, tokenizer, config)


def _generate_engine(
    model: Any, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig
) -> RolloutEngine:
    """With what the model is sampled from right: all prompts together, those of one length, or these
    without a cache. Recurrent states, and some positions and masks, take padding in."""
    engine = GenerateEngine(model, tokenizer, config)
    try:
        return _checked(engine, config)
    except RolloutError as error:
        reason = error
    for caches in dict.fromkeys((engine.caches, False)):
        engine.pads, engine.caches = False, caches
        try:
            checked = _checked(engine, config)
        except RolloutError:
            continue
        logger.warning(
            "prompts of different lengths are sampled separately, %s: %s",
            "without padding" if caches else "without padding and without a cache, which is slow",
            reason,
        )
        return checked
    raise reason


def _checked(engine: Checkable, config: RolloutConfig) -> RolloutEngine:
    """The engine, if each of its parts samples from the trainer's weights."""
    try:
        for where, generate in engine.parts() if config.check else ():
            check_weights(
                engine.model,
                engine.tokenizer,
                generate,
                config.sampling_params(),
                exact=engine.exact,
                where=where,
            )
    except SRFTError:
        engine.close()
        raise
    except Exception as error:  # whatever a model's own code raises
        engine.close()
        raise RolloutError(
            f"{type(engine.model).__name__} does not run under rollout.engine={config.engine}: "
            f"{type(error).__name__}: {error}"
        ) from error
    except BaseException:
        engine.close()
        raise
    return engine
