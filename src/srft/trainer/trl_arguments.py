"""A ``trl.GRPOConfig`` as a recipe: what its fields are called here, and which of them have no counterpart.

Nothing of TRL is imported. A field that was set and means something that this package does not do is an
error; one that was set and cannot change the result is named in a note.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from srft.config import SRFTConfig, parse_config
from srft.data.folders import TRAIN_SPLITS
from srft.errors import ConfigError

SAME: dict[str, str] = {
    "output_dir": "run.dir",
    "learning_rate": "train.learning_rate",
    "weight_decay": "train.weight_decay",
    "adam_epsilon": "train.eps",
    "max_grad_norm": "train.max_grad_norm",
    "seed": "train.seed",
    "torch_compile": "model.compile",
    "router_aux_loss_coef": "model.router_aux_loss_coef",
    "num_generations": "rollout.group_size",
    "max_completion_length": "rollout.max_tokens",
    "temperature": "rollout.temperature",
    "vllm_gpu_memory_utilization": "rollout.vllm.gpu_memory_utilization",
    "vllm_tensor_parallel_size": "rollout.vllm.tensor_parallel_size",
    "vllm_max_model_length": "rollout.vllm.max_model_len",
    "vllm_enable_sleep_mode": "rollout.vllm.sleep",
    "num_generations_eval": "evaluation.n",
    "eval_on_start": "evaluation.at_start",
    "shuffle_dataset": "data.shuffle",
    "beta": "objective.kl_coefficient",
    "mask_truncated_completions": "objective.mask_truncated",
    "entropy_coef": "objective.entropy_coefficient",
}
"""Field of GRPOConfig -> setting of the recipe with the same values. None leaves the recipe's default."""

_LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"average": "sequence"},
    "dapo": {"average": "token"},
    "bnpo": {"average": "token"},
    "dr_grpo": {"average": "constant"},
}
_UNBOUNDED = 1e30
"""A cap that no ratio reaches."""
_SCHEDULES = {
    **{"linear": "linear", "cosine": "cosine"},
    **{"constant": "constant", "constant_with_warmup": "constant"},
}
_OPTIMIZERS = {
    **{"adamw_torch": "adamw", "adamw_torch_fused": "adamw"},
    **{"adamw_8bit": "adamw_8bit", "adamw_bnb_8bit": "adamw_8bit"},
}
_MODEL_INIT = {
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
}
_TRACKERS = ("wandb", "tensorboard", "trackio")

_READ = """
max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps steps_per_generation
generation_batch_size adam_beta1 adam_beta2 lr_scheduler_type warmup_steps optim bf16 use_cpu
model_init_kwargs trust_remote_code gradient_checkpointing activation_checkpointing disable_dropout
chat_template_kwargs reward_weights loss_type scale_rewards importance_sampling_level epsilon epsilon_high
delta use_bias_correction_kl
max_tool_calling_iterations use_vllm vllm_mode vllm_server_base_url vllm_server_host vllm_server_port
vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max
vllm_importance_sampling_clip_min eval_strategy eval_steps save_strategy save_steps save_total_limit
logging_steps log_completions metric_for_best_model greater_is_better load_best_model_at_end report_to
push_to_hub hub_model_id hub_token hub_private_repo hub_revision do_train do_eval do_predict
resume_from_checkpoint accelerator_config dataloader_pin_memory debug disable_tqdm pad_to_multiple_of
"""
READ = frozenset(_READ.split())
"""Fields that are read in another way than ``SAME``: here, by the trainer, or by the script that made them
(``do_train``); and those that say nothing and differ from their default in any case."""

_WITHOUT_EFFECT = """
per_device_eval_batch_size logging_strategy logging_first_step log_on_each_node log_level
log_level_replica run_name project hub_strategy hub_always_push trackio_space_id trackio_bucket_id
trackio_static_space_id num_completions_to_print log_unique_prompts log_multimodal local_rank
dataloader_num_workers dataloader_persistent_workers dataloader_prefetch_factor dataloader_drop_last
remove_unused_columns ddp_timeout use_cache ds3_gather_for_generation use_liger_kernel
gradient_checkpointing_kwargs activation_checkpointing_kwargs torch_compile_backend torch_compile_mode
cache_implementation tf32 use_transformers_continuous_batching transformers_continuous_batching_config
use_transformers_paged vllm_server_timeout vllm_group_port vllm_model_impl save_only_model
skip_memory_metrics eval_accumulation_steps restore_callback_states_from_checkpoint
torch_empty_cache_steps label_names average_tokens_across_devices auto_find_batch_size
"""
WITHOUT_EFFECT = frozenset(_WITHOUT_EFFECT.split())
"""Fields that change no result here: how TRL computes, or what it prints."""


def is_trl(args: Any) -> bool:
    """Whether ``args`` is a GRPOConfig of TRL's, or one derived from it."""
    return any(kind.__name__ == "GRPOConfig" for kind in type(args).__mro__)


