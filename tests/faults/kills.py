"""kill -9 at random moments of a run, and the resume after it."""

from __future__ import annotations

import json
import random
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.runs import Trial, Workshop, difference, fingerprint, litter

PHASES = ("starting", "generating", "scoring", "training", "saving", "evaluating", "exporting")
"""What the live view calls them; scoring is the wait for the verifiers."""

_LAST_S = 0.3  # what is looked at of the last phase: export, then plots and report

_CHAIN = 8
"""Kills in one run, one after the other, where a run is killed again and again."""


@dataclass(frozen=True)
class Undisturbed:
    """The run that nothing happened to: what it came to, and the seconds of each visit to a phase."""

    outcome: dict[str, str]
    visits: dict[str, list[float]]


def undisturbed(workshop: Workshop, name: str = "whole") -> Undisturbed:
    run_dir, trace = workshop.folder / name, workshop.folder / f"{name}.trace"
    code, output = workshop.train(run_dir, fault={"trace": {"path": str(trace)}})
    assert code == 0, output
    entered = [json.loads(line) for line in trace.read_text().splitlines()]
    visits: dict[str, list[float]] = defaultdict(list)
    last = [("", 0, entered[-1][2] + _LAST_S)]
    for (phase, _, start), (_, _, end) in zip(entered, entered[1:] + last, strict=True):
        visits[phase].append(max(end - start, 0.005))
    assert set(PHASES) <= set(visits), f"phases are {sorted(visits)}"
    return Undisturbed(fingerprint(run_dir), dict(visits))


def kill_trials(
    workshop: Workshop, whole: Undisturbed, count: int, seed: int = 0
) -> Iterator[Trial]:
    """``count`` runs, each killed once, the phases in turn and the moment within one at random; every
    second time round checkpoints are written in the background."""
    draw = random.Random(seed)
    for number in range(count):
        phase = PHASES[number % len(PHASES)]
        behind = number % 2 == 1
        settings = [f"run.background_checkpoints={str(behind).lower()}"]
        run_dir = workshop.folder / f"kill-{number}"
        where, code = _killed(workshop, run_dir, whole, phase, draw, settings)
        kind = f"kill -9 while {phase}"
        where += ", saved in the background" if behind else ""
        if code != -9:
            yield Trial(kind, where, False, f"exit code {code}, not killed")
            continue
        code, output = workshop.go_on(run_dir, *settings)
        yield _judged(kind, where, run_dir, whole, code, output)
        shutil.rmtree(run_dir, ignore_errors=True)


def chain_trials(
    workshop: Workshop, whole: Undisturbed, count: int, seed: int = 1
) -> Iterator[Trial]:
    """``count`` runs, each killed again and again, also while it resumes."""
    draw = random.Random(seed)
    for number in range(count):
        run_dir = workshop.folder / f"chain-{number}"
        kills = 0
        for _ in range(_CHAIN):
            _, code = _killed(workshop, run_dir, whole, draw.choice(PHASES), draw, (), 1, 2)
            kills += code == -9
            if code == 0:
                break
        code, output = workshop.go_on(run_dir)
        kind = "kill -9 again and again"
        yield _judged(kind, f"run {number}, {kills} kills", run_dir, whole, code, output)
        shutil.rmtree(run_dir, ignore_errors=True)


def _killed(
    workshop: Workshop,
    run_dir: Path,
    whole: Undisturbed,
    phase: str,
    draw: random.Random,
    settings: Sequence[str],
    tries: int = 5,
    most: int = 99,
) -> tuple[str, int]:
    """Starts or goes on with a run until it is killed: where that was, and the exit code. A run
    that came to its end before the moment did is started again, to be killed earlier."""
    where, code = "", 0
    for attempt in range(tries):
        number = draw.randint(1, min(most, len(whole.visits[phase])))
        lasts = whole.visits[phase][number - 1]
        delay = draw.uniform(0, lasts) if attempt < 2 else 0.0
        strike = {"phase": phase, "number": number, "delay_s": delay, "signal_name": "SIGKILL"}
        where = f"{phase} {number}, {1000 * delay:.1f} of {1000 * lasts:.1f} ms"
        code, _ = workshop.go_on(run_dir, *settings, fault={"strike": strike})
        if code == -9:
            break
        if code == 0 and tries > 1:
            shutil.rmtree(run_dir)
    return where, code


def _judged(
    kind: str, name: str, run_dir: Path, whole: Undisturbed, code: int, output: str
) -> Trial:
    if code:
        return Trial(kind, name, False, f"exit code {code}: {output[-300:]}")
    wrong = difference(whole.outcome, fingerprint(run_dir))
    left = litter(run_dir)
    detail = f"differs: {wrong}" if wrong else f"left behind: {', '.join(left)}" if left else ""
    return Trial(kind, name, not detail, detail)
