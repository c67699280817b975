"""Every arm tries the same rates on held-out problems, and arms that go on from another take its rate."""

from __future__ import annotations

import re
import shutil

import pytest
from rich.console import Console
from tests.experiments.fakes import FakeRunner

from srft.errors import ConfigError
from srft.experiments.arm_results import holm, p_of_mean
from srft.experiments.catalog import EXPERIMENTS
from srft.experiments.command import with_rates
from srft.experiments.experiment import Arm, Experiment, arm_recipe, base_recipe
from srft.experiments.process import Outcome
from srft.experiments.runner import check_arms, run_experiment

QUIET = Console(quiet=True)
RATES = (1e-4, 1e-3)
ARMS = (
    Arm("base", untrained=True),
    Arm("sft", "sft", steps=2),
    Arm("srft", "srft"),
    Arm("sft->grpo", "grpo", start="sft"),
)


@pytest.fixture
def tuned() -> Experiment:
    return Experiment(
        "tuned",
        "T",
        ARMS,
        rates=(0.5, 5),  # of 2e-4: RATES
        validation={"data": {"eval": None, "eval_fraction": 0.4}},
    )


def best(job):
    """sft learns best at the low rate, all else at the high one; seed 0 of a trial fails for one."""
    stage = job.config.resolved_stages[-1]
    rate = stage.learning_rate or job.config.train.learning_rate
    if job.arm == "srft, 0.0001":
        return Outcome("failed", "diverged")
    return 0.5 + 0.4 * ((rate == RATES[0]) == (stage.method == "sft"))


def run(experiment, out, settings, rule=best, seeds=2):
    jobs = []

    def noted(job):
        jobs.append(job)
        return rule(job)

    result = run_experiment(
        experiment, out, seeds, 1, settings, QUIET, lambda: FakeRunner(noted, [])
    )
    return result, jobs


def test_each_arm_takes_its_best_rate(tuned, tmp_path, settings):
    result, jobs = run(tuned, tmp_path, settings)
    chosen = {
        job.arm: [
            stage.learning_rate or job.config.train.learning_rate
            for stage in job.config.resolved_stages
        ]
        for job in jobs
        if job.folder.parts[-3] == "tuned"
    }
    assert chosen.pop("base") == [1e-12]
    assert chosen == {"sft": [1e-4], "srft": [1e-3], "sft->grpo": [1e-4, 1e-3]}
    trials = [job for job in jobs if job.folder.parts[-3] != "tuned"]
    # Each rate of each arm once, and sft once more in front of the arm that goes on from it.
    assert sorted(job.arm for job in trials) == sorted(
        [f"{arm}, {rate:g}" for arm in ("sft", "srft", "sft->grpo") for rate in RATES]
    )
    for job in trials:
        assert (
            job.seed == 0 and job.config.data.eval is None and job.config.data.eval_fraction == 0.4
        )
    table = (tmp_path / "tuned/tables.md").read_text()
    assert "| srft |  | **90.0** |" in table and "| sft | **90.0** | 50.0 |" in table
    assert [arm.seeds for arm in result.arms] == [1, 2, 2, 2]


def test_problems_that_arms_are_compared_on_are_not_looked_at_for_rates(tuned, settings):
    """Also where the user names other problems."""
    trial = Experiment("t", "t", ARMS, validation=tuned.validation)
    given = [*settings, "data.eval=lab"]
    assert base_recipe(tuned, given).data.eval == "lab"
    assert base_recipe(trial, given).data.eval is None


def test_a_single_rate_is_taken_without_a_trial(tuned, tmp_path, settings):
    result, jobs = run(with_rates(tuned, [0.5, 0.5]), tmp_path, settings)
    rates = {
        stage.learning_rate or job.config.train.learning_rate
        for job in jobs
        for stage in job.config.resolved_stages
        if job.arm != "base"
    }
    assert rates == {RATES[0]} and len(jobs) == 7  # the base once, three arms under two seeds
    assert {job.folder.parts[-3] for job in jobs} == {"tuned"} and not result.missing
    # The arms' own problems, not those that rates are tried on.
    assert all(job.config.data.eval is not None for job in jobs)
    table = (tmp_path / "tuned/tables.md").read_text()
    assert "Every arm's peak learning rate is 0.0001; no other was tried." in table


