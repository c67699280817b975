"""The switches of the objective: every choice on which methods, or readings of one, differ."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from srft.section import Section

Average = Literal["token", "sequence", "constant"]
_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


class Switches(Section):
    """Set in a recipe under ``objective:``; what is not set there is the method's own default.

    Notation: lp = log pi(y_t), H = entropy of the next-token distribution in nats (no gradient),
    A = advantage of the sequence, ratio = pi / pi_old. Equation numbers are those of SRFT
    (arXiv 2506.19767) unless another paper is named.
    """

    # What multiplies the three losses of Eq. 13, and the two entropy weights.
    weight_sft: float = Field(
        1.0, ge=0, description="Factor of the SFT term as a whole (Eq. 13); 0 leaves it out."
    )
    weight_demo_rl: float = Field(
        1.0, ge=0, description="Factor of the demonstrations' RL term (Eq. 13); 0 leaves it out."
    )
    weight_rollout: float = Field(
        1.0, ge=0, description="Factor of the rollouts' term (Eq. 13); 0 leaves it out."
    )
    sft_coefficient: float = Field(
        0.5, ge=0, description="c in w_SFT = c exp(sft_entropy_sign * H) (Eq. 8)."
    )
    rl_coefficient: float = Field(
        0.1, ge=0, description="c in w_RL = c exp(rl_entropy_sign * H) (Eq. 11)."
    )
    sft_entropy_sign: Literal[-1, 0, 1] = Field(
        -1, description="Sign of H in w_SFT: -1 paper, +1 released code, 0 the constant c."
    )
    rl_entropy_sign: Literal[-1, 0, 1] = Field(
        1, description="Sign of H in w_RL: +1 paper, 0 the constant c."
    )
    entropy_level: Literal["token", "sequence", "batch"] = Field(
        "token", description="Over what H is averaged before the exponential in w_SFT and w_RL."
    )
    weight_cap: float | None = Field(
        None, gt=0, description="Upper bound on w_SFT and w_RL; null: none (exp(H) is unbounded)."
    )

    # The rollouts' term.
    rollout_term: Literal["surrogate", "literal"] = Field(
        "surrogate",
        description="surrogate: -min(ratio A, clip(ratio) A); literal: Eq. 12, w_RL * -lp on right "
        "rollouts and +lp on wrong ones, which is unbounded below.",
    )
    literal_score: Literal["logprob", "probability", "ratio", "log-ratio"] = Field(
        "logprob",
        description="What stands for lp in Eq. 12: lp, exp(lp), ratio, or lp - old lp.",
    )
    literal_means: Literal["joint", "separate"] = Field(
        "joint",
        description="Eq. 12 as one mean over all rollouts, or right and wrong ones each over their "
        "own count.",
    )
    ratio_level: Literal["token", "sequence"] = Field(
        "token",
        description="Ratio of each token, or exp of the mean log-ratio of the sequence (GSPO).",
    )
    clip: bool = Field(True, description="Clip the ratio; false: -ratio * A (LUFFY).")
    clip_low: float = Field(0.2, ge=0, le=1, description="Ratio is clipped below at 1 - clip_low.")
    clip_high: float = Field(0.2, ge=0, description="Ratio is clipped above at 1 + clip_high.")
    ratio_cap: float | None = Field(
        None,
        gt=1,
        description="Upper bound on the unclipped ratio too, which bounds the loss where A < 0 "
        "(two-sided clip); null: none.",
    )
    importance_cap: float | None = Field(
        None,
        gt=0,
        description="Importance sampling: rollout losses are multiplied by pi_old / pi_sampler, "
        "bounded by this cap, without gradient; null: off.",
    )
    importance_level: Literal["token", "sequence", "geometric"] = Field(
        "token",
        description="Ratio of each token, of the whole sequence (their product), or of the sequence "
        "per token (their geometric mean).",
    )
    importance_mode: Literal["truncate", "mask"] = Field(
        "truncate",
        description="What happens to a ratio above the cap: it becomes the cap, or 0, so that the "
        "token or sequence is left out. One below importance_floor becomes the floor, or 0.",
    )
    importance_floor: float = Field(
        0.0, ge=0, description="Lower bound of that ratio; see importance_mode."
    )
    mask_truncated: bool = Field(
        False, description="Leave rollouts cut at the length limit out of the loss."
    )

    # The demonstrations' RL term.
    demo_ratio: Literal["probability", "shaped", "mixture", "one"] = Field(
        "probability",
        description="Ratio of Eq. 10 with pi_beta = 1: pi (paper), pi / (pi + demo_shaping) (LUFFY, "
        "released code), 2 pi / (pi_old + (pi_old + 1) / 2) (RL-PLUS), or one: pi / stopgrad(pi), as if the "
        "policy had sampled the demonstration, whose gradient is SFT's times the advantage.",
    )
    demo_shaping: float = Field(0.1, gt=0, description="gamma in pi / (pi + gamma).")
    demo_focus: float = Field(
        0.0,
        ge=0,
        description="Exponent k: the advantage of a demonstration's token is multiplied by "
        "(1 - pi)^k, without gradient (RL-PLUS 0.5); 0: off.",
    )

    # Averages.
    average: Average = Field(
        "token",
        description="token: sum over all tokens / their number; sequence: mean of the sequences' "
        "means; constant: sum / (sequences * constant_length).",
    )
    sft_average: Average | None = Field(
        None, description="The same for SFT terms; null: as `average`."
    )
    shared_count: bool = Field(
        False,
        description="RL terms on demonstrations and on rollouts are one mean over both (LUFFY's code: "
        "a token weighs the same wherever it stands); false: each term has its own count, so that "
        "few demonstrations weigh as much as many rollouts.",
    )
    constant_length: int | None = Field(
        None,
        ge=1,
        description="L of the constant average, in tokens; null: the longest response allowed.",
    )

    # Advantages.
    baseline: Literal["group", "leave-one-out", "none"] = Field(
        "group",
        description="What is subtracted from the reward: the group's mean (Eq. 7), the mean of the "
        "others (RLOO), or nothing.",
    )
    normalize_std: bool = Field(
        True, description="Divide advantages by the group's standard deviation (Eq. 7)."
    )
    std: Literal["sample", "population"] = Field(
        "sample",
        description="Standard deviation with n - 1 (verl, TRL) or n (as the papers' formula is "
        "usually read) below the sum.",
    )
    advantage_epsilon: float = Field(
        1e-6, ge=0, description="Added to the standard deviation (verl 1e-6, TRL 1e-4)."
    )
    demos_in_group: bool = Field(
        True,
        description="Demonstrations enter the group's mean and spread (Eq. 6, 7); false: they are "
        "compared with the rollouts' mean and spread.",
    )

    # Options of every method with rollouts.
    kl_coefficient: float = Field(
        0.0, ge=0, description="beta of the KL term to a frozen reference model; 0: no such model."
    )
    kl_estimator: Literal["k1", "k2", "k3", "k3-ratio"] = Field(
        "k3",
        description="With d = lp_ref - lp: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d, k3-ratio = ratio * "
        "k3, whose gradient is that of KL(pi || ref) after several optimizer steps too.",
    )
    entropy_coefficient: float = Field(
        0.0, ge=0, description="Entropy bonus: the loss gains -coefficient * mean H."
    )
    entropy_tokens: Literal["rollouts", "all"] = Field(
        "rollouts", description="Tokens of the entropy bonus; all: demonstrations too."
    )
    entropy_target: float | None = Field(
        None,
        gt=0,
        description="Adaptive bonus: the coefficient is multiplied by target / (mean entropy of "
        "the previous step's rollouts), in nats; null: fixed.",
    )

    # Switches that single methods read.
    gate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="HPT: a prompt whose share of right rollouts is <= gate is trained with SFT, "
        "any other with RL.",
    )
    mu_start: float = Field(0.9, ge=0, le=1, description="CHORD: mu at its highest.")
    mu_end: float = Field(0.05, ge=0, le=1, description="CHORD: mu once it has decayed.")
    mu_warmup: float = Field(
        0.0, ge=0, le=1, description="CHORD: share of the steps in which mu rises from 0 linearly."
    )
    mu_decay: float = Field(
        0.5,
        ge=0,
        le=1,
        description="CHORD: share of the steps, after the rise, of the decay; 0: none, mu is mu_end.",
    )
    hint_start: float = Field(
        0.95, ge=0, le=1, description="Share of a demonstration given as prefix at the first step."
    )
    hint_end: float = Field(
        0.05, ge=0, le=1, description="Share of a demonstration given once the anneal is over."
    )
    hint_steps: float = Field(
        0.6, ge=0, le=1, description="Share of the steps over which prefixes are annealed (cosine)."
    )
    hint_slices: int = Field(
        5, ge=1, description="UFT: into how many slices a demonstration is cut for hints."
    )
    hint_coefficient: float = Field(
        0.001, ge=0, description="UFT: factor of the SFT loss on the hint's tokens."
    )
    prefix_rollouts: int = Field(
        1, ge=0, description="Prefix-RFT: how many rollouts of each prompt continue a prefix."
    )
    prefix_high: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Prefix-RFT: the share that is given is drawn between that of the schedule and "
        "this one, as schedule + (prefix_high - schedule) * Beta(a, b); null: the schedule's own.",
    )
    prefix_beta: tuple[_Positive, _Positive] = Field(
        (1.0, 1.0), description="Prefix-RFT: a and b of that draw; (1, 1) is uniform."
    )
    prefix_entropy_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Prefix-RFT: share of a prefix's tokens, those of highest entropy, with "
        "gradient.",
    )
    prefix_entropy_scope: Literal["sequence", "batch"] = Field(
        "sequence",
        description="Prefix-RFT: the tokens of highest entropy of each prefix, or of all prefixes together "
        "of the batch's rollouts that have gradient.",
    )
    rescue_shares: tuple[_Share, ...] = Field(
        (0.25, 0.5, 0.75),
        description="Second rounds of sampling (GHPO, BREAD): shares of a demonstration given, one "
        "after another, to a prompt whose rollouts have all failed.",
    )

    # Distillation: a teacher scores the same responses in its own context.
    weight_distill: float = Field(
        1.0, ge=0, description="Factor of the distillation term on rollouts; 0 leaves it out."
    )
    weight_distill_demo: float = Field(
        0.0, ge=0, description="Factor of the distillation term on demonstrations; 0 leaves it out."
    )
    distill_form: Literal["sampled", "full"] = Field(
        "sampled",
        description="sampled: a policy gradient with the advantage lp_teacher - lp of each sampled "
        "token (reverse KL); full: the divergence over the whole vocabulary, or its top-k.",
    )
    distill_beta: float = Field(
        1.0,
        ge=0,
        le=1,
        description="full: 0 is KL(teacher || policy), 1 KL(policy || teacher), between them the "
        "generalized Jensen-Shannon divergence (GKD).",
    )
    distill_top_k: int | None = Field(
        None,
        ge=1,
        description="full: over the policy's k likeliest tokens and one bucket for all others; "
        "null: the whole vocabulary.",
    )
    distill_clip: float | None = Field(
        None, gt=0, description="sampled: bound on |lp_teacher - lp| in nats; null: none."
    )
    rlsd_mix: float = Field(
        0.5,
        ge=0,
        le=1,
        description="RLSD: share of the teacher's weight in 1 - mix + mix * weight.",
    )
    rlsd_clip: float = Field(
        0.2, ge=0, description="RLSD: the teacher's weight is bounded to 1 +- this."
    )
