"""The difference of two arms of different experiments on the same problems, paired by seed and problem.

    python -m benchmarks.lab.between RECORD ARM RECORD ARM

subtracts the second from the first; RECORD is an experiment's ``runs.jsonl``, or one of
``benchmarks/results/lab/records``.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from srft.errors import ConfigError
from srft.experiments.arm_results import PARTS, Difference, compare


def differences(
    record: Path, arm: str, other: Path, other_arm: str
) -> dict[tuple[str, str], Difference]:
    """(``scores`` or ``greedy``, part) -> ``arm`` minus ``other_arm`` over the seeds that both have.

    Raises:
        ConfigError: no such arm, or no seed in common.
    """
    ours, theirs = _runs(record, arm), _runs(other, other_arm)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ConfigError(f"{arm!r} in {record} and {other_arm!r} in {other} share no seed")

    def stack(runs: dict[int, Any], kind: str, part: str) -> np.ndarray:
        families = sorted(runs[seeds[0]][kind][part])
        return np.array(
            [[s for f in families for s in runs[seed][kind][part][f]] for seed in seeds]
        )

    return {
        (kind, part): compare(stack(ours, kind, part), stack(theirs, kind, part))
        for kind in ("scores", "greedy")
        for part in PARTS
    }


def _runs(path: Path, arm: str) -> dict[int, Any]:
    """Seed -> the line of its run."""
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as lines:
        return {run["seed"]: run for run in map(json.loads, lines) if run["arm"] == arm}


def main(record: str, arm: str, other: str, other_arm: str) -> None:
    found = differences(Path(record), arm, Path(other), other_arm)
    for (kind, part), difference in found.items():
        estimate = difference.estimate
        ends = [
            f"{100 * end:+.1f}" for end in (*(estimate.seeds or ()), *(estimate.problems or ()))
        ]
        print(f"{kind} {part}: {100 * estimate.mean:+.1f}", *ends)
    print(
        "Points; ends of the 95 % intervals, over seeds where there are several, and over problems."
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
