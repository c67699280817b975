r"""Verifier under attack: 10,000 real answers, one in a hundred hostile, every one scored.

    python benchmarks/verifier.py [--quick] [--workers 2] [--timeout 1.0] [--blocks 5]

Data: GSM8K demonstrations and the benchmarks' ground truths from SRFT_DATA_DIR (../shared/data
beside the repository unless set). The answers are cut into blocks, and each block is scored twice
by the same worker processes: as it is, and with 1 % of it replaced by answers made to hang or to
exhaust memory; which comes first alternates. For each block

    expected = seconds without hostile answers + (seconds of time limits reached) / workers
    ratio    = seconds with hostile answers / expected        (target: at most 1.3)

where only a hostile answer that was stopped at its time limit counts, with that limit. The limits are
processor seconds: on a machine that is busy with other things the ratio by the wall clock grows with
the load, and the same ratio in processor seconds does not. Both are reported, the median over the
blocks with its range; the run passes if the median of either meets the target.

Also checked: one score for every answer, in order; the real answers score the same in both passes and
in a third in which a worker is killed from outside every quarter of a processor second; `math` agrees with
math-verify called directly on every right and wrong answer; the memory of all processes in the last
quarter of the run is that of the second.
Writes benchmarks/results/verifier.json and verifier.md (verifier_quick.* with --quick).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from srft.rewards.scorer import Scorer
from srft.rewards.verifiers import math_completion_text
from srft.types import Example

ROOT = Path(__file__).resolve().parents[1]
TARGET = 1.3
KILL_EVERY_S = 0.25
"""Of the workers' processor time, so that a starved machine is not hit harder."""
DIRECT_LIMIT_S = 120
"""Of math-verify called directly: wall time, so generous that a busy machine decides nothing."""
Row = tuple[str, str, str]
"""(source, answer, completion)"""

HOSTILE = {
    "tower of powers": r"\boxed{9^{9^{9^{9}}}}",
    "tower in prose": "The answer is 9^9^9^9",
    "factorial": r"\boxed{99999999!}",
    "binomial": r"\boxed{\binom{10^9}{5 \cdot 10^8}}",
    "nested parentheses": r"\boxed{" + "(" * 5000 + "1" + ")" * 5000 + "}",
    "tower of exponentials": r"\boxed{e^{e^{e^{e^{e}}}}}",
    "sum": r"\boxed{\sum_{k=1}^{10^9} \sin(k^2)}",
    "megabyte of braces": "{" * 1_000_000,
    "megabyte of digits": "1" * 1_000_000,
    "unclosed boxes": r"\boxed{" * 140_000,
}


@dataclass(frozen=True)
class Pass:
    """Rows scored once. cpu_seconds: of the verifier processes."""

    seconds: float
    cpu_seconds: float
    rewards: list[float]
    statuses: list[str]


@dataclass(frozen=True)
class Block:
    """The same rows without and with hostile answers. kinds: place of each hostile one, and what
    it is. limits_s: time limits reached, in seconds."""

    plain: Pass
    attacked: Pass
    kinds: dict[int, str]
    limits_s: float
    workers: int

    @property
    def ratio(self) -> float:
        """By the wall clock."""
        return self.attacked.seconds / (self.plain.seconds + self.limits_s / self.workers)

    @property
    def cpu_ratio(self) -> float:
        """In processor seconds."""
        return self.attacked.cpu_seconds / (self.plain.cpu_seconds + self.limits_s)


def real_answers(data_dir: Path, n: int) -> list[Row]:
    """n demonstrations and ground truths."""
    import pyarrow.parquet as pq

    rows: list[Row] = []
    for file in sorted((data_dir / "benchmarks").glob("*.parquet")):
        if file.stem != "arc_c":
            for i, row in enumerate(pq.read_table(file).to_pylist(), start=1):
                answer = row["reward_model"]["ground_truth"]
                rows.append((f"{file.name}:{i}", answer, f"Therefore $\\boxed{{{answer}}}$."))
    for name in ("test", "train"):
        lines = (data_dir / "gsm8k" / f"{name}.jsonl").read_text("utf-8").rstrip("\n").split("\n")
        for i, line in enumerate(lines, start=1):
            solution = json.loads(line)["answer"]
            rows.append((f"{name}.jsonl:{i}", solution.split("####")[1].strip(), solution))
    random.Random(0).shuffle(rows)
    return rows[:n]


