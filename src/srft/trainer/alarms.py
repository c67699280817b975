"""Alarms: what goes wrong without an error, said while there is time.

A rule is data: a metric, a bound, and for how many steps in a row. ``Alarms`` holds the streaks, which
are part of the run's state, so that a resumed run raises what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from srft.errors import did_you_mean
from srft.runs.metrics import metric, nearest
from srft.section import Section


class Alarm(Section):
    """One rule. A name from the table of built-in alarms (docs/reliability.md) changes that rule, and
    only the given keys of it; any other name is a rule of your own."""

    metric: str = Field(
        description="A key of docs/metrics.md, such as rollout/entropy; of eval/... a step is an evaluation."
    )
    at_least: float | None = Field(None, description="Raised where the metric is this or more.")
    at_most: float | None = Field(None, description="Raised where the metric is this or less.")
    steps: int = Field(5, ge=1, description="Steps in a row for which that must hold.")
    action: Literal["warn", "stop", "ignore"] = Field(
        "warn",
        description="warn: a line in the live view, events.jsonl and the report; stop: end the run too "
        "(exit code 9), earlier checkpoints stay; ignore: nothing.",
    )
    cause: str = Field("", description="The usual cause and fix, for the message.")

    @field_validator("metric")
    @classmethod
    def _exists(cls, key: str) -> str:
        found = metric(key)
        if found is None:
            known = "; docs/metrics.md lists them"
            raise ValueError(f"no metric is called {key!r}{nearest(key) or known}")
        if found.unit == "name":
            raise ValueError(f"{key} is a text, which has no bounds")
        return key

    @model_validator(mode="after")
    def _has_a_bound(self) -> Alarm:
        if self.at_least is None and self.at_most is None:
            raise ValueError("no bound: give at_least or at_most")
        return self

    def holds(self, value: float) -> bool:
        """Whether ``value`` is at or beyond a bound."""
        above = self.at_least is not None and value >= self.at_least
        below = self.at_most is not None and value <= self.at_most
        return above or below


BUILT_IN: dict[str, Alarm] = {
    "entropy-exploded": Alarm(
        metric="rollout/entropy",
        at_least=3.0,
        steps=3,
        cause="the policy collapses into noise: the learning rate or an entropy bonus is too high, or a "
        "loss is unbounded below (objective.rollout_term=literal)",
    ),
    "entropy-collapsed": Alarm(
        metric="rollout/entropy",
        at_most=0.005,
        steps=10,
        cause="the policy no longer explores: the learning rate is too high, the data is too easy, or "
        "rollout.temperature is below 1; with accuracy near 100 % training is simply done",
    ),
    "no-reward": Alarm(
        metric="reward/accuracy",
        at_most=0.0,
        steps=10,
        cause="no rollout is ever right: the verifier does not understand the answers (srft data check), "
        "rollout.max_tokens cuts them off, or the tasks are out of the model's reach",
    ),
    "all-truncated": Alarm(
        metric="rollout/truncated",
        at_least=0.9,
        steps=5,
        cause="responses do not end: rollout.max_tokens is too small, the end token of demonstrations is "
        "not the one that ends a rollout, or the policy repeats itself (look at the samples)",
    ),
    "engine-mismatch": Alarm(
        metric="mismatch/abs",
        at_least=0.1,
        steps=3,
        cause="the rollout engine's log-probabilities are not the trainer's: it holds other weights, "
        "samples at another temperature or computes in a lower precision; objective.importance_cap "
        "corrects small gaps",
    ),
    "teacher-apart": Alarm(
        metric="teacher/kl",
        at_least=2.0,
        steps=5,
        cause="policy and teacher differ by several nats on the policy's own tokens: a "
        "self-teacher that sees the solution pulls where the policy cannot follow (leakage, drift "
        "of style); lower objective.weight_distill or train.learning_rate, set "
        "objective.distill_clip, or leave the direction to the reward (rlsd)",
    ),
    "gradient-exploded": Alarm(
        metric="train/gradient_norm",
        at_least=1000.0,
        steps=5,
        cause="the loss has a cliff: lower train.learning_rate, or look at the samples for responses of "
        "very small probability",
    ),
}


def with_built_in(given: Any) -> Any:
    """The recipe's alarms over the built-in ones, key by key.

    Raises:
        ValueError: a new name without a metric.
    """
    if not isinstance(given, Mapping):
        return given
    merged: dict[str, Any] = {name: alarm.model_dump() for name, alarm in BUILT_IN.items()}
    for name, values in given.items():
        own = values.model_dump() if isinstance(values, Alarm) else values
        if name not in merged and isinstance(own, Mapping) and "metric" not in own:
            hint = did_you_mean(str(name), merged, f"; built-in are {', '.join(merged)}")
            raise ValueError(f"{name}: not a built-in alarm, and no metric is given{hint}")
        known = merged.get(name, {})
        merged[name] = {**known, **own} if isinstance(own, Mapping) else own
    return merged


def raised(
    alarms: Mapping[str, Alarm], metrics: Mapping[str, Any], streaks: dict[str, int]
) -> Iterator[tuple[Alarm, str]]:
    """The alarms that go off with this step's ``metrics``, each with its message; ``streaks`` (steps
    in a row by name) is brought up to date. An alarm goes off once, and again only after its metric
    was within bounds in between. A step without the metric changes nothing."""
    for name, alarm in alarms.items():
        value = metrics.get(alarm.metric)
        if alarm.action == "ignore" or not isinstance(value, int | float) or value != value:
            continue
        streaks[name] = streaks.get(name, 0) + 1 if alarm.holds(value) else 0
        if streaks[name] == alarm.steps:
            yield alarm, _message(name, alarm, value)
    for name in [name for name, streak in streaks.items() if not streak]:
        del streaks[name]


def _message(name: str, alarm: Alarm, value: float) -> str:
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (("at least", alarm.at_least), ("at most", alarm.at_most))
        if bound is not None
    ]
    lasting = f" for {alarm.steps} steps" if alarm.steps > 1 else ""
    cause = f". Usually {alarm.cause}" if alarm.cause else ""
    return f"alarm {name}: {alarm.metric} is {value:.4g} ({' or '.join(bounds)}{lasting}){cause}"
