"""Numbers worked out by hand: 2 prompts, 3 rollouts, 1 demonstration, a vocabulary of 4.

    token   distribution             target   pi     H             sequence
    a0      P = 1/2 1/4 1/8 1/8      0        1/2    1.75 log 2    rollout of prompt 0, right
    a1      U = 1/4 1/4 1/4 1/4      1        1/4    2 log 2
    b0      P                        1        1/4                  rollout of prompt 0, wrong
    c0      U                        2        1/4                  rollout of prompt 1, wrong
    d0      P                        2        1/8                  demonstration of prompt 0
    d1      U                        3        1/4

Rewards 1 and 0, epsilon 0. Prompt 1 has one rollout: advantage 0 whatever the estimator.
Prompt 0 with the demonstration, mean 2/3 and sample deviation sqrt(1/3):
A = 1/sqrt 3, -2/sqrt 3 and 1/sqrt 3 (a, b, d); without division 1/3, -2/3, 1/3.
The teacher of the methods that have one says U where the policy says P, and P where it says U, so its
log-probabilities are a0 -2, a1 -2, b0 -2, c0 -3, d0 -2, d1 -3 times log 2, and lp_teacher - lp is -log 2
at a0 and c0, 0 at a1 and b0, +log 2 at d0, -log 2 at d1.
Rollouts only, mean 1/2 and deviation sqrt(1/2): A = +-1/sqrt 2; without division +-1/2.

A loss is given by dL/dlp at every token; the gradient at the logits is dL/dlp (1[k = y] - p_k),
to which an entropy bonus adds c p_k (log p_k + H) / tokens.
"""

import math
from dataclasses import replace

import pytest
import torch
from tests.objective.builders import run, table_of
from tests.objective.reference import Seq

from srft.objective.method import Progress
from srft.objective.methods import METHODS, get_method

LN2 = math.log(2)
P, U = [1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 4] * 4
ROWS = {"a0": (P, 0), "a1": (U, 1), "b0": (P, 1), "c0": (U, 2), "d0": (P, 2), "d1": (U, 3)}
H_P, H_U = 1.75 * LN2, 2 * LN2
LP = {"a0": -LN2, "a1": -2 * LN2, "b0": -2 * LN2, "c0": -2 * LN2, "d0": -3 * LN2, "d1": -2 * LN2}
PI = {name: math.exp(lp) for name, lp in LP.items()}
A, B = 1 / math.sqrt(3), -2 / math.sqrt(3)  # augmented group: a and d, b
C = 1 / math.sqrt(2)  # rollouts only: a is C, b is -C
SFT_P, SFT_U = 0.5 * 2**-1.75, 0.5 / 4  # 0.5 exp(-H): 0.14865, 0.125
RL_P, RL_U = 0.1 * 2**1.75, 0.1 * 4  # 0.1 exp(+H): 0.33636, 0.4


def sequences():
    def seq(group, demo, reward, tokens):
        logits = [[math.log(p) for p in ROWS[t][0]] for t in tokens]
        targets = [ROWS[t][1] for t in tokens]
        teacher = [[math.log(p) for p in (U if ROWS[t][0] is P else P)] for t in tokens]
        return Seq(group, demo, reward, reward == 1, targets, logits, teacher=teacher)

    return [
        seq(0, False, 1, ["a0", "a1"]),
        seq(0, False, 0, ["b0"]),
        seq(1, False, 0, ["c0"]),
        seq(0, True, 1, ["d0", "d1"]),
    ]


def token_mean(a=(0, 0), b=0, c=0, tokens=4):
    return {"a0": a[0] / tokens, "a1": a[1] / tokens, "b0": b / tokens, "c0": c / tokens}


# SRFT's three terms. Each entry: (loss, dL/dlp by token; what is not named is 0).
SFT_TERM = (
    (SFT_P * 3 * LN2 + SFT_U * 2 * LN2) / 2,
    {"d0": -SFT_P / 2, "d1": -SFT_U / 2},
)
DEMO_TERM = (-A * (1 / 8 + 1 / 4) / 2, {"d0": -A / 8 / 2, "d1": -A / 4 / 2})
ROLLOUT_TERM = (-(RL_P + RL_U) * A / 4 - B / 4, token_mean((-RL_P * A, -RL_U * A), -B))
PLAIN_SFT = ((3 * LN2 + 2 * LN2) / 2, {"d0": -1 / 2, "d1": -1 / 2})
UNWEIGHTED = (-(2 * A + B) / 4, token_mean((-A, -A), -B))
# pi / (pi + 0.1) and its derivative by lp, 0.1 pi / (pi + 0.1)^2.
SHAPED = {name: PI[name] / (PI[name] + 0.1) for name in PI}
SHAPED_SLOPE = {name: 0.1 * PI[name] / (PI[name] + 0.1) ** 2 for name in PI}
# H per sequence, as in the HPT repository: 1.875 log 2 for a and for d.
SFT_SEQ, RL_SEQ = 0.5 * 2**-1.875, 0.1 * 2**1.875


