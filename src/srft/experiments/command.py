"""``srft lab EXPERIMENT``: the experiments of experiments.yaml, one or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from srft.errors import ConfigError, did_you_mean
from srft.experiments.arm_tables import render
from srft.experiments.catalog import EXPERIMENTS, QUESTIONS
from srft.experiments.experiment import Experiment
from srft.experiments.runner import run_experiment


def run_experiments(
    name: str,
    out: Path,
    seeds: int,
    jobs: int,
    overrides: Sequence[str],
    only: Sequence[int],
    console: Console,
    recipe: Path | None = None,
    arms: Sequence[str] = (),
    reference: str = "",
    rates: Sequence[float] = (),
) -> str | None:
    """Runs one experiment, or the ``only`` ones of the questions, on the built-in problems or on those of a
    user's ``recipe``, and prints each one's table. ``arms``: those to train; none stands for all.
    ``reference``: the arm to compare with, in place of the experiment's own. ``rates``: multiples of the
    learning rate that each arm tries, in place of the experiment's.
    Returns the signal that ended the work early, or None.

    Raises:
        ConfigError: an unknown question or arm, a wrong setting, or rates for an experiment that tries none.
    """
    names = _questions(only) if name == "questions" else [name]
    if only and name != "questions":
        raise ConfigError(f"--only chooses among questions; {name} is one experiment")
    if name == "questions" and (arms or reference):
        wanted = {reference, *arms}
        names = [n for n in names if wanted & {a.name for a in EXPERIMENTS[n].arms}] or names
    experiments = {n: with_rates(with_arms(EXPERIMENTS[n], arms, reference), rates) for n in names}
    for chosen, experiment in experiments.items():
        result = run_experiment(experiment, out, seeds, jobs, overrides, console, recipe=recipe)
        if result.arms:
            console.print(render(result, console))
        for run, error in result.failed.items():
            failed = f"[red]failed[/] {escape(run)}: {escape(error)}"
            console.print(failed, highlight=False, soft_wrap=True)
        console.print(f"tables: {out / chosen}", highlight=False, markup=False, soft_wrap=True)
        if result.stopped_by:
            left = len(result.missing)
            console.print(
                f"stopped by {result.stopped_by}; {left} runs left, the same command continues"
            )
            return result.stopped_by
    return None


def with_arms(experiment: Experiment, names: Sequence[str], reference: str = "") -> Experiment:
    """The experiment with these arms, its reference and what they start from alone; without names, with all.
    ``reference``: one of its arms, in place of its own.

    Raises:
        ConfigError: it has no arm of a name.
    """
    known = {arm.name: arm for arm in experiment.arms}
    asked = [
        *(("--arm", name) for name in names),
        *([("--reference", reference)] * bool(reference)),
    ]
    for option, name in asked:
        if name not in known:
            hint = did_you_mean(name, known, f"; its arms are {', '.join(known)}")
            raise ConfigError(f"{option}: {experiment.name} has no arm {name!r}{hint}")
    reference = reference or experiment.reference
    wanted = {*(names or known), reference}
    wanted |= {known[name].start for name in wanted}
    arms = tuple(arm for arm in experiment.arms if arm.name in wanted)
    return replace(experiment, arms=arms, reference=reference)


def with_rates(experiment: Experiment, rates: Sequence[float]) -> Experiment:
    """The experiment in which every arm tries these multiples of the learning rate; without any, its own.

    Raises:
        ConfigError: it tries none, or a multiple is not positive.
    """
    if not rates:
        return experiment
    if not experiment.rates:
        raise ConfigError(
            f"--rate: {experiment.name} trains every arm at one learning rate; set train.learning_rate=..."
        )
    wrong = [rate for rate in rates if not 0 < rate < float("inf")]
    if wrong:
        raise ConfigError(
            f"--rate {wrong[0]:g}: give a positive multiple of train.learning_rate, such as 0.5"
        )
    return replace(experiment, rates=tuple(dict.fromkeys(rates)))


def _questions(only: Sequence[int]) -> list[str]:
    names = [f"question{number}" for number in only]
    unknown = [name for name in names if name not in QUESTIONS]
    if unknown:
        numbers = ", ".join(name.removeprefix("question") for name in QUESTIONS)
        raise ConfigError(f"no {unknown[0]}; there are {numbers}")
    return names or list(QUESTIONS)
