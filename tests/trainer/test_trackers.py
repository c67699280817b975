"""Trackers beside the log: TensorBoard for real where it is installed, and what is said where one is not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from srft.errors import ConfigError
from srft.runs.files import read_jsonl
from srft.runs.run_dir import RunDir
from srft.trainer.api import SRFTTrainer
from srft.trainer.trackers import open_tracker


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = {"method": "srft", "train": {"steps": 2}}
    tracker = open_tracker("tensorboard", RunDir(tmp_path), config, 0)
    for step in (1, 2):
        tracker.log({"loss": 0.5 / step, "reward/mean": 0.1 * step}, step)
    tracker.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert set(read.Tags()["scalars"]) == {"loss", "reward/mean"}
    assert "config/text_summary" in read.Tags()["tensors"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_says_how_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'srft\[{name}\]'"):
        open_tracker(name, RunDir(tmp_path), {}, 0)


def test_tensorboard_drops_what_a_killed_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, value in ((1, 0.5), (2, 0.25)):
        tracker = open_tracker("tensorboard", RunDir(tmp_path), {}, first - 1)
        for step in range(first, 4):
            tracker.log({"loss": value}, step)
        tracker.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    found = [(e.step, e.value) for e in read.Scalars("loss")]
    assert found == [(1, 0.5), (2, 0.25), (3, 0.25)]


class Foreign:
    """A module with the calls of wandb and trackio."""

    def __init__(self) -> None:
        self.inits: list[dict] = []
        self.logged: list[int] = []
        self.broken_at: set[int] = set()
        self.closed = 0

    def init(self, **options):
        self.inits.append(options)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, metrics, step):
        if step in self.broken_at:
            raise ConnectionError("no network")
        assert all(type(value) is float for value in metrics.values())
        self.logged.append(step)

    def finish(self):
        self.closed += 1
        raise TimeoutError("no network either")


@pytest.fixture
def foreign(request, monkeypatch: pytest.MonkeyPatch) -> Foreign:
    module = Foreign()
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


@pytest.mark.parametrize("foreign", ["wandb", "trackio"], indirect=True)
def test_a_resumed_run_is_the_same_run_and_another_one_is_not(
    recipe, foreign: Foreign, request, tmp_path: Path
) -> None:
    name = request.node.callspec.params["foreign"]
    which = "id" if name == "wandb" else "name"
    run = {"trackers": [name], "export": False}
    SRFTTrainer(args=recipe(method="sft", train={"steps": 2}, run=run)).train()
    SRFTTrainer(args=recipe(method="sft", train={"steps": 4}, run=run)).train(
        resume_from_checkpoint=True
    )
    elsewhere = {**run, "dir": str(tmp_path / "other" / "run")}
    SRFTTrainer(args=recipe(method="sft", train={"steps": 1}, run=elsewhere)).train()
    first, resumed, other = foreign.inits
    assert first[which] == resumed[which] != other[which]
    assert first["resume"] == "allow" and first["project"] == "srft"
    assert foreign.logged == [1, 2, 3, 4, 1]
    assert foreign.closed == 3


@pytest.mark.parametrize("foreign", ["wandb"], indirect=True)
def test_a_tracker_that_fails_does_not_end_the_training(recipe, foreign: Foreign) -> None:
    foreign.broken_at = {2, 3, 5}
    args = recipe(method="sft", run={"trackers": ["wandb"], "export": False})
    result = SRFTTrainer(args=args).train()
    assert result.step == 6 and foreign.logged == [1, 4, 6]
    said = [e["message"] for e in read_jsonl(result.run_dir / "events.jsonl")]
    assert len(said) == 2
    assert said[0].startswith("step 2: the tracker wandb failed (ConnectionError: no network)")
    assert said[1] == "the tracker wandb failed 3 times"
    assert [r["step"] for r in read_jsonl(result.run_dir / "metrics.jsonl")] == list(range(1, 7))


def test_a_tracker_that_does_not_start_is_an_error_of_the_recipe(
    recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_):
        raise RuntimeError("api_key not configured (no-tty)\nmore")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    trainer = SRFTTrainer(args=recipe(method="sft", run={"trackers": ["wandb"]}))
    with pytest.raises(ConfigError, match=r"wandb does not start \(api_key not configured"):
        trainer.train()