def add(*parts):
    slopes = {}
    for _, part in parts:
        for token, slope in part.items():
            slopes[token] = slopes.get(token, 0) + slope
    return sum(loss for loss, _ in parts), slopes


def scaled(factor, part):
    return factor * part[0], {token: factor * slope for token, slope in part[1].items()}


def rollouts(a, b, count):
    """Surrogate at ratio 1 with advantages a and b, as a plain sum over ``count``."""
    return -(2 * a + b) / count, {"a0": -a / count, "a1": -a / count, "b0": -b / count}


OFFICIAL_SFT = (
    (0.5 * 2**1.75 * 3 * LN2 + 0.5 * 4 * 2 * LN2) / 2,
    {"d0": -0.5 * 2**1.75 / 2, "d1": -0.5 * 4 / 2},
)
OFFICIAL_DEMO = (
    -A * (SHAPED["d0"] + SHAPED["d1"]) / 2,
    {"d0": -A * SHAPED_SLOPE["d0"] / 2, "d1": -A * SHAPED_SLOPE["d1"] / 2},
)
# Constant average: L = 10 tokens; 3 rollouts -> 30, 1 demonstration -> 10.
HPT_SFT = (SFT_SEQ * 5 * LN2 / 2, {"d0": -SFT_SEQ / 2, "d1": -SFT_SEQ / 2})
HPT_DEMO = (-1 / 3 * (1 / 8 + 1 / 4) / 10, {"d0": -1 / 3 / 8 / 10, "d1": -1 / 3 / 4 / 10})
HPT_ROLLOUT = (
    (RL_SEQ * 3 * LN2 - 2 * LN2 - 2 * LN2) / 30,
    {"a0": -RL_SEQ / 30, "a1": -RL_SEQ / 30, "b0": 1 / 30, "c0": 1 / 30},
)
LUFFY_DEMO = (
    -1 / 3 * (SHAPED["d0"] + SHAPED["d1"]) / 10,
    {"d0": -1 / 3 * SHAPED_SLOPE["d0"] / 10, "d1": -1 / 3 * SHAPED_SLOPE["d1"] / 10},
)
DFT_TERM = (
    (1 / 8 * 3 * LN2 + 1 / 4 * 2 * LN2) / 2,
    {"d0": -1 / 8 / 2, "d1": -1 / 4 / 2},
)
PHI_TERM = (
    (7 / 64 * 3 * LN2 + 3 / 16 * 2 * LN2) / 2,
    {"d0": -7 / 64 / 2, "d1": -3 / 16 / 2},
)
CISPO_TERM = (-(C * -3 * LN2 - C * -2 * LN2) / 4, token_mean((-C, -C), C))
# Mean of sequence means over three rollouts.
SEQUENCE_MEAN = ((-C + C) / 3, {"a0": -C / 2 / 3, "a1": -C / 2 / 3, "b0": C / 3})
# The ratio of a sequence moves with the mean log-probability, so the tokens share its gradient.
GSPO_TERM = SEQUENCE_MEAN


def constant(demo_term=None, rollout_term=None):
    """Terms given as means over the 2 tokens of one demonstration and the 4 tokens of three
    rollouts, as sums over 1 x 10 and 3 x 10 instead."""
    parts = [scaled(2 / 10, demo_term)] if demo_term else []
    return add(*parts, *([scaled(4 / 30, rollout_term)] if rollout_term else []))


