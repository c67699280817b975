"""Figures, intervals and tables, with numbers worked out by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.lab.pictures import draw
from rich.console import Console
from tests.experiments.fakes import write_run

from srft.experiments.arm_results import (
    compare,
    estimate,
    gather,
    read_figures,
    summarize,
    t_interval,
)
from srft.experiments.arm_tables import markdown, render, write_tables
from srft.experiments.catalog import EXPERIMENTS
from srft.experiments.experiment import Arm, base_recipe
from srft.experiments.process import Ledger, Outcome
from srft.experiments.runner import plan_jobs

ACCURACY = {"srft/seed0": 0.8, "srft/seed1": 0.9, "grpo/seed0": 0.5, "grpo/seed1": 0.5}


@pytest.fixture
def result(experiment, tmp_path, settings):
    plan = plan_jobs(experiment, base_recipe(experiment, settings), tmp_path, 2, {})
    for job in plan:
        write_run(job, ACCURACY.get(job.name, 0.3))
    return gather(experiment, plan, Ledger({job.name: Outcome("finished") for job in plan}))


def test_the_t_interval_is_students():
    # Mean 0.5, deviation 0.1, over sqrt(3); t of two degrees of freedom is 4.3027.
    low, high = t_interval(np.array([0.4, 0.5, 0.6]))
    assert high - 0.5 == pytest.approx(0.5 - low) == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert t_interval(np.array([0.4, 0.4])) is None


def test_accuracy_is_the_mean_over_seeds_and_problems(result):
    arms = {arm.name: arm for arm in result.arms}
    assert arms["srft"].accuracy["in"].mean == pytest.approx(0.85)
    assert arms["srft"].families == {
        "in": {"chain": pytest.approx(0.85)},
        "out": {"long": pytest.approx(0.85)},
    }
    assert arms["base"].accuracy["out"].mean == pytest.approx(0.3)


def test_the_line_above_a_table_says_how_far_arms_differ(experiment, tmp_path, settings, result):
    assert result.setting["steps"] == "2" and result.setting["learning_rate"] == "0.0002"
    longer = Arm("slow", "sft", steps=3, recipe={"train": {"learning_rate": 0.2 * 4e-5}})
    differing = replace(experiment, arms=(*experiment.arms, longer), reference="grpo")
    plan = plan_jobs(differing, base_recipe(differing, settings), tmp_path / "differing", 1, {})
    for job in plan:
        write_run(job, 0.5)
    found = gather(differing, plan, Ledger({job.name: Outcome("finished") for job in plan}))
    # The base model's stand-in of one step at 1e-12 is not an arm that is trained.
    assert found.setting["steps"] == "2 to 6"
    assert found.setting["learning_rate"] == "8e-06 to 0.0002"


def test_of_several_evaluation_sets_the_first_is_in_distribution(experiment, tmp_path, settings):
    sets = [*settings, "data.eval={near: lab, far: lab-deep}", "data.eval_limit=null"]
    job = plan_jobs(experiment, base_recipe(experiment, sets), tmp_path, 1, {})[1]
    write_run(job, 0.8)
    records = job.folder / "evaluation.jsonl"
    near = json.loads(records.read_text()) | {"name": "near"}
    far = near | {"name": "far", "correct": {"long": [1, 0], "chain": [0, 0]}}
    records.write_text(json.dumps(far) + "\n" + json.dumps(near) + "\n")
    scores = read_figures(job).scores
    assert {part: list(found) for part, found in scores.items()} == {"in": ["near"], "out": ["far"]}
    assert sum(scores["in"]["near"]) == 32 and scores["out"]["far"] == [1, 0, 0, 0]


def test_differences_are_paired_by_seed_and_problem(result):
    grpo = next(arm for arm in result.arms if arm.name == "grpo").difference["in"]
    # Seeds: -0.3 and -0.4. Problems 10 to 15 differ in both seeds, 16 and 17 in one.
    assert grpo.estimate.mean == pytest.approx(-0.35)
    assert (grpo.wins, grpo.losses, grpo.ahead, grpo.of) == (0, 8, 0, 2)
    assert grpo.estimate.problems[1] < 0 and grpo.estimate.seeds is None
    assert grpo.verdict == "open"  # two seeds are too few for an interval over seeds
    base = next(arm for arm in result.arms if arm.name == "base").difference["in"]
    assert base.of == 2 and base.estimate.mean == pytest.approx(-0.55)


def test_an_untrained_reference_stands_for_each_seed_too(experiment, tmp_path, settings):
    plan = plan_jobs(experiment, base_recipe(experiment, settings), tmp_path, 2, {})
    for job in plan:
        write_run(job, ACCURACY.get(job.name, 0.3))
    base, srft = ([read_figures(job) for job in plan if job.arm == arm] for arm in ("base", "srft"))
    base = [replace(run, steps=0) for run in base]
    ahead = summarize(srft, base).difference["in"]
    behind = summarize(base, srft).difference["in"]
    assert ahead.of == behind.of == 2
    assert ahead.estimate.mean == -behind.estimate.mean == pytest.approx(0.55)


def test_ahead_and_behind_need_both_intervals():
    rng = np.random.default_rng(0)
    low = (rng.random((5, 200)) < 0.3).astype(float)
    high = (rng.random((5, 200)) < 0.7).astype(float)
    assert compare(high, low).verdict == "ahead" and compare(low, high).verdict == "behind"
    assert compare(low[:1], high[:1]).verdict == "open"
    assert compare(low, low).verdict == "open"
    assert estimate(high).seeds[0] < high.mean() < estimate(high).seeds[1]


def test_costs_count_both_kinds_of_tokens(result):
    grpo = next(arm for arm in result.arms if arm.name == "grpo")
    assert (grpo.sampled_tokens, grpo.trained_tokens) == (20, 60)
    assert grpo.flops == 1000 * (6 * 60 + 2 * 20)


def test_the_published_pictures_are_drawn_from_the_records(result, tmp_path):
    write_tables(result, tmp_path / "small")
    draw(tmp_path / "small", tmp_path / "images")
    for name in ("lab-small.png", "lab-small-cost.png", "lab-small-curves.png"):
        assert (tmp_path / "images" / name).stat().st_size > 10_000
    draw(tmp_path / "small" / "results.json", tmp_path / "published")
    drawn = [path.name for path in (tmp_path / "published").iterdir()]
    assert sorted(drawn) == ["lab-results-cost.png", "lab-results.png"]


def test_tables_say_everything_there_is(result, tmp_path):
    text = markdown(result)
    assert "| srft | 2 | 85.0 |  | 85.0 |  |" in text
    assert "| grpo | 2 | 50.0 | -35.0 {" in text and "| base | 0 | 0 |" in text


def shown(result, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(result, console))
    return console.export_text()


def test_a_terminal_of_80_columns_holds_every_row_in_one_line(result):
    """The verdict's longest name beside its figures; the intervals stand where there is room for them."""
    assert "-35.0 [" in shown(result, 200)
    longest = "srft-official, interleaved, no bonus"
    assert longest in {arm.name for arm in EXPERIMENTS["verdict"].arms}
    result = replace(result, arms=tuple(replace(arm, name=longest) for arm in result.arms))
    lines = shown(result, 80).splitlines()
    assert sum(longest in line and line.rstrip().endswith("0.00") for line in lines) == len(
        result.arms
    )
    assert "-35.0" in "".join(lines) and "[" not in "".join(lines)
