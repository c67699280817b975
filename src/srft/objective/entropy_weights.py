"""The entropy weights w_SFT (Eq. 8) and w_RL (Eq. 11).

    w = min(c * exp(sign * H), cap)          H without gradient, in nats

Worked: 0.5 exp(-H) is 0.5, 0.40937, 0.18394 at H = 0, 0.2, 1.0; 0.1 exp(H) is 0.1, 0.12214,
0.27183 there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from srft.objective.switches import Switches
from srft.objective.table import sequence_mean
from srft.types import TokenBatch


def sft_weight(batch: TokenBatch, switches: Switches) -> Tensor:
    """w_SFT of each token of a batch of demonstration tokens (Eq. 8), weight_T."""
    return _weight(
        batch, switches, switches.sft_coefficient, switches.sft_entropy_sign, "demonstrations"
    )


def rl_weight(batch: TokenBatch, switches: Switches) -> Tensor:
    """w_RL of each token of a batch of rollout tokens (Eq. 11), weight_T."""
    return _weight(batch, switches, switches.rl_coefficient, switches.rl_entropy_sign, "rollouts")


def _weight(
    batch: TokenBatch,
    switches: Switches,
    coefficient: float,
    sign: int,
    where: Literal["demonstrations", "rollouts"],
) -> Tensor:
    if sign == 0:
        weight_T = torch.full_like(batch.entropy_T, coefficient)
    else:
        weight_T = coefficient * torch.exp(sign * _entropy(batch, switches, where))
    return weight_T if switches.weight_cap is None else weight_T.clamp(max=switches.weight_cap)


def _entropy(
    batch: TokenBatch, switches: Switches, where: Literal["demonstrations", "rollouts"]
) -> Tensor:
    """H of each token at the level asked for, entropy_T."""
    entropy_T = batch.entropy_T.detach()
    if switches.entropy_level == "token":
        return entropy_T
    if switches.entropy_level == "sequence":
        return sequence_mean(entropy_T, batch.index)[batch.index.sequence_T]
    assert batch.batch_entropy is not None, "entropy_level: batch needs a pass beforehand"
    mean = batch.batch_entropy[0 if where == "demonstrations" else 1]
    return torch.full_like(entropy_T, mean)
