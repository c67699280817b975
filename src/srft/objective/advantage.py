"""Advantages from the rewards of a prompt's group: Eq. 6 and 7, and the estimators beside it.

Facts from the readings (each is a switch):

- standard deviation: verl and TRL take the sample one (n - 1), Eq. 7 does not say; ``std``.
- epsilon: verl adds 1e-6, TRL 1e-4; ``advantage_epsilon``.
- a group of one: verl takes mean 0 and deviation 1, so the advantage is the reward itself. Here it
  is 0, as in TRL: one sequence says nothing about better or worse.
- equal rewards: exactly 0 here. Elsewhere the rounding of the mean leaves about 1e-8, which the
  division by epsilon turns into 1e-2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srft.objective.switches import Switches
from srft.types import SequenceTable

READS = ("baseline", "normalize_std", "std", "advantage_epsilon", "demos_in_group")


def group_advantage(table: SequenceTable, switches: Switches) -> Tensor:
    """advantage_S by the switches ``baseline``, ``normalize_std``, ``std``, ``demos_in_group``.

    group:          A_k = (r_k - mean) / (std + epsilon)           Eq. 7
    leave-one-out:  A_k = r_k - mean of the other members          RLOO (2402.14740)
    none:           A_k = r_k                                      REINFORCE

    Members are the rollouts, and with ``demos_in_group`` the demonstrations (Eq. 6). Demonstrations
    that are not members are compared with the rollouts' mean, and divided by their deviation only
    where there is one. A group with one member, or members of equal reward, gives exactly 0 to its
    members. A group without rollouts has nothing of its own to be compared with: its demonstrations
    are, as no members, with all rollouts of the table; where there are none, they get 0. A sequence to
    which no reward applies (NaN) is in no group and gets 0. Computed in float64, returned in the rewards'
    dtype.
    """
    known_S = ~table.reward_S.isnan()
    if table.group_S.numel() == 0 or switches.baseline == "none":
        return torch.where(known_S, table.reward_S, 0.0)
    group_S = torch.unique(table.group_S, return_inverse=True)[1]
    groups = int(group_S.max()) + 1
    rollout_S = ~table.is_demo_S & known_S
    alone_S = torch.bincount(group_S[rollout_S], minlength=groups)[group_S] == 0
    demos_S = torch.full_like(alone_S, switches.demos_in_group) & ~alone_S & known_S
    member_S = demos_S | rollout_S
    reward_S = table.reward_S.double()
    statistics = _group_statistics(reward_S, group_S, member_S, groups, switches.std)
    every = _group_statistics(reward_S, torch.zeros_like(group_S), rollout_S, 1, switches.std)
    count_S, mean_S, std_S, constant_S = (
        torch.where(alone_S, of_all, of_group)
        for of_all, of_group in zip(every, statistics, strict=True)
    )
    centred_S = reward_S - mean_S
    if switches.baseline == "leave-one-out":
        # r - mean of the others = (r - mean) n / (n - 1), for members only.
        others_S = count_S / (count_S - 1).clamp(min=1)
        centred_S = torch.where(member_S, centred_S * others_S, centred_S)
    if switches.normalize_std:
        divisor_S = torch.where(constant_S, 1.0, std_S + switches.advantage_epsilon)
        centred_S = centred_S / divisor_S
    silent_S = (constant_S & member_S) | (count_S == 0)
    return torch.where(silent_S | ~known_S, 0.0, centred_S).to(table.reward_S.dtype)


def no_advantage(table: SequenceTable, switches: Switches) -> Tensor:
    """Zeros: for methods whose terms read no advantage (SFT)."""
    return torch.zeros_like(table.reward_S)


def _group_statistics(
    reward_S: Tensor, group_S: Tensor, member_S: Tensor, groups: int, std: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(count, mean, standard deviation, all members equal) of each sequence's group, as _S."""
    member = group_S[member_S]
    value = reward_S[member_S]

    def per_group(start: float, reduce: str, source: Tensor) -> Tensor:
        empty_G = reward_S.new_full((groups,), start)
        return empty_G.scatter_reduce(0, member, source, reduce)

    count_G = per_group(0.0, "sum", torch.ones_like(value))
    mean_G = per_group(0.0, "sum", value) / count_G.clamp(min=1)
    square_G = per_group(0.0, "sum", (value - mean_G[member]) ** 2)
    freedom_G = count_G - 1 if std == "sample" else count_G
    std_G = (square_G / freedom_G.clamp(min=1)).sqrt()
    constant_G = per_group(float("inf"), "amin", value) >= per_group(-float("inf"), "amax", value)
    # A group without members has min > max, so it counts as constant, with mean 0.
    return count_G[group_S], mean_G[group_S], std_G[group_S], constant_G[group_S]
