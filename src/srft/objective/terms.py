"""The summands of the losses: pure functions of a batch and the switches to a per-token loss.

Every function here that takes a batch is handed the tokens its term covers and no others, so none
of them masks. Advantages, like every weight, carry no gradient. Notation as in ``switches.py``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from srft.objective.advantage import READS as ADVANTAGE_READS
from srft.objective.entropy_weights import rl_weight, sft_weight
from srft.objective.method import Progress, Term
from srft.objective.switches import Switches
from srft.objective.table import sequence_mean, sequence_sum, token_count
from srft.types import SequenceTable, TokenBatch, TokenIndex

SFT_WEIGHT_READS = ("sft_coefficient", "sft_entropy_sign", "entropy_level", "weight_cap")
RL_WEIGHT_READS = ("rl_coefficient", "rl_entropy_sign", "entropy_level", "weight_cap")
CLIP_READS = ("clip", "clip_low", "clip_high", "ratio_cap", "ratio_level")
IMPORTANCE_READS = ("importance_cap", "importance_level", "importance_mode", "importance_floor")
ROLLOUT_READS = ("mask_truncated", *IMPORTANCE_READS)
SURROGATE_READS = (*CLIP_READS, *ROLLOUT_READS, *ADVANTAGE_READS)
# A log-ratio beyond every clip, in nats, whose exponential float32 holds.
_FAR = 60.0


# Masks: which tokens a term covers, bool_T, and on which sequences it can have gradient, bool_S.


def demo_tokens(index: TokenIndex, switches: Switches) -> Tensor:
    """Every token of the demonstrations."""
    return index.sequences.is_demo_S[index.sequence_T]


def rollout_tokens(index: TokenIndex, switches: Switches) -> Tensor:
    """Sampled tokens of the rollouts: what follows a given prefix."""
    return all_rollout_tokens(index, switches) & ~in_prefix(index)


def all_rollout_tokens(index: TokenIndex, switches: Switches) -> Tensor:
    """Tokens of the rollouts, a given prefix included."""
    return rollouts(index.sequences, switches)[index.sequence_T]


def hint_tokens(index: TokenIndex, switches: Switches) -> Tensor:
    """Tokens of a rollout that were given from a demonstration."""
    return all_rollout_tokens(index, switches) & in_prefix(index)


def right_tokens(index: TokenIndex, switches: Switches) -> Tensor:
    """Sampled tokens of right rollouts (R+ of Eq. 12)."""
    return rollout_tokens(index, switches) & index.sequences.correct_S[index.sequence_T]


def wrong_tokens(index: TokenIndex, switches: Switches) -> Tensor:
    """Sampled tokens of wrong rollouts (R- of Eq. 12)."""
    return rollout_tokens(index, switches) & ~index.sequences.correct_S[index.sequence_T]


def taught_tokens(index: TokenIndex, switches: Switches) -> Tensor:
    """Sampled tokens of the rollouts that a teacher scores."""
    return rollout_tokens(index, switches) & index.sequences.taught_S[index.sequence_T]


def every_token(index: TokenIndex, switches: Switches) -> Tensor:
    """Tokens of the demonstrations and of the rollouts, a given prefix included."""
    return _every_sequence(index.sequences, switches)[index.sequence_T]


def in_prefix(index: TokenIndex) -> Tensor:
    """Tokens that were given from a demonstration."""
    return index.position_T < index.sequences.prefix_S[index.sequence_T]


def rollouts(table: SequenceTable, switches: Switches) -> Tensor:
    rollout_S = ~table.is_demo_S
    return rollout_S & ~table.truncated_S if switches.mask_truncated else rollout_S


def _demos(table: SequenceTable, switches: Switches) -> Tensor:
    return table.is_demo_S


def _demos_with_advantage(table: SequenceTable, switches: Switches) -> Tensor:
    return table.is_demo_S & (table.advantage_S != 0)


def _rollouts_with_advantage(table: SequenceTable, switches: Switches) -> Tensor:
    return rollouts(table, switches) & (table.advantage_S != 0)


def _hinted(table: SequenceTable, switches: Switches) -> Tensor:
    return rollouts(table, switches) & (table.prefix_S > 0)


def _every_sequence(table: SequenceTable, switches: Switches) -> Tensor:
    return table.is_demo_S | rollouts(table, switches)


# Pieces.


def advantage(batch: TokenBatch) -> Tensor:
    """The advantage of each token, its own or that of its sequence, in the log-probabilities' dtype;
    advantage_T."""
    if batch.advantage_T is not None:
        return batch.advantage_T.to(batch.logprob_T.dtype)
    advantage_S = batch.index.sequences.advantage_S.to(batch.logprob_T.dtype)
    return advantage_S[batch.index.sequence_T]


def ratio(batch: TokenBatch, switches: Switches) -> Tensor:
    """pi / pi_old of each token, or the sequence's exp(mean log-ratio) (GSPO); ratio_T."""
    return torch.exp(_log_ratio(batch, switches))


