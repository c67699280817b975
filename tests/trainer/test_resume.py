"""A run that is stopped and resumed is the run that was never stopped, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from srft.errors import CheckpointError, ConfigError
from srft.runs.files import read_jsonl
from srft.trainer import checkpoint as checkpoints
from srft.trainer import collector as collector_module
from srft.trainer import trainer as trainer_module
from srft.trainer.trainer import SRFTTrainer


class Killed(BaseException):
    """Stands for a process that ends without another word."""


def logged(run_dir: Path) -> list[dict]:
    """Metrics without what depends on the clock."""
    rows = read_jsonl(run_dir / "metrics.jsonl")
    timed = ("time/", "tokens_per_second", "total/seconds")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in rows]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    assert logged(one) == logged(other)
    assert read_jsonl(one / "samples.jsonl") == read_jsonl(other / "samples.jsonl")
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture
def whole(recipe, tmp_path):
    """The run directory of an uninterrupted run of six steps."""
    SRFTTrainer(args=recipe(run={"dir": str(tmp_path / "whole")})).train()
    return tmp_path / "whole"


# Where the process dies: a function, and the call at which it does.
PLACES = [
    (collector_module, "collect", 4),
    (trainer_module, "update", 3),
    (checkpoints, "save_checkpoint", 2),
    (trainer_module, "export_model", 1),
]


@pytest.mark.parametrize(("module", "place", "call"), PLACES)
def test_resume_is_bit_identical(recipe, whole, tmp_path, monkeypatch, module, place, call):
    config = recipe(run={"dir": str(tmp_path / "broken")})
    original = getattr(module, place)
    calls = 0

    def dies(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, place, dies)
        with pytest.raises(Killed):
            SRFTTrainer(args=config).train()
    result = SRFTTrainer(args=config).train(resume=True)
    assert result.step == 6
    assert_same_run(whole, tmp_path / "broken")


def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(
    recipe, whole, tmp_path, monkeypatch
):
    config = recipe(run={"dir": str(tmp_path / "broken")})
    written = 0
    original = checkpoints.fsync

    def dies(path):
        nonlocal written
        written += 1
        if written == 11:  # in the middle of the second checkpoint's files
            raise Killed
        original(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "fsync", dies)
        with pytest.raises(Killed):
            SRFTTrainer(args=config).train()
    assert [p.name for p in checkpoints.list_checkpoints(tmp_path / "broken/checkpoints")] == [
        "step_000002"
    ]
    SRFTTrainer(args=config).train(resume=True)
    assert_same_run(whole, tmp_path / "broken")


def start(config, run_dir: Path, *more: str) -> subprocess.Popen:
    values = yaml.safe_load(config.to_yaml())
    values["run"]["dir"] = str(run_dir)
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return subprocess.Popen(
        [sys.executable, "-m", "srft.cli", "train", str(path), *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen, run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = run_dir / "metrics.jsonl"
        if log.exists() and len(log.read_bytes().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_and_exits_with_its_code(recipe, tmp_path, number, code):
    run_dir = tmp_path / "stopped"
    process = start(recipe(train={"steps": 300}), run_dir)
    wait_for_step(process, run_dir, 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "Traceback" not in err and "--resume" in out
    done = len(read_jsonl(run_dir / "metrics.jsonl"))
    assert checkpoints.list_checkpoints(run_dir / "checkpoints")[-1].name == f"step_{done:06d}"


def test_a_process_killed_from_outside_resumes_bit_identically(recipe, whole, tmp_path):
    run_dir = tmp_path / "killed"
    process = start(recipe(), run_dir)
    wait_for_step(process, run_dir, 3)
    process.kill()
    process.wait()
    again = start(recipe(), run_dir, "--resume")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert_same_run(whole, run_dir)


def test_a_damaged_checkpoint_is_passed_over_and_said_so(recipe, whole, capsys):
    folder = checkpoints.list_checkpoints(whole / "checkpoints")[-1]
    (file,) = (folder / "weights").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found, damaged = checkpoints.load_newest(whole / "checkpoints")
    assert found.path.name == "step_000004"
    assert len(damaged) == 1 and "step_000006" in damaged[0] and "checksum" in damaged[0]
    (found.path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        checkpoints.load_newest(whole / "checkpoints")


def test_a_full_disk_is_an_error_that_keeps_what_is_there(recipe, whole, monkeypatch, tmp_path):
    config = recipe(run={"dir": str(tmp_path / "full")})
    original = checkpoints.write_tensors
    calls = 0

    def full(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 4:  # the optimizer's tensors of the second checkpoint
            raise CheckpointError("No space left on device")
        original(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "write_tensors", full)
    with pytest.raises(CheckpointError, match=r"No space left.*step_000002 is untouched"):
        SRFTTrainer(args=config).train()
    names = sorted(p.name for p in (tmp_path / "full/checkpoints").iterdir())
    assert names == ["step_000002"]
    SRFTTrainer(args=config).train(resume=True)
    assert_same_run(whole, tmp_path / "full")


def test_a_finished_run_resumes_to_the_same_files(recipe, rows, tmp_path):
    args = recipe(train={"steps": 2})
    SRFTTrainer(args=args, eval_dataset=rows[:3]).train()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.jsonl")}
    assert len(before[tmp_path / "run" / "evaluation.jsonl"].splitlines()) == 1
    SRFTTrainer(args=args, eval_dataset=rows[:3]).train(resume=True)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.jsonl")} == before


def test_a_run_directory_is_not_overwritten(recipe, whole):
    with pytest.raises(ConfigError, match="already holds a run"):
        SRFTTrainer(args=recipe(run={"dir": str(whole)})).train()


def test_old_checkpoints_are_removed(whole):
    names = [p.name for p in checkpoints.list_checkpoints(whole / "checkpoints")]
    assert names == ["step_000004", "step_000006"]


def test_the_manifest_covers_every_file(whole):
    for folder in checkpoints.list_checkpoints(whole / "checkpoints"):
        sums = json.loads((folder / "manifest.json").read_text())
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert files == {*sums, "manifest.json"}
        # Nothing that could be a pickle.
        assert {Path(name).suffix for name in files} == {".safetensors", ".json"}
