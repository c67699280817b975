"""What a method asks of a recipe and of its data, looked at before any compute is spent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from srft.config import SRFTConfig
from srft.environments.toolbox import Toolbox
from srft.errors import ConfigError, DataError
from srft.model.adapters import has_adapters
from srft.model.positions import context_length, described_limit
from srft.objective.method import Method
from srft.trainer.train_config import Stage
from srft.types import TokenizedExample


def check_tools(methods: Sequence[Method], toolbox: Toolbox | None) -> None:
    """Raises ConfigError where a response would begin within a demonstration, whose calls were not made."""
    for method in methods:
        if toolbox is not None and method.continues:
            raise ConfigError(
                f"method {method.name} begins rollouts with part of a demonstration, whose calls of tools "
                "nobody has made: not with tools or environments; use srft, sft or grpo, for example"
            )


def check_teacher(config: SRFTConfig, methods: Sequence[Method]) -> None:
    """Raises ConfigError where a method learns from a teacher and the recipe names none, both, or one that
    cannot do it."""
    settings = config.teacher
    wanting = [method for method in methods if method.teacher == "model"]
    if not wanting:
        return
    if (settings.path is None) == (settings.server is None):
        raise ConfigError(
            f"method {wanting[0].name} learns from a teacher: set teacher.path (a model folder, hub id or "
            "run directory) or teacher.server (a vLLM server's address), one of the two"
        )
    if settings.server is not None:
        full = next((method.name for method in wanting if method.divergence), None)
        if full is not None:
            raise ConfigError(
                f"method {full} compares whole distributions, which a server does not return: set "
                "teacher.path, or objective.distill_form=sampled"
            )
        if config.rollout.temperature != 1.0:
            raise ConfigError(
                f"teacher.server scores at temperature 1, but rollout.temperature is "
                f"{config.rollout.temperature}: set it to 1, or use teacher.path"
            )


def check_references(config: SRFTConfig, methods: Sequence[Method]) -> None:
    """Raises ConfigError where a stage cannot have the reference it asks for."""
    stages = config.resolved_stages
    reads = [method.reads_reference(config.teacher.frozen) for method in methods]
    own = [number for number, stage in enumerate(stages) if stage.reference == "stage"]
    for number in own:
        if not reads[number]:
            raise ConfigError(
                f"stages[{number}].reference: {stages[number].method} reads no reference here: set "
                "objective.kl_coefficient, or leave it out"
            )
    if config.model.lora is not None:
        _refuse_own(stages)
    later = [n for n, m in enumerate(reads) if m and own and n > own[0] and n not in own]
    if later:
        raise ConfigError(
            f"stages[{later[0]}] is measured against the base, but stages[{own[0]}] has replaced it by its "
            f"own reference: set stages[{later[0]}].reference to stage"
        )


def check_own_references(config: SRFTConfig, model: nn.Module) -> None:
    """Raises ConfigError where a stage asks for a reference of its own and ``model`` has adapters."""
    if has_adapters(model):
        _refuse_own(config.resolved_stages)


def _refuse_own(stages: Sequence[Stage]) -> None:
    for number, stage in enumerate(stages):
        if stage.reference == "stage":
            raise ConfigError(
                f"stages[{number}].reference: with adapters the reference is the model under the adapters; "
                "leave it out, or train without adapters"
            )


def reads_demonstrations(method: Method) -> bool:
    """Whether it makes any use of demonstrations."""
    shown = method.teacher == "demonstration"
    return bool(method.demonstrations or method.continues or method.interleave or shown)


def check_data(
    config: SRFTConfig, methods: Sequence[Method], examples: Sequence[TokenizedExample]
) -> None:
    """Raises DataError where a method reads demonstrations and no row has one, ConfigError where a step can
    not have as many sequences as it is to have optimizer steps."""
    shown = max((len(example.demonstration_ids) for example in examples), default=0)
    train = config.train
    for method in methods:
        if reads_demonstrations(method) and not shown:
            raise DataError(
                f"method {method.name} needs demonstrations, but no row has one that can be used; map the "
                "column with data.columns.demonstration=NAME, or use a method that needs none, such as grpo"
            )
        most = train.prompts_per_step * config.rollout.group_size * method.rollouts
        asked = train.prompts_per_step + train.demonstrations_per_step * method.mixes
        most += asked * shown * method.demonstrations
        if method.interleave:
            most = min(most, (train.interleave_prompts or train.prompts_per_step) * shown)
        if train.optimizer_steps_per_batch > most:
            raise ConfigError(
                f"train.optimizer_steps_per_batch={train.optimizer_steps_per_batch}: a batch of method "
                f"{method.name} has at most {most} sequence{'s' * (most > 1)} to divide into so many "
                "steps; lower it, or raise train.prompts_per_step"
            )


def check_lengths(
    config: SRFTConfig,
    methods: Sequence[Method],
    model: PreTrainedModel,
    examples: Sequence[TokenizedExample],
) -> None:
    """Every sequence must fit the model's window.

    Raises:
        ConfigError: one does not.
    """
    window = context_length(model.config)
    if window is None:
        return
    limit = described_limit(model.config)
    prompt = max(len(example.prompt_ids) for example in examples)
    demo = max((len(d) for e in examples for d in e.demonstration_ids), default=0)
    if any(method.rollouts for method in methods):
        given = demo if any(method.continues for method in methods) else 0
        if prompt + given + config.rollout.max_tokens > window:
            more = f", the longest demonstration ({given})" if given else ""
            raise ConfigError(
                f"the longest prompt ({prompt} tokens){more} and "
                f"rollout.max_tokens={config.rollout.max_tokens} exceed {limit}; or lower "
                "rollout.max_tokens or data.max_prompt_tokens"
            )
    longest = max(
        (len(e.prompt_ids) + len(d) for e in examples for d in e.demonstration_ids), default=0
    )
    if any(method.demonstrations for method in methods) and longest > window:
        raise ConfigError(
            f"a prompt with its demonstration has {longest} tokens, more than {limit}; or lower "
            "data.max_demonstration_tokens"
        )


def check_further(config: SRFTConfig, methods: Sequence[Method]) -> None:
    """Raises ConfigError where further demonstrations are asked for and no method would be given them."""
    if not config.train.demonstrations_per_step or any(method.mixes for method in methods):
        return
    names = " and ".join(dict.fromkeys(method.name for method in methods))
    raise ConfigError(
        "train.demonstrations_per_step: is for methods that train on rollouts and on demonstrations, as srft "
        f"does; {names} would ignore it: leave it out (supervised methods take train.prompts_per_step)"
    )
