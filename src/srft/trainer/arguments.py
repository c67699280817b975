"""What ``SRFTTrainer`` is given as ``args``, ``peft_config`` and ``quantization_config``, as a recipe."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from transformers import AutoConfig, TrainingArguments

from srft.config import SRFTConfig, parse_config
from srft.errors import ConfigError
from srft.model.model_config import LoraConfig
from srft.trainer.callbacks import transformers_names
from srft.trainer.trl_arguments import is_trl, recipe_of

_LORA = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "target_modules",
    "target_parameters": "target_parameters",
    "use_rslora": "rslora",
}
# What peft writes into a config itself, and what says nothing about adapters to be made.
_OF_PEFT = (
    "task_type",
    "peft_type",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
)


def recipe_from(args: Any, train_dataset: Any) -> tuple[SRFTConfig, list[str]]:
    """The recipe, and notes on what has no effect.

    Raises:
        ConfigError: it is none, or holds unknown or wrong settings.
    """
    if args is None:
        return SRFTConfig(), []
    if isinstance(args, SRFTConfig):
        return args.rechecked(), []
    if isinstance(args, Mapping):
        return parse_config(args, "args"), []
    if is_trl(args):
        return recipe_of(args, train_dataset)
    hint = "an SRFTConfig, a dict of its sections such as {'train': {'steps': 50}}, or a trl.GRPOConfig"
    if any(kind.__name__ == "RLOOConfig" for kind in type(args).__mro__):
        hint = (
            "SRFTConfig(method='rloo', ...): TRL's RLOO clips one ratio for a whole response and takes the "
            "KL term (beta, 0.05 unless set) out of the reward, and `rloo` here clips each token's and adds "
            "the KL term to the loss; with one optimizer step a batch and beta=0 the gradients are the same "
            "up to the factor rollout.max_tokens"
        )
    raise ConfigError(f"args: is of type {type(args).__name__}; give {hint}")


def lora_from(peft_config: Any, quantization_config: Any, model: Any) -> LoraConfig:
    """peft's LoraConfig and transformers' BitsAndBytesConfig as ``model.lora``. ``model``: its config says
    which matrices peft adapts where none are named.

    Raises:
        ConfigError: they ask for what is not done here.
    """
    values: dict[str, Any] = {}
    if quantization_config is not None:
        values["quantization"] = _nf4(quantization_config, peft_config)
    default = type(peft_config)()
    for field in dataclasses.fields(peft_config):
        value = getattr(peft_config, field.name)
        if field.name in _LORA:
            if value is not None:
                values[_LORA[field.name]] = sorted(value) if isinstance(value, set) else value
        elif field.name not in _OF_PEFT and value != getattr(default, field.name):
            raise ConfigError(
                f"peft_config: {field.name}={value!r} is not done here; there are {', '.join(_LORA)}. Or "
                "give the model that peft.get_peft_model returns"
            )
    if "target_modules" not in values and "target_parameters" not in values:
        values["target_modules"] = _usual_targets(model)
    try:
        return LoraConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"peft_config: {first['loc'][0]}: {first['msg']}") from error


def _nf4(config: Any, peft_config: Any) -> str | None:
    """``model.lora.quantization`` for a BitsAndBytesConfig."""
    if getattr(config, "load_in_4bit", False) and config.bnb_4bit_quant_type == "nf4":
        if peft_config is None:
            raise ConfigError(
                "quantization_config: weights of four bits cannot be trained; give peft_config for adapters "
                "on them"
            )
        return "nf4"
    raise ConfigError(
        "quantization_config: here there is four bits alone: BitsAndBytesConfig(load_in_4bit=True, "
        "bnb_4bit_quant_type='nf4')"
    )


def _usual_targets(model: Any) -> list[str] | str:
    """What peft adapts in a model of this kind where nothing is named; all linear layers where it has no
    list."""
    from peft.utils import constants

    usual = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    config = getattr(model, "config", None)
    if config is None:
        config = AutoConfig.from_pretrained(model)
    return list(usual.get(config.model_type, ())) or "all-linear"


def arguments_for(args: Any, recipe: SRFTConfig) -> Any:
    """What callbacks are given as ``args``: TRL's own where those were given, else a TrainingArguments that
    says what the recipe says."""
    if is_trl(args):
        return args
    every, best = recipe.evaluation.every_steps, recipe.evaluation.best_metric
    metric = next(iter(transformers_names({f"eval/{best}": 0.0}))) if best else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TrainingArguments(
            output_dir=recipe.run.dir,
            max_steps=recipe.total_steps,
            learning_rate=recipe.train.learning_rate,
            weight_decay=recipe.train.weight_decay,
            max_grad_norm=recipe.train.max_grad_norm,
            seed=recipe.train.seed,
            logging_steps=1,
            eval_strategy="steps" if every else "no",
            eval_steps=every or None,
            eval_on_start=recipe.evaluation.at_start,
            save_strategy="steps" if recipe.run.checkpoint_every else "no",
            save_steps=recipe.run.checkpoint_every or 500,
            save_total_limit=recipe.run.keep_checkpoints,
            metric_for_best_model=metric and metric.removeprefix("eval_"),
            greater_is_better=recipe.evaluation.best_mode == "max",
            report_to="none",
            use_cpu=True,  # where it runs is not theirs to say
        )
