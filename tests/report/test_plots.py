"""The picture of a run: everything recorded is drawn, nothing else, and no run makes it fail."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from matplotlib.figure import Figure

from srft.report.plots import _families_panel, plot_run, smooth, term_colors
from srft.runs.reading import read_run

PNG = b"\x89PNG\r\n\x1a\n"
EVERY_PANEL = [
    "Accuracy", "Entropy of rollouts (nats)", "Response length (tokens)", "w_SFT", "Loss", "Gradient norm",
    "Whole step (seconds)", "Evaluation by family",
]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """Titles of the panels and texts of the figures that are written."""
    found = []
    save = Figure.savefig

    def look(chart, *args, **kwargs):
        found.append([ax.get_title(loc="left") for ax in chart.axes])
        save(chart, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", look)
    return found


def test_a_full_run_gives_every_panel(make_run, drawn):
    path = make_run(steps=30)
    picture = plot_run(path)
    assert picture == path / "plots/overview.png" and picture.read_bytes().startswith(PNG)
    assert [p.name for p in picture.parent.iterdir()] == ["overview.png"]
    assert drawn == [EVERY_PANEL]


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
    picture = plot_run(path)
    assert picture is None or picture.read_bytes().startswith(PNG)


def test_a_run_without_steps_shows_its_evaluations(make_run, drawn):
    path = make_run(steps=2)
    (path / "metrics.jsonl").unlink()
    assert plot_run(path)
    assert drawn == [["Accuracy", "Evaluation by family"]]
    (path / "evaluation.jsonl").unlink()
    assert plot_run(path) is None


def test_families_are_bars_of_the_first_and_the_last_evaluation(make_run):
    path = make_run(steps=2)
    rows = [
        {"step": 0, "accuracy": 0.2},
        {"step": 1, "accuracy": 0.9},
        {"step": 2, "accuracy": 0.5, "by_family": {"a$b$": 0.4, "b": None}},
    ]
    (path / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ax = Figure().subplots()
    assert _families_panel(ax, read_run(path))
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0, 0, 0.5, 0.4, 0]
    assert [text.get_text() for text in ax.texts] == ["20.0", "-", "-", "50.0", "40.0", "-"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["overall", r"a\$b\$", "b"]
    assert ax.get_legend_handles_labels()[1] == ["step 0", "step 2"]


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
assert plot_run({str(make_run("運行 $x$", steps=3))!r})
assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == "svg"
assert "matplotlib.pyplot" not in sys.modules
assert logging.getLogger("matplotlib.font_manager").level == logging.NOTSET
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