def recipe_of(args: Any, train_dataset: Any) -> tuple[SRFTConfig, list[str]]:
    """The recipe that says what ``args`` (a GRPOConfig) says, for rows of ``train_dataset``, and notes on
    fields without effect.

    Raises:
        ConfigError: a field was set that has no counterpart, or there is no number of steps.
    """
    fields = dataclasses.fields(args)
    changed = {field.name for field in fields if getattr(args, field.name) != _default(field)}
    unknown = sorted(changed - SAME.keys() - READ - WITHOUT_EFFECT)
    if unknown:
        shown = ", ".join(f"{name}={getattr(args, name)!r}" for name in unknown)
        raise ConfigError(
            f"args (a {type(args).__name__}) sets what has no counterpart here: {shown}. Leave it out, or "
            "write the recipe as an SRFTConfig (docs/configuration.md)"
        )
    values: dict[str, Any] = {}

    def put(key: str, value: Any) -> None:
        """Sets ``section.key``; None leaves the default."""
        *sections, last = key.split(".")
        where = values
        for section in sections:
            where = where.setdefault(section, {})
        if value is not None:
            where[last] = value

    for theirs, ours in SAME.items():
        put(ours, getattr(args, theirs))
    for translate in (_objective, _steps, _optimization, _model, _engine, _run, _tools):
        for key, value in translate(args, train_dataset).items():
            put(key, value)
    values["data"]["max_prompt_tokens"] = None  # TRL drops no prompt for its length
    notes = [
        f"{type(args).__name__}.{name}={getattr(args, name)!r} has no effect here"
        for name in sorted(changed & WITHOUT_EFFECT)
    ]
    return parse_config(values, type(args).__name__), notes


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def optimizer_steps(args: Any) -> int:
    """Optimizer steps on each batch of rollouts, by which TRL counts steps, and which is one step here."""
    whole, rest = divmod(args.steps_per_generation, args.gradient_accumulation_steps)
    if rest or not whole:
        raise ConfigError(
            f"steps_per_generation={args.steps_per_generation} is no multiple of "
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}: a batch of rollouts is "
            "trained on in whole optimizer steps here"
        )
    return int(whole)


def _one_of(field: str, value: Any, table: Mapping[str, Any]) -> Any:
    name = str(getattr(value, "value", value))
    if name not in table:
        raise ConfigError(
            f"{field}: {name!r} has no counterpart here; there are {', '.join(table)}"
        )
    return table[name]


def _objective(args: Any, _: Any) -> dict[str, Any]:
    levels = {"token": "token", "sequence": "sequence"}
    scaled = {**dict.fromkeys(("group", "True"), True), **dict.fromkeys(("none", "False"), False)}
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    found: dict[str, Any] = {
        "method": "cispo" if args.loss_type == "cispo" else "grpo",
        "objective.ratio_level": _one_of(
            "importance_sampling_level", args.importance_sampling_level, levels
        ),
        "objective.normalize_std": _one_of("scale_rewards", args.scale_rewards, scaled),
    }
    if found["objective.normalize_std"]:
        found["objective.advantage_epsilon"] = 1e-4  # added by TRL
    if args.beta and getattr(args, "use_bias_correction_kl", False):  # none in older versions
        found["objective.kl_estimator"] = "k3-ratio"
    if args.loss_type == "cispo":  # the bound itself, and no other is read
        if high < 1:
            raise ConfigError(
                f"loss_type='cispo': epsilon_high (epsilon, where it is not set) bounds the ratio itself and "
                f"is {high:g}: below 1 every token weighs {high:g} before the policy has moved, which is not "
                "done here. Set epsilon_high=5.0, as TRL recommends"
            )
        found["objective.clip_high"] = high - 1
    else:
        losses = {**_one_of("loss_type", args.loss_type, _LOSSES)}
        losses |= {"clip_low": args.epsilon, "clip_high": high, "ratio_cap": args.delta}
        found |= {f"objective.{name}": value for name, value in losses.items()}
    if args.use_vllm and args.vllm_importance_sampling_correction:
        level, _, mode = args.vllm_importance_sampling_mode.partition("_")
        found["objective.importance_level"] = level
        found["objective.importance_mode"] = mode
        most = args.vllm_importance_sampling_clip_max
        found["objective.importance_cap"] = _UNBOUNDED if most is None else most
        found["objective.importance_floor"] = args.vllm_importance_sampling_clip_min
    return found


