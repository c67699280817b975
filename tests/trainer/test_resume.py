"""A run that is stopped and resumed is the run that was never stopped, to the bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from srft.errors import CheckpointError, ConfigError
from srft.evaluation.open_model import find_model, template_of
from srft.runs.files import read_jsonl
from srft.runs.reading import read_run
from srft.trainer import checkpoint as checkpoints
from srft.trainer import clean_stop
from srft.trainer import collector as collector_module
from srft.trainer import trainer as trainer_module
from srft.trainer.api import SRFTTrainer
from srft.trainer.clean_stop import StopRequest


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


def dies_at(function, call: int):
    """The function, which ends the process when it is called for the ``call``-th time."""
    calls = itertools.count(1)

    def dies(*args, **kwargs):
        if next(calls) == call:
            raise Killed
        return function(*args, **kwargs)

    return dies


@pytest.mark.parametrize(("module", "place", "call"), PLACES)
def test_resume_is_bit_identical(recipe, whole, tmp_path, monkeypatch, module, place, call):
    config = recipe(run={"dir": str(tmp_path / "broken")})
    with monkeypatch.context() as patch:
        patch.setattr(module, place, dies_at(getattr(module, place), call))
        with pytest.raises(Killed):
            SRFTTrainer(args=config).train()
    result = SRFTTrainer(args=config).train(resume_from_checkpoint=True)
    assert result.step == 6
    assert_same_run(whole, tmp_path / "broken")


def test_further_demonstrations_go_on_where_they_were(recipe, tmp_path, monkeypatch):
    further = {"data": {"limit": 12}, "train": {"demonstrations_per_step": 5}}
    configs = [recipe(run={"dir": str(tmp_path / name)}, **further) for name in ("whole", "broken")]
    SRFTTrainer(args=configs[0]).train()
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "update", dies_at(trainer_module.update, 4))
        with pytest.raises(Killed):
            SRFTTrainer(args=configs[1]).train()
    SRFTTrainer(args=configs[1]).train(resume_from_checkpoint=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    epochs = [row["demo/epoch"] for row in logged(tmp_path / "broken")]
    assert epochs == pytest.approx([5 / 12, 10 / 12, 1 + 3 / 12, 1 + 8 / 12, 2 + 1 / 12, 2.5])


def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(
    recipe, whole, tmp_path, monkeypatch
):
    config = recipe(run={"dir": str(tmp_path / "broken")})
    written = 0
    original = checkpoints.fsync

    def dies(path):
        nonlocal written
        written += 1
        if written == 5:  # in the middle of the second checkpoint's three files
            raise Killed
        original(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "fsync", dies)
        with pytest.raises(Killed):
            SRFTTrainer(args=config).train()
    assert [p.name for p in checkpoints.list_checkpoints(tmp_path / "broken/checkpoints")] == [
        "step_000002"
    ]
    SRFTTrainer(args=config).train(resume_from_checkpoint=True)
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


@pytest.mark.slow
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


def test_signals_at_once_are_one_request_and_a_later_one_acts(monkeypatch):
    """``timeout 3h srft lab ...`` signals its command twice: it died of the second, without its tables."""
    now = [100.0]
    monkeypatch.setattr(clean_stop, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    # Shells start what runs in their background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.requested == "SIGINT"
            now[0] += 0.9
            signal.raise_signal(signal.SIGINT)
            now[0] += 0.2
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


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
    SRFTTrainer(args=config).train(resume_from_checkpoint=True)
    assert_same_run(whole, tmp_path / "full")


def test_a_finished_run_resumes_to_the_same_files(recipe, rows, tmp_path):
    args = recipe(train={"steps": 2})
    SRFTTrainer(args=args, eval_dataset=rows[:3]).train()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.jsonl")}
    assert len(before[tmp_path / "run" / "evaluation.jsonl"].splitlines()) == 1
    SRFTTrainer(args=args, eval_dataset=rows[:3]).train(resume_from_checkpoint=True)
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


# -- what a stop, a kill or a second start must not undo ------------------------------------------


def contents(run_dir: Path, *parts: str) -> dict[str, tuple[int, bytes]]:
    """Inode and bytes of every file: another inode has been written again."""
    files = [p for part in parts for p in sorted((run_dir / part).rglob("*")) if p.is_file()]
    return {str(p.relative_to(run_dir)): (p.stat().st_ino, p.read_bytes()) for p in files}


@pytest.mark.parametrize("background", [False, True])
def test_a_stop_just_after_a_save_saves_nothing_again(recipe, tmp_path, monkeypatch, background):
    config = recipe(run={"keep_checkpoints": 1, "background_checkpoints": background})
    saved = []
    save = checkpoints.save_checkpoint

    def counted(folder, step, *args, **kwargs):
        saved.append(step)
        path = save(folder, step, *args, **kwargs)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return path

    monkeypatch.setattr(checkpoints, "save_checkpoint", counted)
    trainer = SRFTTrainer(args=config)
    if background:  # the signal has to come before the next step
        at_once = trainer.checkpoints.save
        trainer.checkpoints.save = lambda *a: (at_once(*a), trainer.checkpoints.wait())
    assert trainer.train().stopped_by == "SIGTERM"
    assert saved == [2, 4]
    assert SRFTTrainer(args=config).train(resume_from_checkpoint=True).step == 6
    assert saved == [2, 4, 6]


def test_a_finished_run_that_is_resumed_writes_nothing_again(recipe, rows, tmp_path):
    args = recipe(train={"steps": 2})
    SRFTTrainer(args=args, eval_dataset=rows[:3]).train()
    before = contents(tmp_path / "run", "checkpoints", "model", "best", "refused")
    assert len(before) > 8
    result = SRFTTrainer(args=args, eval_dataset=rows[:3]).train(resume_from_checkpoint=True)
    assert result.step == 2 and result.model_dir == tmp_path / "run/model"
    assert contents(tmp_path / "run", "checkpoints", "model", "best", "refused") == before


def test_a_finished_run_is_exported_again_where_the_recipe_asks_for_another_model(recipe, tmp_path):
    SRFTTrainer(args=recipe(train={"steps": 2})).train()
    SRFTTrainer(args=recipe(train={"steps": 2}, run={"export_dtype": "bfloat16"})).train(True)
    assert {t.dtype for t in weights(tmp_path / "run").values()} == {torch.bfloat16}


def test_a_new_checkpoint_does_not_count_damaged_newer_ones_among_those_kept(tmp_path):
    for step in (2, 4):
        save_one(tmp_path, step, keep=2)
    (tmp_path / "step_000004" / "manifest.json").write_text("{}")
    assert checkpoints.load_newest(tmp_path)[0].path.name == "step_000002"
    save_one(tmp_path, 3, keep=1)
    assert checkpoints.load_newest(tmp_path)[0].path.name == "step_000003"
    save_one(tmp_path, 4, keep=1)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["step_000004"]


def test_checkpoints_are_in_the_order_of_their_steps_whatever_the_number_of_digits(tmp_path):
    for step in (999_999, 1_000_000):
        save_one(tmp_path, step, keep=1)
    assert checkpoints.load_newest(tmp_path)[0].path.name == "step_1000000"


def save_one(folder: Path, step: int, keep: int) -> None:
    tensors = {
        "weights": {"w": torch.full((3,), float(step))},
        "optimizer": {"random.0": torch.ones(2)},
    }
    checkpoints.save_checkpoint(folder, step, tensors, {"step": step}, keep)


class Disk:
    """Counts what changes the disk, and ends the process at one of these: before it, or in the middle
    of it where it is the removal of a folder."""

    def __init__(self, patch: pytest.MonkeyPatch, dies_at: int | None = None) -> None:
        self.calls, self.dies_at = 0, dies_at
        rename, rmtree, fsync, mkdir = Path.rename, shutil.rmtree, os.fsync, Path.mkdir
        patch.setattr(Path, "rename", lambda path, to: self.step() or rename(path, to))
        patch.setattr(Path, "mkdir", lambda path, *a, **k: self.step() or mkdir(path, *a, **k))
        patch.setattr(os, "fsync", lambda handle: self.step() or fsync(handle))

        def remove(path: Path, *args: Any, **kwargs: Any) -> None:
            files = [file for file in Path(path).rglob("*") if file.is_file()]
            self.step()
            if self.dies_at == self.calls + 1 and files:
                files[0].unlink()
            self.step()
            rmtree(path, *args, **kwargs)

        patch.setattr(shutil, "rmtree", remove)

    def step(self) -> None:
        self.calls += 1
        if self.dies_at is not None and self.calls >= self.dies_at:
            raise Killed  # whatever catches the first, nothing more reaches the disk


def test_killed_at_any_moment_a_whole_checkpoint_is_left_though_one_is_kept(tmp_path, monkeypatch):
    """Steps 1, 2 and 2 once more (a state that changed without a step); afterwards saving goes on."""

    def run(folder: Path, dies_at: int | None) -> tuple[int, list[int]]:
        folder.mkdir()
        done = []
        with monkeypatch.context() as patch:
            disk = Disk(patch, dies_at)
            with contextlib.suppress(Killed, CheckpointError):
                for step in (1, 2, 2):
                    save_one(folder, step, keep=1)
                    done.append(step)
        return disk.calls, done

    moments, done = run(tmp_path / "whole", None)
    assert done == [1, 2, 2] and moments > 30
    for moment in range(1, moments + 1):
        folder = tmp_path / str(moment)
        _, done = run(folder, moment)
        if done:
            found, _ = checkpoints.load_newest(folder)
            assert done[-1] <= found.state["step"] <= done[-1] + 1, moment
        save_one(folder, 4, keep=1)
        assert sorted(path.name for path in folder.iterdir()) == ["step_000004"], moment


# -- runs that are to go on further than they were to go ------------------------------------------


def test_a_finished_run_with_more_steps_trains_on_as_one_that_was_never_finished(
    recipe, whole, tmp_path
):
    longer = {"dir": str(tmp_path / "longer")}
    assert SRFTTrainer(args=recipe(run=longer, train={"steps": 4})).train().step == 4
    result = SRFTTrainer(args=recipe(run=longer)).train(resume_from_checkpoint=True)
    assert result.step == 6
    assert_same_run(whole, tmp_path / "longer")


@pytest.mark.parametrize(
    "first",
    [
        [("sft", 2), ("grpo", 1)],  # the last stage goes on
        [("sft", 2)],  # a further stage comes
        [("sft", 5)],  # the first stage is over earlier than was said
    ],
)
def test_stages_go_on_where_the_recipe_has_more_of_them(recipe, tmp_path, first):
    def stages(*wanted):
        return [{"method": method, "steps": steps} for method, steps in wanted]

    last = stages(("sft", 2), ("grpo", 3))
    SRFTTrainer(args=recipe(run={"dir": str(tmp_path / "one")}, stages=last)).train()
    broken = {"dir": str(tmp_path / "two")}
    trainer = SRFTTrainer(args=recipe(run=broken, stages=stages(*first)))
    if first[0][1] == 5:
        log = trainer._log
        trainer._log = lambda m: log(m) or (m["step"] == 2 and os.kill(os.getpid(), signal.SIGINT))
    trainer.train()
    trainer = SRFTTrainer(args=recipe(run=broken, stages=last))
    assert trainer.train(resume_from_checkpoint=True).step == trainer.total_steps == 5
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert [row["method"] for row in two] == ["sft"] * 2 + ["grpo"] * 3
    assert one == two
    with pytest.raises(ConfigError, match="in stage 2 after step 5, and the recipe has 1"):
        SRFTTrainer(args=recipe(run=broken, stages=stages(("sft", 9)))).train(
            resume_from_checkpoint=True
        )


def test_a_stage_that_ended_at_its_plateau_goes_on_only_where_the_plateau_does_not_hold(
    recipe, tmp_path
):
    def run(plateau, resume):
        stage = {"method": "grpo", "steps": 12, "plateau": plateau}
        args = recipe(stages=[stage], train={"learning_rate": 1e-30}, reward={})
        reward = lambda completions, **_: [0.75] * len(completions)  # noqa: E731
        return SRFTTrainer(args=args, reward_funcs=reward).train(resume_from_checkpoint=resume).step

    assert run(2, False) == 4
    assert run(2, True) == 4
    assert run(3, True) == 6
    assert run(None, True) == 12


def test_a_longer_recipe_has_the_rate_of_the_longer_schedule(recipe, tmp_path):
    train = {"schedule": "linear", "learning_rate": 1e-3}
    SRFTTrainer(args=recipe(train={**train, "steps": 3})).train()
    SRFTTrainer(args=recipe(train={**train, "steps": 6})).train(resume_from_checkpoint=True)
    rates = [row["learning_rate"] for row in logged(tmp_path / "run")]
    assert rates == pytest.approx([1e-3, 5e-4, 0.0, 4e-4, 2e-4, 0.0])


def test_a_run_with_fewer_steps_than_were_taken_is_finished(recipe, rows, tmp_path):
    trainer = SRFTTrainer(args=recipe(), eval_dataset=rows[:3])
    log = trainer._log
    trainer._log = lambda m: log(m) or (m["step"] == 3 and os.kill(os.getpid(), signal.SIGINT))
    assert trainer.train().stopped_by == "SIGINT"
    for _ in range(2):  # the second time, what the first has come to is there
        short = SRFTTrainer(args=recipe(train={"steps": 2}), eval_dataset=rows[:3])
        result = short.train(resume_from_checkpoint=True)
        assert (result.step, short.total_steps) == (3, 3)
        assert [record["step"] for record in result.evaluations] == [3]
    assert weights(tmp_path / "run")


# -- random states -------------------------------------------------------------------------------


class OnGPU(torch.nn.Linear):
    """Says that it is on a GPU."""

    def parameters(self, recurse: bool = True):
        if not self.hidden:
            return super().parameters(recurse)
        return iter([types.SimpleNamespace(device=torch.device("cuda", 0))])

    hidden = False


def test_the_random_state_of_the_gpu_is_saved_and_restored(tmp_path, monkeypatch):
    states = {torch.device("cuda", 0): torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, device: states.update({device: s}))
    model = OnGPU(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model.hidden = True
    checkpoints.Checkpointer(tmp_path, 1).save(1, model, optimizer, {})
    states[torch.device("cuda", 0)] = torch.zeros(16, dtype=torch.uint8)
    found, _ = checkpoints.load_newest(tmp_path)
    checkpoints.restore(found, model, optimizer)
    assert torch.equal(states[torch.device("cuda", 0)], torch.arange(16, dtype=torch.uint8))
    # Without a GPU the rest of it is restored all the same, and the other way round.
    model.hidden = False
    checkpoints.restore(found, model, optimizer)
    checkpoints.Checkpointer(tmp_path, 1).save(2, model, optimizer, {})
    model.hidden = True
    checkpoints.restore(checkpoints.load_newest(tmp_path)[0], model, optimizer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_is_drawn_on_the_gpu_after_a_restore_is_what_was_drawn_before(tmp_path):
    model = torch.nn.Linear(2, 2).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    checkpoints.Checkpointer(tmp_path, 1).save(1, model, optimizer, {})
    first = torch.rand(8, device="cuda")
    checkpoints.restore(checkpoints.load_newest(tmp_path)[0], model, optimizer)
    assert torch.equal(torch.rand(8, device="cuda"), first)


# -- the recipe of the folder ---------------------------------------------------------------------


def test_after_a_changed_resume_the_folder_says_what_the_run_goes_on_with(recipe, tmp_path, rows):
    run = tmp_path / "run"
    first, second, third = (
        recipe(train={"steps": steps, "learning_rate": rate}, data={"system_prompt": system})
        for steps, rate, system in ((2, 1e-3, None), (4, 1e-3, None), (6, 1e-4, "1 + 1 = 2"))
    )
    SRFTTrainer(args=first, eval_dataset=rows[:3]).train()
    for config in (second, third, third):
        SRFTTrainer(args=config, eval_dataset=rows[:3]).train(resume_from_checkpoint=True)
    saved = {p.name: yaml.safe_load(p.read_text())["train"]["steps"] for p in run.glob("*.yaml")}
    assert saved == {
        "config.until_step_000002.yaml": 2,
        "config.until_step_000004.yaml": 4,
        "config.yaml": 6,
    }
    events = [(e["step"], e["message"]) for e in read_jsonl(run / "events.jsonl")]
    assert (2, "resumed after step 2 with train.steps: 2 -> 4") in events
    assert (4, "resumed after step 4 with train.learning_rate: 0.001 -> 0.0001") in events
    assert sum("resumed" in message for _, message in events) == 4
    # What is read from the folder: the report, and how an evaluation of the run is made.
    assert read_run(run).planned_steps == 6
    assert template_of(find_model(run)).system_prompt == "1 + 1 = 2"
