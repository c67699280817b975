"""An experiment's result as Markdown, as JSON and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from srft.experiments.arm_results import ArmFigures, Difference, Estimate, ExperimentResult
from srft.runs.files import markdown_grid, to_json, write_whole

_PARTS = {"in": "in distribution", "out": "out of distribution"}
_MARKS = {"ahead": "▲", "behind": "▼", "open": ""}

READING = (
    "Accuracy in %: mean over seeds and problems, with a 95 % t interval over seeds. Difference: arm "
    "minus {reference} in points, paired by seed and problem; [t interval over seeds] {{bootstrap "
    "interval over problems}}, p of a two-sided sign-flip test over problems; Holm: the larger p of that "
    "test and of a paired t-test over seeds, corrected for all arms; and in how many seeds the arm is "
    "ahead. ▲ ahead, ▼ behind: both intervals leave out zero."
)
COSTS = (
    "Tokens, FLOPs and seconds are per run. FLOPs = 6 N trained + 2 N sampled tokens (and 2 N of those "
    "that a teacher scored), N = parameters but the input embedding; trained tokens count prompts. "
    "Seconds are those of training, one thread each. Refused: steps of all seeds whose loss or "
    "gradient was not finite. Reward, entropy (nats) and length (tokens): rollouts of the last tenth "
    "of the steps."
)


def write_tables(result: ExperimentResult, folder: Path, more: str = "") -> None:
    """results.json and tables.md in ``folder``, with ``more`` at its end."""
    write_whole(folder / "results.json", to_json(result.as_json(), indent=1, default=str))
    write_whole(folder / "tables.md", markdown(result) + (f"\n{more}\n" if more else ""))


def markdown(result: ExperimentResult) -> str:
    """Accuracy and differences, families, costs; then what failed or is missing."""
    setting = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in result.setting.items())
    blocks = [f"### {result.experiment.title}", f"{setting}."]
    if result.arms:
        blocks += [
            markdown_grid(*accuracy_rows(result), texts=1),
            READING.format(reference=result.experiment.reference),
        ]
        if any(arm.greedy for arm in result.arms):
            greedy = markdown_grid(*accuracy_rows(result, greedy=True), texts=1)
            blocks += ["Decoded greedily:", greedy]
        for rows in (family_rows(result.arms), cost_rows(result.arms)):
            blocks.append(markdown_grid(*rows, texts=1))
        blocks.append(COSTS)
    if result.failed:
        blocks.append(
            "Failed:\n" + "\n".join(f"- {n}: {e.splitlines()[0]}" for n, e in result.failed.items())
        )
    if result.missing:
        blocks.append(f"Not finished: {', '.join(result.missing)}.")
    if result.experiment.then:
        blocks.append(result.experiment.then)
    return "\n\n".join(blocks) + "\n"


Rows = tuple[list[str], list[list[str]]]


def accuracy_rows(result: ExperimentResult, greedy: bool = False) -> Rows:
    """Heading and rows: accuracy and difference to the reference, in and out of distribution."""
    figures = {
        arm.name: (arm.greedy, arm.greedy_difference) if greedy else (arm.accuracy, arm.difference)
        for arm in result.arms
    }
    parts = [p for p in _PARTS if all(p in accuracy for accuracy, _ in figures.values())]
    head = ["arm", "seeds"]
    for part in parts:
        head += [_PARTS[part], f"minus {result.experiment.reference}"]
    rows = []
    for arm in result.arms:
        accuracy, difference = figures[arm.name]
        row = [arm.name, str(arm.seeds)]
        for part in parts:
            row += [_accuracy(accuracy[part]), _difference(difference.get(part))]
        rows.append(row)
    return head, rows


def _accuracy(value: Estimate) -> str:
    half = "" if value.seeds is None else f" ± {100 * (value.seeds[1] - value.mean):.1f}"
    return f"{100 * value.mean:.1f}{half}"


def _difference(value: Difference | None) -> str:
    if value is None or value.of == 0:
        return ""
    parts = [f"{100 * value.estimate.mean:+.1f}"]
    if value.estimate.seeds is not None:
        parts.append("[{:+.1f}, {:+.1f}]".format(*(100 * x for x in value.estimate.seeds)))
    if value.estimate.problems is not None:
        parts.append("{{{:+.1f}, {:+.1f}}}".format(*(100 * x for x in value.estimate.problems)))
    parts.append(f"p {value.p_value:.2g}" if value.p_value >= 0.001 else "p < 0.001")
    if value.p_holm is not None:
        parts.append(f"Holm {value.p_holm:.2g}")
    parts.append(f"{value.ahead}/{value.of}")
    return " ".join([*parts, _MARKS[value.verdict]]).strip()


def family_rows(arms: Sequence[ArmFigures]) -> Rows:
    """Accuracy of every family, mean over seeds, with the averages of the two kinds."""
    columns = {part: list(arms[0].families.get(part, {})) for part in _PARTS}
    head = ["arm"]
    for families in columns.values():
        head += [*(family or "all" for family in families), *(["avg"] if families else [])]
    rows = []
    for arm in arms:
        row = [arm.name]
        for part, families in columns.items():
            values = [arm.families[part][family] for family in families]
            row += [f"{100 * v:.1f}" for v in values]
            row += [f"**{100 * sum(values) / len(values):.1f}**"] if values else []
        rows.append(row)
    return head, rows


def cost_rows(arms: Sequence[ArmFigures]) -> Rows:
    """What each arm cost and how its training ended."""
    head = ["arm", "sampled tokens", "trained tokens", "TFLOP", "seconds", "refused steps"]
    head += ["reward", "entropy", "length"]
    forms = {"reward": ".3f", "entropy": ".3f", "length": ".1f"}
    rows = []
    for arm in arms:
        tokens = [f"{arm.sampled_tokens:,.0f}", f"{arm.trained_tokens:,.0f}"]
        costs = [f"{arm.flops / 1e12:.2f}", f"{arm.seconds:.0f}", str(arm.refused)]
        last = ["" if (v := arm.last[k]) is None else f"{v:{form}}" for k, form in forms.items()]
        rows.append([arm.name, *tokens, *costs, *last])
    return head, rows


def render(result: ExperimentResult, console: Console) -> Table:
    """Accuracy, difference and FLOPs for a terminal, with the intervals over seeds where they have room; the
    rest is in tables.md."""
    table = _table(result, intervals=True)
    needed = console.measure(table, options=console.options.update(width=1000)).maximum
    return table if needed <= console.width else _table(result, intervals=False)


def _table(result: ExperimentResult, intervals: bool) -> Table:
    reference = result.experiment.reference
    parts = [p for p in _PARTS if any(p in arm.accuracy for arm in result.arms)]
    table = Table(
        title=f"{result.experiment.title}: accuracy in % in and out of distribution, and points more than "
        f"{reference}",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("arm", overflow="fold")
    for part in parts:
        table.add_column(part, justify="right", no_wrap=True)
        table.add_column("more", justify="right", no_wrap=True)
    table.add_column("TFLOP", justify="right", no_wrap=True)
    for arm in result.arms:
        cells = [arm.name]
        for part in parts:
            cells.append(f"{100 * arm.accuracy[part].mean:.1f}")
            cells.append(_short(arm.difference.get(part), intervals))
        style = "bold" if arm.name == reference else None
        table.add_row(*cells, f"{arm.flops / 1e12:.2f}", style=style)
    return table


def _short(value: Difference | None, intervals: bool) -> str:
    if value is None or value.of == 0:
        return ""
    interval = (value.estimate.seeds or value.estimate.problems) if intervals else None
    ends = "" if interval is None else r" \[{:+.1f}, {:+.1f}]".format(*(100 * x for x in interval))
    return f"{100 * value.estimate.mean:+.1f}{ends} {_MARKS[value.verdict]}".rstrip()
