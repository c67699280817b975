"""What depends on where training stands: CHORD's mu, the length of given prefixes, HPT's gate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import betaincinv
from torch import Tensor

from srft.objective.method import Progress
from srft.objective.switches import Switches
from srft.types import SequenceTable

PrefixLength = Callable[[int, int, Progress, float, Switches], int]
"""(demonstration length in tokens, rollout number, progress, uniform in [0, 1), switches) -> tokens
of the demonstration that the rollout starts with."""

MU_READS = ("mu_start", "mu_end", "mu_warmup", "mu_decay")
HINT_READS = ("hint_start", "hint_end", "hint_steps")


def cosine(done: float) -> float:
    """From 1 at ``done`` 0 to 0 at 1, constant outside."""
    return (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2


def chord_mu(progress: Progress, switches: Switches) -> float:
    """mu of CHORD: rises from 0 to mu_start linearly, falls to mu_end by a cosine, stays there."""
    warmup = switches.mu_warmup * progress.total
    decay = switches.mu_decay * progress.total
    if progress.step < warmup:
        return switches.mu_start * progress.step / warmup
    done = (progress.step - warmup) / decay if decay > 0 else 1.0
    return switches.mu_end + (switches.mu_start - switches.mu_end) * cosine(done)


def chord_one_minus_mu(progress: Progress, switches: Switches) -> float:
    return 1 - chord_mu(progress, switches)


def hint_share(progress: Progress, switches: Switches) -> float:
    """Share of a demonstration that is given: a cosine from hint_start to hint_end."""
    steps = switches.hint_steps * progress.total
    done = progress.step / steps if steps > 0 else 1.0
    return switches.hint_end + (switches.hint_start - switches.hint_end) * cosine(done)


def uft_hint_length(
    length: int, rollout: int, progress: Progress, uniform: float, switches: Switches
) -> int:
    """Tokens of the hint: k of ``hint_slices`` slices, k ~ Binomial(slices, hint_share); then none.

    ``uniform`` picks k by the inverse of the distribution function (UFT, 2505.16984, cuts a
    solution into at most five slices of whole steps; here slices are of tokens).
    """
    if progress.step > switches.hint_steps * progress.total:
        return 0
    slices, share = min(switches.hint_slices, length), hint_share(progress, switches)
    cumulative = 0.0
    for k in range(slices):
        cumulative += math.comb(slices, k) * share**k * (1 - share) ** (slices - k)
        if uniform < cumulative:
            return round(k / slices * length)
    return length


def prefix_length(
    length: int, rollout: int, progress: Progress, uniform: float, switches: Switches
) -> int:
    """Tokens of the prefix: hint_share of the demonstration for the first ``prefix_rollouts``
    rollouts of a prompt, none for the others (Prefix-RFT, 2507.01679).

    ``uniform`` decides between the two neighbouring whole numbers, so that the mean is exact; with
    ``prefix_high`` it draws the share between the schedule's and that one by a Beta distribution, as
    the authors' code does.
    """
    if rollout >= switches.prefix_rollouts:
        return 0
    share = hint_share(progress, switches)
    if switches.prefix_high is None:
        return min(length, math.floor(share * length + uniform))
    drawn = float(betaincinv(*switches.prefix_beta, uniform))
    return min(length, round((share + (switches.prefix_high - share) * drawn) * length))


def rescue_length(length: int, attempt: int, progress: Progress, switches: Switches) -> int | None:
    """Tokens of a demonstration given in second round ``attempt``, counted from 0; None: no more
    rounds (GHPO, 2507.10628, hints of 25, 50 and 75 %; BREAD, 2506.17211)."""
    if attempt >= len(switches.rescue_shares):
        return None
    return round(switches.rescue_shares[attempt] * length)


def hpt_gate(table: SequenceTable, switches: Switches) -> Tensor:
    """keep_S: demonstrations where the share of right rollouts is <= gate, else the rollouts.

    A group without demonstrations keeps its rollouts, one without rollouts its demonstrations.
    """
    group_S = torch.unique(table.group_S, return_inverse=True)[1]
    groups = int(group_S.max()) + 1 if len(group_S) else 0

    def per_group(mask_S: Tensor) -> Tensor:
        return torch.bincount(group_S[mask_S], minlength=groups)[group_S]

    rollouts_S = per_group(~table.is_demo_S)
    right_S = per_group(~table.is_demo_S & table.correct_S)
    demos_S = per_group(table.is_demo_S)
    # 0.57 * 100 is 56.99999999999999: 57 right rollouts are at the gate.
    supervise_S = (right_S <= switches.gate * rollouts_S.double() + 1e-9) & (demos_S > 0)
    return table.is_demo_S == supervise_S
