"""How a recipe says what is rewarded: ``reward: math``, with options, or several with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from srft.errors import did_you_mean
from srft.rewards.registry import REWARDS
from srft.section import Section

OPTIONS = ("tolerance", "relative_tolerance", "announced_only", "use_all", "case_sensitive")


class RewardSpec(Section):
    """One reward: a verifier of this package by name, or a function of your own."""

    name: str | None = Field(
        None, description="Verifier: math, exact, choice, numeric, countdown or format."
    )
    function: str | None = Field(
        None,
        description="A reward function with TRL's signature, in place of `name`: `path.py:name` or "
        "`package.module:name`.",
    )
    arguments: dict[str, Any] | None = Field(
        None,
        description="If given, `function` is called once with them and returns the reward "
        "function (TRL's `get_soft_overlong_punishment` for instance).",
    )
    weight: float = Field(1.0, description="Factor of this reward in the weighted sum.")
    tolerance: float | None = Field(
        None,
        ge=0,
        description="numeric: largest absolute difference that counts as correct (1e-6, or "
        "a ten-thousandth of the ground truth where that is less).",
    )
    relative_tolerance: float | None = Field(
        None, ge=0, description="numeric: the same as a fraction of the ground truth (0)."
    )
    announced_only: bool | None = Field(
        None,
        description="math: read only an answer that is announced (boxed, ####, 'answer is'); "
        "otherwise math-verify falls back to the last number or formula in the text (false).",
    )
    use_all: bool | None = Field(
        None, description="countdown: each number must be used exactly, not at most, once (true)."
    )
    case_sensitive: bool | None = Field(
        None, description="exact: `Paris` and `paris` are different answers (false)."
    )

    @model_validator(mode="after")
    def _check(self) -> RewardSpec:
        if (self.name is None) == (self.function is None):
            raise ValueError("a reward has either a `name` or a `function`")
        if self.name is not None and self.name not in REWARDS:
            hint = did_you_mean(self.name.lower(), REWARDS, cutoff=0.5)
            raise ValueError(f"no reward is named {self.name!r}{hint} (there are {_names()})")
        if self.function is not None and not all(self.function.rpartition(":")[::2]):
            raise ValueError(
                f"function {self.function!r}: expected `path.py:name` or `package.module:name`"
            )
        if self.arguments is not None and self.function is None:
            raise ValueError("`arguments` belongs to a `function`")
        known = REWARDS[self.name].options if self.name else ()
        for option in self.options():
            if option not in known:
                raise ValueError(f"`{option}` is not an option of {self.name or self.function!r}")
        return self

    def options(self) -> dict[str, Any]:
        """The verifier's options that were set."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def label(self) -> str:
        """What metrics and messages call it."""
        return self.name or str(self.function).rpartition(":")[2]


def _names() -> str:
    return ", ".join(REWARDS)


class RewardConfig(Section):
    """What is rewarded and how it is checked.

    Written as a name (``reward: math``), one reward with its options (``reward: {name: numeric,
    tolerance: 1e-3}``), a list of rewards, or in full with ``rewards:``.
    """

    rewards: list[RewardSpec] = Field(
        default_factory=lambda: [RewardSpec.model_validate({"name": "math"})],
        min_length=1,
        description="The rewards whose weighted sum a completion receives.",
    )
    correct_threshold: float = Field(
        0.5, description="A completion is correct if its reward is greater than this."
    )
    timeout_s: float = Field(
        5.0,
        gt=0,
        description="Time limit of one verification, in seconds of processor time (so that a busy "
        "machine changes no score); by the wall clock it may take 10 times that and 10 seconds.",
    )
    function_timeout_s: float | None = Field(
        1800.0,
        gt=0,
        description="Maximum wall-clock seconds that one of your functions may take for a batch, after "
        "which the run ends with an error that names it (a judge that never answers would leave "
        "the accelerators idle); null: no limit.",
    )
    memory_mb: int = Field(
        512, ge=16, description="Memory limit of one verification, in MiB above a resting worker."
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="Verifier processes of each rank (default: the cores divided by the ranks on "
        "the machine, at most 16).",
    )
    failed_demonstrations: Literal["keep", "drop"] = Field(
        "drop",
        description="Demonstrations whose own answer does not verify: left out of training, or kept "
        "with the reward they get.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"rewards": [_spec(value)]}
        if isinstance(value, list | tuple):
            return {"rewards": [_spec(item) for item in value]}
        if not isinstance(value, Mapping):
            return value
        value = dict(value)
        one = not value.keys().isdisjoint(("name", "function"))  # then what is unknown is its, too
        known = [key for key in value if key in RewardSpec.model_fields]
        own = {
            key: value.pop(key)
            for key in ([k for k in value if k not in cls.model_fields] if one else known)
        }
        if own:
            if "rewards" in value:
                raise ValueError(f"{', '.join(own)}: put this into an item of `rewards`")
            value["rewards"] = [own]
        elif isinstance(value.get("rewards"), str):
            value["rewards"] = [_spec(value["rewards"])]
        elif isinstance(value.get("rewards"), list | tuple):
            value["rewards"] = [_spec(item) for item in value["rewards"]]
        return value

    @model_validator(mode="after")
    def _check(self) -> RewardConfig:
        labels = [spec.label for spec in self.rewards]
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: each reward can be given once")
        if all(spec.name for spec in self.rewards):
            best = sum(max(0.0, spec.weight) for spec in self.rewards)
            if best <= self.correct_threshold:
                raise ValueError(
                    f"the rewards add up to {best:g} at most, so none is greater than "
                    f"correct_threshold = {self.correct_threshold:g}: raise a weight or lower it"
                )
        return self


def written_out(section: Any) -> Any:
    """The section as a mapping, so that a setting can be put beside a reward that is written as a name."""
    if isinstance(section, str):
        return _spec(section)
    if isinstance(section, Sequence):
        return {"rewards": [_spec(item) for item in section]}
    return section or {}


def _spec(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    return {"function": item} if ":" in item else {"name": item}
