"""Soak: thousands of steps of the main job, with the memory and the time of every step.

    nice -n 15 python benchmarks/soak.py [--steps 2000] [--out benchmarks/results/reliability] [key=value ...]

Runs ``srft train`` on the lab as a process of its own, with the math verifier in its worker processes,
and evaluation, samples and checkpoints on the way. Watched from outside: resident memory of the
trainer, proportional memory of its children (the verifiers), processor seconds.

The figures are means over blocks of steps. The slope over the second half is ordinary least squares
on the blocks with a 95 % interval by Student's t; where neighbouring residuals correlate (r > 0), its
standard error is multiplied by sqrt((1 + r) / (1 - r)). Memory is flat where the interval holds zero
or the slope is below 1 MiB in a thousand steps; the run fails where it grows. The learning rate is so
small that responses stay as long as they are: what moves is not the work. Writes soak.json and soak.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "src" / "srft" / "lab" / "quickstart.yaml"
OVERRIDES = (
    "reward=math",
    "data.limit=1000",
    "data.eval_limit=36",
    "rollout.group_size=4",
    "rollout.max_tokens=48",
    "train.prompts_per_step=3",
    "train.learning_rate=1e-7",
    "evaluation.every_steps=100",
    "evaluation.at_start=false",
    "run.checkpoint_every=50",
    "run.samples_every=10",
    "run.live=never",
)
FLAT_MIB = 1.0
"""Slope, in MiB per thousand steps, below which memory counts as flat whatever the interval says."""


@dataclass(frozen=True)
class Look:
    """One look at the run: finished steps, seconds since the start, processor seconds of the trainer,
    its resident memory, and the proportional memory of its children, in MiB."""

    step: int
    seconds: float
    cpu: float
    rss: float
    children: float


@dataclass(frozen=True)
class Slope:
    """Change per thousand steps, its 95 % interval, and the mean it starts from."""

    per_thousand: float
    low: float
    high: float
    mean: float
    correlation: float


def watch(process: psutil.Popen, metrics: Path, every_s: float) -> list[Look]:
    """Looks at the process until it ends."""
    looks: list[Look] = []
    start = time.monotonic()
    step, read = 0, 0
    while process.poll() is None:
        time.sleep(every_s)
        if metrics.exists():
            with metrics.open("rb") as file:
                file.seek(read)
                data = file.read()
            step, read = step + data.count(b"\n"), read + len(data)
        try:
            with process.oneshot():
                rss = process.memory_info().rss
                cpu = process.cpu_times()
            children = sum(_pss(child) for child in process.children(recursive=True))
        except psutil.Error:
            break  # it ended between the two calls
        looks.append(
            Look(step, time.monotonic() - start, cpu.user + cpu.system, rss / 2**20, children)
        )
    return looks


def _pss(process: psutil.Process) -> float:
    try:
        return process.memory_full_info().pss / 2**20
    except psutil.Error:
        return 0.0  # a worker that was replaced meanwhile


def blocks(looks: list[Look], size: int, total: int) -> list[dict[str, float]]:
    """Means over blocks of ``size`` steps: memory, children's memory, processor seconds a step."""
    found = []
    for first in range(0, total, size):
        inside = [look for look in looks if first <= look.step < first + size]
        if len(inside) < 2 or inside[-1].step == inside[0].step:
            continue
        steps = inside[-1].step - inside[0].step
        found.append(
            {
                "step": first + size / 2,
                "rss": float(np.mean([look.rss for look in inside])),
                "children": float(np.mean([look.children for look in inside])),
                "cpu_per_step": (inside[-1].cpu - inside[0].cpu) / steps,
                "wall_per_step": (inside[-1].seconds - inside[0].seconds) / steps,
            }
        )
    return found