def _steps(args: Any, train_dataset: Any) -> dict[str, Any]:
    """TRL counts optimizer steps; a step here is a batch of rollouts with all its optimizer steps."""
    each = optimizer_steps(args)
    prompts, rest = divmod(args.generation_batch_size, args.num_generations)
    assert not rest, "GRPOConfig checks it"
    if args.max_steps > 0:
        steps = math.ceil(args.max_steps / each)
    else:
        steps = math.ceil(args.num_train_epochs * _rows(train_dataset) / prompts)
    a_epoch = None if args.max_steps > 0 else math.ceil(steps / args.num_train_epochs)

    def every(strategy: Any, count: float | None) -> int:
        """Optimizer steps (a share of all where below 1), or epochs, as steps here."""
        name = str(getattr(strategy, "value", strategy))
        if name == "steps" and count:
            return max(1, round(count * steps) if count < 1 else round(count / each))
        if name == "epoch":
            return a_epoch or max(1, math.ceil(_rows(train_dataset) / prompts))
        return 0

    warmup = args.warmup_steps
    return {
        "train.steps": steps,
        "train.prompts_per_step": prompts,
        "train.optimizer_steps_per_batch": each,
        "train.warmup_steps": math.ceil(warmup * steps if warmup < 1 else warmup / each),
        "evaluation.every_steps": every(args.eval_strategy, args.eval_steps or args.logging_steps),
        "run.checkpoint_every": every(args.save_strategy, args.save_steps),
        "run.samples_every": every("steps", args.logging_steps) if args.log_completions else None,
    }


def _rows(train_dataset: Any) -> int:
    if isinstance(train_dataset, Mapping):
        train_dataset = next((train_dataset[n] for n in TRAIN_SPLITS if n in train_dataset), None)
    if not hasattr(train_dataset, "__len__") or isinstance(train_dataset, str):
        raise ConfigError(
            "max_steps: not set, and the rows of train_dataset cannot be counted (a stream, or a name), so "
            "that num_train_epochs says nothing: set max_steps"
        )
    return len(train_dataset)


def _optimization(args: Any, _: Any) -> dict[str, Any]:
    return {
        "train.betas": (args.adam_beta1, args.adam_beta2),
        "train.schedule": _one_of("lr_scheduler_type", args.lr_scheduler_type, _SCHEDULES),
        "train.optimizer": _one_of("optim", args.optim, _OPTIMIZERS),
        "train.device": "cpu" if args.use_cpu else None,
    }


def _model(args: Any, _: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model.autocast": None if args.bf16 else "float32",
        "model.gradient_checkpointing": bool(
            args.gradient_checkpointing or args.activation_checkpointing
        ),
    }
    if args.trust_remote_code:
        found["model.trust_remote_code"] = True
    if args.disable_dropout:
        found["model.dropout"] = False
    for name, value in (args.model_init_kwargs or {}).items():
        if name in _MODEL_INIT:
            dtype = str(value).removeprefix("torch.") if "dtype" in name and value else value
            found[f"model.{_MODEL_INIT[name]}"] = dtype
        elif name not in ("attn_implementation", "device_map", "use_cache") and value is not None:
            raise ConfigError(
                f"model_init_kwargs: {name}={value!r} has no counterpart here; there are "
                f"{', '.join(_MODEL_INIT)}. Or give the model itself"
            )
    return found


def _engine(args: Any, _: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"data.chat_template_kwargs": args.chat_template_kwargs}
    if args.use_vllm and args.vllm_mode == "server":
        host = "127.0.0.1" if args.vllm_server_host == "0.0.0.0" else args.vllm_server_host
        address = args.vllm_server_base_url or f"http://{host}:{args.vllm_server_port}"
        found |= {"rollout.engine": "vllm-server", "rollout.servers": [address]}
    elif args.use_vllm:
        found["rollout.engine"] = "vllm"
    return found


def _tools(args: Any, _: Any) -> dict[str, Any]:
    """TRL counts the rounds of calls, of which there is one fewer than turns, and has no time limit."""
    rounds = getattr(args, "max_tool_calling_iterations", None)  # none in older versions
    turns = None if rounds is None else rounds + 1
    return {"environment": {"max_turns": turns, "timeout_s": None}}


def _run(args: Any, _: Any) -> dict[str, Any]:
    # TRL keeps all checkpoints unless told otherwise.
    keep = 1_000_000 if args.save_total_limit is None else args.save_total_limit
    found: dict[str, Any] = {
        "run.keep_checkpoints": keep,
        "evaluation.best_metric": None,
        "evaluation.best_mode": "min" if args.greater_is_better is False else "max",
    }
    if args.metric_for_best_model:
        name = args.metric_for_best_model.removeprefix("eval_").removeprefix("eval/")
        if name == "loss":  # what load_best_model_at_end takes where nothing is named
            raise ConfigError(
                "metric_for_best_model: no loss is measured in evaluation; name accuracy or reward"
            )
        found["evaluation.best_metric"] = name if name == "accuracy" else f"eval/{name}"
    wanted = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    wanted = [name for name in wanted if name != "none"]
    found["run.trackers"] = [_one_of("report_to", n, {t: t for t in _TRACKERS}) for n in wanted]
    return found
