"""The registry of metrics: what every key of metrics.jsonl is called, its unit, and what it says.

Whatever writes, watches or shows a metric reads it from here: the log and the trackers, docs/metrics.md
(``make docs``), the report, the plots, the live view, alarms and plateaus. A key that is not here cannot
be written; a method with a term or an observation of its own adds a row, or calls ``register``.

A key may hold places: ``user/{name}`` is any key that begins so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from srft.errors import did_you_mean

Unit = Literal["", "share", "nats", "tokens", "seconds", "tokens/s", "name"]

_SHOWN: dict[str, str] = {
    "": "{:.4g}",
    "share": "{:.1%}",
    "nats": "{:.3f} nats",
    "tokens": "{:,.1f} tokens",
    "seconds": "{:,.2f} s",
    "tokens/s": "{:,.0f} tokens/s",
}


@dataclass(frozen=True)
class Metric:
    """One metric. ``unit`` is "" for a plain number, "share" for 0 to 1 shown in per cent, "name" for
    a text; ``spread``: ``<key>/max`` and ``<key>/min`` are its extremes over tokens."""

    key: str
    title: str
    unit: Unit = ""
    meaning: str = ""
    spread: bool = False
    group: str = ""

    def show(self, value: float) -> str:
        """A value as a person reads it."""
        return _SHOWN[self.unit].format(value)


TERMS: dict[str, str] = {
    "demo_sft": "supervised, demonstrations",
    "demo_rl": "reinforcement, demonstrations",
    "rollout": "reinforcement, rollouts",
    "rollout_right": "reinforcement, right rollouts",
    "rollout_wrong": "reinforcement, wrong rollouts",
    "dft": "supervised, times the probability (DFT)",
    "eaft": "supervised, times the entropy (EAFT)",
    "chord_phi": "supervised, times p (1 - p) (CHORD)",
    "hint": "supervised, given prefixes (UFT)",
    "kl": "distance from the reference",
    "entropy": "entropy bonus",
    "distill": "distillation, rollouts",
    "distill_demo": "distillation, demonstrations",
}
"""Every term of the methods in ``objective/methods.py``."""

_TOKENS = "over response tokens"

GROUPS: dict[str, tuple[Metric, ...]] = {
    "Reward": (
        Metric("reward/mean", "Mean reward", "",
               "over the step's rollouts, those that a refill (DAPO) dropped included, as in every figure "
               "of rollouts and groups that is known before the update"),
        Metric("reward/std", "Spread of reward", "", "population standard deviation over them"),
        Metric("reward/accuracy", "Rollout accuracy", "share",
               "rollouts with a reward above `reward.correct_threshold`"),
    ),
    "Tools": (
        Metric("tools/calls", "Calls of tools", "", "of a rollout, on average"),
        Metric("tools/failures", "Failed calls of tools", "share",
               "that raised an error, were late or named no tool"),
    ),
    "Evaluation": (
        Metric("eval/accuracy", "Evaluation accuracy", "share", "over the problems of all sets"),
        Metric("eval/{set}/accuracy", "Accuracy: {set}", "share",
               "mean over problems of the share of right samples"),
        Metric("eval/{set}/accuracy/{family}", "Accuracy: {set}, {family}", "share",
               "the same over the problems of one family"),
        Metric("eval/{set}/pass@{n}", "pass@{n}: {set}", "share",
               "problems of which one of n samples is right, with n > 1"),
        Metric("eval/{set}/reward", "Mean reward: {set}", "", "over all samples"),
        Metric("eval/{set}/mean_tokens", "Response length: {set}", "tokens", "mean over samples"),
        Metric("eval/{set}/truncated_share", "Truncated: {set}", "share", "samples cut at the limit"),
    ),
    "Rollouts": (
        Metric("rollout/entropy", "Entropy of rollouts", "nats",
               "-mean log-probability of the sampled tokens under the distribution they were drawn from: an "
               "unbiased estimate of the policy's entropy over *all* rollouts, at no cost"),
        Metric("rollout/length_mean", "Response length", "tokens", "mean, the stop token included"),
        Metric("rollout/length_max", "Longest response", "tokens", "of the step"),
        Metric("rollout/truncated", "Truncated rollouts", "share",
               "rollouts that reached `rollout.max_tokens`"),
        Metric("rollout/tokens", "Sampled tokens", "tokens",
               "in the step, those that a refill or a second attempt replaced included"),
        Metric("prefix/share", "Tokens given as prefix", "share", "Prefix-RFT: of all rollout tokens"),
        Metric("prefix/kept", "Prefix tokens trained on", "share",
               "Prefix-RFT: those of highest entropy, of all prefix tokens"),
    ),
    "Prompt groups": (
        Metric("groups/all_right", "Groups all right", "share", "prompts whose rollouts are all correct"),
        Metric("groups/all_wrong", "Groups all wrong", "share", "prompts without a correct rollout"),
        Metric("groups/equal_reward", "Groups of equal reward", "share",
               "prompts whose rollouts all have the same reward: no signal without demonstrations"),
        Metric("groups/sampled", "Prompts sampled", "", "those that a refill (DAPO) dropped included"),
        Metric("groups/rescued", "Prompts sampled again", "",
               "after the start of a demonstration, where all rollouts had failed (GHPO)"),
    ),
    "Demonstrations": (
        Metric("demo/reward_mean", "Reward of demonstrations", "", "mean over those in the step"),
        Metric("demo/length_mean", "Length of demonstrations", "tokens", "mean over those in the step"),
        Metric("demo/epoch", "Epoch of further demonstrations", "",
               "passes over the demonstrations of `train.demonstrations_per_step`"),
    ),
    "Loss": (
        Metric("loss", "Loss", "",
               "all terms, each over its own count; with several optimizer steps a batch, their sum"),
        *(Metric(f"loss/{name}", f"Loss: {words}", "", f"the term `{name}` with its weight")
          for name, words in TERMS.items()),
        Metric("loss/router_aux", "Loss: load balancing of experts", "",
               "the load-balancing loss of a mixture of experts (`model.router_aux_loss_coef`)"),
    ),
    "Entropy weights": (
        Metric("weight/sft", "w_SFT", "", "over demonstration tokens (Eq. 8)", spread=True),
        Metric("weight/rl", "w_RL", "",
               "over tokens of rollouts with positive advantage (Eq. 11)", spread=True),
    ),
    "Entropy": (
        Metric("entropy/demos", "Entropy on demonstrations", "nats",
               f"exact, of the next-token distribution, {_TOKENS}", spread=True),
        Metric("entropy/rollouts", "Entropy on rollouts", "nats", "the same", spread=True),
    ),
    "Log-probability": (
        Metric("logprob/demos", "Log-probability of demonstrations", "nats", _TOKENS, spread=True),
        Metric("logprob/rollouts", "Log-probability of rollouts", "nats", _TOKENS, spread=True),
    ),
    "Advantage and ratio": (
        Metric("advantage/demos", "Advantage of demonstrations", "", f"{_TOKENS} (Eq. 7)", spread=True),
        Metric("advantage/rollouts", "Advantage of rollouts", "", f"{_TOKENS} (Eq. 7)", spread=True),
        Metric("ratio/demos", "Ratio on demonstrations", "", "pi, or its shaped form (Eq. 10)", spread=True),
        Metric("ratio/rollouts", "Ratio to the old policy", "", "pi / pi_old on rollouts", spread=True),
        Metric("clip/low", "Clipped below", "share", "rollout tokens whose lower clip is in force"),
        Metric("clip/high", "Clipped above", "share", "rollout tokens whose upper clip is in force"),
        Metric("kl_old", "KL from the old policy", "nats",
               "KL(old, present) on rollouts, k3 estimator; 0 with one optimizer step a batch", spread=True),
        Metric("kl_reference", "KL from the reference", "nats",
               "KL to the frozen reference on rollouts, k3 estimator, where the method has one", spread=True),
    ),
    "Engine against trainer": (
        Metric("mismatch/abs", "Engine mismatch", "nats",
               "mean |log p of the engine - log p of the trainer| of the same tokens. On one machine with "
               "one model: rounding. If it grows, the engine holds other weights", spread=True),
        Metric("mismatch/kl", "KL between engine and trainer", "nats", "k3 estimator", spread=True),
        Metric("mismatch/weight", "Importance weight", "",
               "truncated, where `objective.importance_cap` is set", spread=True),
        Metric("mismatch/capped", "Importance weights capped", "share", "tokens that reach the cap"),
    ),
    "Teacher": (
        Metric("teacher/gap", "Teacher's gap", "nats",
               "log p of the teacher - log p of the policy, on the tokens that it scored", spread=True),
        Metric("teacher/kl", "KL from the teacher", "nats", "KL(policy, teacher), k3 estimator", spread=True),
        Metric("teacher/entropy", "Entropy of the teacher", "nats", "on the same tokens", spread=True),
        Metric("teacher/taught", "Rollouts taught", "share", "rollouts that the teacher scored"),
        Metric("teacher/advantage", "Teacher's advantage", "nats",
               "the gap as it enters the loss, within `objective.distill_clip`", spread=True),
        Metric("teacher/divergence", "Divergence from the teacher", "nats",
               "over the vocabulary, with `objective.distill_form=full`", spread=True),
    ),
    "Optimisation": (
        Metric("train/gradient_norm", "Gradient norm", "",
               "global, before clipping; mean over the optimizer steps of a batch"),
        Metric("learning_rate", "Learning rate", "", "of the step"),
        Metric("train/tokens", "Trained tokens", "tokens",
               "in forward and backward passes, prompts included"),
        Metric("train/response_tokens", "Trained response tokens", "tokens", "those among them"),
        Metric("train/teacher_tokens", "Teacher's tokens", "tokens", "in its forward passes"),
        Metric("tokens/demos", "Demonstration tokens", "tokens", "response tokens trained on"),
        Metric("tokens/rollouts", "Rollout tokens", "tokens", "response tokens trained on"),
        Metric("train/micro_batches", "Micro-batches", "",
               "passes the batch was cut into, over all processes"),
        Metric("train/sequences_skipped", "Sequences skipped", "share",
               "sequences whose gradient is exactly zero and that were not computed"),
    ),
    "Gradient by term": (
        Metric("gradient/cosine", "Cosine, supervised and reinforcement", "",
               "between the two gradients, every `train.gradient_analysis_every` steps"),
        *(Metric(f"gradient/norm/{name}", f"Gradient norm: {words}", "", "of the term's own gradient")
          for name, words in TERMS.items()),
    ),
    "Interleaved": (
        Metric("interleave/{key}", "Interleaved, {key}", "",
               "the same figure of an interleaved method's update (ReLIFT)"),
    ),
    "Reward functions": (
        Metric("user/{name}", "{name}", "", "from a reward function's `log_metric`, mean over the step"),
    ),
    "Time": (
        Metric("time/generate", "Generate", "seconds", "rollouts"),
        Metric("time/score", "Score", "seconds",
               "scoring runs while generation goes on: what was left to wait for, slower processes included"),
        Metric("time/train", "Train", "seconds", "forward and backward passes, optimizer"),
        Metric("time/sync", "Sync weights", "seconds", "new weights to the engine"),
        Metric("time/other", "Other", "seconds", "the rest of the step"),
        Metric("time/step", "Whole step", "seconds", "the sum of the phases above"),
        Metric("time/ahead", "Generated ahead", "seconds",
               "with `rollout.ahead`: generation and scoring of this step's rollouts that ran while the step "
               "before was trained on; `time/generate` is then what was left to wait for the next step's"),
        Metric("tokens_per_second", "Speed", "tokens/s", "sampled and trained tokens over the whole step"),
    ),
    "Totals": (
        Metric("total/rollout_tokens", "Sampled tokens so far", "tokens", "since the run began"),
        Metric("total/trained_tokens", "Trained tokens so far", "tokens", "the same"),
        Metric("total/seconds", "Time so far", "seconds", "the same"),
    ),
    "Where the run is": (
        Metric("step", "Step", "", "finished training steps"),
        Metric("stage", "Stage", "", "counted from 0"),
        Metric("epoch", "Epoch", "", "passes over the prompts"),
        Metric("method", "Method", "name", "of the stage"),
    ),
}  # fmt: skip
"""Heading -> its metrics, in the order in which they are shown."""

_OF_AN_UPDATE = ("Loss", "Entropy weights", "Entropy", "Log-probability", "Advantage and ratio",
                 "Engine against trainer", "Teacher", "Optimisation", "Gradient by term")  # fmt: skip
PHASES = ("generate", "score", "train", "sync", "other")
"""``time/<phase>`` of these add up to ``time/step``."""

_known: dict[str, Metric] = {}
_patterns: list[tuple[re.Pattern[str], Metric]] = []


def register(found: Metric, group: str = "Other") -> None:
    """Adds a metric, such as the loss of a term of your own; its key may hold places.

    Raises:
        KeyError: the key is taken.
    """
    if found.key in _known:
        raise KeyError(f"the metric {found.key!r} is registered already")
    found = replace(found, group=group)
    if "{" in found.key:
        place = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.*)", re.escape(found.key))
        _patterns.append((re.compile(place, re.DOTALL), found))
    else:
        _known[found.key] = found
    if found.spread:
        for end, word in (("max", "largest"), ("min", "smallest")):
            edge = replace(found, key=f"{found.key}/{end}", title=f"{found.title}, {word}")
            _known[edge.key] = replace(edge, meaning=f"{word} value", spread=False)
    metric.cache_clear()


@lru_cache(maxsize=10_000)
def metric(key: str) -> Metric | None:
    """The metric of this key, its places filled in; None where nobody registered one."""
    if key in _known:
        return _known[key]
    if key.startswith("interleave/"):
        inner = metric(key.removeprefix("interleave/"))
        if inner is None or inner.group not in _OF_AN_UPDATE:
            return None
        title = f"Interleaved: {inner.title}"
        return replace(inner, key=key, title=title, group="Interleaved")
    for pattern, found in _patterns:
        if places := pattern.fullmatch(key):
            return replace(found, key=key, title=found.title.format(**places.groupdict()))
    return None


def registered(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """``figures``, which are about to be written.

    Raises:
        KeyError: a key that nobody registered. That is a fault of this package, or of a method that was
            added without a row here.
    """
    for key in figures:
        if metric(key) is None:
            raise KeyError(f"the metric {key!r} is not in srft/runs/metrics.py{nearest(key)}")
    return figures


def nearest(key: str) -> str:
    """``; did you mean 'loss/demo_sft'?`` for a key that does not exist, or nothing."""
    return did_you_mean(key, _known, most=3)


def headings(keys: Iterable[str]) -> list[str]:
    """The groups of these keys in the order of the registry, that of unknown ones last."""
    wanted = {found.group if (found := metric(key)) else "Other" for key in keys}
    return [*(name for name in GROUPS if name in wanted), *sorted(wanted - GROUPS.keys())]


for _group, _metrics in GROUPS.items():
    for _metric in _metrics:
        register(_metric, _group)
