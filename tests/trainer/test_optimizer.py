"""Optimizers: eight-bit moments follow the full ones, take a quarter of the memory, and resume."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from srft.errors import ConfigError
from srft.trainer.checkpoint import Checkpointer, load_newest, restore
from srft.trainer.optimization import build_optimizer
from srft.trainer.train_config import TrainConfig


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 128), nn.LayerNorm(128), nn.Linear(128, 96))


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        draw = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and not name.startswith("qmap")  # one map for all
    )


def test_eight_bits_follow_the_full_moments_in_a_quarter_of_the_memory() -> None:
    pytest.importorskip("bitsandbytes")
    start = _model()
    ends, sizes = [], []
    for name in ("adamw", "adamw_8bit"):
        model = copy.deepcopy(start)
        optimizer = build_optimizer(model, TrainConfig(optimizer=name, learning_rate=1e-3))
        _steps(model, optimizer, 0, 10)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        sizes.append(_state_bytes(optimizer))
    moved = ends[0] - torch.cat([p.detach().flatten() for p in start.parameters()])
    assert float((ends[1] - ends[0]).norm() / moved.norm()) < 0.05
    assert sizes[1] < 0.3 * sizes[0]


def test_it_is_adamw_with_the_settings_of_the_recipe() -> None:
    start = _model()
    config = TrainConfig(learning_rate=1e-2, betas=(0.7, 0.9), weight_decay=0.3)
    ours, theirs = copy.deepcopy(start), copy.deepcopy(start)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.3},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    _steps(ours, build_optimizer(ours, config), 0, 5)
    _steps(theirs, torch.optim.AdamW(groups, lr=1e-2, betas=(0.7, 0.9)), 0, 5)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_a_restored_optimizer_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    config = TrainConfig(optimizer=name, learning_rate=1e-3)
    model = _model()
    optimizer = build_optimizer(model, config)
    _steps(model, optimizer, 0, 4)
    Checkpointer(tmp_path, keep=1).save(4, model, optimizer, {})
    _steps(model, optimizer, 4, 8)

    other = _model()
    again = build_optimizer(other, config)
    checkpoint, _ = load_newest(tmp_path)
    restore(checkpoint, other, again)
    _steps(other, again, 4, 8)
    for (parameter, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), parameter


def test_without_bitsandbytes_the_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        build_optimizer(_model(), TrainConfig(optimizer="adamw_8bit"))