def _log_ratio(batch: TokenBatch, switches: Switches) -> Tensor:
    log_ratio_T = batch.logprob_T - batch.old_logprob_T
    if switches.ratio_level == "sequence":
        return sequence_mean(log_ratio_T, batch.index)[batch.index.sequence_T]
    return log_ratio_T


def importance(batch: TokenBatch, switches: Switches) -> Tensor | float:
    """pi_old / pi_sampler of each sampled token, bounded, without gradient; 1 where it is off.

    Of the token, of its sequence (the product over sampled tokens) or of the sequence per token (the
    geometric mean); above the cap it is the cap or, masked, 0, and so below the floor. Tokens of a given
    prefix were not sampled and keep 1. Source: "Your efficient RL framework secretly brings you off-policy RL
    training" (Yao et al. 2025); sequences and masks as in verl's ``rollout_corr`` and in TRL.
    """
    if switches.importance_cap is None:
        return 1.0
    if batch.sampler_logprob_T is None:
        # Demonstrations alone have none, and then no rollout token is here either.
        assert batch.logprob_T.numel() == 0, "importance_cap needs the sampler's log-probs"
        return 1.0
    given_T = in_prefix(batch.index)
    gap_T = (batch.old_logprob_T.detach() - batch.sampler_logprob_T).masked_fill(given_T, 0.0)
    if switches.importance_level != "token":
        gap_S = sequence_sum(gap_T, batch.index)
        if switches.importance_level == "geometric":
            sampled_S = sequence_sum((~given_T).to(gap_T.dtype), batch.index)
            gap_S = gap_S / sampled_S.clamp(min=1)
        gap_T = gap_S[batch.index.sequence_T]
    weight_T = torch.exp(gap_T)
    if switches.importance_mode == "truncate":
        weight_T = weight_T.clamp(switches.importance_floor, switches.importance_cap)
    else:
        out_T = (weight_T > switches.importance_cap) | (weight_T < switches.importance_floor)
        weight_T = weight_T.masked_fill(out_T, 0.0)
    return weight_T.masked_fill(given_T, 1.0)


# Losses.


def sft_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """w_SFT * -lp (Eq. 8)."""
    return -sft_weight(batch, switches) * batch.logprob_T


def observe_sft(batch: TokenBatch, switches: Switches) -> dict[str, Tensor]:
    return {"weight/sft": sft_weight(batch, switches)}


def dft_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """stopgrad(pi) * -lp (DFT, 2508.05629)."""
    return -torch.exp(batch.logprob_T.detach()) * batch.logprob_T


def eaft_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """H / log 20 * -lp (EAFT, 2601.02151): less weight where the policy is sure.

    There H is that of the 20 likeliest tokens, divided by its largest value; here that of all.
    """
    return batch.entropy_T / math.log(20) * -batch.logprob_T


def chord_phi_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """stopgrad(pi (1 - pi)) * -lp (CHORD-phi, 2508.11408)."""
    probability_T = torch.exp(batch.logprob_T.detach())
    return -probability_T * (1 - probability_T) * batch.logprob_T


def hint_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """-lp on the tokens of a hint (UFT, 2505.16984)."""
    return -batch.logprob_T


def demo_rl_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """-A * pi, or another ratio: Eq. 9 and 10 with pi_beta = 1 and no clip."""
    return -_demo_advantage(batch, switches) * _demo_ratio(batch, switches)


