r"""Verifier under attack: 10,000 real answers, one in a hundred hostile, every one scored.

    python benchmarks/verifier.py [--quick] [--workers 2] [--timeout 1.0]

Data: GSM8K demonstrations and the benchmarks' ground truths from SRFT_DATA_DIR (../shared/data
beside the repository unless set). The answers are scored twice by the same verifier: once as they
are and once with 1 % of them replaced by answers made to hang, or to exhaust memory. Reported:

    expected = seconds without hostile answers + (seconds of hostile answers' limits) / workers
    ratio    = seconds with hostile answers / expected        (target: at most 1.3)

where a hostile answer that was stopped counts with its time limit, and one that was answered in
time with nothing. The limits are processor seconds: on a machine that is busy with other things the
ratio by the wall clock grows with the load, and the same ratio in processor seconds (cpu_ratio)
does not, so the run passes if either meets the target. Also checked: one score for every answer, in
order; the real answers score the same in both runs; the memory of all processes in the last quarter
of the run is that of the second.
Writes benchmarks/results/verifier.json and verifier.md (verifier_quick.* with --quick).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import sys
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
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
class Run:
    """One pass over the answers. seconds: wall time; cpu_seconds: of the worker processes; rss_mb:
    samples over time of the memory of this process and its children (shared pages counted once), in
    MiB; stats: the pool's counts."""

    seconds: float
    cpu_seconds: float
    rewards: list[float]
    statuses: list[str]
    rss_mb: list[float]
    stats: dict[str, int]


def real_answers(data_dir: Path, n: int) -> list[tuple[str, str, str]]:
    """(source, answer, completion) of n demonstrations and ground truths."""
    import pyarrow.parquet as pq

    rows: list[tuple[str, str, str]] = []
    for file in sorted((data_dir / "benchmarks").glob("*.parquet")):
        if file.stem != "arc_c":
            for i, row in enumerate(pq.read_table(file).to_pylist(), start=1):
                answer = row["reward_model"]["ground_truth"]
                rows.append((f"{file.name}:{i}", answer, f"Therefore $\\boxed{{{answer}}}$."))
    for name in ("test", "train"):
        lines = (data_dir / "gsm8k" / f"{name}.jsonl").read_text().splitlines()
        for i, line in enumerate(lines, start=1):
            solution = json.loads(line)["answer"]
            rows.append((f"{name}.jsonl:{i}", solution.split("####")[1].strip(), solution))
    random.Random(0).shuffle(rows)
    return rows[:n]


