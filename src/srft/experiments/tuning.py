"""The same tuning budget for every arm: as many rates tried, by problems held out of the training data.

What an arm is compared on is never looked at here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from srft.experiments.arm_results import ExperimentResult
from srft.experiments.experiment import Arm, Experiment
from srft.runs.files import markdown_grid


@dataclass(frozen=True)
class Tuned:
    """What came of it. ``accuracy``: arm -> rate -> share of right answers on the held-out problems;
    empty where there was one rate, so that nothing was tried."""

    experiment: Experiment
    rates: tuple[float, ...]
    accuracy: Mapping[str, Mapping[float, float]]

    def markdown(self) -> str:
        """Every rate's accuracy, the chosen one in bold."""
        if not self.accuracy:
            return f"Every arm's peak learning rate is {self.rates[0]:g}; no other was tried."
        chosen = {arm.name: _rate(arm) for arm in self.experiment.arms}
        rows = [
            [name, *(_cell(found.get(rate), rate == chosen[name]) for rate in self.rates)]
            for name, found in self.accuracy.items()
        ]
        grid = markdown_grid(["arm", *(f"{rate:g}" for rate in self.rates)], rows, texts=1)
        return (
            "Peak learning rates, by accuracy in % on problems held out of the training data (one run each, "
            f"the higher of two that are level first; chosen in bold):\n\n{grid}"
        )


def tune(
    experiment: Experiment, learning_rate: float, run: Callable[[Experiment], ExperimentResult]
) -> Tuned | ExperimentResult:
    """The experiment with each arm at the best of its multiples of ``learning_rate``; where runs are still
    missing, what there is.

    ``run`` trains the arms of an experiment under one seed. Arms that go on from another are tuned once
    that one is. A rate at which training failed is not chosen. A single rate is taken without a run.
    """
    rates = tuple(multiple * learning_rate for multiple in experiment.rates)
    if len(rates) == 1:
        same = (
            a if a.untrained else replace(_at(a, rates[0]), name=a.name) for a in experiment.arms
        )
        return Tuned(replace(experiment, arms=tuple(same)), rates, {})
    accuracy: dict[str, dict[float, float]] = {}
    arms = {arm.name: arm for arm in experiment.arms}
    for later in (False, True):
        group = [a for a in experiment.arms if not a.untrained and bool(a.start) == later]
        if not group:
            continue
        trials = {_at(a, rate).name: (a, rate) for a in group for rate in rates}
        starts = [arms[name] for name in sorted({a.start for a in group} - {""})]
        wanted = (*(_at(a, rate) for a, rate in trials.values()), *starts)
        result = run(_trial(experiment, wanted, "-started" if later else ""))
        if result.missing:
            return result
        for figures in result.runs:
            if figures.arm in trials:
                arm, rate = trials[figures.arm]
                accuracy.setdefault(arm.name, {})[rate] = figures.accuracy
        for arm in group:
            found = accuracy.get(arm.name)
            if not found:
                return result
            best = max(found, key=lambda rate: (found[rate], rate))
            arms[arm.name] = replace(_at(arm, best), name=arm.name)
    return Tuned(replace(experiment, arms=tuple(arms.values())), rates, accuracy)


def _trial(experiment: Experiment, arms: tuple[Arm, ...], suffix: str) -> Experiment:
    """The experiment that tries rates; its results stand in a folder of their own."""
    return replace(
        experiment,
        name=f"{experiment.name}-rates{suffix}",
        title=f"{experiment.title}: rates, on held-out problems",
        arms=arms,
        reference=arms[0].name,
        rates=(),
        then="",
    )


def _at(arm: Arm, rate: float) -> Arm:
    train = {**arm.recipe.get("train", {}), "learning_rate": rate}
    return replace(arm, name=f"{arm.name}, {rate:g}", recipe={**arm.recipe, "train": train})


def _rate(arm: Arm) -> float | None:
    return arm.recipe.get("train", {}).get("learning_rate")


def _cell(value: float | None, chosen: bool) -> str:
    text = "" if value is None else f"{100 * value:.1f}"
    return f"**{text}**" if chosen else text