@pytest.mark.parametrize(
    ("name", "rates", "says"),
    [
        ("beyond", [1.0], "beyond trains every arm at one learning rate; set train.learning_rate"),
        ("verdict", [0.0], "--rate 0: give a positive multiple"),
        ("verdict", [1.0, float("nan")], "--rate nan: give a positive multiple"),
        ("verdict", [float("inf")], "--rate inf: give a positive multiple"),
    ],
)
def test_rates_that_cannot_be_tried_are_refused(name, rates, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        with_rates(EXPERIMENTS[name], rates)
    assert with_rates(EXPERIMENTS[name], []) == EXPERIMENTS[name]


def test_interrupted_trials_leave_the_arms_untrained(tuned, tmp_path, settings):
    result, jobs = run(tuned, tmp_path, settings, lambda job: Outcome("stopped"))
    assert result.missing and not any(job.folder.parts[-3] == "tuned" for job in jobs)


def test_an_experiment_goes_on_where_only_its_records_are_left(tuned, tmp_path, settings):
    before, _ = run(tuned, tmp_path / "here", settings)
    for records in (tmp_path / "here").glob("*/runs.jsonl"):
        there = tmp_path / "there" / records.parent.name
        there.mkdir(parents=True)
        shutil.copy(records, there)
        assert (
            str(tmp_path) not in records.read_text()
        )  # a machine's paths are not published with it
    after, jobs = run(tuned, tmp_path / "there", settings, seeds=3)
    # The failed trial left no figures: it is tried again.
    assert [f"{job.arm}/{job.seed}" for job in jobs] == [
        "srft, 0.0001/0",
        "sft/2",
        "srft/2",
        "sft->grpo/2",
    ]
    for ours, theirs in zip(before.runs, after.runs, strict=False):
        assert (ours.arm, ours.seed, ours.scores, ours.curve) == (
            theirs.arm,
            theirs.seed,
            theirs.scores,
            theirs.curve,
        )
        assert theirs.folder == ours.folder.replace("/here/", "/there/")


def test_a_start_is_a_stage_and_what_it_leaves_the_reference(settings, tmp_path):
    """Of what reads one: a stage that asks for a reference nothing reads would be refused."""
    anchored = Arm("anchored", "grpo", {"kl_coefficient": 0.1}, start="sft")
    experiment = Experiment("e", "e", (*ARMS, anchored))
    base = base_recipe(experiment, [*settings, "train.steps=10"])
    check_arms(experiment, base, tmp_path)
    stages = [
        arm_recipe(arm, base, seed=0, folder=tmp_path, start=ARMS[1]).stages
        for arm in (ARMS[3], anchored)
    ]
    assert [(s.method, s.steps, s.reference) for found in stages for s in found] == [
        ("sft", 20, "base"),
        ("grpo", 10, "base"),
        ("sft", 20, "base"),
        ("grpo", 10, "stage"),
    ]


def test_holm_by_hand():
    # Smallest first: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not be below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_p_over_seeds_by_hand():
    import numpy as np

    # t = mean / (s / sqrt n) = 2 / (1 / sqrt 3) with 2 degrees: p = 1 - t / sqrt(t^2 + 2) for two sides.
    t = 2 * 3**0.5
    assert p_of_mean(np.array([1.0, 2.0, 3.0])) == pytest.approx(1 - t / (t**2 + 2) ** 0.5)
    assert p_of_mean(np.array([1.0, 2.0])) is None
    assert p_of_mean(np.zeros(3)) == 1.0
