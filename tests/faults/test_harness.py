"""The short form of the fault harness; ``make faults`` is the full one (docs/reliability.md)."""

from __future__ import annotations

import pytest
from tests.faults import disk, kills, processes, stories
from tests.faults.fuzz import FUZZERS
from tests.faults.runs import Trial, Workshop, table


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    with Workshop(tmp_path_factory.mktemp("faults"), stories.ENVIRONMENT) as made:
        yield made


@pytest.fixture(scope="module")
def whole(workshop):
    return kills.undisturbed(workshop)


def check(trials) -> list[Trial]:
    found = list(trials)
    assert found and all(trial.survived for trial in found), table(found)
    return found


def test_a_killed_run_resumes_to_the_bit(workshop, whole, monkeypatch):
    phases = ("generating", "training", "saving", "exporting")
    monkeypatch.setattr(kills, "PHASES", phases)
    assert len(check(kills.kill_trials(workshop, whole, len(phases)))) == len(phases)


def test_a_killed_run_is_told_from_another(workshop, whole):
    """The harness can fail: a run of another seed is another run."""
    code, output = workshop.train(workshop.folder / "other", "train.seed=1")
    assert code == 0, output
    assert kills.difference(whole.outcome, kills.fingerprint(workshop.folder / "other"))


def test_a_signal_a_clock_and_a_full_disk(workshop, whole):
    check(processes.signal_trials(workshop, whole, 1))
    check(processes.clock_trials(workshop, whole, 1))
    check(disk.file_size_trials(workshop, whole, 1))
    if not disk.can_mount(workshop.folder):
        pytest.skip("mounting a small disk needs root")
    check(disk.full_disk_trials(workshop, whole, 1))


def test_stories_end_right_or_with_a_clear_error(workshop):
    assert len(check(stories.story_trials(workshop, 8, seed=1))) == 8


@pytest.mark.parametrize(
    ("code", "output", "words"),
    [
        (-9, "", "no end"),
        (1, "error: x", "exit code 1"),
        (2, "Traceback (most recent call last)\nerror:", "traceback"),
        (2, "", "without a reason"),
        (0, "\x1b[2J", "control"),
        (0, stories.SECRET, "secret"),
    ],
)
def test_a_story_that_ends_badly_is_told(code, output, words):
    assert [words in wrong for wrong in stories.judged(("eval",), code, output)] == [True]
    assert not list(stories.judged(("eval",), 3, "error: rows.jsonl:1: no prompt"))


def test_a_run_that_left_nothing_did_not_go_well(tmp_path):
    assert "FileNotFoundError" in stories.results(("train", "recipe.yaml"), tmp_path, "")[0]


@pytest.mark.parametrize("how", ["bit flipped", "other JSON"])
def test_damaged_checkpoints_are_passed_over(workshop, whole, monkeypatch, how):
    monkeypatch.setattr(disk, "DAMAGE", {how: disk.DAMAGE[how]})
    monkeypatch.setattr(disk, "damaged_files", lambda source: disk.newest_files(source)[-2:])
    check(disk.damage_trials(workshop, whole, 1))


@pytest.mark.parametrize(
    ("name", "count"), [("datasets", 60), ("recipes", 200), ("model folders", 60)]
)
def test_bad_input_gives_clear_errors_or_right_results(tmp_path, name, count):
    outcome = FUZZERS[name](count, 1, tmp_path)
    assert not outcome.failures, "\n".join(outcome.failures[:10])
    assert outcome.inputs == count and outcome.right and outcome.clear
