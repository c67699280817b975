"""Checkpoints of several processes: exact for any number of them, whole or absent whatever is killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.distributed import work
from tests.distributed.ranks import finish, on_ranks, start

from srft.trainer.checkpoint import list_checkpoints


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_a_checkpoint_passes_between_any_numbers_of_processes_unchanged(tiny_model, tmp_path):
    """Two write; four read and write, as two copies of two; one; two again, in the background."""
    source, first = None, None
    for number, (size, replicate, background) in enumerate(
        [(2, 1, False), (4, 2, False), (1, 1, False), (1, 1, True), (2, 1, True), (4, 1, False)]
    ):
        target = tmp_path / str(number)
        results = on_ranks(
            work.carry_on, size, str(tiny_model), source, target, replicate, background
        )
        first = first or results[0]
        assert any("exp_avg_sq." in name for name in first)
        for result in results:
            assert_equal(result, first)
        source = target
    assert sorted(p.name for p in source.iterdir()) == ["step_000007"]


@pytest.fixture(scope="module")
def base(tiny_model, rows):
    """(recipe of a run of six steps, its rows)."""
    values = {
        "model": {"path": str(tiny_model)},
        "reward": {"function": "unused:unused", "failed_demonstrations": "keep"},
        "rollout": {"group_size": 3, "max_tokens": 12},
        "train": {"steps": 6, "prompts_per_step": 3, "learning_rate": 1e-3},
        "run": {"live": "never", "samples_every": 2, "checkpoint_every": 2},
    }
    return values, rows[:20]


def recipe_at(base, folder: Path, **more) -> dict:
    values = {**base[0], **more}
    return {**values, "run": {**values["run"], "dir": str(folder)}}


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> Path:
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    on_ranks(work.train, 2, recipe_at(base, folder), base[1])
    return folder


def names(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run / "checkpoints")]


def assert_identical_run(one: Path, other: Path) -> None:
    assert work.logged(one) == work.logged(other)
    for log in ("samples.jsonl", "evaluation.jsonl"):
        ours, theirs = (path / log for path in (one, other))
        assert ours.read_bytes() == theirs.read_bytes() or log == "evaluation.jsonl"
    file = "model/model.safetensors"
    assert (one / file).read_bytes() == (other / file).read_bytes()


# What is killed, and where: while sampling, in the middle of the second checkpoint's files, at the
# last moment before it gets its name.
FAULTS = {
    "one-while-sampling": ((1,), "srft.trainer.trainer", "collect", 4),
    "one-while-saving": ((1,), "srft.trainer.checkpoint", "fsync", 4),
    "all-while-saving": ((0, 1), "srft.trainer.checkpoint", "fsync", 4),
    "main-before-naming": ((0,), "srft.trainer.checkpoint", "fsync", 12),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_whose_processes_were_killed_resumes_exactly(base, whole, tmp_path, fault):
    ranks, module, name, call = FAULTS[fault]
    recipe = recipe_at(base, tmp_path / "run")
    outcomes = finish(start(work.train_with_fault, 2, recipe, base[1], ranks, module, name, call))
    for rank, outcome in enumerate(outcomes):
        if rank in ranks:
            assert outcome.exit_code == -9
        else:
            assert "RankError" in outcome.error and f"rank {ranks[0]} of 2" in outcome.error
    assert names(tmp_path / "run") == ["step_000002"]
    assert len(work.logged(tmp_path / "run")) in (2, 3, 4)
    on_ranks(work.train, 2, recipe, base[1], "a_third", True)
    assert names(tmp_path / "run") == ["step_000004", "step_000006"]
    assert_identical_run(tmp_path / "run", whole)


def test_a_process_that_stalls_is_named_by_the_others_in_time(base, tmp_path):
    recipe = recipe_at(base, tmp_path / "run", parallel={"timeout_s": 15.0})
    stalled = ((1,), "srft.trainer.trainer", "collect", -3)
    started = start(work.train_with_fault, 2, recipe, base[1], *stalled)
    (outcome,) = finish(started[:1])
    assert "RankError" in outcome.error and "missing: rank 1 of 2" in outcome.error
    assert "timeout_s=15" in outcome.error and "last seen" in outcome.error
    started[1][0].kill()


@pytest.mark.parametrize("size", [1, 4])
def test_a_run_goes_on_with_another_number_of_processes(base, whole, tmp_path, size):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000006")
    shutil.rmtree(tmp_path / "run" / "model")
    recipe = recipe_at(base, tmp_path / "run")
    on_ranks(work.train, size, recipe, base[1], "a_third", True)
    ours, theirs = work.logged(tmp_path / "run"), work.logged(whole)
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["reward/mean"] == pytest.approx(other["reward/mean"])