EAFT_P, EAFT_U = H_P / math.log(20), H_U / math.log(20)
EAFT_TERM = (
    (EAFT_P * 3 * LN2 + EAFT_U * 2 * LN2) / 2,
    {"d0": -EAFT_P / 2, "d1": -EAFT_U / 2},
)
# One mean over rollouts and demonstrations, 4 sequences of 10 tokens, in place of 30 and 10.
SHARED_DEMO = scaled(10 / 40, LUFFY_DEMO)
# 2 pi / (1.5 pi + 0.5) with pi_old = pi: 4/11 at d0, 4/7 at d1; A times (1 - pi)^0.5.
PLUS_D0, PLUS_D1 = 1 / 3 * math.sqrt(7 / 8) * 4 / 11, 1 / 3 * math.sqrt(3 / 4) * 4 / 7
PLUS_DEMO = (-(PLUS_D0 + PLUS_D1) / 40, {"d0": -PLUS_D0 / 40, "d1": -PLUS_D1 / 40})
# std, mean and clip of LUFFY's scripts; SFT over its own 10. RL weights as the paper's.
LUFFY_GUESS_ROLLOUT = (
    -(RL_P + RL_U) * (1 / 3) / 40 - (-2 / 3) / 40,
    {"a0": -RL_P / 3 / 40, "a1": -RL_U / 3 / 40, "b0": 2 / 3 / 40},
)
# Sampled distillation, mean of 4 tokens: -ratio * gap, which moves like -gap * lp.
OPD_TERM = (2 * LN2 / 4, {"a0": LN2 / 4, "c0": LN2 / 4})
# RLSD: exp(sign(A) gap) is 1/2 at a0, bounded to 0.8, half mixed with 1; the others' gap is 0.
RLSD_A0 = 0.9
RLSD_TERM = (
    (-C * (RLSD_A0 + 1) / 2 + C) / 3,
    {"a0": -C * RLSD_A0 / 2 / 3, "a1": -C / 2 / 3, "b0": C / 3},
)


def pull(policy, teacher, kind):
    """A divergence between two distributions and its gradient by the policy's logits."""
    mixture = [(p + q) / 2 for p, q in zip(policy, teacher, strict=True)]
    if kind == "forward":  # KL(teacher || policy), whose gradient is p - q
        value = sum(q * math.log(q / p) for p, q in zip(policy, teacher, strict=True))
        return value, [p - q for p, q in zip(policy, teacher, strict=True)]
    value = sum(
        (q * math.log(q / m) + p * math.log(p / m)) / 2
        for p, q, m in zip(policy, teacher, mixture, strict=True)
    )
    slope = [math.log(p / m) / 2 for p, m in zip(policy, mixture, strict=True)]
    mean = sum(p * f for p, f in zip(policy, slope, strict=True))
    return value, [p * (f - mean) for p, f in zip(policy, slope, strict=True)]


def pulls(tokens, factor, kind):
    """(loss, gradient at the logits of each token) of a divergence times ``factor``."""
    found = {t: pull(ROWS[t][0], U if ROWS[t][0] is P else P, kind) for t in tokens}
    loss = factor * sum(value for value, _ in found.values())
    return loss, {t: [factor * g for g in slope] for t, (_, slope) in found.items()}


# KL(P || U) = 2 log 2 - 1.75 log 2 and KL(U || P) = (1 + 2 + 3 + 3) / 4 log 2 - 2 log 2: both 1/4 log 2.
ANCHOR = pulls(("d0", "d1"), 0.05 / 2, "forward")
GKD_OWN = pulls(("a0", "a1", "b0", "c0"), 0.5 / 4, "middle")
GKD_DEMO = pulls(("d0", "d1"), 0.5 / 2, "middle")
# What is not a slope by lp: gradients at the logits, and the loss they belong to.
AT_LOGITS = {
    "asft": ANCHOR,
    "gkd": (GKD_OWN[0] + GKD_DEMO[0], {**GKD_OWN[1], **GKD_DEMO[1]}),
}

