"""One run directory, one run: a second process is refused, and a killed one can always be resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from srft.errors import ConfigError, DataError
from srft.runs.files import read_jsonl
from srft.runs.lock import NAME
from srft.trainer.api import SRFTTrainer

SERVER = """
import json, os, signal, sys, time
from pathlib import Path
import yaml
from srft.config import parse_config
from srft.trainer.api import SRFTTrainer

signal.signal(signal.SIGCHLD, signal.SIG_IGN)

def make(recipe, halt, sign):
    calls = 0

    def reward(completions, **_):
        nonlocal calls
        calls += 1
        if calls == halt:  # the first call scores demonstrations, before any step
            Path(sign).touch()
            time.sleep(600)
        return [float(len(text) % 3 == 0) for text in completions]

    SRFTTrainer(args=parse_config(yaml.safe_load(recipe)), reward_funcs=reward).train()

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(2, 1)
        make(**json.loads(line))
        os._exit(0)
    print(pid, flush=True)
"""


def a_third(completions, **_):
    return [float(len(text) % 3 == 0) for text in completions]


@pytest.fixture
def config(recipe):
    return recipe(
        method="srft",
        train={"steps": 4},
        reward={"failed_demonstrations": "keep"},
        run={"checkpoint_every": 2},
    )


@pytest.fixture(scope="module")
def server():
    """A process that forks others, so that the libraries are imported once."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as made:
        yield made


@pytest.fixture
def another(server, config, tmp_path: Path):
    """``another(halt)``: the number of another process that makes the run and stays where the reward
    function is called for the ``halt``-th time."""
    started = []

    def start(halt: int) -> int:
        sign = tmp_path / "there"
        request = {"recipe": config.to_yaml(), "halt": halt, "sign": str(sign)}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        started.append(int(server.stdout.readline()))
        deadline = time.monotonic() + 120
        while not sign.exists():
            os.kill(started[-1], 0)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return started[-1]

    yield start
    for pid in started:
        kill(pid)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_second_process_is_refused_and_the_first_ones_files_stay_whole(another, config, tmp_path):
    pid = another(halt=4)  # in its third step, with a checkpoint of the second
    run = tmp_path / "run"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert [r["step"] for r in read_jsonl(run / "metrics.jsonl")] == [1, 2]
    with pytest.raises(ConfigError, match=rf"in use: process {pid} on .*\(training since"):
        SRFTTrainer(args=config, reward_funcs=a_third)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before

    kill(pid)
    result = SRFTTrainer(args=config, reward_funcs=a_third).train(resume_from_checkpoint=True)
    assert result.step == 4
    assert [r["step"] for r in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not (run / NAME).exists()


def test_a_trainer_that_was_built_before_another_began_is_refused_as_well(
    another, config, tmp_path
):
    trainer = SRFTTrainer(args=config, reward_funcs=a_third)
    another(halt=2)
    with pytest.raises(ConfigError, match="in use"):
        trainer.train()


def test_a_run_killed_before_its_first_step_is_resumed_from_the_beginning(
    another, config, tmp_path, capsys
):
    kill(another(halt=1))
    run = tmp_path / "run"
    assert yaml.safe_load((run / "config.yaml").read_text())["method"] == "srft"
    assert not (run / "metrics.jsonl").exists()
    other = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    result = SRFTTrainer(args=other, reward_funcs=a_third).train(resume_from_checkpoint=True)
    assert result.step == 2
    assert "starting from the beginning" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 2


def test_a_run_killed_before_its_first_checkpoint_starts_over_by_the_recipe_it_is_given(
    another, config, tmp_path
):
    kill(another(halt=3))
    run = tmp_path / "run"
    assert [r["step"] for r in read_jsonl(run / "metrics.jsonl")] == [1]
    other = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    SRFTTrainer(args=other, reward_funcs=a_third).train(resume_from_checkpoint=True)
    assert [r["step"] for r in read_jsonl(run / "metrics.jsonl")] == [1, 2]
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 2


def test_a_recipe_that_cannot_be_set_up_leaves_no_folder(config, tmp_path):
    with pytest.raises(DataError):
        SRFTTrainer(args=config, reward_funcs=lambda completions, **_: [0.0] * len(completions),
                    train_dataset=[])  # fmt: skip
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(DataError):
        SRFTTrainer(args=config, train_dataset=[])
    assert (tmp_path / "run" / "mine.txt").exists()


def test_a_run_whose_lock_was_taken_writes_no_further_step(config, tmp_path, monkeypatch):
    trainer = SRFTTrainer(args=config, reward_funcs=a_third)
    real = trainer._train_step

    def step():
        if trainer.train_state.step == 2:
            (tmp_path / "run" / NAME).rename(tmp_path / "taken")
        return real()

    monkeypatch.setattr(trainer, "_train_step", step)
    with pytest.raises(Exception, match="no longer write here") as error:
        trainer.train()
    assert error.value.exit_code == 7
    assert [r["step"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