def _demo_advantage(batch: TokenBatch, switches: Switches) -> Tensor:
    """A, or A (1 - pi)^k: more for tokens that the policy would not have chosen (RL-PLUS)."""
    if switches.demo_focus == 0:
        return advantage(batch)
    return advantage(batch) * (-torch.expm1(batch.logprob_T.detach())) ** switches.demo_focus


def _demo_ratio(batch: TokenBatch, switches: Switches) -> Tensor:
    if switches.demo_ratio == "probability":
        return torch.exp(batch.logprob_T)
    if switches.demo_ratio == "one":
        return torch.exp(batch.logprob_T - batch.logprob_T.detach())
    if switches.demo_ratio == "mixture":
        # RL-PLUS (2508.00222): the behaviour is taken to be half the old policy, half uniform over
        # (pi_old, 1); 2 / (1.5 pi_old + 0.5) in its code.
        old_T = torch.exp(batch.old_logprob_T)
        return 2 * torch.exp(batch.logprob_T) / (old_T + (old_T + 1) / 2)
    # pi / (pi + gamma) = sigmoid(lp - log gamma), without 0 / 0 for tiny pi.
    log_gamma = batch.logprob_T.new_tensor(switches.demo_shaping).log()
    return torch.sigmoid(batch.logprob_T - log_gamma)


def observe_demo_rl(batch: TokenBatch, switches: Switches) -> dict[str, Tensor]:
    return {
        "ratio/demos": _demo_ratio(batch, switches),
        "advantage/demos": _demo_advantage(batch, switches),
    }


def surrogate_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """-min(ratio A, clip(ratio) A) * TIS weight: PPO's surrogate, as GRPO uses it."""
    advantage_T = advantage(batch)
    if not switches.clip:
        return -ratio(batch, switches) * advantage_T * importance(batch, switches)
    log_ratio_T = _log_ratio(batch, switches)
    # Far beyond a bound that holds anyway exp is inf, and the gradient 0 * inf.
    bounded_T = (advantage_T >= 0) | (switches.ratio_cap is not None)
    log_ratio_T = torch.where(bounded_T, log_ratio_T.clamp(max=_FAR), log_ratio_T)
    ratio_T = torch.exp(log_ratio_T)
    clipped_T = ratio_T.clamp(1 - switches.clip_low, 1 + switches.clip_high)
    if switches.ratio_cap is not None:
        ratio_T = ratio_T.clamp(max=switches.ratio_cap)
    gain_T = torch.minimum(ratio_T * advantage_T, clipped_T * advantage_T)
    return -gain_T * importance(batch, switches)


def observe_surrogate(batch: TokenBatch, switches: Switches) -> dict[str, Tensor]:
    advantage_T = advantage(batch)
    seen = {"advantage/rollouts": advantage_T}
    if switches.clip:
        ratio_T = ratio(batch, switches)
        low_T = (ratio_T < 1 - switches.clip_low) & (advantage_T < 0)
        high_T = (ratio_T > 1 + switches.clip_high) & (advantage_T > 0)
        seen["clip/low"] = low_T
        seen["clip/high"] = high_T
    return seen


def weighted_surrogate_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """The surrogate, times w_RL where A > 0: Eq. 12's weights on the group advantage."""
    weight_T = torch.where(advantage(batch) > 0, rl_weight(batch, switches), 1.0)
    return weight_T * surrogate_loss(batch, switches)


def observe_weighted_surrogate(batch: TokenBatch, switches: Switches) -> dict[str, Tensor]:
    weight_T = rl_weight(batch, switches)[advantage(batch) > 0]
    return {"weight/rl": weight_T, **observe_surrogate(batch, switches)}


def literal_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """w_RL * -score on right rollouts, +score on wrong ones (Eq. 12); the score is lp.

    The other scores are those the HPT repository offers in its place.
    """
    if switches.literal_score == "logprob":
        score_T = batch.logprob_T
    elif switches.literal_score == "probability":
        score_T = torch.exp(batch.logprob_T)
    elif switches.literal_score == "ratio":
        score_T = torch.exp(batch.logprob_T - batch.old_logprob_T)
    else:
        score_T = batch.logprob_T - batch.old_logprob_T
    right_T = batch.index.sequences.correct_S[batch.index.sequence_T]
    signed_T = torch.where(right_T, -rl_weight(batch, switches), 1.0)
    return signed_T * score_T * importance(batch, switches)