ALL, OWN = ("a0", "a1", "b0", "c0", "d0", "d1"), ("a0", "a1", "b0", "c0")
NO_EPSILON = {"advantage_epsilon": 0.0}
TEN = {"entropy_coefficient": 0.0, "constant_length": 10}
# method -> (overrides, part of the loss without an entropy bonus, tokens of the bonus)
EXPECTED = {
    "srft": (NO_EPSILON, constant(add(SFT_TERM, DEMO_TERM), ROLLOUT_TERM), ()),
    "srft-official": (NO_EPSILON, add(OFFICIAL_SFT, OFFICIAL_DEMO, ROLLOUT_TERM), ALL),
    "srft-hpt": ({}, add(HPT_SFT, HPT_DEMO, HPT_ROLLOUT), ALL),
    "srft-wsft1": (NO_EPSILON, constant(add(PLAIN_SFT, DEMO_TERM), ROLLOUT_TERM), ()),
    "srft-wrl1": (NO_EPSILON, constant(add(SFT_TERM, DEMO_TERM), UNWEIGHTED), ()),
    "srft-no-sft": (NO_EPSILON, constant(DEMO_TERM, ROLLOUT_TERM), ()),
    "srft-no-demo-rl": (NO_EPSILON, constant(SFT_TERM, ROLLOUT_TERM), ()),
    "srft-no-rollout": (NO_EPSILON, constant(add(SFT_TERM, DEMO_TERM)), ()),
    "sft+rl": (NO_EPSILON, add(PLAIN_SFT, rollouts(C, -C, 4)), ()),
    "sft": ({}, PLAIN_SFT, ()),
    "dft": ({}, DFT_TERM, ()),
    "grpo": (NO_EPSILON, SEQUENCE_MEAN, ()),
    "dr-grpo": ({}, rollouts(1 / 2, -1 / 2, 30), ()),
    "dapo": (NO_EPSILON, rollouts(C, -C, 4), ()),
    "gspo": (NO_EPSILON, GSPO_TERM, ()),
    "cispo": (NO_EPSILON, CISPO_TERM, ()),
    "rloo": ({}, rollouts(1, -1, 30), ()),
    "luffy": ({}, add(SHARED_DEMO, rollouts(1 / 3, -2 / 3, 40)), ALL),
    "rl-plus": ({}, add(PLUS_DEMO, rollouts(1 / 3, -2 / 3, 40)), ALL),
    "srft-official-luffy": (
        {}, add(scaled(2 / 10, OFFICIAL_SFT), SHARED_DEMO, LUFFY_GUESS_ROLLOUT), ALL,
    ),
    "eaft": ({}, EAFT_TERM, ()),
    "asft": ({}, DFT_TERM, ()),
    "opd": ({}, OPD_TERM, ()),
    "sdft": ({}, OPD_TERM, ()),
    "sdpo": ({}, OPD_TERM, ()),
    "gkd": ({}, (0.0, {}), ()),
    "rlsd": (NO_EPSILON, RLSD_TERM, ()),
    "ghpo": (NO_EPSILON, SEQUENCE_MEAN, ()),
    "relift": ({}, rollouts(1 / 2, -1 / 2, 30), OWN),
    "hpt": ({}, add(PLAIN_SFT, rollouts(1 / 2, -1 / 2, 30)), ALL),
    # Step 0: mu = 0.9; phi: mu = 0.1 throughout.
    "chord": (NO_EPSILON, add(scaled(0.9, PLAIN_SFT), scaled(0.1, rollouts(C, -C, 4))), ()),
    "chord-phi": (NO_EPSILON, add(scaled(0.1, PHI_TERM), scaled(0.9, rollouts(C, -C, 4))), ()),
    "uft": ({**NO_EPSILON, "kl_coefficient": 0.0}, rollouts(C, -C, 4), ()),
    "prefix-rft": ({}, rollouts(1 / 2, -1 / 2, 30), ()),
}  # fmt: skip
# Without demonstrations in the batch.
ROLLOUTS_ONLY = {name for name, entry in METHODS.items() if not entry.demonstrations}


def entropy_bonus(tokens, coefficient=0.001):
    """(-c mean H, c p (log p + H) / tokens at every logit)."""
    loss, gradient = 0.0, {}
    for token in tokens:
        h = H_P if ROWS[token][0] is P else H_U
        loss -= coefficient * h / len(tokens)
        gradient[token] = [
            coefficient * p * (math.log(p) + h) / len(tokens) for p in ROWS[token][0]
        ]
    return loss, gradient