def slope(steps: np.ndarray, values: np.ndarray) -> Slope:
    """Least squares with the interval described above."""
    fit = stats.linregress(steps, values)
    residuals = values - (fit.intercept + fit.slope * steps)
    around = residuals - residuals.mean()
    power = float((around**2).sum())
    r = float((around[1:] * around[:-1]).sum() / power) if power else 0.0
    inflation = np.sqrt((1 + r) / (1 - r)) if 0 < r < 1 else 1.0
    half = stats.t.ppf(0.975, len(steps) - 2) * fit.stderr * inflation
    return Slope(
        float(1000 * fit.slope),
        float(1000 * (fit.slope - half)),
        float(1000 * (fit.slope + half)),
        float(values.mean()),
        r,
    )


def second_half(rows: list[dict[str, float]], total: int, key: str) -> Slope:
    late = [row for row in rows if row["step"] >= total / 2]
    return slope(np.array([row["step"] for row in late]), np.array([row[key] for row in late]))


def verdict(found: Slope) -> str:
    """flat, grows or falls."""
    if found.low <= 0 <= found.high or abs(found.per_thousand) < FLAT_MIB:
        return "flat"
    return "grows" if found.per_thousand > 0 else "falls"


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# Soak",
        "",
        f"`{result['command']}`, {result['date']}; {result['machine']}. {result['steps']:,} steps in "
        f"{result['seconds'] / 60:.0f} minutes; exit code {result['exit_code']}.",
        "",
        "Second half of the run, slope per 1,000 steps (95 % interval):",
        "",
        "| figure | mean | slope | interval | |",
        "|---|---|---|---|---|",
    ]
    for key, title, unit in (
        ("rss", "resident memory of the trainer", "MiB"),
        ("children", "memory of the verifier processes", "MiB"),
        ("cpu_per_step", "processor seconds a step", "s"),
    ):
        found = result["second_half"][key]
        digits = 3 if unit == "s" else 2
        said = found["verdict"] if unit == "MiB" else ""
        lines.append(
            f"| {title}, {unit} | {found['mean']:.{digits}f} | {found['per_thousand']:+.{digits}f} | "
            f"{found['low']:+.{digits}f} to {found['high']:+.{digits}f} | {said} |"
        )
    lines += [
        "",
        "| steps | resident, MiB | verifiers, MiB | processor s a step |",
        "|---|---|---|---|",
    ]
    rows = result["blocks"]
    for row in rows[:: max(1, len(rows) // 20)]:
        lines.append(
            f"| {row['step']:.0f} | {row['rss']:.1f} | {row['children']:.1f} | "
            f"{row['cpu_per_step']:.3f} |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory and step time over a long run.")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--block", type=int, default=50, help="steps in a block")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/reliability")
    parser.add_argument("--run-dir", type=Path, help="kept; none: a temporary folder")
    parser.add_argument("--name", default="soak", help="of the two files that are written")
    parser.add_argument("overrides", nargs="*", help="settings, such as another model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = arguments.run_dir or Path(scratch) / "soak"
        command = [
            *(sys.executable, "-m", "srft.cli", "train", str(RECIPE), *OVERRIDES),
            *(f"train.steps={arguments.steps}", f"run.dir={run_dir}", *arguments.overrides),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        start = time.monotonic()
        with (Path(scratch) / "log").open("wb") as log:
            process = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            looks = watch(process, run_dir / "metrics.jsonl", arguments.every)
        code = process.wait()
        if code:
            sys.stderr.write((Path(scratch) / "log").read_text()[-3000:])
    rows = blocks(looks, arguments.block, arguments.steps)
    keys = ("rss", "children", "cpu_per_step", "wall_per_step")
    found = {key: second_half(rows, arguments.steps, key) for key in keys}
    result = {
        "command": " ".join(["python benchmarks/soak.py", *sys.argv[1:]]),
        "overrides": [*OVERRIDES, *arguments.overrides],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, torch {version('torch')}",
        "steps": arguments.steps,
        "seconds": time.monotonic() - start,
        "exit_code": code,
        "second_half": {
            key: {**asdict(value), "verdict": verdict(value)} for key, value in found.items()
        },
        "blocks": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / f"{arguments.name}.md").write_text(report(result))
    print(report(result))
    return (
        0 if code == 0 and all(verdict(found[key]) != "grows" for key in ("rss", "children")) else 1
    )


if __name__ == "__main__":
    sys.exit(main())
