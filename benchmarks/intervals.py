"""Do the 95 % intervals of an evaluation hold the truth 95 % of the time?

    python benchmarks/intervals.py [--repetitions 2000]

Problems are drawn from populations of several kinds (`POPULATIONS`, by their chance of a right answer) and
each is answered n times, in five benchmarks of the same size. Counted is how often

- the interval over problems holds the mean of all such problems,
- the interval over samples that of these very problems,
- the paired interval the mean gain of a second model that is right 0.1 more often (never more than always),
- the intervals of the averages over the five benchmarks the same of those.

A cell is the lowest and the highest share over the populations. Prints a Markdown table and writes
benchmarks/results/intervals.md.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from srft.evaluation.accuracy_statistics import (
    Interval,
    average_difference,
    interval_of_average,
    interval_over_problems,
    interval_over_samples,
    paired_difference,
)

SIZES = (2, 3, 5, 10, 20, 30)
SHAPES = (*((p, n) for p in SIZES for n in (1, 4, 32)), (83, 32), (200, 4), (500, 1), (1172, 1))
GAIN, BENCHMARKS = 0.1, 5
Draw = Callable[[np.random.Generator, int], np.ndarray]
Better = Callable[[np.ndarray, np.random.Generator], np.ndarray]
POPULATIONS: dict[str, Draw] = {
    "many hard, some easy: beta(0.6, 1)": lambda rng, size: rng.beta(0.6, 1.0, size),
    "nearly all hard: beta(0.1, 2)": lambda rng, size: rng.beta(0.1, 2.0, size),
    "nearly all easy: beta(2, 0.2)": lambda rng, size: rng.beta(2.0, 0.2, size),
    "hard or easy, little between: beta(0.2, 0.2)": lambda rng, size: rng.beta(0.2, 0.2, size),
    "alike: beta(5, 5)": lambda rng, size: rng.beta(5.0, 5.0, size),
    "all of chance 0.05": lambda rng, size: np.full(size, 0.05),
    "all of chance 0.9": lambda rng, size: np.full(size, 0.9),
}
KINDS = ("over problems", "over samples", "paired", "average of five", "average of five, paired")


def everywhere(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The second model's chances: a little better on every problem."""
    return np.minimum(p + GAIN, 1)


def on_one_in_ten(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Nothing on most problems, everything on a few."""
    return np.where(rng.random(p.size) < 0.1, 1.0, p)


@functools.cache
def truth(draw: Draw, better: Better) -> tuple[float, float]:
    """Mean chance of a population and mean gain of the second model."""
    many = draw(np.random.default_rng(0), 2_000_000)
    return float(many.mean()), float((better(many, np.random.default_rng(1)) - many).mean())


def coverage(draw: Draw, better: Better, problems: int, n: int, repetitions: int) -> np.ndarray:
    """Shares of intervals that hold the truth, in the order of KINDS; NaN where there is none."""
    mean, gain = truth(draw, better)
    rng = np.random.default_rng(problems * 100 + n)
    hits = np.zeros(len(KINDS))
    for repetition in range(repetitions):
        scores, pairs = [], []
        for _ in range(BENCHMARKS):
            p = draw(rng, problems)
            ours, theirs = rng.binomial(n, better(p, rng)), rng.binomial(n, p)
            scores.append(theirs / n)
            pairs.append(paired_difference(ours / n, theirs / n, replicates=1).interval)
        hits[0] += holds(interval_over_problems(scores[0], repetition, replicates=1000), mean)
        hits[1] += n > 1 and holds(interval_over_samples(np.full(problems, n), theirs), p.mean())
        hits[2] += holds(pairs[0], gain)
        hits[3] += holds(interval_of_average(scores, repetition, replicates=1000), mean)
        hits[4] += holds(average_difference(pairs), gain)
    shares = hits / repetitions
    shares[1] = shares[1] if n > 1 else np.nan
    return shares


def holds(interval: Interval, truth: float) -> bool:
    """Whether the truth lies inside, up to rounding."""
    return interval.low - 1e-9 <= truth <= interval.high + 1e-9


def cells(shares: np.ndarray) -> str:
    """Lowest and highest share over the populations (rows), in percent, as cells of a table."""
    said = []
    for column in 100 * shares.T:
        low, high = column.min(), column.max()
        said.append("-" if np.isnan(low) else f"{low:.1f} to {high:.1f}")
    return " | ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    heads = f"| problems, samples each | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}"
    lines = [
        f"Percent of {repetitions:,} repetitions in which the 95 % interval holds the truth: the lowest "
        f"and the highest over {len(POPULATIONS)} populations of problems.",
        "",
        heads,
    ]
    for problems, n in SHAPES:
        rows = [coverage(d, everywhere, problems, n, repetitions) for d in POPULATIONS.values()]
        lines.append(f"| {problems:,}, {n} | {cells(np.array(rows))} |")
        print(lines[-1], flush=True)
    lines += ["", "Populations, by the chance of a right answer:", ""]
    lines += [f"- {name}" for name in POPULATIONS]
    lines += [
        "",
        "What the paired interval cannot hold: a second model that is always right on one problem in "
        "ten and the same on the others (first population), where no such problem was among those seen.",
        "",
        "| problems, samples each | paired | average of five, paired |\n|---|---|---|",
    ]
    hard = next(iter(POPULATIONS.values()))
    for problems, n in ((p, n) for p in (10, 30, 200) for n in (1, 32)):
        shares = 100 * coverage(hard, on_one_in_ten, problems, n, repetitions)
        lines.append(f"| {problems}, {n} | {shares[2]:.1f} | {shares[4]:.1f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "intervals.md").write_text(text)


if __name__ == "__main__":
    main()
