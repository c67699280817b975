"""PNG plots: everything recorded is drawn, nothing else, and no run makes them fail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from srft.report.plots import plot_accuracy, plot_run, smooth, term_colors

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_full_run_gives_every_plot(make_run):
    path = make_run(steps=30)
    names = [p.name for p in plot_run(path)]
    assert names == [
        "overview.png", "accuracy.png", "entropy.png", "length.png", "weights.png", "losses.png",
        "gradient.png", "time.png", "evaluation.png",
    ]  # fmt: skip
    assert all((path / "plots" / name).read_bytes().startswith(PNG) for name in names)


@pytest.mark.parametrize(
    "record",
    [
        {"step": 1},
        {"step": 1, "loss": None, "reward/accuracy": None},
        {
            "step": 1,
            "loss": 0.5,
            "time/train": 1.0,
            "weight/rl": 0.1,
            "weight/rl/max": 9e3,
            "weight/rl/min": 0.1,
        },
        {"step": 1, "reward/mean": -0.5, "train/gradient_norm": 0.0},
    ],
)
def test_one_step_with_little_in_it_is_drawn_as_far_as_it_goes(make_run, record):
    path = make_run(steps=2)
    (path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (path / "evaluation.jsonl").unlink()
    for written in plot_run(path):
        assert written.read_bytes().startswith(PNG)


def test_a_run_without_steps_shows_its_evaluations(make_run):
    path = make_run(steps=2)
    (path / "metrics.jsonl").unlink()
    assert [p.name for p in plot_run(path)] == [
        "overview.png",
        "accuracy.png",
        "evaluation.png",
    ]


def test_accuracy_before_and_after_stands_alone(tmp_path):
    after = {"accuracy": 0.5, "by_family": {"a$b$": 0.4, "b": None}, "interval": [0.4, 0.6]}
    assert plot_accuracy({"accuracy": 0.2}, after, tmp_path / "x.png").read_bytes().startswith(PNG)
    assert plot_accuracy(None, after, tmp_path / "y.png", labels=["SRFT"]).exists()


def test_smoothing_keeps_a_line_straight_and_its_ends_in_place():
    line = [float(i) for i in range(50)]
    assert smooth(line, 9) == pytest.approx(line)
    assert smooth([1.0], 9) == [1.0]
    assert smooth([], 9) == []


def test_supervision_is_orange_and_rollouts_are_blue():
    colors = term_colors(["loss", "loss/demo_sft", "loss/demo_rl", "loss/rollout"])
    assert colors["loss/demo_sft"] == "#d9722e"
    assert colors["loss/rollout"] == "#2f6fb7"
    assert len(set(colors.values())) == 3


def test_nobody_elses_matplotlib_is_touched(make_run):
    """In a notebook, pictures of a run must not take the window away from the user's own."""
    code = f"""
import sys, warnings, logging, matplotlib
matplotlib.rcParams["backend"] = "svg"
before = dict(matplotlib.rcParams)
warnings.simplefilter("error")
from srft.report.plots import plot_run
assert len(plot_run({str(make_run("運行 $x$", steps=3))!r})) == 9
assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == "svg"
assert "matplotlib.pyplot" not in sys.modules
assert logging.getLogger("matplotlib.font_manager").level == logging.NOTSET
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
