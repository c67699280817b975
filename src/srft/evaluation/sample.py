"""``srft sample``: completions of prompts given as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srft.data.data_config import DataConfig
from srft.environments.environment_config import EnvironmentConfig
from srft.environments.toolbox import build_toolbox
from srft.errors import ConfigError
from srft.evaluation.evaluate import tokenize_problems
from srft.evaluation.open_model import environment_of, find_model, load, template_of
from srft.model.model_config import ModelConfig
from srft.types import Completion, Example, Message, RolloutRequest, SamplingParams


def sample_texts(
    model_path: str | Path,
    prompts: Sequence[str],
    n: int = 1,
    *,
    system: str | None = None,
    temperature: float = 0.6,
    top_p: float = 1.0,
    top_k: int = 0,
    max_tokens: int = 1024,
    seed: int = 0,
    data: DataConfig | None = None,
    model: ModelConfig | None = None,
    rollout: Any = None,
    environment: EnvironmentConfig | None = None,
    device: str | None = None,
) -> list[list[Completion]]:
    """``n`` completions of each prompt, put into the model's template as a user's message. The model
    is loaded once.

    model_path: folder, run directory or hub name. system: system message in front. data, environment: the
    template's settings and tools; None takes those of the recipe beside the model. rollout: a RolloutConfig
    that names the engine and what ends a response. ``max_tokens`` is lowered to what the model's context
    leaves beside the longest prompt.

    Raises:
        ConfigError: an empty prompt, or one that fills the context.
        ModelError: the model cannot be loaded.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ConfigError("the prompt is empty; give the text that the model is to answer")
    source = find_model(model_path, model)
    data = data or template_of(source)
    toolbox = build_toolbox(environment or environment_of(source))
    asked = [_asked(prompt, system) for prompt in prompts]
    with load(source, data, rollout, device, toolbox) as loaded:
        items = tokenize_problems(asked, loaded.tokenizer, data, loaded.tools)
        longest = max(len(item.prompt_ids) for item in items)
        if loaded.context is not None:
            max_tokens = min(max_tokens, loaded.context - longest)
        if max_tokens < 1:
            raise ConfigError(
                f"the prompt has {longest} tokens and leaves no room in the model's context of "
                f"{loaded.context}; shorten it"
            )
        stops = loaded.stop, loaded.stop_token_ids
        params = SamplingParams(temperature, top_p, top_k, max_tokens, *stops)
        requests = [RolloutRequest(i.prompt_ids, n, seed, example=i.example) for i in items]
        return loaded.engine.generate(requests, params)


def _asked(prompt: str, system: str | None) -> Example:
    messages: tuple[Message, ...] = ({"role": "user", "content": prompt},)
    if system:
        messages = ({"role": "system", "content": system}, *messages)
    return Example(messages if system else prompt, source="the prompt")