def with_hostile(rows: list[Row]) -> tuple[list[Row], dict[int, str]]:
    """The rows with one in a hundred replaced, and which they are: place to kind, the kinds in turn."""
    places = sorted(random.Random(1).sample(range(len(rows)), len(rows) // 100))
    kinds = [list(HOSTILE)[k % len(HOSTILE)] for k in range(len(places))]
    changed = list(rows)
    for place, kind in zip(places, kinds, strict=True):
        changed[place] = (f"hostile:{kind}", "1", HOSTILE[kind])
    return changed, dict(zip(places, kinds, strict=True))


class MemoryWatch(threading.Thread):
    """Samples the resident memory of this process and its children while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[float] = []
        self.done = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it ended between the listing and the look
            self.samples.append(total / 2**20)


def children_cpu() -> float:
    """Processor seconds of the verifier processes so far, of those that have ended as well."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            total += sum(process.cpu_times()[:4])  # user, system, and both of reaped children
    return total


def score(scorer: Scorer, rows: Sequence[Row]) -> Pass:
    """Score all rows in one session, as a training step does."""
    cpu, start = children_cpu(), time.perf_counter()
    session = scorer.session()
    for i, (source, answer, text) in enumerate(rows):
        session.add(i, Example(prompt="", answer=answer, source=source), text)
    scores = session.results()
    seconds = time.perf_counter() - start
    assert list(scores) == list(range(len(rows))), "scores were lost or out of order"
    return Pass(
        seconds,
        children_cpu() - cpu,
        [s.reward for s in scores.values()],
        [s.status["math"] for s in scores.values()],
    )


def measure_blocks(scorer: Scorer, rows: list[Row], n: int, timeout_s: float) -> list[Block]:
    """Both passes over each of `n` blocks, the hostile one first in every other block."""
    attacked, kinds = with_hostile(rows)
    size = len(rows) // n
    blocks = []
    for number in range(n):
        part = slice(number * size, (number + 1) * size)
        passes = {}
        for hostile in (False, True) if number % 2 == 0 else (True, False):
            passes[hostile] = score(scorer, (attacked if hostile else rows)[part])
        here = {i - part.start: kind for i, kind in kinds.items() if part.start <= i < part.stop}
        stopped = sum(passes[True].statuses[i] == "timeout" for i in here)
        workers = scorer._pool.workers
        blocks.append(Block(passes[False], passes[True], here, stopped * timeout_s, workers))
    return blocks


@contextlib.contextmanager
def killer(scorer: Scorer) -> Iterator[list[int]]:
    """Kills a worker every now and then; yields the list of those killed."""
    done, killed, rng = threading.Event(), list[int](), random.Random(2)

    def kill() -> None:
        due = children_cpu()
        while not done.wait(0.02):
            pids = scorer._pool.worker_pids()
            if pids and children_cpu() > due:
                due = children_cpu() + rng.expovariate(1 / KILL_EVERY_S)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid := rng.choice(pids), signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield killed
    done.set()
    thread.join()


def agreement(scorer: Scorer, rows: list[Row]) -> dict[str, Any]:
    """`math` against math-verify called directly, its own limits on, on each completion with its
    own ground truth and with another problem's."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    shifted = [rows[i - 1][1] for i in range(len(rows))]
    pairs = rows + [(s, other, t) for (s, _, t), other in zip(rows, shifted, strict=True)]
    ours = score(scorer, pairs)
    differ, only_hashes, late = [], 0, 0

    def direct(answer: str, text: str) -> float:
        gold, found = (parse(t, parsing_timeout=DIRECT_LIMIT_S) for t in (answer, text))
        return float(verify(gold, found, timeout_seconds=DIRECT_LIMIT_S))

    for (source, answer, text), reward, status in zip(
        pairs, ours.rewards, ours.statuses, strict=True
    ):
        if status in ("timeout", "memory"):
            late += 1  # there is no verdict to compare
            continue
        gold = rf"\boxed{{{answer}}}"
        if direct(gold, text) != reward:
            with_box = math_completion_text(text)
            explained = with_box != text and direct(gold, with_box) == reward
            only_hashes += explained
            differ += [] if explained else [f"{source}, answer {answer!r}"]
    right = int(sum(ours.rewards))
    return {
        "compared": len(pairs) - late,
        "stopped": late,
        "right": right,
        "hashes_only": only_hashes,
        "differ": differ,
    }


def memory(samples: list[float]) -> dict[str, float]:
    """Median in the second and in the last quarter of the run: equal if memory is flat."""
    if len(samples) < 8:
        return {}
    quarter = len(samples) // 4
    early = statistics.median(samples[quarter : 2 * quarter])
    late = statistics.median(samples[-quarter:])
    return {
        "early_mb": round(early, 1),
        "late_mb": round(late, 1),
        "growth": round(late / early - 1, 3),
        "peak_mb": round(max(samples), 1),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


def summary(blocks: list[Block], timeout_s: float) -> dict[str, Any]:
    """What the blocks say together."""
    outcomes: dict[str, set[str]] = {kind: set() for kind in HOSTILE}
    changed = hostile_right = 0
    for block in blocks:
        for place, kind in block.kinds.items():
            outcomes[kind].add(block.attacked.statuses[place])
            hostile_right += block.attacked.rewards[place] == 1.0
        pairs = zip(block.plain.rewards, block.attacked.rewards, strict=True)
        changed += sum(x != y for i, (x, y) in enumerate(pairs) if i not in block.kinds)
    total = lambda name, kind: round(sum(getattr(getattr(b, kind), name) for b in blocks), 2)  # noqa: E731
    return {
        "answers": sum(len(b.plain.rewards) for b in blocks),
        "hostile": sum(len(b.kinds) for b in blocks),
        "blocks": len(blocks),
        "workers": blocks[0].workers,
        "timeout_s": timeout_s,
        "seconds": [total("seconds", kind) for kind in ("plain", "attacked")],
        "cpu_seconds": [total("cpu_seconds", kind) for kind in ("plain", "attacked")],
        "limits_s": round(sum(b.limits_s for b in blocks), 2),
        "ratio": spread([b.ratio for b in blocks]),
        "cpu_ratio": spread([b.cpu_ratio for b in blocks]),
        "real_answers_right": int(sum(sum(b.plain.rewards) for b in blocks)),
        "changed_by_attack": changed,
        "hostile_scored_right": hostile_right,
        "hostile_outcomes": {kind: sorted(found) for kind, found in outcomes.items()},
        "ratios": [[round(b.ratio, 3), round(b.cpu_ratio, 3)] for b in blocks],
    }


def measure(n: int, blocks: int, workers: int, timeout_s: float, data: Path) -> dict[str, Any]:
    """Everything, with one set of worker processes."""
    rows = real_answers(data, n)
    watch = MemoryWatch()
    with Scorer("math", workers=workers, timeout_s=timeout_s) as scorer:
        scorer.score([Example(prompt="", answer="1")], ["1"])  # starts the processes
        watch.start()
        found = summary(measure_blocks(scorer, rows, blocks, timeout_s), timeout_s)
        watch.done.set()
        watch.join()
        stats = scorer.stats()["pool"]
        with killer(scorer) as killed:
            survived = score(scorer, rows[: n // blocks])
        found["killed_from_outside"] = len(killed)
        found["lost_to_kills"] = n // blocks - int(sum(survived.rewards))
    with Scorer("math", workers=workers, timeout_s=10 * timeout_s) as scorer:
        found["agreement"] = agreement(scorer, rows)
    return found | {"stats": stats, "memory": memory(watch.samples)}


def machine() -> dict[str, Any]:
    return {
        "cpu_count": os.cpu_count(),
        "load_before": [round(x, 2) for x in os.getloadavg()],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "math_verify": version("math-verify"),
        "sympy": version("sympy"),
        "date": time.strftime("%Y-%m-%d"),
    }


def markdown(r: dict[str, Any]) -> str:
    m, say = r["memory"], lambda x: f"{x['median']} ({x['low']} to {x['high']})"
    same = r["agreement"]
    about = r["machine"]
    lines = [
        "# Verifier under attack",
        "",
        f"`{r['command']}` on {about['date']}, {about['cpu_count']} cores (load "
        f"{about['load_before'][0]} before, {about['load_after'][0]} after), Python "
        f"{about['python']}, math-verify {about['math_verify']}.",
        "",
        "| | |",
        "|---|---|",
        f"| answers, of them hostile, in blocks | {r['answers']:,}, {r['hostile']}, {r['blocks']} |",
        f"| workers, time limit | {r['workers']}, {r['timeout_s']} s |",
        f"| seconds without and with hostile answers | {r['seconds'][0]}, {r['seconds'][1]} |",
        f"| processor seconds, the same | {r['cpu_seconds'][0]}, {r['cpu_seconds'][1]} |",
        f"| time limits reached | {r['limits_s']} s |",
        f"| **ratio by the wall clock, median over blocks (range); target {TARGET}** | "
        f"**{say(r['ratio'])}** |",
        f"| **ratio in processor seconds** | **{say(r['cpu_ratio'])}** |",
        f"| real answers right | {r['real_answers_right']:,} |",
        f"| real answers scored otherwise under attack | {r['changed_by_attack']} |",
        f"| hostile answers scored right | {r['hostile_scored_right']} |",
        f"| workers killed from outside, answers lost to it | {r['killed_from_outside']}, "
        f"{r['lost_to_kills']} |",
        f"| right and wrong answers compared with math-verify called directly | "
        f"{same['compared']:,} |",
        f"| of them scored otherwise, because it does not know the mark `####` | "
        f"{same['hashes_only']} |",
        f"| of them scored otherwise for another reason | {len(same['differ'])} |",
        f"| memory of all processes, second quarter, last quarter, peak | "
        f"{m.get('early_mb', '-')}, {m.get('late_mb', '-')}, {m.get('peak_mb', '-')} MiB |",
        "",
        "| hostile answer | outcome |",
        "|---|---|",
        *(f"| {kind} | {', '.join(o)} |" for kind, o in r["hostile_outcomes"].items()),
        "",
        f"Ratios of each block, wall clock and processor: {r['ratios']}. Pool counts of both passes: "
        f"{r['stats']}.",
        *(f"\nScored otherwise: {d}" for d in same["differ"]),
    ]
    return "\n".join(lines) + "\n"


def passed(r: dict[str, Any]) -> bool:
    """Whether every target is met."""
    wrong = r["changed_by_attack"] + r["hostile_scored_right"] + r["lost_to_kills"]
    in_time = min(r["ratio"]["median"], r["cpu_ratio"]["median"]) <= TARGET
    flat = r["memory"].get("growth", 0.0) <= 0.1
    return in_time and flat and not wrong and not r["agreement"]["differ"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 answers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds for each answer")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    a = parser.parse_args()
    data = Path(os.environ.get("SRFT_DATA_DIR", ROOT.parent / "shared" / "data"))
    about = machine()
    result = measure(1000 if a.quick else 10_000, a.blocks, a.workers, a.timeout, data)
    about["load_after"] = [round(x, 2) for x in os.getloadavg()]
    command = " ".join(["python", "benchmarks/verifier.py", *sys.argv[1:]])
    result |= {"machine": about, "command": command, "passed": passed(result)}
    name = "verifier_quick" if a.quick else "verifier"
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (a.out / f"{name}.md").write_text(markdown(result))
    print(markdown(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
