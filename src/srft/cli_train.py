"""A run as the command line makes it: train, draw, and say what came out and where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from srft.config import SRFTConfig, load_config
from srft.lab import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, QUICKSTART
from srft.report.plots import plot_run
from srft.report.report_page import write_report
from srft.terminal import Terminal
from srft.trainer.api import SRFTTrainer
from srft.trainer.state import TrainResult


def run_training(config: SRFTConfig, *, resume: bool, console: Console) -> TrainResult:
    """Trains by ``config``, draws it and writes its report, and prints results and places."""
    if isinstance(console, Terminal):
        console.carries_on = True  # what was trained is not lost with a pager or a pipe
    trainer = SRFTTrainer(args=config, console=console)
    result = trainer.train(resume_from_checkpoint=resume)
    # Whoever stops a run waits for it: a launcher some 30 seconds, which a picture may not fit into.
    if not trainer.world.main or result.stopped_by:
        return result
    picture = plot_run(result.run_dir)
    table = evaluation_table(result.evaluations)
    if table is not None:
        console.print(table)
    places = [("run directory", result.run_dir), ("exported model", result.model_dir)]
    places += [("picture", picture), ("report", write_report([result.run_dir]))]
    for name, path in places:
        if path is not None:
            console.print(f"{name:>15}  {path}", highlight=False, markup=False, soft_wrap=True)
    return result


def run_quickstart(overrides: Sequence[str], console: Console) -> TrainResult:
    """The main job on the built-in model and tasks."""
    config = load_config(QUICKSTART, overrides)
    console.print(
        f"[bold]{config.method}[/] on the built-in tasks: {config.train.steps} steps of "
        f"{config.train.prompts_per_step} prompts x {config.rollout.group_size} rollouts",
        highlight=False,
    )
    result = run_training(config, resume=False, console=console)
    if result.model_dir is not None:
        console.print(
            f"\nnext: srft sample {result.run_dir} --lab 3    "
            f"srft analyze lab {result.run_dir} --data {result.run_dir}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    return result


def evaluation_table(evaluations: Sequence[Mapping[str, Any]]) -> Table | None:
    """Accuracy at the last evaluation with its interval, and at the first one where that is another; by
    family where problems have one. None where there was no evaluation."""
    if not evaluations:
        return None
    first, last = min(r["step"] for r in evaluations), max(r["step"] for r in evaluations)
    several = first < last
    table = Table(title="accuracy", title_justify="left")
    table.add_column("problems")
    columns = [f"step {first}", f"step {last}", "change"] if several else [f"step {last}"]
    for heading in (*columns, f"interval, step {last}"):
        table.add_column(heading, justify="right")

    def cells(before: float | None, after: float) -> list[str]:
        if not several or before is None:
            return [*([""] if several else []), f"{after:.1%}", *([""] if several else [])]
        colour = "green" if after > before else "red" if after < before else "dim"
        return [f"{before:.1%}", f"{after:.1%}", f"[{colour}]{(after - before) * 100:+.1f}[/]"]

    for name in dict.fromkeys(record["name"] for record in evaluations):
        records = {r["step"]: r for r in evaluations if r["name"] == name}
        before, after = records.get(first, {}), records.get(last)
        if after is None:
            continue
        for title, families in _sections(after["by_family"]):
            if title:
                table.add_row(f"[bold]{title}[/]")
            for family in families:
                earlier = before.get("by_family", {}).get(family)
                table.add_row(f"  {escape(family)}", *cells(earlier, after["by_family"][family]))
        table.add_section()
        low, high = after["interval"]
        heading = f"[bold]{escape(name)}, all {after['n_problems']}[/]"
        row = cells(before.get("accuracy"), after["accuracy"])
        table.add_row(heading, *row, f"{low:.1%} to {high:.1%}")
    return table


def _sections(by_family: Mapping[str, float]) -> list[tuple[str, list[str]]]:
    """The lab's families under their two headings; other families under none."""
    inside = [family for family in by_family if family in IN_DISTRIBUTION]
    outside = [family for family in by_family if family in OUT_OF_DISTRIBUTION]
    other = [family for family in by_family if family not in (*inside, *outside)]
    sections = [("in distribution", inside), ("out of distribution", outside), ("", other)]
    return [(title, families) for title, families in sections if families]
