"""Soak: thousands of steps of the main job, with the memory and the time of every step.

    nice -n 15 python benchmarks/soak.py [--steps 2000] [--out benchmarks/results/reliability] [key=value ...]
    python benchmarks/soak.py --kill-server-every 60 --name soak_server   # with vLLM installed

Runs ``srft train`` on the lab as a process of its own, with the math verifier in its worker processes,
and evaluation, samples and checkpoints on the way. Watched from outside: resident memory of the
trainer, proportional memory of its children (the verifiers), processor seconds.

The figures are means over blocks of steps. The slope over the second half is ordinary least squares
on the blocks with a 95 % interval by Student's t; where neighbouring residuals correlate (r > 0), its
standard error is multiplied by sqrt((1 + r) / (1 - r)). Memory is flat where the interval holds zero
or the slope is below 1 MiB in a thousand steps; the run fails where it grows. The learning rate is so
small that responses stay as long as they are: what moves is not the work. Writes soak.json and soak.md.

With ``--kill-server-every`` the rollouts come from one vLLM server, which signal 9 kills that many seconds
after it began to answer, whatever it is doing, and which is started again at once with the weights of
the base model. Beside memory, what may not be lost is counted: every step's line in the log once, no step
refused, every step with all its rollouts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
from scipy import stats
from tests.rollout.serving import ServerProcess

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


@contextmanager
def dying_server(folder: Path, every_s: float) -> Iterator[tuple[list[str], list[float]]]:
    """A vLLM server that is killed again and again: the overrides to train with, and the seconds from the
    start at which it was killed."""
    server = ServerProcess(folder, {"kv_cache_gb": 0.25, "max_model_len": 128})
    kills: list[float] = []
    over = threading.Event()
    start = time.monotonic()

    def answers() -> bool:
        try:
            return httpx2.get(f"{server.url}/health", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def kill_again_and_again() -> None:
        while not over.wait(1.0):
            if answers() and not over.wait(every_s):
                server.signal(signal.SIGKILL)
                kills.append(time.monotonic() - start)
                server.kill()
                server.start()

    thread = threading.Thread(target=kill_again_and_again)
    thread.start()
    try:
        yield ["rollout.engine=vllm-server", f"rollout.servers=[{server.url}]"], kills
    finally:
        over.set()
        thread.join()
        server.kill()


def lost(run_dir: Path, steps: int) -> list[str]:
    """What a run of ``steps`` steps should have left in its log, and has not."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = [row["step"] for row in rows]
    wrong = [] if found == [*range(1, steps + 1)] else [f"{len(found)} lines for {steps} steps"]
    if len({row["groups/sampled"] for row in rows}) > 1:
        wrong.append("some steps have fewer groups of rollouts than others")
    if (run_dir / "refused").exists():
        wrong.append("steps were refused")
    return wrong


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
    count = len(result["server_killed_after_s"])
    lines = [
        "# Soak",
        "",
        f"`{result['command']}`, {result['date']}; {result['machine']}. {result['steps']:,} steps in "
        f"{result['seconds'] / 60:.0f} minutes; exit code {result['exit_code']}.",
        f"Lost: {'; '.join(result['lost']) or 'nothing'}.",
        *([f"The vLLM server was killed {count} times and started again."] if count else []),
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
    parser.add_argument("--kill-server-every", type=float, metavar="S", help="seconds; with vLLM")
    parser.add_argument("overrides", nargs="*", help="settings, such as another model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        run_dir = arguments.run_dir or Path(scratch) / "soak"
        overrides, kills = list(arguments.overrides), list[float]()
        if arguments.kill_server_every:
            server, kills = stack.enter_context(
                dying_server(Path(scratch), arguments.kill_server_every)
            )
            overrides += server
        command = [
            *(sys.executable, "-m", "srft.cli", "train", str(RECIPE), *OVERRIDES),
            *(f"train.steps={arguments.steps}", f"run.dir={run_dir}", *overrides),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        start = time.monotonic()
        with (Path(scratch) / "log").open("wb") as log:
            process = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            looks = watch(process, run_dir / "metrics.jsonl", arguments.every)
        code = process.wait()
        if code:
            sys.stderr.write((Path(scratch) / "log").read_text()[-3000:])
        wrong = lost(run_dir, arguments.steps)
        stack.close()
    rows = blocks(looks, arguments.block, arguments.steps)
    keys = ("rss", "children", "cpu_per_step", "wall_per_step")
    found = {key: second_half(rows, arguments.steps, key) for key in keys}
    result = {
        "command": " ".join(["python benchmarks/soak.py", *sys.argv[1:]]),
        "overrides": [*OVERRIDES, *overrides],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, torch {version('torch')}",
        "steps": arguments.steps,
        "seconds": time.monotonic() - start,
        "exit_code": code,
        "lost": wrong,
        "server_killed_after_s": kills,
        "second_half": {
            key: {**asdict(value), "verdict": verdict(value)} for key, value in found.items()
        },
        "blocks": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / f"{arguments.name}.md").write_text(report(result))
    print(report(result))
    flat = all(verdict(found[key]) != "grows" for key in ("rss", "children"))
    return 0 if code == 0 and flat and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
