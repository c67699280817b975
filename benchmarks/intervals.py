"""Do the 95 % intervals of an evaluation hold the truth 95 % of the time?

    python benchmarks/intervals.py [--repetitions 2000]

Problems are drawn whose chance of a right answer is beta(0.6, 1): many hard, some easy. In sets of the
sizes of the benchmarks, each problem is answered n times. Counted is how often the interval over problems
holds the mean of all such problems, the interval over samples that of these very problems, and the paired
interval the mean gain of a second model that is right 0.1 more often. Prints a Markdown table and writes
benchmarks/results/intervals.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from srft.evaluation import accuracy_statistics

SHAPES = ((30, 32), (83, 32), (200, 4), (500, 1), (1172, 1))
A, B, GAIN = 0.6, 1.0, 0.1


def true_gain() -> float:
    """Mean of min(p + GAIN, 1) - p over the population."""
    p = np.random.default_rng(0).beta(A, B, 2_000_000)
    return float((np.minimum(p + GAIN, 1) - p).mean())


def coverage(problems: int, n: int, repetitions: int, gain: float) -> list[str]:
    """Percent of repetitions in which each of the three intervals holds the truth."""
    rng = np.random.default_rng(problems)
    hits = np.zeros(3)
    for seed in range(repetitions):
        p = rng.beta(A, B, problems)
        right, better = rng.binomial(n, p), rng.binomial(n, np.minimum(p + GAIN, 1))
        over = accuracy_statistics.interval_over_problems(right / n, seed, replicates=1000)
        paired = accuracy_statistics.paired_difference(
            better / n, right / n, seed, replicates=1000
        ).interval
        hits[0] += over.low <= A / (A + B) <= over.high
        hits[2] += paired.low <= gain <= paired.high
        if n > 1:
            these = accuracy_statistics.interval_over_samples(
                np.full(problems, n), right, seed, replicates=1000
            )
            hits[1] += these.low <= p.mean() <= these.high
    shares = [f"{100 * share:.1f}" for share in hits / repetitions]
    return shares if n > 1 else [shares[0], "-", shares[2]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    gain = true_gain()
    lines = [
        f"Percent of {repetitions:,} repetitions in which the 95 % interval holds the truth.",
        "",
        "| problems, samples each | over problems | over samples | paired |",
        "|---|---|---|---|",
    ]
    for problems, n in SHAPES:
        shares = coverage(problems, n, repetitions, gain)
        lines.append(f"| {problems:,}, {n} | {' | '.join(shares)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "intervals.md").write_text(text)


if __name__ == "__main__":
    main()
