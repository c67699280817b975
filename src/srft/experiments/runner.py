"""Makes the runs of an experiment: several at once, none twice, and one that fails stops no other."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from srft.config import SRFTConfig
from srft.errors import ConfigError
from srft.experiments.arm_results import ExperimentResult, gather
from srft.experiments.arm_tables import write_tables
from srft.experiments.demonstrations import make_demonstrations
from srft.experiments.experiment import Experiment, arm_recipe, base_recipe
from srft.experiments.process import (
    HEAVY,
    Job,
    Ledger,
    Outcome,
    ProcessRunner,
    Runner,
    finished_digest,
    recipe_digest,
)
from srft.experiments.records import Records
from srft.experiments.teacher import has_teacher, make_teacher, taught
from srft.experiments.tuning import tune
from srft.runs.lock import hold
from srft.runs.run_dir import RunDir, recipe_changes
from srft.terminal import Terminal
from srft.trainer.clean_stop import StopRequest
from srft.trainer.fitting import as_chosen
from srft.trainer.setup import build_methods

_POLL_SECONDS = 0.5


def run_experiment(
    experiment: Experiment,
    out: Path,
    seeds: int = 3,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    make_runner: Callable[[], Runner] = ProcessRunner,
    recipe: Path | None = None,
) -> ExperimentResult:
    """Trains every arm under seeds 0 .. seeds - 1, each run in ``out/<experiment>/<arm>/seed<k>``,
    and writes results.json and tables.md beside them. ``recipe``: a user's own (model, data, verifier) in
    place of the built-in one.

    Finished runs are not made again, also where another experiment under ``out`` has made the same one,
    or where only their line in the experiment's runs.jsonl is left; interrupted ones are resumed. A run
    that fails is reported and left out of the figures. After SIGINT or SIGTERM the runs in hand write a
    checkpoint and what is finished is evaluated.

    Raises:
        ConfigError: a setting is wrong, or ``out`` holds this experiment with other settings.
    """
    console = console or Terminal()
    base = base_recipe(experiment, overrides, recipe)
    check_arms(experiment, base, out)
    more = ""
    if experiment.rates:
        tuned = tune(
            experiment,
            base.train.learning_rate,
            lambda trial: run_experiment(
                trial, out, 1, jobs, overrides, console, make_runner, recipe
            ),
        )
        if isinstance(tuned, ExperimentResult):
            return tuned
        experiment, more = tuned.experiment, tuned.markdown()
    data: Mapping[str, str] = {}
    if any(arm.demonstrations != "expert" for arm in experiment.arms):
        data = make_demonstrations(base, out / "demonstrations", console)
    if any(map(has_teacher, experiment.arms)):
        teacher = make_teacher(base, out, console)
        experiment = replace(experiment, arms=tuple(taught(a, teacher) for a in experiment.arms))
    plan = plan_jobs(experiment, base, out, seeds, data)
    check_unmixed(plan)
    records = Records(out / experiment.name)
    # Two commands in one folder would remove each other's unfinished runs.
    with hold(out / experiment.name, "an experiment"):
        ledger = make_runs(plan, out, jobs, console, make_runner, experiment.name, records)
    result = gather(experiment, plan, ledger, records.of)
    write_tables(result, out / experiment.name, more)
    return result


def check_arms(experiment: Experiment, base: SRFTConfig, out: Path) -> None:
    """Every arm's recipe and method, before the first is trained.

    Raises:
        ConfigError: one of them is wrong.
    """
    for arm in experiment.arms:
        start = experiment.start_of(arm)
        build_methods(arm_recipe(arm, base, seed=0, folder=out, start=start))


def plan_jobs(
    experiment: Experiment, base: SRFTConfig, out: Path, seeds: int, data: Mapping[str, str]
) -> list[Job]:
    """One job per arm and seed, seed by seed, so that early on there is something of every arm."""
    planned = []
    for seed in range(seeds):
        for arm in experiment.arms:
            if arm.untrained and seed:
                continue
            folder = out / experiment.name / arm.folder / f"seed{seed}"
            config = arm_recipe(
                arm,
                base,
                seed=seed,
                folder=folder,
                keep_model=experiment.keep_models,
                data=data.get(arm.demonstrations),
                start=experiment.start_of(arm),
            )
            job = Job(arm.name, seed, config, folder, recipe_digest(config), arm.untrained)
            planned.append(job)
    return planned


def check_unmixed(plan: Sequence[Job]) -> None:
    """Raises:
    ConfigError: a folder of the plan holds a run of another recipe.
    """
    for job in plan:
        path = job.folder / "config.yaml"
        if not path.is_file():
            continue
        other = finished_digest(job.folder)
        run = RunDir(job.folder)
        recipe = as_chosen(job.config, run).to_yaml(redacted=True)
        changed = [c for c in recipe_changes(run, recipe) if c[:4] != "run."]
        if changed or (other is not None and other != job.digest):
            what = "; ".join(changed[:5]) or (
                "the base model's weights, the training file or a method's defaults"
            )
            raise ConfigError(
                f"{job.folder}: holds a run with other settings ({what}). Choose another --out, or "
                "remove that folder"
            )


def make_runs(
    plan: Sequence[Job],
    out: Path,
    jobs: int,
    console: Console,
    make_runner: Callable[[], Runner],
    title: str,
    records: Records,
) -> Ledger:
    """Works the plan off with ``jobs`` runners side by side, each waited for by a thread."""
    outcomes = {}
    for job in plan:
        if finished_digest(job.folder) == job.digest:
            records.add(job)
        if job in records:
            outcomes[job.name] = Outcome("finished")
    waiting = [job for job in plan if job.name not in outcomes]
    told = set(outcomes)
    runners = [make_runner() for _ in range(max(1, min(jobs, len(waiting))))]
    idle: queue.SimpleQueue[Runner] = queue.SimpleQueue()
    for runner in runners:
        idle.put(runner)
    copying = threading.Lock()
    bar = Progress(console=console, disable=not console.is_terminal)
    with StopRequest() as stop, bar, ThreadPoolExecutor(len(runners)) as threads:

        def make(job: Job) -> None:
            if stop.requested:
                return
            with copying:
                copied = copy_same_run(job, out)
            runner = idle.get()
            try:
                outcome = Outcome("finished") if copied else runner.run(job)
            finally:
                idle.put(runner)
            if outcome.status == "finished":
                records.add(job)
            if outcome.status == "failed" and stop.requested:
                outcome = Outcome("stopped")  # the signal reached it before it could listen
            outcomes[job.name] = outcome

        task = bar.add_task(title, total=sum(job.config.total_steps for job in plan))
        unasked = list(runners)
        left = {threads.submit(make, job) for job in waiting}
        try:
            while left:
                ended, left = wait(left, _POLL_SECONDS, FIRST_EXCEPTION)
                for future in ended:
                    future.result()
                if stop.requested == "SIGTERM":  # a Ctrl-C reaches the children by itself
                    unasked = [runner for runner in unasked if not runner.interrupt()]
                done, steps = _advance(plan, outcomes)
                bar.update(task, completed=steps, description=f"{title}, {done}/{len(plan)} runs")
                _tell(plan, outcomes, told, console, records)
        except BaseException:  # the disk is full, say: the runs in hand end, no other begins
            threads.shutdown(wait=False, cancel_futures=True)
            for runner in runners:
                runner.interrupt()
            raise
        finally:
            for runner in runners:
                runner.close()
    return Ledger({j.name: outcomes.get(j.name, Outcome("stopped")) for j in plan}, stop.requested)


def copy_same_run(job: Job, out: Path) -> bool:
    """Copies the records of a run of the very same recipe from elsewhere under ``out``."""
    if job.config.run.export:
        return False
    for found in sorted(out.glob("*/*/seed*")):
        if found != job.folder and finished_digest(found) == job.digest:
            shutil.rmtree(job.folder, ignore_errors=True)
            shutil.copytree(found, job.folder, ignore=shutil.ignore_patterns(*HEAVY, "config.yaml"))
            (job.folder / "config.yaml").write_text(job.config.to_yaml(), encoding="utf-8")
            return True
    return False


def _advance(plan: Sequence[Job], outcomes: Mapping[str, Outcome]) -> tuple[int, int]:
    """Runs that have ended, and steps made in all."""
    done = steps = 0
    for job in plan:
        if job.name in outcomes:
            done += 1
            steps += job.config.total_steps
        elif (log := job.folder / "metrics.jsonl").is_file():
            steps += log.read_bytes().count(b"\n")
    return done, steps


def _tell(
    plan: Sequence[Job],
    outcomes: Mapping[str, Outcome],
    told: set[str],
    console: Console,
    records: Records,
) -> None:
    """A line for each run that ended since the last look."""
    for job in plan:
        outcome = outcomes.get(job.name)
        if outcome is None or job.name in told:
            continue
        told.add(job.name)
        colour = {"finished": "green", "failed": "red", "stopped": "yellow"}[outcome.status]
        rest = f" {escape(outcome.error or '')}"
        if outcome.status == "finished":
            rest = f" {records.of(job).accuracy:.1%}"
        console.print(
            f"[{colour}]{outcome.status}[/] {job.name}{rest}", highlight=False, soft_wrap=True
        )
