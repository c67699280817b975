"""A plan for people: what it was made from, memory by phase, time by part, and what to change."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from srft.planning.assumptions import Assumptions
from srft.planning.devices import GIB
from srft.planning.plan import Plan


def show(plan: Plan, console: Console, *, assumptions: bool = True) -> None:
    """Prints ``plan``; with ``assumptions`` every one of them, as it can be given to --assume."""
    for line in _heading(plan):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_memory(plan))
    console.print(_times(plan))
    if assumptions:
        console.print(_assumptions(plan))
    for line in _outcome(plan):
        console.print(line, highlight=False, soft_wrap=True)


def _heading(plan: Plan) -> list[str]:
    shape, layout, work = plan.shape, plan.case.layout, plan.case.work
    methods = ", then ".join(stage.method for stage in plan.config.resolved_stages)
    source = " (its sizes from srft's own table)" if shape.known else ""
    trained = "" if shape.trained == shape.parameters else f", {shape.trained:,} of them trained"
    worst = work.worst
    world = (
        f"{layout.world} processes: {layout.replicate} copies of {layout.shard} shards"
        if layout.world > 1
        else "one process"
    )
    return [
        f"[bold]{shape.name or 'model'}[/]: {shape.parameters:,} parameters{trained}{source}",
        f"[bold]{methods}[/], engine {plan.case.engine}: {plan.config.train.prompts_per_step} prompts x "
        f"{worst.group} rollouts of up to {plan.config.rollout.max_tokens:,} tokens"
        + (f", {worst.demonstrations} demonstration each" if worst.demonstrations else ""),
        f"[bold]{plan.cluster.describe()}[/], {world}",
    ]


def _memory(plan: Plan) -> Table:
    """Items as rows, phases as columns; the fullest phase stands out."""
    memory = plan.memory
    table = Table(title="memory of a process, GiB, longest sequences", title_justify="left")
    table.add_column("")
    for phase in memory.phases:
        style = "bold" if phase is memory.peak else None
        table.add_column(phase.name, justify="right", style=style)
    table.add_column("how", style="dim")
    names = list(dict.fromkeys(item.name for phase in memory.phases for item in phase.items))
    for name in [n for n in names if n not in _LAST] + [n for n in _LAST if n in names]:
        found = [{i.name: i for i in phase.items}.get(name) for phase in memory.phases]
        how = next((i.how for i in reversed(found) if i is not None and i.how), "")
        table.add_row(name, *("" if i is None else _gib(i.bytes) for i in found), how)
    table.add_section()
    table.add_row("together", *(_gib(phase.bytes) for phase in memory.phases))
    table.add_row("of", *[_gib(memory.capacity)] * len(memory.phases))
    return table


_LAST = ("allocator", "runtime")


def _gib(count: float) -> str:
    value = count / GIB
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _times(plan: Plan) -> Table:
    time = plan.time
    table = Table(title="time of a step, seconds, mean lengths", title_justify="left")
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    table.add_column("how", style="dim")
    for part in time.parts:
        share = part.seconds / time.seconds
        table.add_row(part.name, f"{part.seconds:,.3g}", f"{share:.0%}", part.how)
    table.add_section()
    steps = plan.config.total_steps
    run = time.seconds * steps
    unit = f"{run / 3600:,.1f} h" if run >= 3600 else f"{run / 60:,.1f} min"
    table.add_row(
        "step",
        f"{time.seconds:,.3g}",
        "",
        f"{time.tokens_per_second:,.0f} tokens/s; {steps:,} steps in {unit}, evaluation not counted",
    )
    return table


def _assumptions(plan: Plan) -> Table:
    table = Table(title="assumptions (--assume key=value)", title_justify="left")
    for name in ("key", "value", "what it is"):
        table.add_column(name, style="dim" if name == "what it is" else None)
    device = plan.case.device
    for key, field in Assumptions.model_fields.items():
        value = getattr(plan.case.assumed, key)
        if value is None and key in ("memory_gib", "tflops", "bandwidth_gbs", "link_gbs"):
            value = getattr(device, key)
        shown = "" if value is None else f"{value:,.4g}"
        table.add_row(key, shown, field.description or "")
    return table


def _outcome(plan: Plan) -> list[str]:
    memory = plan.memory
    peak = (
        f"{_gib(memory.peak.bytes)} of {_gib(memory.capacity)} GiB in the phase {memory.peak.name}"
    )
    if plan.fits:
        return [f"[bold green]fits[/]: {peak}"]
    lines = [f"[bold red]does not fit[/]: {peak}"] if not memory.fits else []
    lines += [f"[bold red]problem[/]: {problem}" for problem in plan.problems]
    if plan.mends:
        lines.append("what mends it:")
        lines += [
            f"  [bold]{mend.describe()}[/]  {mend.share:.0%} of the memory ({mend.cost})"
            for mend in plan.mends
        ]
    elif not memory.fits:
        lines.append(
            "no setting that is known here mends it: more devices (--gpus, --nodes, with "
            "parallel.shard left out), or a smaller model"
        )
    return lines