def observe_literal(batch: TokenBatch, switches: Switches) -> dict[str, Tensor]:
    right_T = batch.index.sequences.correct_S[batch.index.sequence_T]
    return {"weight/rl": rl_weight(batch, switches)[right_T]}


def cispo_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """-stopgrad(min(ratio, 1 + clip_high)) * A * lp (CISPO, 2506.13585)."""
    weight_T = ratio(batch, switches).detach().clamp(max=1 + switches.clip_high)
    return -weight_T * advantage(batch) * batch.logprob_T * importance(batch, switches)


def observe_cispo(batch: TokenBatch, switches: Switches) -> dict[str, Tensor]:
    advantage_T = advantage(batch)
    high_T = (ratio(batch, switches) > 1 + switches.clip_high) & (advantage_T > 0)
    return {"advantage/rollouts": advantage_T, "clip/high": high_T}


def prefix_surrogate_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """The surrogate, zero at all but the top-entropy tokens of a given prefix (2507.01679)."""
    return surrogate_loss(batch, switches) * _keptin_prefix(batch, switches)


def _keptin_prefix(batch: TokenBatch, switches: Switches) -> Tensor:
    """True at sampled tokens and at the ceil(share * prefix) tokens of highest entropy in each
    prefix, or of all prefixes together, entropy being the old policy's."""
    index = batch.index
    prefix_T = in_prefix(index)
    entropy_T = batch.old_entropy_T.detach()
    if switches.prefix_entropy_scope == "batch":
        assert batch.prefix_threshold is not None, "prefix_entropy_scope: batch needs a pass before"
        return ~prefix_T | (entropy_T >= batch.prefix_threshold)
    # Tokens in order of sequence, within it the prefix first, within that falling entropy.
    order = torch.argsort(entropy_T, descending=True, stable=True)
    order = order[torch.argsort((~prefix_T[order]).int(), stable=True)]
    order = order[torch.argsort(index.sequence_T[order], stable=True)]
    count_S = token_count(index)
    start_S = torch.cumsum(count_S, 0) - count_S
    rank_T = torch.empty_like(order)
    rank_T[order] = torch.arange(len(order), device=order.device)
    rank_T = rank_T - start_S[index.sequence_T]
    share_S = index.sequences.prefix_S.double() * switches.prefix_entropy_share
    # 0.28 * 25 is 7.000000000000001: seven tokens, not eight.
    quota_T = torch.ceil(share_S - 1e-9)[index.sequence_T]
    return ~prefix_T | (rank_T < quota_T)


def prefix_threshold(entropies_T: Tensor, switches: Switches) -> float:
    """The entropy of the last prefix token that is kept, given those of all prefix tokens of the
    step; +inf where there are none. As many are left out as in the authors' code: whole numbers of
    (1 - share) * tokens, rounded down."""
    dropped = int(len(entropies_T) * (1 - switches.prefix_entropy_share) + 1e-9)
    if dropped >= len(entropies_T):
        return math.inf
    return float(torch.sort(entropies_T).values[dropped])


def observe_prefix(batch: TokenBatch, switches: Switches) -> dict[str, Tensor]:
    prefix_T = in_prefix(batch.index)
    return {
        "prefix/share": prefix_T,
        "prefix/kept": _keptin_prefix(batch, switches)[prefix_T],
        **observe_surrogate(batch, switches),
    }


def kl_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """KL(pi || pi_ref) estimated at the sampled token: k1, k2 or k3 (Schulman 2020), or ratio * k3
    (DeepSeek-V3.2, 2512.02556).

    Minimised as they stand on tokens drawn from pi, k1 has a gradient of mean zero (its value is
    right, its derivative says nothing), k2 that of KL(pi || pi_ref), k3 that of KL(pi_ref || pi).
    ratio * k3 has that of KL(pi || pi_ref) on tokens drawn from pi_old.
    """
    assert batch.reference_logprob_T is not None, "the KL term needs reference_logprob_T"
    difference_T = batch.reference_logprob_T - batch.logprob_T
    if switches.kl_estimator == "k1":
        return -difference_T
    if switches.kl_estimator == "k2":
        return difference_T**2 / 2
    k3_T = torch.expm1(difference_T) - difference_T
    return ratio(batch, switches) * k3_T if switches.kl_estimator == "k3-ratio" else k3_T


