"""What a person sees while a run goes on: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from srft.runs.files import is_number
from srft.runs.metrics import metric
from srft.trainer.train_config import RunConfig

SHOWN = (
    *("reward/mean", "reward/accuracy", "eval/accuracy", "rollout/entropy", "rollout/length_mean"),
    *("rollout/truncated", "weight/sft", "weight/rl", "loss", "train/gradient_norm"),
    "tokens_per_second",
)
"""Metrics of the live view. What a method does not produce is not shown."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_HISTORY = 400
_WIDTH = 32


class LiveView:
    """Context manager around a run. ``phase`` and ``update`` say what goes on; ``note`` prints a
    line that stays."""

    def __init__(
        self, run_dir: Path, total: int, done: int, config: RunConfig, console: Console
    ) -> None:
        self.console = console
        self._shown = config.live == "always" or (config.live == "auto" and console.is_terminal)
        self._title = str(run_dir)
        self._history: dict[str, deque[float]] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self._task = self._progress.add_task("starting", total=total, completed=done)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> LiveView:
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._live.stop()

    def note(self, text: str) -> None:
        """A line above the live table."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """What is going on within the step."""
        self._progress.update(self._task, description=name)

    def evaluating(self, name: str, done: int, total: int) -> None:
        """Progress of an evaluation, in samples."""
        self.phase(f"evaluating {name} {done}/{total}")

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Figures of an evaluation, as ``eval/...``."""
        self._remember(metrics)
        if not self._shown:
            self.note(_line(metrics))

    def update(self, step: int, total: int, metrics: Mapping[str, Any]) -> None:
        """Figures of a finished step."""
        self._remember(metrics)
        self._progress.update(self._task, completed=step, total=total)
        if not self._shown:
            left = self._progress.tasks[0].time_remaining
            rest = f"  left {left / 60:.1f} min" if left is not None else ""
            self.console.print(
                f"step {step}/{total}  {_line(metrics)}{rest}", highlight=False, soft_wrap=True
            )

    def _remember(self, metrics: Mapping[str, Any]) -> None:
        for key in SHOWN:
            if is_number(metrics.get(key)):
                self._history.setdefault(key, deque(maxlen=_HISTORY)).append(metrics[key])

    def _render(self) -> Panel:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="dim", justify="right")
        table.add_column(style="cyan")
        for key in SHOWN:
            if history := self._history.get(key):
                label, last = _labelled(key, history[-1])
                first = f"from {_labelled(key, history[0])[1]}" if len(history) > 1 else ""
                table.add_row(label, last, first, sparkline(history))
        return Panel(Group(table, self._progress), title=escape(self._title), title_align="left")


def _labelled(key: str, value: float) -> tuple[str, str]:
    """What a metric is called, and a value of it."""
    known = metric(key)
    assert known is not None, key
    return known.title, known.show(value)


def _line(metrics: Mapping[str, Any]) -> str:
    """What is shown of ``metrics`` in one line."""
    shown = [_labelled(key, metrics[key]) for key in SHOWN if is_number(metrics.get(key))]
    return "  ".join(f"{label.lower()} {value}" for label, value in shown)


def sparkline(values: deque[float] | list[float], width: int = _WIDTH) -> str:
    """The values as a line of blocks, each block the mean of a window, scaled to their own range."""
    values = list(values)
    if len(values) > width:
        edges = [len(values) * i // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    if not high > low:
        return _BLOCKS[0] * len(values)
    return "".join(_BLOCKS[round((v - low) / (high - low) * (len(_BLOCKS) - 1))] for v in values)
