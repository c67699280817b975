"""The policy and the copies of it that a run needs, loaded and cut over processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from srft.config import SRFTConfig
from srft.errors import ConfigError, ModelError
from srft.evaluation.open_model import find_model, restore
from srft.model.adapters import frozen_reference
from srft.model.experts import balance_of
from srft.model.given import adopt
from srft.model.loading import (
    autocast_dtype,
    check_finite_weights,
    check_lora,
    check_same_tokenizer,
    load_tokenizer,
    open_model,
    prepare,
    source_dtype,
)
from srft.model.model_config import ModelConfig
from srft.model.policy import Policy
from srft.objective.method import Method
from srft.parallel.sharding import cut_parameters, shard, whole_copy
from srft.parallel.world import World
from srft.trainer.method_checks import check_own_references
from srft.trainer.teacher import PolicyTeacher, ServerTeacher, Teacher


def build_policy(
    config: SRFTConfig,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    world: World,
    needs_reference: bool,
) -> tuple[Policy, PreTrainedModel]:
    """Loads the policy (or takes ``model``), copies it where that is needed, and shards it over
    several processes. Beside it the model that the engine is given: the policy's, or a whole copy.

    Of several processes each reads its own parts. A model that is given whole waits in the host's
    memory, from where layer after layer goes to the device as it is cut: the device never holds a
    whole model that it does not keep.

    Raises:
        ModelError: it cannot be loaded, holds non-finite numbers, or cannot have the adapters asked for.
        ConfigError: it has adapters, and a stage is to have a reference of its own.
    """
    alone = world.size == 1
    check_lora(config.model, model)
    policy = _policy(config.model, model, tokenizer, device, world)
    try:
        check_own_references(config, policy.model)
        sampled = policy.model
        # vLLM has weights of its own; our sampler would gather a sharded policy for every token.
        if not alone and config.rollout.engine not in ("vllm", "vllm-server"):
            sampled = whole_copy(policy.model, device)
        reference = frozen_reference(policy.model) if needs_reference else None
        autocast = autocast_dtype(config.model, device)
        if reference is not None:
            with reference() as frozen:
                if frozen is not policy.model:  # with its adapters off
                    shard(frozen, world, config.parallel, autocast)
        gather_dtype = shard(policy.model, world, config.parallel, autocast)
    except BaseException:
        policy.close()
        raise
    return replace(policy, reference=reference, gather_dtype=gather_dtype), sampled


def reopen_policy(policy: Policy, given: bool) -> Policy:
    """A policy that was closed, prepared once more; ``given``: whether its model is from Python.

    Raises:
        ModelError: the model was changed meanwhile so that it no longer fits.
    """
    with ExitStack() as undo:
        if given:
            undo.callback(adopt(policy.model, policy.config))
        undo.callback(prepare(policy.model, policy.config))
        return replace(policy, put_back=undo.pop_all().close)


def build_teacher(
    config: SRFTConfig,
    methods: Sequence[Method],
    policy: Policy,
    device: torch.device,
    world: World,
) -> Teacher | None:
    """The frozen model that ``teacher`` names, for methods that learn from one; None where none does. The
    recipe has passed ``check_teacher``.

    Raises:
        ModelError: it cannot be loaded, or has another tokenizer than the policy.
    """
    settings = config.teacher
    if all(method.teacher != "model" for method in methods):
        return None
    if settings.server is not None:
        return ServerTeacher(settings.server, settings.timeout_s)
    assert settings.path is not None
    source = find_model(settings.path)
    dtype = settings.dtype or config.model.dtype
    changes = {"dtype": dtype, "router_aux_loss_coef": 0.0, "text_only": True}
    own = source.config.model_copy(update=changes)
    check_same_tokenizer(policy.tokenizer, load_tokenizer(own), str(settings.path))
    teacher = _policy(own, None, policy.tokenizer, device, world)
    if source.weights is not None:
        restore(teacher.model, source.weights)
    teacher.model.requires_grad_(False).eval()
    gather = shard(teacher.model, world, config.parallel, autocast_dtype(own, device))
    return PolicyTeacher(
        replace(teacher, gather_dtype=gather, temperature=config.rollout.temperature)
    )


def _policy(
    config: ModelConfig,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    world: World,
) -> Policy:
    """The policy, which is not sharded yet. A process may find fault with its own parts alone: the
    others are told before they wait for it."""
    alone = world.size == 1
    four_bits = bool(config.lora and config.lora.quantization)
    place = device if alone or four_bits else torch.device("cpu")
    cut = None if alone or four_bits else partial(cut_parameters, world=world)
    problem = None
    with ExitStack() as undo:
        try:
            if model is None:
                dtype = source_dtype(config)
                model = open_model(config, place, cut)
            else:
                dtype = model.dtype
                undo.callback(adopt(model, config))
                model.to(place)  # type: ignore[arg-type]  # transformers wraps nn.Module.to untyped
            check_finite_weights(model, config.path)
            balance = balance_of(model, config)
            undo.callback(prepare(model, config))
        except ModelError as error:
            problem = error
        found = world.first(None if problem is None else str(problem), "the model")
        if problem is not None or found is not None:
            raise problem or ModelError(found)
        assert model is not None
        put_back = undo.pop_all().close
    return Policy(model, tokenizer, config, source_dtype=dtype, balance=balance, put_back=put_back)


def choose_device(config: SRFTConfig) -> torch.device:
    """``train.device``; with several processes on a machine each takes the GPU of its number."""
    if config.train.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device: cuda is requested but unavailable (PyTorch sees no GPU); set it to cpu or auto"
        )
    if config.train.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
