"""The policy and the copies of it that a run needs, loaded and cut over processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from srft.config import SRFTConfig
from srft.errors import ConfigError, ModelError
from srft.model.adapters import (
    Reference,
    add_lora,
    check_adapters,
    frozen_reference,
    has_adapters,
)
from srft.model.fast import prepare_compute
from srft.model.loading import (
    autocast_dtype,
    check_finite_weights,
    choose_attention,
    load_model,
)
from srft.model.model_config import ModelConfig
from srft.parallel.sharding import cut_parameters, shard, whole_copy
from srft.parallel.world import World


@dataclass(frozen=True)
class Models:
    """policy: what is trained, sharded where there are several processes. sampled: what the engine is
    given: the policy, or a whole copy of it. reference: the policy as it was, for methods that ask."""

    policy: PreTrainedModel
    sampled: PreTrainedModel
    reference: Reference | None


def build_models(
    config: SRFTConfig,
    model_config: ModelConfig,
    model: str | nn.Module | None,
    device: torch.device,
    world: World,
    needs_reference: bool,
) -> Models:
    """Loads the policy (or takes ``model``), copies it where that is needed, and shards.

    Of several processes each reads its own parts. A model that is given whole waits in the host's
    memory, from where layer after layer goes to the device as it is cut: the device never holds a
    whole model that it does not keep.

    Raises:
        ModelError: it cannot be loaded, or holds numbers that are not finite.
    """
    alone = world.size == 1
    policy = _policy(model, model_config, device, world)
    sampled = policy
    # vLLM has weights of its own; our sampler would gather a sharded policy for every token.
    if not alone and config.rollout.engine not in ("vllm", "vllm-server"):
        sampled = whole_copy(policy, device)
    reference = frozen_reference(policy) if needs_reference else None
    autocast = autocast_dtype(model_config, device)
    if reference is not None:
        with reference() as frozen:
            if frozen is not policy:  # the base under adapters
                shard(frozen, world, config.parallel, autocast)
    shard(policy, world, config.parallel, autocast)
    return Models(policy, sampled, reference)


def _policy(
    model: str | nn.Module | None, config: ModelConfig, device: torch.device, world: World
) -> PreTrainedModel:
    """The policy, which is not sharded yet. A process may find fault with its own parts alone: the
    others are told before they wait for it."""
    alone = world.size == 1
    four_bits = bool(config.lora and config.lora.quantization)
    place = device if alone or four_bits else torch.device("cpu")
    cut = None if alone or four_bits else partial(cut_parameters, world=world)
    problem = None
    try:
        if isinstance(model, PreTrainedModel):
            policy = _prepared(model, config, place)
        else:
            policy = load_model(config, place, cut)
        check_finite_weights(policy, config.path)
    except ModelError as error:
        problem = error
    found = world.first(None if problem is None else str(problem), "the model")
    if found is not None:
        raise problem or ModelError(found)
    return policy


def _prepared(model: PreTrainedModel, config: ModelConfig, device: torch.device) -> PreTrainedModel:
    """A model given from Python, as ``load_model`` would have made it."""
    choose_attention(model, config)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to without its types
    if config.lora and not has_adapters(model):
        add_lora(model, config.lora)
    check_adapters(model)
    prepare_compute(model, config)
    return model


def choose_device(config: SRFTConfig) -> torch.device:
    """``train.device``; with several processes on a machine each takes the GPU of its number."""
    if config.train.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device: cuda is asked for but PyTorch sees no GPU; set it to cpu or auto"
        )
    if config.train.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
