"""What each metric is called, its unit, and what it says: shared by plots and HTML report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """``unit`` is "" for a plain number, "share" for 0 to 1 shown in per cent."""

    title: str
    unit: str = ""
    what: str = ""


FIGURES: dict[str, Figure] = {
    "reward/mean": Figure("Mean reward", "", "Mean reward of the step's rollouts."),
    "reward/std": Figure("Spread of reward", "", "Standard deviation over the step's rollouts."),
    "reward/accuracy": Figure("Rollout accuracy", "share", "Share of rollouts that verify."),
    "rollout/entropy": Figure(
        "Entropy of rollouts", "nats", "Mean over sampled tokens of -log p, an estimate of entropy."
    ),
    "rollout/length_mean": Figure("Response length", "tokens", "Mean length of the rollouts."),
    "rollout/length_max": Figure("Longest response", "tokens", ""),
    "rollout/truncated": Figure("Truncated rollouts", "share", "Cut at the length limit."),
    "rollout/tokens": Figure("Sampled tokens", "tokens", "Per step."),
    "groups/all_right": Figure("Groups all right", "share", "Prompts with only right rollouts."),
    "groups/all_wrong": Figure("Groups all wrong", "share", "Prompts without a right rollout."),
    "groups/equal_reward": Figure(
        "Groups of equal reward", "share", "Prompts that give no advantage among rollouts."
    ),
    "demo/reward_mean": Figure("Reward of demonstrations", "", ""),
    "demo/length_mean": Figure("Length of demonstrations", "tokens", ""),
    "loss": Figure("Loss", "", "Sum of all terms, each over its own count."),
    "train/gradient_norm": Figure("Gradient norm", "", "Global norm before clipping."),
    "train/tokens": Figure("Trained tokens", "tokens", "Prompt and response tokens per step."),
    "train/response_tokens": Figure("Trained response tokens", "tokens", "Per step."),
    "train/micro_batches": Figure("Micro-batches", "", ""),
    "train/sequences_skipped": Figure(
        "Sequences skipped", "share", "Their gradient is exactly zero."
    ),
    "learning_rate": Figure("Learning rate", "", ""),
    "loss/all_sft": Figure("Loss: supervised terms", "", "Their sum, weights included."),
    "loss/all_rl": Figure("Loss: reinforcement terms", "", "Their sum, weights included."),
    "loss/all_regularizer": Figure("Loss: regularizers", "", "Their sum, weights included."),
    "weight/sft": Figure("w_SFT", "", "Weight of the supervised term (Eq. 8), mean over tokens."),
    "weight/rl": Figure("w_RL", "", "Weight of right rollouts (Eq. 11), mean over tokens."),
    "entropy/demos": Figure("Entropy on demonstrations", "nats", "Mean over response tokens."),
    "entropy/rollouts": Figure("Entropy on rollouts", "nats", "Mean over response tokens."),
    "logprob/demos": Figure("Log-probability of demonstrations", "nats", "Mean per token."),
    "logprob/rollouts": Figure("Log-probability of rollouts", "nats", "Mean per token."),
    "ratio/rollouts": Figure("Ratio to the old policy", "", "pi / pi_old on rollout tokens."),
    "kl_old": Figure("KL from the old policy", "nats", "k3 estimate on rollout tokens."),
    "kl_reference": Figure("KL from the reference", "nats", "k3 estimate on rollout tokens."),
    "clip_share": Figure("Clipped tokens", "share", "Tokens whose ratio is clipped."),
    "mismatch/abs": Figure(
        "Engine mismatch", "nats", "Mean |log p of the engine - log p of the trainer|."
    ),
    "tokens_per_second": Figure("Speed", "tokens/s", ""),
    "total/rollout_tokens": Figure("Sampled tokens so far", "tokens", ""),
    "total/trained_tokens": Figure("Trained tokens so far", "tokens", ""),
    "total/seconds": Figure("Time so far", "seconds", ""),
    "time/generate": Figure("Generate", "seconds", ""),
    "time/score": Figure("Score", "seconds", ""),
    "time/train": Figure("Train", "seconds", ""),
    "time/sync": Figure("Sync weights", "seconds", ""),
    "time/other": Figure("Other", "seconds", ""),
    "time/step": Figure("Whole step", "seconds", ""),
    "eval/accuracy": Figure("Evaluation accuracy", "share", ""),
}

GROUPS: dict[str, str] = {
    "reward": "Reward",
    "rollout": "Rollouts",
    "groups": "Prompt groups",
    "demo": "Demonstrations",
    "loss": "Loss",
    "weight": "Entropy weights",
    "entropy": "Entropy",
    "train": "Optimisation",
    "logprob": "Log-probability",
    "ratio": "Ratio",
    "mismatch": "Engine against trainer",
    "time": "Time",
    "total": "Totals",
    "eval": "Evaluation",
}

PHASES = ("generate", "score", "train", "sync", "other")


def figure(key: str) -> Figure:
    """Title, unit and meaning of a metric; an unknown one is named after its key."""
    known = FIGURES.get(key.removesuffix("/mean"), FIGURES.get(key))
    if known is not None:
        return known
    prefix, _, rest = key.partition("/")
    words = (rest or prefix).replace("_", " ").replace("/", ", ")
    if prefix == "loss" and rest:
        return Figure(f"Loss: {words}", "", "This term's own mean, times its weight.")
    return Figure(words[:1].upper() + words[1:])


def group_title(key: str) -> str:
    """Heading under which a metric is shown: the part of its key before the slash, in words."""
    prefix, slash, _ = key.partition("/")
    if prefix in GROUPS:
        return GROUPS[prefix]
    return prefix.replace("_", " ").capitalize() if slash else "Other"
