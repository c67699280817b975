"""Optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from srft.errors import ConfigError
from srft.trainer.train_config import TrainConfig


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


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
