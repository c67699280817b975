"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from srft.config import SRFTConfig
from srft.errors import CheckpointError, ConfigError
from srft.trainer.given import Given
from srft.trainer.train_config import Stage, TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; weight decay acts on matrices only, not on norms and biases.

    Raises ConfigError where states of eight bits are asked for and cannot be had.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **settings, fused=True)
    if any(isinstance(p, DTensor) for p in trained):
        raise ConfigError(
            "train.optimizer: adamw_8bit does not support weights that are sharded over processes; set it "
            "to adamw, whose state is sharded with them"
        )
    return _eight_bit()(groups, **settings)


def choose_optimizer(
    model: nn.Module, config: SRFTConfig, given: Given
) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
    """AdamW by the recipe, whose rate the loop sets; or the optimizer that was handed over with the
    scheduler that was, if any, else with one of the recipe's shape over the optimizer's own rates.

    Raises:
        ConfigError: the given optimizer does not move what is trained, or moves something else; stages
            have rates of their own, which it would not be told.
    """
    optimizer = given.optimizer
    if optimizer is None and given.scheduler is None:
        return build_optimizer(model, config.train), None
    if optimizer is None:
        raise ConfigError("optimizers: a scheduler is given without the optimizer that it acts on")
    rated = next(
        (n for n, s in enumerate(config.stages or ()) if s.learning_rate is not None), None
    )
    if rated is not None:
        raise ConfigError(
            f"stages[{rated}].learning_rate: an optimizer is given, whose rates are its own: leave it "
            "out, or give no optimizer"
        )
    if any(isinstance(p, DTensor) for p in model.parameters()):
        raise ConfigError(
            "optimizers: the optimizer holds the parameters of before they were cut over several processes "
            "(FSDP), which are others now: give none, and set train.learning_rate, betas and weight_decay"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for key, name in trained.items() if key not in held]
    if missing or held - trained.keys():
        problem = (
            f"does not hold {missing[0]}, which is trained"
            if missing
            else f"holds {len(held - trained.keys())} parameters that are not trained"
        )
        raise ConfigError(
            f"optimizers: the optimizer {problem}. Make it from the parameters of the very model that is "
            "given, adapters included (give the model that peft returns, not peft_config)"
        )
    shape = partial(learning_rate, total=config.total_steps, peak=1.0, config=config.train)
    return optimizer, given.scheduler or LambdaLR(optimizer, shape)


def _eight_bit() -> type[torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "train.optimizer: adamw_8bit needs bitsandbytes: pip install 'srft[qlora]', or set it "
            "to adamw"
        ) from error

    class Resumable(AdamW8bit):
        """A checkpoint holds the count of steps, here an int, as a tensor, and no constants."""

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            super().load_state_dict(state_dict, move_to_device)
            for state in self.state.values():
                state["step"] = int(state["step"])
                if "absmax1" in state:
                    device = state["absmax1"].device
                    state["qmap1"] = self.name2qmap["dynamic"].to(device)
                    state["qmap2"] = self.name2qmap["udynamic"].to(device)

    return Resumable


def learning_rate(step: int, total: int, peak: float, config: TrainConfig) -> float:
    """Rate of training step ``step`` (from 0) of a stage of ``total`` steps.

    Warm-up is (step + 1) / warmup_steps of the peak, so the first step already moves. Linear and
    cosine reach ``min_learning_rate_ratio`` of the peak at the last step.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    done = (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps)
    done = min(1.0, done)
    shape = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    low = config.min_learning_rate_ratio
    return peak * (low + (1 - low) * shape)


def set_rate(
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
    config: TrainConfig,
    stage: Stage,
    step: int,
) -> float:
    """Sets and returns the rate of step ``step`` of a stage; a scheduler has set it already."""
    if scheduler is not None:
        return float(scheduler.get_last_lr()[0])
    rate = learning_rate(step, stage.steps, stage.learning_rate or config.learning_rate, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


_DRIVEN = ("lr", "momentum", "betas")
"""What schedulers change in an optimizer's groups. No scheduler's ``load_state_dict`` puts it back."""


def _own(group: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What schedulers drive in a group, and the numbers that an optimizer keeps there by itself (a count of
    steps, an estimate of the rate): those that are no longer what it began with."""
    return {
        name: list(value) if name == "betas" else value
        for name, value in group.items()
        if name in _DRIVEN
        or (isinstance(value, int | float) and value != optimizer.defaults.get(name))
    }


def schedule_state(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> dict[str, Any]:
    """Where a scheduler stands and what has become of each group of its optimizer; plain JSON."""
    driven = [_own(group, optimizer) for group in optimizer.param_groups]
    return {"scheduler": scheduler.state_dict(), "driven": driven}


def resume_schedule(
    optimizer: torch.optim.Optimizer, scheduler: LRScheduler, saved: Mapping[str, Any]
) -> None:
    """Goes on with what ``schedule_state`` returned (of an older checkpoint: with the scheduler's rates).

    Raises:
        CheckpointError: the optimizer has more groups of parameters, or fewer.
    """
    scheduler.load_state_dict(dict(saved["scheduler"]))
    driven = saved.get("driven") or [{"lr": rate} for rate in scheduler.get_last_lr()]
    groups = optimizer.param_groups
    if len(driven) != len(groups):
        raise CheckpointError(
            f"optimizers: the optimizer has {len(groups)} groups of parameters, and the one that the "
            f"checkpoint is of had {len(driven)}; make it as it was"
        )
    for group, values in zip(groups, driven, strict=True):
        group.update({k: tuple(v) if k == "betas" else v for k, v in values.items()})
