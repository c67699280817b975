"""A plan for people: what it was made from, memory by phase, and what to change."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from srft.memory.assumptions import Assumptions
from srft.memory.devices import GIB
from srft.planning.plan import Plan


def show(plan: Plan, console: Console) -> None:
    """Prints ``plan``, with every assumption as it can be given to --assume."""
    for line in _heading(plan):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_memory(plan))
    console.print(_assumptions(plan))
    for line in _outcome(plan):
        console.print(line, highlight=False, soft_wrap=True)


def _heading(plan: Plan) -> list[str]:
    shape, layout, work = plan.shape, plan.case.layout, plan.case.work
    methods = ", then ".join(stage.method for stage in plan.config.resolved_stages)
    source = " (its sizes from srft's own table)" if shape.known else ""
    trained = "" if shape.trained == shape.parameters else f", {shape.trained:,} of them trained"
    step = work.step
    world = (
        f"{layout.world} processes: {layout.replicate} copies of {layout.shard} shards"
        if layout.world > 1
        else "one process"
    )
    return [
        f"[bold]{shape.name or 'model'}[/]: {shape.parameters:,} parameters{trained}{source}",
        f"[bold]{methods}[/], engine {plan.case.engine}: {plan.config.train.prompts_per_step} prompts x "
        f"{step.group} rollouts of up to {plan.config.rollout.max_tokens:,} tokens"
        + (f", {step.demonstrations} demonstration each" if step.demonstrations else "")
        + (f", {step.further * layout.world:g} further demonstrations" if step.further else ""),
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
    names = dict.fromkeys(item.name for phase in memory.phases for item in phase.items)
    for name in sorted(names, key=lambda name: name in ("allocator", "runtime")):
        found = [{i.name: i for i in phase.items}.get(name) for phase in memory.phases]
        how = next((i.how for i in reversed(found) if i is not None and i.how), "")
        table.add_row(name, *("" if i is None else _gib(i.bytes) for i in found), how)
    table.add_section()
    table.add_row("together", *(_gib(phase.bytes) for phase in memory.phases))
    table.add_row("of", *[_gib(memory.capacity)] * len(memory.phases))
    return table


def _gib(count: float) -> str:
    value = count / GIB
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def _assumptions(plan: Plan) -> Table:
    table = Table(title="assumptions (--assume key=value)", title_justify="left")
    for name in ("key", "value", "what it is"):
        table.add_column(name, style="dim" if name == "what it is" else None)
    values = {**plan.case.assumed.model_dump(), "memory_gib": plan.cluster.memory_gib}
    for key, field in Assumptions.model_fields.items():
        table.add_row(key, f"{values[key]:,.4g}", field.description or "")
    return table


def _outcome(plan: Plan) -> list[str]:
    memory = plan.memory
    word = "[bold green]fits[/]" if memory.fits else "[bold red]does not fit[/]"
    peak = f"{_gib(memory.peak.bytes)} of {_gib(memory.capacity)} GiB"
    lines = [f"{word}: {peak} in the phase {memory.peak.name}"]
    lines += [f"[bold red]problem[/]: {problem}" for problem in plan.problems]
    if not memory.fits:
        lines.append("what helps, each alone:" if plan.hints else "no setting here helps;")
        lines += [
            f"  [bold]{hint.setting}[/]  {hint.share:.0%} of the memory ({hint.cost})"
            for hint in plan.hints
        ]
        lines.append(
            "  more devices (--gpus, --nodes, parallel.shard left out), or a smaller model"
        )
    return lines
