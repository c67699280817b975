"""Trackers beside the log: TensorBoard for real where it is installed, and what is said where one is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from srft.errors import ConfigError
from srft.trainer.trackers import open_tracker


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", tmp_path, {"method": "srft", "train": {"steps": 2}})
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
        open_tracker(name, tmp_path, {})
