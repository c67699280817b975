"""Run directories are read whatever state they are in."""

from __future__ import annotations

import json

import pytest
import yaml

from srft.errors import DataError
from srft.runs.reading import group_by_method, iterate_samples, read_run, read_runs


def test_a_finished_run_is_read_without_notes(make_run):
    run = read_run(make_run())
    assert (run.method, run.seed, run.planned_steps) == ("srft", 0, 60)
    assert [m["step"] for m in run.metrics] == list(range(1, 61))
    assert [e["step"] for e in run.evaluation()] == [0, 30, 60]
    assert run.notes == ()


def test_null_metrics_are_no_figures(make_run):
    run = read_run(make_run())
    assert run.series("mismatch/abs") == ([], [])
    assert "mismatch/abs" not in set(run.keys())


def test_half_a_line_at_the_end_is_passed_over_in_silence(make_run):
    path = make_run()
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "los')
    run = read_run(path)
    assert len(run.metrics) == 60
    assert run.notes == ()


def test_a_damaged_line_in_the_middle_is_noted(make_run):
    path = make_run()
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[10] = "garbage"
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(path)
    assert len(run.metrics) == 59
    assert "metrics.jsonl: 1 damaged line left out." in run.notes


def test_a_step_written_twice_counts_once_as_last_written(make_run):
    path = make_run()
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 60, "loss": 7.0}) + "\n")
    assert read_run(path).metrics[-1]["loss"] == 7.0
    assert len(read_run(path).metrics) == 60


def test_what_is_missing_is_said(tmp_path):
    path = tmp_path / "young"
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"method": "grpo", "train": {"steps": 5}}))
    notes = " ".join(read_run(path).notes)
    for words in ("metrics.jsonl", "environment.json", "samples", "No training step"):
        assert words in notes


def test_training_in_progress_says_how_far_it_is(make_run):
    path = make_run(steps=10)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["train"]["steps"] = 40
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "Training is at step 10 of 40." in read_run(path).notes


@pytest.mark.parametrize("what", ["absent", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, what):
    path = tmp_path / "x"
    if what == "empty":
        path.mkdir()
    with pytest.raises(
        DataError, match="no such folder" if what == "absent" else "not a run directory"
    ):
        read_run(path)


def test_no_run_at_all_is_refused():
    with pytest.raises(DataError, match="at least one"):
        read_runs([])


def test_seeds_of_one_method_make_one_group(make_run):
    paths = [
        make_run(f"{m}-{s}", method=m, seed=s, steps=3) for m in ("srft", "grpo") for s in (0, 1)
    ]
    groups = group_by_method(read_runs(paths))
    assert {name: len(members) for name, members in groups.items()} == {"srft": 2, "grpo": 2}


def test_groups_of_one_method_are_told_apart_by_what_differs(make_run):
    paths = [make_run("a", steps=3), make_run("b", steps=3)]
    config = yaml.safe_load((paths[1] / "config.yaml").read_text())
    config["objective"]["sft_coefficient"] = 0.05
    (paths[1] / "config.yaml").write_text(yaml.safe_dump(config))
    assert set(group_by_method(read_runs(paths))) == {
        "srft (sft_coefficient None)",
        "srft (sft_coefficient 0.05)",
    }


def test_what_python_code_gave_is_no_seed(make_run):
    """Two runs of one recipe with other reward functions were averaged."""
    paths = [make_run(name, steps=3) for name in "abc"]
    for path, function in zip(paths, ("right", "right", "short"), strict=True):
        environment = json.loads((path / "environment.json").read_text())
        environment["given"] = {"rewards": [function]}
        (path / "environment.json").write_text(json.dumps(environment))
    groups = group_by_method(read_runs(paths))
    assert {name: len(members) for name, members in groups.items()} == {
        "srft (rewards ['right'])": 2,
        "srft (rewards ['short'])": 1,
    }


def test_stages_are_named_in_order(make_run):
    path = make_run(steps=4)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["stages"] = [{"method": "sft", "steps": 2}, {"method": "grpo", "steps": 2}]
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    run = read_run(path)
    assert run.method == "sft → grpo"
    assert run.planned_steps == 4


def test_runs_of_one_folder_name_carry_their_parents(make_run):
    names = [
        run.name for run in read_runs([make_run("a/run", steps=2), make_run("b/run", steps=2)])
    ]
    assert names == ["a/run", "b/run"]


def test_samples_are_read_one_by_one_and_damaged_ones_left_out(make_run):
    path = make_run(groups=3)
    with (path / "samples.jsonl").open("a") as file:
        file.write('{"step": 9}\nnot json\n')
    assert len(list(iterate_samples(read_run(path)))) == 3