@pytest.mark.parametrize("name", sorted(METHODS))
def test_loss_and_gradient_are_those_worked_out_by_hand(name):
    overrides, (expected_loss, slopes), bonus = EXPECTED[name]
    if name in ROLLOUTS_ONLY:
        seqs = [q for q in sequences() if not q.demo]
        order = ("a0", "a1", "b0", "c0")
    else:
        seqs, order = sequences(), ("a0", "a1", "b0", "c0", "d0", "d1")
    method = get_method(name, overrides, longest_response=10)
    if name in ("sft", "dft", "eaft", "asft"):
        seqs, order = seqs[3:], ("d0", "d1")
    bonus_loss, bonus_gradient = entropy_bonus([t for t in bonus if t in order])
    more_loss, more_gradient = AT_LOGITS.get(name, (0.0, {}))
    expected = torch.tensor(
        [
            [
                slopes.get(token, 0) * ((k == ROWS[token][1]) - p)
                + bonus_gradient.get(token, [0] * 4)[k]
                + more_gradient.get(token, [0] * 4)[k]
                for k, p in enumerate(ROWS[token][0])
            ]
            for token in order
        ],
        dtype=torch.float64,
    )
    loss, gradient, _ = run(method, seqs, Progress(0, 100))
    assert loss == pytest.approx(expected_loss + bonus_loss + more_loss, rel=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


def test_every_method_of_the_table_has_hand_worked_numbers():
    assert set(EXPECTED) == set(METHODS)


@pytest.mark.parametrize(
    ("entropy", "w_sft", "w_rl"),
    [(1.0, 0.18394, 0.27183), (0.2, 0.40937, 0.12214), (0.0, 0.5, 0.1)],
)
def test_entropy_weights_have_the_paper_s_values(entropy, w_sft, w_rl):
    from srft.objective.entropy_weights import rl_weight, sft_weight
    from srft.objective.table import sequence_table, token_index
    from srft.types import TokenBatch, TrainingSequence

    index = token_index(sequence_table([TrainingSequence((0,), (1,), 0, True, 1.0, True)]))
    zero, h = torch.zeros(1), torch.tensor([entropy])
    batch = TokenBatch(index, zero, h, h, zero, h)
    switches = get_method("srft").switches
    assert sft_weight(batch, switches).item() == pytest.approx(w_sft, abs=5e-6)
    assert rl_weight(batch, switches).item() == pytest.approx(w_rl, abs=5e-6)


def test_a_ratio_beyond_the_clip_stops_the_gradient_only_on_the_side_that_helps():
    # a: A > 0, ratio 1.5 is clipped to 1.2. b: A < 0, ratio 0.5 is clipped to 0.8.
    # With the ratios exchanged, min() takes the unclipped value and the gradient stays.
    seqs = [q for q in sequences() if q.group == 0 and not q.demo]
    method = get_method("grpo", NO_EPSILON)
    seqs[0].old = [LP["a0"] - math.log(1.5), LP["a1"] - math.log(1.5)]
    seqs[1].old = [LP["b0"] - math.log(0.5)]
    loss, gradient, _ = run(method, seqs)
    assert loss == pytest.approx((-1.2 * C + 0.8 * C) / 2)
    assert gradient.abs().max().item() == 0.0
    seqs[0].old = [LP["a0"] - math.log(0.5), LP["a1"] - math.log(0.5)]
    seqs[1].old = [LP["b0"] - math.log(1.5)]
    loss, gradient, _ = run(method, seqs)
    assert loss == pytest.approx((-0.5 * C + 1.5 * C) / 2)
    assert gradient[0, 0].item() == pytest.approx(-0.5 * C / 2 / 2 * (1 - 1 / 2))
    assert gradient[2, 1].item() == pytest.approx(1.5 * C / 2 * (1 - 1 / 4))


@pytest.mark.parametrize("name", ["grpo", "gspo"])
def test_a_ratio_that_overflows_beyond_the_clip_has_gradient_zero_and_not_nan(name):
    seqs = [q for q in sequences() if q.group == 0 and not q.demo]
    seqs[0].old = [LP["a0"] - 1000, LP["a1"] - 1000]  # A > 0: clipped
    seqs[1].old = [LP["b0"]]
    loss, gradient, _ = run(get_method(name, {**NO_EPSILON, "clip_high": 0.2}), seqs)
    assert loss == pytest.approx((-1.2 * C + C) / 2)
    assert gradient[:2].abs().max().item() == 0.0
    assert gradient[2, 1].item() == pytest.approx(C / 2 * (1 - 1 / 4))
    # The two-sided clip bounds it where A < 0 too; without one the loss is as large as it is.
    seqs[0].old, seqs[1].old = [LP["a0"], LP["a1"]], [LP["b0"] - 1000]
    loss, gradient, _ = run(get_method(name, {**NO_EPSILON, "ratio_cap": 3.0}), seqs)
    assert loss == pytest.approx((-C + 3 * C) / 2)
    assert gradient[2].abs().max().item() == 0.0
    assert run(get_method(name, NO_EPSILON), seqs)[0] == math.inf


def test_literal_rollout_term_is_equation_12():
    # w_RL * -lp on a, +lp on b and c; one mean over four tokens, or one over each side.
    joint = {
        "rollout_term": "literal",
        "weight_sft": 0.0,
        "weight_demo_rl": 0.0,
        "average": "token",
    }
    right = RL_P * LN2 + RL_U * 2 * LN2
    wrong = -2 * LN2 - 2 * LN2
    loss, gradient, _ = run(get_method("srft", joint), sequences())
    assert loss == pytest.approx((right + wrong) / 4)
    assert gradient[0, 0].item() == pytest.approx(-RL_P / 4 * (1 - 1 / 2))
    loss, gradient, _ = run(get_method("srft", {**joint, "literal_means": "separate"}), sequences())
    assert loss == pytest.approx(right / 2 + wrong / 2)
    assert gradient[3, 2].item() == pytest.approx(1 / 2 * (1 - 1 / 4))


def test_uft_trains_the_hint_with_sft_and_what_follows_with_rl():
    seqs = [q for q in sequences() if q.group == 0 and not q.demo]
    seqs[0].prefix = 1  # a0 was given
    overrides = {**NO_EPSILON, "kl_coefficient": 0.0, "hint_coefficient": 0.5}
    loss, gradient, _ = run(get_method("uft", overrides), seqs)
    # hint: one token, 0.5 * -lp; RL: a1 and b0.
    assert loss == pytest.approx(0.5 * LN2 + (-C + C) / 2)
    assert gradient[0, 0].item() == pytest.approx(-0.5 * (1 - 1 / 2))
    assert gradient[1, 1].item() == pytest.approx(-C / 2 * (1 - 1 / 4))


def test_prefix_rft_trains_only_the_uncertain_tokens_of_a_prefix():
    seqs = [q for q in sequences() if q.group == 0 and not q.demo]
    seqs[0].prefix = 2  # a0 (H 1.213) and a1 (H 1.386) were given; half of them is one token
    method = get_method("prefix-rft", {"prefix_entropy_share": 0.5}, longest_response=10)
    loss, gradient, _ = run(method, seqs)
    assert loss == pytest.approx((-1 / 2 + 1 / 2) / 20)
    assert gradient[0].abs().max().item() == 0.0
    assert gradient[1, 1].item() == pytest.approx(-1 / 2 / 20 * (1 - 1 / 4))


def test_truncated_importance_sampling_multiplies_by_the_capped_ratio():
    seqs = [q for q in sequences() if q.group == 0 and not q.demo]
    seqs[0].sampler = [LP["a0"] - math.log(3), LP["a1"] + math.log(2)]  # 3 -> cap 2, and 1/2
    seqs[1].sampler = [LP["b0"]]
    loss, _, metrics = run(get_method("dapo", {**NO_EPSILON, "importance_cap": 2.0}), seqs)
    assert loss == pytest.approx((-2 * C - 0.5 * C + C) / 3)
    assert metrics[0]["mismatch/weight/max"].item() == pytest.approx(2.0)


def test_kl_estimators_have_their_values_and_slopes():
    seqs = [q for q in sequences() if q.group == 1]  # one rollout: advantage 0, only the KL moves
    seqs[0].reference = [LP["c0"] + math.log(2)]  # d = log 2
    for estimator, value, slope in (
        ("k1", -LN2, 1.0),
        ("k2", LN2**2 / 2, -LN2),
        ("k3", 2 - 1 - LN2, 1 - 2),
        ("k3-ratio", 2 - 1 - LN2, -LN2),  # ratio 1 here; its slope is k2's
    ):
        overrides = {"kl_coefficient": 0.5, "kl_estimator": estimator}
        loss, gradient, _ = run(get_method("grpo", overrides), seqs)
        assert loss == pytest.approx(0.5 * value)
        assert gradient[0, 2].item() == pytest.approx(0.5 * slope * (1 - 1 / 4))


def test_adaptive_entropy_bonus_follows_the_previous_step_s_entropy():
    method = get_method("grpo", {"entropy_coefficient": 0.01, "entropy_target": 0.5})
    seqs = [q for q in sequences() if q.group == 1]
    for previous, coefficient in ((None, 0.01), (0.25, 0.02), (1.0, 0.005)):
        loss, _, _ = run(method, seqs, Progress(3, 10, previous))
        assert loss == pytest.approx(-coefficient * H_U)


def test_given_tokens_keep_importance_weight_one():
    seqs = [q for q in sequences() if q.group == 0 and not q.demo]
    seqs[0].prefix = 1  # a0 was given; its sampler log-probability is a placeholder
    seqs[0].sampler, seqs[1].sampler = [0.0, LP["a1"] - LN2], [LP["b0"]]
    overrides = {"importance_cap": 5.0, "prefix_entropy_share": 1.0}
    loss, _, _ = run(get_method("prefix-rft", overrides, longest_response=10), seqs)
    assert loss == pytest.approx(-(1 / 2 * (1 + 2) - 1 / 2) / 20)


def test_batch_level_entropy_is_that_of_demonstrations_for_sft_and_of_rollouts_for_rl():
    overrides = {"entropy_level": "batch", "weight_demo_rl": 0.0, "average": "token"}
    method = get_method("srft", {**NO_EPSILON, **overrides})
    loss, _, _ = run(method, sequences(), batch_entropy=(LN2, 2 * LN2))
    # w_SFT = 0.5 / 2, w_RL = 0.1 * 4
    assert loss == pytest.approx(0.25 * 5 * LN2 / 2 - 0.4 * 2 * A / 4 - B / 4)


def test_the_two_sided_clip_bounds_the_loss_of_a_wrong_rollout():
    seqs = [q for q in sequences() if q.group == 0 and not q.demo]
    seqs[0].old = [LP["a0"], LP["a1"]]
    seqs[1].old = [LP["b0"] - math.log(4)]
    loss, gradient, _ = run(get_method("grpo", {**NO_EPSILON, "ratio_cap": 3.0}), seqs)
    assert loss == pytest.approx((-C + 3 * C) / 2)
    assert gradient[2].abs().max().item() == 0.0


def test_both_kl_divergences_between_the_two_distributions_are_a_quarter_of_a_bit():
    for kind_loss, _ in (pulls(("d0",), 1.0, "forward"), pulls(("d1",), 1.0, "forward")):
        assert kind_loss == pytest.approx(LN2 / 4)


def test_importance_sampling_of_whole_sequences():
    seqs = [q for q in sequences() if q.group == 0 and not q.demo]
    # Sequence a: ratios 3 and 1/2, product 1.5, geometric mean sqrt(1.5). b: 1/4.
    seqs[0].sampler = [LP["a0"] - math.log(3), LP["a1"] + LN2]
    seqs[1].sampler = [LP["b0"] + 2 * LN2]
    for more, a0, a1, b in (
        ({"importance_level": "sequence"}, 1.5, 1.5, 0.25),
        ({"importance_level": "sequence", "importance_cap": 1.2}, 1.2, 1.2, 0.25),
        ({"importance_level": "geometric"}, math.sqrt(1.5), math.sqrt(1.5), 0.25),
        ({"importance_floor": 0.3}, 2.0, 0.5, 0.3),
        ({"importance_mode": "mask"}, 0.0, 0.5, 0.25),
        ({"importance_mode": "mask", "importance_floor": 0.3}, 0.0, 0.5, 0.0),
        (
            {"importance_level": "sequence", "importance_mode": "mask", "importance_cap": 1.2},
            0,
            0,
            0.25,
        ),
    ):
        method = get_method("dapo", {**NO_EPSILON, "importance_cap": 2.0, **more})
        loss, _, _ = run(method, seqs)
        assert loss == pytest.approx((-(a0 + a1) * C + b * C) / 3), more


def test_tokens_a_tool_wrote_are_in_no_loss_no_count_and_no_entropy():
    seqs = sequences()
    seqs[0].masked = [True, False]
    seqs[3].masked = [False, True]
    loss, gradient, metrics = run(get_method("sft+rl", NO_EPSILON), seqs)
    # SFT over d0 alone; the surrogate over a1, b0, c0.
    assert loss == pytest.approx(3 * LN2 + (-C + C) / 3)
    assert gradient[0].abs().max().item() == 0.0 and gradient[5].abs().max().item() == 0.0
    assert metrics[0]["entropy/demos/count"].item() == 1
    assert metrics[0]["entropy/rollouts/count"].item() == 3


@pytest.mark.parametrize("name", sorted(METHODS))
def test_no_term_covers_a_rollout_cut_at_the_limit_that_is_to_be_left_out(name):
    seqs = sequences()
    seqs[0].truncated, seqs[0].prefix, seqs[0].reference = True, 1, [-1.0, -1.0]
    for seq in seqs[1:]:
        seq.reference = [-1.0] * len(seq.targets)
    for tokens in ("all", "rollouts"):
        bonus = {"entropy_coefficient": 0.01, "entropy_tokens": tokens}
        switches = {"mask_truncated": True, **bonus} if METHODS[name].rollouts else {}
        _, gradient, _ = run(get_method(name, switches), seqs)
        assert gradient[:2].abs().max().item() == 0.0
    assert gradient[2:].abs().max().item() > 0.0


def test_a_sequence_without_a_teacher_is_left_out_of_distillation():
    seqs = [q for q in sequences() if not q.demo]
    seqs[2].teacher = []
    loss, gradient, _ = run(get_method("opd"), seqs)
    assert loss == pytest.approx(LN2 / 3)
    assert gradient[3].abs().max().item() == 0.0


def test_prefix_rft_keeps_the_most_uncertain_tokens_of_all_prefixes_together():
    seqs = [q for q in sequences() if q.group == 0 and not q.demo]
    seqs[0].prefix, seqs[1].prefix = 2, 1  # entropies P, U, P: of three, one third is one token, a1
    method = get_method("prefix-rft", {"prefix_entropy_share": 1 / 3}, longest_response=10)
    _, gradient, _ = run(method, seqs)
    assert gradient[0].abs().max().item() == 0.0 and gradient[2].abs().max().item() == 0.0
    assert gradient[1, 1].item() == pytest.approx(-1 / 2 / 20 * (1 - 1 / 4))
    each = get_method(
        "prefix-rft",
        {"prefix_entropy_share": 1 / 3, "prefix_entropy_scope": "sequence"},
        longest_response=10,
    )
    _, gradient, _ = run(each, seqs)
    assert gradient[2].abs().max().item() > 0.0  # its own prefix's only token


def test_prefix_rft_keeps_seven_of_twenty_five_where_their_share_is_rounded_up():
    assert 0.28 * 25 > 7  # in binary
    logits = [[0.1 * k, 0.0] for k in range(25)]
    given, own = (Seq(0, False, r, True, [0] * n, logits[:n]) for r, n in ((1.0, 25), (0.0, 1)))
    given.prefix = 25
    share = {"prefix_entropy_share": 0.28, "prefix_entropy_scope": "sequence"}
    _, gradient, _ = run(get_method("prefix-rft", share, longest_response=25), [given, own])
    kept = gradient[:25].abs().amax(dim=1) > 0
    assert kept.tolist() == [True] * 7 + [False] * 18


@pytest.mark.parametrize("method", ["grpo", "dr-grpo", "rloo"])
def test_equal_rewards_are_exactly_zero_where_their_mean_is_rounded(method):
    rewards = [0.1, 0.1, 0.1]
    assert (0.1 + 0.1 + 0.1) / 3 != 0.1
    table = table_of([Seq(0, False, r, True, [0], [[0.0]]) for r in rewards], get_method(method))
    wide = replace(table, reward_S=torch.tensor(rewards, dtype=torch.float64))
    chosen = get_method(method)
    assert chosen.advantage(wide, chosen.switches).tolist() == [0.0, 0.0, 0.0]


def test_a_demonstration_without_rollouts_is_compared_with_those_of_the_other_prompts():
    # Rewards of all rollouts 1, 0, 0: mean 1/3, sample deviation sqrt(1/3).
    seqs = sequences()
    seqs.append(replace(seqs[3], group=2))
    deviated = table_of(seqs, get_method("srft", {"advantage_epsilon": 0.0})).advantage_S
    assert deviated.tolist() == pytest.approx([A, B, 0, A, 2 / math.sqrt(3)])
    plain = table_of(seqs, get_method("luffy")).advantage_S
    assert plain.tolist() == pytest.approx([1 / 3, -2 / 3, 0, 1 / 3, 2 / 3])
    # Where all rollouts are right there is nothing that it is better than.
    right = [replace(q, reward=1.0, correct=True) for q in seqs]
    assert table_of(right, get_method("srft")).advantage_S.tolist() == [0] * 5
    # Without any rollout there is nothing to compare with: a supervised method's batch, say.
    alone = [replace(seqs[3], group=g, reward=r) for g, r in ((0, 1.0), (0, 0.0), (1, 1.0))]
    assert table_of(alone, get_method("srft")).advantage_S.tolist() == [0, 0, 0]


def test_a_demonstration_at_ratio_one_is_sft_times_its_advantage():
    seqs = sequences()
    loss, gradient, _ = run(get_method("luffy", {"demo_ratio": "one", **TEN}), seqs)
    other, plain, _ = run(get_method("luffy", {"weight_demo_rl": 0.0, **TEN}), seqs)
    assert loss - other == pytest.approx(-2 / 3 / 40)
    # -A / 40 (1[k = y] - p_k) with A = 1/3, at d0 (target 2) and d1 (target 3).
    by_hand = [[-1 / 2, -1 / 4, 7 / 8, -1 / 8], [-1 / 4, -1 / 4, -1 / 4, 3 / 4]]
    expected = torch.tensor(by_hand, dtype=torch.float64) * -1 / 3 / 40
    torch.testing.assert_close((gradient - plain)[-2:], expected)
    # Times 1 - pi, where tokens that the policy would not have chosen count for more.
    focused = get_method("luffy", {"demo_ratio": "one", "demo_focus": 1.0, **TEN})
    gradient = run(focused, seqs)[1]
    scale = torch.tensor([[7 / 8], [3 / 4]], dtype=torch.float64)
    torch.testing.assert_close((gradient - plain)[-2:], expected * scale)


def test_further_demonstrations_join_the_supervised_mean():
    # d and e, the same two tokens: twice the sum over twice the tokens, so the loss is the same; its
    # gradient is spread over both.
    seqs = sequences()
    method = get_method("sft+rl", {"advantage_epsilon": 0.0})
    before = run(method, seqs)
    seqs.append(replace(seqs[3], group=2))
    loss, gradient, _ = run(method, seqs)
    assert loss == pytest.approx(before[0])
    torch.testing.assert_close(gradient[-2:], before[1][-2:] / 2)