def entropy_loss(batch: TokenBatch, switches: Switches) -> Tensor:
    """-H, with gradient."""
    return -batch.entropy_grad_T


def entropy_bonus_weight(progress: Progress, switches: Switches) -> float:
    """c, or c * target / (mean entropy of the previous step) where a target is set.

    Source: the fixed strategy of ``use_adaptive_temperature`` in LUFFY's code and what is forked
    from it; there the entropy is the micro-batch's own, here the previous step's, so that the cut
    into micro-batches changes nothing. The first step, without an entropy to go by, uses c.
    """
    coefficient = switches.entropy_coefficient
    if switches.entropy_target is None or progress.entropy is None:
        return coefficient
    return coefficient * switches.entropy_target / max(progress.entropy, 1e-4)


# Terms. Weights that are switches are put in by ``methods.py``.

DEMO_SFT = Term(
    "demo_sft", "sft", demo_tokens, sft_loss, _demos,
    reads=SFT_WEIGHT_READS, observe=observe_sft,
)  # fmt: skip
DFT = Term("dft", "sft", demo_tokens, dft_loss, _demos)
EAFT = Term("eaft", "sft", demo_tokens, eaft_loss, _demos)
CHORD_PHI = Term("chord_phi", "sft", demo_tokens, chord_phi_loss, _demos)
HINT = Term("hint", "sft", hint_tokens, hint_loss, _hinted, reads=("mask_truncated",))
DEMO_RL = Term(
    "demo_rl", "rl", demo_tokens, demo_rl_loss, _demos_with_advantage,
    reads=("demo_ratio", "demo_shaping", "demo_focus", *ADVANTAGE_READS), observe=observe_demo_rl,
)  # fmt: skip
SURROGATE = Term(
    "rollout", "rl", rollout_tokens, surrogate_loss, _rollouts_with_advantage,
    reads=SURROGATE_READS, observe=observe_surrogate,
)  # fmt: skip
WEIGHTED_SURROGATE = Term(
    "rollout", "rl", rollout_tokens, weighted_surrogate_loss, _rollouts_with_advantage,
    reads=(*SURROGATE_READS, *RL_WEIGHT_READS), observe=observe_weighted_surrogate,
)  # fmt: skip
LITERAL = Term(
    "rollout", "rl", rollout_tokens, literal_loss, rollouts,
    reads=("literal_score", *ROLLOUT_READS, *RL_WEIGHT_READS), observe=observe_literal,
)  # fmt: skip
LITERAL_RIGHT = Term(
    "rollout_right", "rl", right_tokens, literal_loss, rollouts,
    reads=LITERAL.reads, observe=observe_literal,
)  # fmt: skip
LITERAL_WRONG = Term(
    "rollout_wrong", "rl", wrong_tokens, literal_loss, rollouts, reads=LITERAL.reads,
)  # fmt: skip
CISPO = Term(
    "rollout", "rl", rollout_tokens, cispo_loss, _rollouts_with_advantage,
    reads=("clip_high", "ratio_level", *ROLLOUT_READS, *ADVANTAGE_READS), observe=observe_cispo,
)  # fmt: skip
PREFIX_SURROGATE = Term(
    "rollout", "rl", all_rollout_tokens, prefix_surrogate_loss, _rollouts_with_advantage,
    reads=("prefix_entropy_share", "prefix_entropy_scope", *SURROGATE_READS),
    observe=observe_prefix,
)  # fmt: skip
KL = Term(
    "kl", "regularizer", rollout_tokens, kl_loss, rollouts,
    reads=("kl_estimator", "ratio_level", "mask_truncated"),
)  # fmt: skip
ROLLOUT_ENTROPY = Term(
    "entropy", "regularizer", rollout_tokens, entropy_loss, rollouts,
    weight=entropy_bonus_weight, reads=("mask_truncated",), average="token",
)  # fmt: skip
ALL_ENTROPY = Term(
    "entropy", "regularizer", every_token, entropy_loss, _every_sequence,
    weight=entropy_bonus_weight, reads=("mask_truncated",), average="token",
)  # fmt: skip
