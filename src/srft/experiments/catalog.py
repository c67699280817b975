"""The experiments, as data. To add one, add an entry to ``EXPERIMENTS``.

table1, table2, table3 and figures are the paper's; longer repeats part of table2 with more steps;
defaults decides what ``srft`` does where the paper is silent; methods shows that every method trains;
question1 to question6 are what the paper's reviewers asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from srft.experiments.experiment import Arm, Experiment, Leg
from srft.objective.methods import METHODS

BASE = Arm("base", untrained=True)
SRFT = Arm("srft", "srft")
SFT = Arm("sft", "sft")
GRPO = Arm("grpo", "grpo")
SFT_RL = Arm("sft->rl", stages=(Leg("sft", 0.5), Leg("grpo", 0.5)))


def _each(names: str) -> tuple[Arm, ...]:
    """Methods by their own names."""
    return tuple(Arm(name, name) for name in names.split())


def _srft(name: str, **switches: Any) -> Arm:
    return Arm(name, "srft", switches)


def _in_turn(name: str, *legs: tuple[str, float], **switches: Any) -> Arm:
    """Stages; ``switches`` are those of the last one."""
    last = len(legs) - 1
    return Arm(
        name, stages=tuple(Leg(*leg, switches if i == last else {}) for i, leg in enumerate(legs))
    )


COEFFICIENTS = (
    *(_srft(f"c_SFT {c:g}", sft_coefficient=c) for c in (0.05, 5.0)),
    *(_srft(f"c_RL {c:g}", rl_coefficient=c) for c in (0.01, 1.0)),
)
LEFT_OUT = (
    Arm("without SFT", "srft-no-sft"),
    Arm("without demo RL", "srft-no-demo-rl"),
    Arm("without rollouts", "srft-no-rollout"),
)
POSITIVE_ENTROPY = _srft("w_SFT with +H", sft_entropy_sign=1)

TABLE1 = Experiment(
    "table1",
    "Table 1: the order of stages",
    (
        BASE,
        SFT,
        Arm("rl", "grpo"),
        SFT_RL,
        _in_turn("rl->sft", ("grpo", 0.5), ("sft", 0.5)),
        # The KL is taken on rollouts, which a stage of SFT alone does not have: its SFT + RL stand-in
        # with the RL term at weight 0 samples them for the KL only.
        _in_turn(
            "rl->sft+kl", ("grpo", 0.5), ("sft+rl", 0.5), weight_rollout=0.0, kl_coefficient=0.1
        ),
        SRFT,
    ),
)

TABLE2 = Experiment(
    "table2",
    "Table 2: SRFT among its peers",
    (
        BASE,
        *_each("sft dft grpo"),
        # Zero-RL did better at a lower rate in the sweep that chose the common one.
        Arm("grpo, 2e-4", "grpo", recipe={"train": {"learning_rate": 2e-4}}),
        *_each("dr-grpo dapo"),
        SFT_RL,
        *_each("sft+rl luffy relift hpt chord chord-phi uft prefix-rft srft-official srft-hpt"),
        SRFT,
    ),
)

LONGER = Experiment(
    "longer",
    "Table 2's main arms, with three times the steps",
    (
        *_each("sft dft grpo dr-grpo dapo"),
        SFT_RL,
        *_each("sft+rl luffy srft-official srft-hpt srft"),
    ),
    recipe={"train": {"steps": 120}},
)

TABLE3 = Experiment(
    "table3",
    "Table 3: ablations and sensitivity",
    (
        SRFT,
        Arm("w_SFT = 1", "srft-wsft1"),
        Arm("w_RL = 1", "srft-wrl1"),
        *LEFT_OUT,
        *_each("sft+rl"),
        POSITIVE_ENTROPY,
        _srft("w_RL with constant c", rl_entropy_sign=0),
        _srft("H per sequence", entropy_level="sequence"),
        _srft("H per batch", entropy_level="batch"),
        *COEFFICIENTS,
    ),
)


def _mean(name: str, **switches: Any) -> Arm:
    """SRFT with a token mean, whatever the default, and one choice changed."""
    return _srft(name, **{"average": "token", **switches})


DEFAULTS = Experiment(
    "defaults",
    "What srft does where the paper is silent",
    (
        _mean("token mean"),
        _mean("literal", rollout_term="literal"),
        _mean("literal, separate", rollout_term="literal", literal_means="separate"),
        _mean("H per sequence", entropy_level="sequence"),
        _mean("no std", normalize_std=False),
        _mean("sequence mean", average="sequence"),
        _mean("constant length", average="constant"),
        _mean("demos not in group", demos_in_group=False),
        _mean("pi / (pi + 0.1)", demo_ratio="shaped"),
        _mean("w_SFT with +H", sft_entropy_sign=1),
    ),
    reference="token mean",
)

EVERY_METHOD = Experiment(
    "methods",
    "Every method trains",
    _each(" ".join(METHODS)),
)

FIGURES = Experiment(
    "figures",
    "Figures 4 to 6: training curves",
    (SFT, GRPO, SFT_RL, *_each("sft+rl"), SRFT),
    recipe={
        "evaluation": {"every_steps": 10, "at_start": "true"},
        "data": {"eval_limit": 80},
    },
)

QUESTION1 = Experiment(
    "question1",
    "Question 1: coefficients over orders of magnitude, and weights of the three losses",
    (
        SRFT,
        *COEFFICIENTS,
        # A weight of 10 on the SFT term is a coefficient 10 times as large, and stands above.
        *(_srft(f"demo RL x {w:g}", weight_demo_rl=w) for w in (0.1, 10.0)),
        *(_srft(f"rollouts x {w:g}", weight_rollout=w) for w in (0.1, 10.0)),
        _srft("constant weights", sft_entropy_sign=0, rl_entropy_sign=0),
        POSITIVE_ENTROPY,
    ),
)

QUESTION2 = Experiment(
    "question2",
    "Question 2: one loss left out, and one alone",
    (
        SRFT,
        *LEFT_OUT,
        _srft("SFT alone", weight_demo_rl=0.0, weight_rollout=0.0),
        _srft("demo RL alone", weight_sft=0.0, weight_rollout=0.0),
        _srft("rollouts alone", weight_sft=0.0, weight_demo_rl=0.0),
    ),
)

QUESTION3 = Experiment(
    "question3",
    "Question 3: the same compute",
    (
        SRFT,
        GRPO,
        Arm("grpo, 2 x steps", "grpo", steps=2),
        SFT,
        Arm("sft, 4 x steps", "sft", steps=4),
        Arm("sft, 8 x steps", "sft", steps=8),
        SFT_RL,
        _in_turn("sft 1 ->rl 1", ("sft", 1.0), ("grpo", 1.0)),
    ),
    then="Compare arms of equal FLOPs, tokens or seconds, not of equal steps.",
)

QUESTION4 = Experiment(
    "question4",
    "Question 4: is the gain distillation?",
    (
        SRFT,
        Arm("srft, self-made", "srft", demonstrations="self-made"),
        Arm("srft, expert on the same prompts", "srft", demonstrations="expert-same"),
        GRPO,
        Arm("sft, self-made", "sft", demonstrations="self-made"),
        Arm("sft, expert on the same prompts", "sft", demonstrations="expert-same"),
        SFT_RL,
        _in_turn("sft->srft", ("sft", 0.5), ("srft", 0.5)),
    ),
    then="Self-made demonstrations are the base model's own verified rollouts, generated before training.",
)

QUESTION5 = Experiment(
    "question5",
    "Question 5: how much SFT before RL",
    (
        SRFT,
        GRPO,
        *(
            _in_turn(f"sft {share:g} ->rl 1", ("sft", share), ("grpo", 1.0))
            for share in (0.1, 0.5, 1.0, 2.0, 4.0)
        ),
    ),
    reference="grpo",
    then="sft S ->rl 1: S times the experiment's steps of SFT, then all of them of RL.",
)

QUESTION6 = Experiment(
    "question6",
    "Question 6: models for Figures 2 and 3",
    (*_each("sft dft grpo"), SFT_RL, SRFT),
    recipe={
        "run": {
            "samples_every": 10,
            "samples_prompts": 4,
            "checkpoint_every": 10,
            "keep_checkpoints": 10,
        }
    },
    keep_models=True,
    then="Each run holds its model, checkpoints and samples: `srft analyze lab RUN [RUN ...] --data DATA` "
    "scores them on responses of your choice by teacher forcing.",
)

EXPERIMENTS: Mapping[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        TABLE1, TABLE2, LONGER, TABLE3, EVERY_METHOD, DEFAULTS, FIGURES,
        QUESTION1, QUESTION2, QUESTION3, QUESTION4, QUESTION5, QUESTION6,
    )
}  # fmt: skip

QUESTIONS = tuple(name for name in EXPERIMENTS if name.startswith("question"))
