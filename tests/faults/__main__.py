"""The full form: every fault and every fuzzer, a table, and JSON beside it.

    python -m tests.faults [--kills 203] [--scale 1.0] [--only kills,disk] [--out FOLDER]

Run it from the repository's root (``make faults``). As root it mounts small memory file systems and
makes folders immutable; elsewhere these faults are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.faults import disk, kills, processes, stories, suites
from tests.faults.fuzz import FUZZERS, Outcome
from tests.faults.runs import ROOT, Trial, Workshop, table

_INPUTS = {"datasets": 3000, "recipes": 6000, "model folders": 3000}


def trials(workshop: Workshop, count: int, scale: float, only: set[str]) -> Iterator[Trial]:
    """All faults, kind by kind."""
    whole = kills.undisturbed(workshop)

    def n(full: int) -> int:
        return max(1, round(full * scale))

    plan: dict[str, Callable[[], Iterator[Trial]]] = {
        "kills": lambda: kills.kill_trials(workshop, whole, count),
        "chains": lambda: kills.chain_trials(workshop, whole, n(4)),
        "signals": lambda: processes.signal_trials(workshop, whole, n(12)),
        "clocks": lambda: processes.clock_trials(workshop, whole, n(3)),
        "verifiers": lambda: processes.verifier_trials(workshop),
        "damage": lambda: disk.damage_trials(workshop, whole, n(2)),
        "logs": lambda: disk.damaged_log_trials(workshop),
        "stories": lambda: stories.story_trials(workshop, n(400)),
        "suites": suites.suite_trials,
        "limit": lambda: disk.file_size_trials(workshop, whole, n(8)),
    }
    if disk.can_mount(workshop.folder):
        plan["disk"] = lambda: disk.full_disk_trials(workshop, whole, n(16))
        if disk.can_make_immutable(workshop.folder):
            plan["read-only"] = lambda: disk.read_only_trials(workshop, whole)
    for name, make in plan.items():
        if not only or name in only:
            yield from make()


def fuzzed(scale: float, seed: int, scratch: Path) -> Iterator[Outcome]:
    for name, fuzz in FUZZERS.items():
        folder = scratch / name.replace(" ", "-")
        folder.mkdir()
        yield fuzz(max(1, round(_INPUTS[name] * scale)), seed, folder)


def inputs_table(outcomes: list[Outcome]) -> str:
    lines = [
        "| input | tried | right result | clear error | failures | slowest, processor s |",
        "|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        lines.append(
            f"| {o.kind} | {o.inputs:,} | {o.right:,} | {o.clear:,} | {len(o.failures)} | {o.slowest:.1f} |"
        )
    lines += [f"\n- FAILED {failure}" for o in outcomes for failure in o.failures[:20]]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Try to break srft.")
    parser.add_argument("--kills", type=int, default=203, help="runs that are killed once each")
    parser.add_argument("--scale", type=float, default=1.0, help="share of all other trials")
    parser.add_argument(
        "--only", default="", help="kinds of trials, with commas; fuzz: the fuzzers"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzers")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/reliability")
    arguments = parser.parse_args()
    only = set(filter(None, arguments.only.split(",")))
    start = time.monotonic()
    found: list[Trial] = []
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        if not only or only - {"fuzz"}:
            with Workshop(Path(scratch) / "workshop", stories.ENVIRONMENT) as workshop:
                for trial in trials(workshop, arguments.kills, arguments.scale, only):
                    found.append(trial)
                    mark = "" if trial.survived else "LOST: "
                    print(f"{mark}{trial.kind}: {trial.name} {trial.detail[:300]}", flush=True)
        if not only or "fuzz" in only:
            for outcome in fuzzed(arguments.scale, arguments.seed, Path(scratch)):
                outcomes.append(outcome)
                print(inputs_table([outcome]), flush=True)
    run = {
        "command": f"python -m tests.faults {' '.join(sys.argv[1:])}".strip(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, torch {version('torch')}",
    }
    publish(arguments.out, run, found, outcomes)
    lost = [t for t in found if not t.survived] + [o for o in outcomes if o.failures]
    return 1 if lost else 0


def publish(folder: Path, run: dict[str, Any], found: list[Trial], outcomes: list[Outcome]) -> None:
    """faults.json and faults.md; kinds that this run did not try stay as an earlier one left them."""
    path = folder / "faults.json"
    folder.mkdir(parents=True, exist_ok=True)
    before = (
        json.loads(path.read_text()) if path.exists() else {"trials": [], "inputs": [], "runs": []}
    )
    tried, drawn = {t.kind for t in found}, {o.kind for o in outcomes}
    every = [Trial(**t) for t in before["trials"] if t["kind"] not in tried] + found
    inputs = [Outcome(**o) for o in before["inputs"] if o["kind"] not in drawn] + outcomes
    runs = [
        *before["runs"],
        {**run, "kinds": sorted(tried | drawn)},
    ]
    kept = {t.kind for t in every} | {o.kind for o in inputs}
    newest = {kind: number for number, one in enumerate(runs) for kind in one["kinds"]}
    runs = [one for number, one in enumerate(runs) if number in {newest[k] for k in kept}]
    values = {"trials": [asdict(t) for t in every], "inputs": [asdict(o) for o in inputs]}
    lists = {
        name: "[\n" + ",\n".join(map(json.dumps, items)) + "\n]"
        for name, items in {**values, "runs": runs}.items()
    }
    text = ",\n".join(f"{json.dumps(name)}: {items}" for name, items in lists.items())
    path.write_text("{" + text + "}\n")
    lines = ["# Faults", ""]
    lines += [
        f"- `{r['command']}`, {r['date']}, {r['minutes']:.0f} minutes; {r['machine']}" for r in runs
    ]
    lines += ["", table(every), "", inputs_table(inputs), ""]
    (folder / "faults.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
