"""Checkpoints of several processes: exact for any number of them, whole or absent whatever is killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy
import pytest
import torch
from tests.distributed import work
from tests.distributed.ranks import finish, on_ranks, start

from srft.parallel import tensors
from srft.trainer.checkpoint import list_checkpoints


def assert_equal(one: dict[str, numpy.ndarray], other: dict[str, numpy.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert numpy.array_equal(values, other[name]), name


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


def test_large_tensors_are_written_to_several_files_and_read_from_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "FILE_BYTES", 1000)
    written = {f"part.{i}": torch.randn(10, 10 * i) for i in range(1, 5)}
    tensors.write_tensors(tmp_path, written)
    assert len(list(tmp_path.iterdir())) == 4
    read = {name: torch.zeros_like(tensor) for name, tensor in written.items()}
    tensors.read_tensors(tmp_path, read)
    assert all(torch.equal(read[name], tensor) for name, tensor in written.items())


@pytest.fixture(scope="module")
def base(tiny_model, rows):
    """(recipe of a run of six steps, its rows)."""
    values = {
        "model": {"path": str(tiny_model)},
        "reward": {"failed_demonstrations": "keep"},
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


# What is killed, and where: while sampling, in the middle of the second checkpoint's files (of each the main
# process seals three, the other two), at the last moment before it gets its name.
SAVING = ("srft.trainer.checkpoint", "fsync")
FAULTS = {
    "one-while-sampling": ("srft.trainer.collector", "collect", {1: 4}),
    "one-while-saving": (*SAVING, {1: 4}),
    "all-while-saving": (*SAVING, {0: 5, 1: 4}),
    "main-before-naming": ("srft.trainer.checkpoint", "put_in_place", {0: 2}),
}


CASES = [
    *((fault, True, False) for fault in FAULTS),
    ("main-before-naming", False, False),
    ("one-while-saving", True, True),
    ("all-while-saving", True, True),
    ("main-before-naming", True, True),
]


@pytest.mark.parametrize(("fault", "agent", "background"), CASES)
def test_a_run_whose_processes_were_killed_resumes_exactly(
    base, whole, tmp_path, fault, agent, background
):
    killed = FAULTS[fault][2]
    recipe = recipe_at(base, tmp_path / "run")
    recipe["run"]["background_checkpoints"] = background
    outcomes = finish(start(work.train_with_fault, 2, recipe, base[1], *FAULTS[fault], agent=agent))
    print("OUT", [(o.exit_code, o.error) for o in outcomes])
    for rank, outcome in enumerate(outcomes):
        if rank in killed:
            assert outcome.exit_code == -9
        else:
            assert outcome.error.startswith(f"RankError: missing: rank {1 - rank} of 2")
    assert names(tmp_path / "run") == ["step_000002"]
    # In the background the steps of the next checkpoint are trained while one is written.
    assert len(work.logged(tmp_path / "run")) in ((2, 3, 4, 5, 6) if background else (2, 3, 4))
    on_ranks(work.train, 2, recipe, base[1], "a_third", True)
    assert names(tmp_path / "run") == ["step_000004", "step_000006"]
    assert_identical_run(tmp_path / "run", whole)


def test_a_process_that_stalls_is_named_by_the_others_in_time(base, tmp_path):
    recipe = recipe_at(base, tmp_path / "run", parallel={"timeout_s": 8.0})
    stalled = ("srft.trainer.collector", "collect", {1: -3})
    started = start(work.train_with_fault, 3, recipe, base[1], *stalled)
    outcomes = finish([started[0], started[2]])
    started[1][0].kill()
    said = [outcome.error.splitlines()[0] for outcome in outcomes]
    (named,) = [line for line in said if line.startswith("RankError")]
    assert "missing: rank 1 of 3" in named and "rank 2 of 3" not in named
    assert "timeout_s=8" in named and "last seen" in named
    assert sum(line.startswith("PeerError: rank") for line in said) == 1


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
