"""Signals, clocks, and the processes that verify."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator

import psutil
from tests.faults.kills import PHASES, Undisturbed
from tests.faults.runs import Trial, Workshop, difference, fingerprint

CODES = {"SIGTERM": 143, "SIGINT": 130}
MATH = "reward=math"


def signal_trials(
    workshop: Workshop, whole: Undisturbed, count: int, seed: int = 6
) -> Iterator[Trial]:
    """What a scheduler or a person sends: the step in hand ends, a checkpoint is written, the exit
    code says which signal it was, and continue the run with --resume."""
    draw = random.Random(seed)
    for number in range(count):
        name = ("SIGTERM", "SIGINT")[number % 2]
        phase = PHASES[1:-1][number % (len(PHASES) - 2)]
        run_dir = workshop.folder / f"signal-{number}"
        visit = draw.randint(1, max(1, len(whole.visits[phase]) // 2))
        delay = draw.uniform(0, whole.visits[phase][visit - 1])
        strike = {"phase": phase, "number": visit, "delay_s": delay, "signal_name": name}
        code, output = workshop.train(run_dir, fault={"strike": strike})
        where = f"{phase} {visit}, {1000 * delay:.0f} ms"
        if code != CODES[name] or "Traceback" in output or "--resume" not in output:
            yield Trial(name, where, False, f"exit code {code}: {output[-300:]}")
            continue
        steps = len((run_dir / "metrics.jsonl").read_bytes().splitlines())
        saved = (run_dir / f"checkpoints/step_{steps:06d}").is_dir()
        code, output = workshop.go_on(run_dir)
        wrong = difference(whole.outcome, fingerprint(run_dir)) if code == 0 else output[-300:]
        yield Trial(name, where, saved and not wrong, wrong if saved else "no checkpoint")
        shutil.rmtree(run_dir)


def clock_trials(workshop: Workshop, whole: Undisturbed, count: int) -> Iterator[Trial]:
    """A clock that jumps by up to a day, back and forth, at every look."""
    for seed in range(count):
        run_dir = workshop.folder / f"clock-{seed}"
        code, output = workshop.train(run_dir, fault={"clock": {"seed": seed}})
        wrong = difference(whole.outcome, fingerprint(run_dir)) if code == 0 else output[-300:]
        yield Trial("clock jumps", f"seed {seed}", not wrong, wrong)


def verifier_trials(workshop: Workshop) -> Iterator[Trial]:
    """Verifier processes that are killed, and a scheduler's signal to all of a run's processes."""
    whole, run_dir = workshop.folder / "math", workshop.folder / "math-hurt"
    code, output = workshop.train(whole, MATH)
    assert code == 0, output
    outcome = fingerprint(whole)
    for name, fault in (
        ("a worker, 20 times", {"count": 20}),
        ("the process that forks them, 3 times", {"count": 3, "nursery": True}),
    ):
        code, output = workshop.train(run_dir, MATH, fault={"kill_workers": fault})
        wrong = difference(outcome, fingerprint(run_dir)) if code == 0 else output[-300:]
        yield Trial("verifier process killed", name, not wrong, wrong)
        shutil.rmtree(run_dir, ignore_errors=True)
    strike = {"phase": "scoring", "number": 3, "delay_s": 0.0, "signal_name": "SIGTERM"}
    code, output = workshop.train(run_dir, MATH, fault={"strike": {**strike, "group": True}})
    if code != 143:
        yield Trial("SIGTERM to every process", "", False, f"exit code {code}: {output[-300:]}")
    else:
        code, output = workshop.train(run_dir, MATH, "--resume")
        wrong = difference(outcome, fingerprint(run_dir)) if code == 0 else output[-300:]
        yield Trial("SIGTERM to every process", "", not wrong, wrong)
    shutil.rmtree(run_dir, ignore_errors=True)
    strike["signal_name"] = "SIGKILL"
    workshop.train(run_dir, MATH, fault={"strike": strike})
    left = _orphans(workshop)
    yield Trial("orphans after kill -9", "verifier processes", not left, ", ".join(left))


def _orphans(workshop: Workshop) -> list[str]:
    """Verifier processes that outlived their trainer by a second or more."""
    found = []
    for process in psutil.process_iter(["pid", "cwd", "cmdline"]):
        cwd, line = process.info["cwd"], " ".join(process.info["cmdline"] or [])
        if cwd == str(workshop.folder) and "nursery_main" in line:
            with_grace = psutil.wait_procs([process], timeout=5.0)[1]
            found += [f"{p.pid}: {line[:60]}" for p in with_grace]
    return found