def with_hostile(rows: list[tuple[str, str, str]]) -> tuple[list[tuple[str, str, str]], list[int]]:
    """The rows with one in a hundred replaced, evenly spread over the kinds, and which they are."""
    places = sorted(random.Random(1).sample(range(len(rows)), len(rows) // 100))
    texts = list(HOSTILE.values())
    changed = list(rows)
    for k, place in enumerate(places):
        changed[place] = (f"hostile:{k}", "1", texts[k % len(texts)])
    return changed, places


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


def score(rows: list[tuple[str, str, str]], workers: int, timeout_s: float) -> Run:
    """Score all rows in one session, as a training step does."""
    from srft.rewards.scorer import Scorer
    from srft.types import Example

    cpu_before = _children_cpu()
    with Scorer("math", workers=workers, timeout_s=timeout_s) as scorer:
        scorer.score([Example(prompt="", answer="1")], ["1"])  # starts the processes
        watch = MemoryWatch()
        watch.start()
        start = time.perf_counter()
        session = scorer.session()
        for i, (source, answer, text) in enumerate(rows):
            session.add(i, Example(prompt="", answer=answer, source=source), text)
        scores = session.results()
        seconds = time.perf_counter() - start
        watch.done.set()
        watch.join()
        assert list(scores) == list(range(len(rows))), "scores were lost or out of order"
        stats = scorer.stats()["pool"]
    return Run(
        seconds,
        _children_cpu() - cpu_before,
        [s.reward for s in scores.values()],
        [s.status["math"] for s in scores.values()],
        watch.samples,
        stats,
    )


def _children_cpu() -> float:
    """Processor seconds of child processes that have ended, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _memory(samples: list[float]) -> dict[str, float]:
    """Median in the second and in the last quarter of the run: equal if memory is flat."""
    if len(samples) < 8:
        return {}
    quarter = len(samples) // 4
    median = lambda values: sorted(values)[len(values) // 2]  # noqa: E731
    early, late = median(samples[quarter : 2 * quarter]), median(samples[-quarter:])
    return {
        "early_mb": round(early, 1),
        "late_mb": round(late, 1),
        "growth": round(late / early - 1, 3),
        "peak_mb": round(max(samples), 1),
    }


def measure(n: int, workers: int, timeout_s: float, data_dir: Path) -> dict[str, Any]:
    """Both runs and what follows from them."""
    rows = real_answers(data_dir, n)
    attacked, places = with_hostile(rows)
    plain = score(rows, workers, timeout_s)
    under = score(attacked, workers, timeout_s)
    hostile = set(places)
    statuses = [under.statuses[i] for i in places]
    stopped = sum(s in ("timeout", "memory", "crash") for s in statuses)
    limits = stopped * timeout_s
    expected = plain.seconds + limits / workers
    kinds = list(HOSTILE)
    return {
        "answers": len(rows),
        "hostile": len(places),
        "workers": workers,
        "timeout_s": timeout_s,
        "seconds_without": round(plain.seconds, 2),
        "seconds_with": round(under.seconds, 2),
        "limits_s": round(limits, 2),
        "expected_s": round(expected, 2),
        "ratio": round(under.seconds / expected, 3),
        "cpu_seconds_without": round(plain.cpu_seconds, 2),
        "cpu_seconds_with": round(under.cpu_seconds, 2),
        "cpu_ratio": round(under.cpu_seconds / (plain.cpu_seconds + limits), 3),
        "target_ratio": 1.3,
        "real_answers_right": int(sum(plain.rewards)),
        "wrong_sources": [rows[i][0] for i, r in enumerate(plain.rewards) if r != 1.0],
        "real_answers_changed_by_attack": sum(
            a != b
            for i, (a, b) in enumerate(zip(plain.rewards, under.rewards, strict=True))
            if i not in hostile
        ),
        "hostile_scored_right": int(sum(under.rewards[i] for i in places)),
        "hostile_outcomes": {
            kind: sorted({statuses[k] for k in range(len(places)) if kinds[k % len(kinds)] == kind})
            for kind in kinds
        },
        "stats_without": plain.stats,
        "stats_with": under.stats,
        "memory": _memory(under.rss_mb),
    }


def _machine() -> dict[str, Any]:
    return {
        "cpu_count": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "math_verify": version("math-verify"),
        "sympy": version("sympy"),
        "date": time.strftime("%Y-%m-%d"),
    }


def _markdown(result: dict[str, Any]) -> str:
    memory = result["memory"]
    lines = [
        "# Verifier under attack",
        "",
        f"`{result['command']}` on {result['machine']['date']}, "
        f"{result['machine']['cpu_count']} cores (load {result['machine']['load_average'][0]} at "
        f"the start), Python {result['machine']['python']}, math-verify "
        f"{result['machine']['math_verify']}.",
        "",
        "| | |",
        "|---|---|",
        f"| answers, of them hostile | {result['answers']:,}, {result['hostile']} |",
        f"| workers, time limit | {result['workers']}, {result['timeout_s']} s |",
        f"| seconds without hostile answers | {result['seconds_without']} |",
        f"| seconds with them | {result['seconds_with']} |",
        f"| expected: without + limits / workers | {result['expected_s']} |",
        f"| **ratio (target <= 1.3)** | **{result['ratio']}** |",
        f"| processor seconds of the workers without, with, ratio to without + limits | "
        f"{result['cpu_seconds_without']}, {result['cpu_seconds_with']}, {result['cpu_ratio']} |",
        f"| real answers right | {result['real_answers_right']:,} |",
        f"| real answers scored otherwise under attack | "
        f"{result['real_answers_changed_by_attack']} |",
        f"| hostile answers scored right | {result['hostile_scored_right']} |",
        f"| memory of all processes, second quarter, last quarter, peak | "
        f"{memory.get('early_mb', '-')}, {memory.get('late_mb', '-')}, "
        f"{memory.get('peak_mb', '-')} MiB |",
        "",
        "| hostile answer | outcome |",
        "|---|---|",
        *(f"| {kind} | {', '.join(o)} |" for kind, o in result["hostile_outcomes"].items()),
        "",
        f"Pool counts with hostile answers: {result['stats_with']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 answers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds for each answer")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    data_dir = Path(os.environ.get("SRFT_DATA_DIR", ROOT.parent / "shared" / "data"))
    machine = _machine()
    n = 1000 if arguments.quick else 10_000
    result = measure(n, arguments.workers, arguments.timeout, data_dir)
    result |= {
        "machine": machine,
        "command": "python " + " ".join(["benchmarks/verifier.py", *sys.argv[1:]]),
    }
    name = "verifier_quick" if arguments.quick else "verifier"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (arguments.out / f"{name}.md").write_text(_markdown(result))
    print(_markdown(result))
    memory_flat = result["memory"].get("growth", 0.0) <= 0.1
    in_time = min(result["ratio"], result["cpu_ratio"]) <= result["target_ratio"]
    wrong = result["real_answers_changed_by_attack"] + result["hostile_scored_right"]
    return 0 if in_time and memory_flat and not wrong else 1


if __name__ == "__main__":
    raise SystemExit(main())
