"""Do the 95 % intervals of an evaluation hold the truth 95 % of the time?

    python benchmarks/intervals.py [--repetitions 1000]

Problems are drawn from populations with a mean chance of a right answer of 0.02 to 0.98 (`RATES`) and of
several kinds (`KINDS`: how much the chance differs from problem to problem, which is how much the samples of
one problem agree). A second model differs from the first in several ways (`SECOND`). Counted is how often

- the interval over problems holds the mean of all such problems,
- the interval over samples the mean of these very problems,
- the paired interval the mean difference of the second model,
- the intervals of the averages over benchmarks (`BENCHMARKS`) the same of those.

A cell is the lowest share over all populations, and the mean width in points. Beside the paired interval
stands Student's, the textbook's, on the same draws. All repetitions of a population are drawn and
computed together; that this is what `srft.evaluation.accuracy_statistics` computes one by one is checked on
some of them. Prints Markdown and writes benchmarks/results/intervals.md.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import beta, t

from srft.evaluation import accuracy_statistics as statistics

Array = np.ndarray
SIZES = (3, 5, 10, 20, 50)
SAMPLES = (1, 8)
RATES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)
WEIGHTS = 1000
"""Random weights behind one interval (the product draws 10,000)."""
KINDS: dict[str, float] = {
    "alike": np.inf,
    "beta, a + b = 10": 10.0,
    "beta, a + b = 1": 1.0,
    "beta, a + b = 0.2": 0.2,
    "right always or never": 0.0,
}
"""The concentration of the problems' chances around the rate."""


def chances(rng: np.random.Generator, rate: float, kind: str, shape: tuple[int, ...]) -> Array:
    concentration = KINDS[kind]
    if concentration == 0:
        return (rng.random(shape) < rate).astype(float)
    if np.isinf(concentration):
        return np.full(shape, rate)
    return rng.beta(rate * concentration, (1 - rate) * concentration, shape)


Second = Callable[[np.random.Generator, Array, float, str], Array]
SECOND: dict[str, Second] = {
    "the same": lambda rng, p, rate, kind: p,
    "0.1 better": lambda rng, p, rate, kind: np.minimum(p + 0.1, 1),
    "0.02 worse": lambda rng, p, rate, kind: np.maximum(p - 0.02, 0),
    "other problems": lambda rng, p, rate, kind: chances(rng, rate, kind, p.shape),
    "always right on one in ten": lambda rng, p, rate, kind: np.where(
        rng.random(p.shape) < 0.1, 1.0, p
    ),
    "always wrong on one in fifty": lambda rng, p, rate, kind: np.where(
        rng.random(p.shape) < 0.02, 0.0, p
    ),
}
"""The chances of the second model, from those of the first."""
BENCHMARKS: dict[str, Callable[[int, float], list[tuple[int, float]]]] = {
    "two alike": lambda size, rate: [(size, rate)] * 2,
    "five alike": lambda size, rate: [(size, rate)] * 5,
    "five, easy and hard": lambda size, rate: [(size, r) for r in (0.02, 0.1, rate, 0.9, 0.98)],
    "three, one large": lambda size, rate: [(size, rate), (10 * size, 0.5), (size, rate)],
}
"""Sizes and rates of the benchmarks that are averaged."""
HEADS = ("problems", "samples", "paired", "Student's", "average", "average, paired")


class Tally:
    """Lowest coverage and where, and widths, of each kind of interval."""

    def __init__(self) -> None:
        self.lowest = {head: (2.0, "") for head in HEADS}
        self.widths: dict[str, list[float]] = {head: [] for head in HEADS}

    def note(self, head: str, ends: tuple[Array, Array], truth: Array | float, what: str) -> None:
        low, high = ends
        share = float(((low - 1e-6 <= truth) & (truth <= high + 1e-6)).mean())
        self.lowest[head] = min(self.lowest[head], (share, what))
        self.widths[head].append(float((high - low).mean()))

    def cells(self) -> str:
        return " | ".join(
            f"{100 * self.lowest[h][0]:.1f} ({100 * np.mean(self.widths[h]):.0f})"
            if self.widths[h]
            else "-"
            for h in HEADS
        )


def possible_means(weights: Array, scores_RP: Array, lowest: float) -> tuple[Array, Array]:
    """Of each repetition the means under all weights, the unseen problem of the lowest score and of 1."""
    seen = scores_RP.astype(np.float32) @ weights[:, 1:].T
    return seen + lowest * weights[:, 0], seen + weights[:, 0]


def ends(
    weights: Sequence[Array], members: Sequence[Array], lowest: float = 0.0
) -> tuple[Array, Array]:
    """What `interval_of_average` does, for all repetitions: weights and scores_RP of each member."""
    low, high = 0.0, 0.0
    for one, scores in zip(weights, members, strict=True):
        below, above = possible_means(one, scores, lowest)
        low, high = low + below / len(members), high + above / len(members)
    tail = WEIGHTS // 40
    low = np.partition(low, tail, axis=1)[:, tail]
    return low, np.partition(high, WEIGHTS - 1 - tail, axis=1)[:, WEIGHTS - 1 - tail]


def dirichlet(rng: np.random.Generator, problems: int) -> Array:
    drawn = rng.exponential(size=(WEIGHTS, problems + 1))
    return (drawn / drawn.sum(axis=1, keepdims=True)).astype(np.float32)


def exact(scores_RP: Array) -> tuple[Array, Array]:
    """Clopper-Pearson's, which `interval_over_problems` is for scores of 0 and 1."""
    right, size = scores_RP.sum(axis=1), scores_RP.shape[1]
    low = np.where(right > 0, beta.ppf(0.025, np.maximum(right, 1), size - right + 1), 0)
    high = np.where(right < size, beta.ppf(0.975, right + 1, np.maximum(size - right, 1)), 1)
    return low, high


def over_problems(weights: Sequence[Array], scores_RP: Array) -> tuple[Array, Array]:
    certain = np.isin(scores_RP, (0, 1)).all(axis=1)
    drawn, known = ends(weights, [scores_RP]), exact(scores_RP.round())
    return np.where(certain, known[0], drawn[0]), np.where(certain, known[1], drawn[1])


def students(difference_RP: Array) -> tuple[Array, Array]:
    size = difference_RP.shape[1]
    half = t.ppf(0.975, size - 1) * difference_RP.std(axis=1, ddof=1) / np.sqrt(size)
    mean = difference_RP.mean(axis=1)
    return np.maximum(mean - half, -1), np.minimum(mean + half, 1)


def over_samples(n: int, counts_RP: Array) -> tuple[Array, Array]:
    found = [statistics.interval_over_samples(np.full(row.size, n), row) for row in counts_RP]
    return np.array([i.low for i in found]), np.array([i.high for i in found])


@functools.cache
def truth(rate: float, kind: str, better: Second) -> tuple[float, float]:
    """Mean chance of a population and mean gain of the second model."""
    many = chances(np.random.default_rng(0), rate, kind, (1_000_000,))
    if better is SECOND["other problems"] or better is SECOND["the same"]:
        return rate, 0.0
    rng = np.random.default_rng(1)
    return rate, float((better(rng, many, rate, kind) - many).mean())


def one_size(problems: int, n: int, repetitions: int) -> Tally:
    """All populations of one size."""
    rng = np.random.default_rng(problems * 100 + n)
    tally, weights = Tally(), [dirichlet(rng, problems) for _ in range(5)]
    large = dirichlet(rng, 10 * problems)
    for rate in RATES:
        for kind in KINDS:
            p = chances(rng, rate, kind, (repetitions, problems))
            counts = rng.binomial(n, p)
            single = over_problems(weights[:1], counts / n)
            tally.note("problems", single, rate, f"{rate}, {kind}")
            if n > 1:
                few = slice(repetitions // 2)
                found = over_samples(n, counts[few])
                tally.note("samples", found, p[few].mean(axis=1), f"{rate}, {kind}")
            for name, better in SECOND.items():
                ours = rng.binomial(n, better(rng, p, rate, kind))
                difference = (ours - counts) / n
                what = f"{rate}, {kind}, {name}"
                _, gain = truth(rate, kind, better)
                found = ends(weights[:1], [difference], -1.0)
                tally.note("paired", found, gain, what)
                tally.note("Student's", students(difference), gain, what)
            averages(tally, rng, (weights, large), (problems, n, rate, kind), repetitions)
    return tally


def averages(
    tally: Tally,
    rng: np.random.Generator,
    weights: tuple[Sequence[Array], Array],
    population: tuple[int, int, float, str],
    repetitions: int,
) -> None:
    """Averages over benchmarks, of accuracies and of differences."""
    problems, n, rate, kind = population
    for name, make in BENCHMARKS.items():
        members = make(problems, rate)
        used = [
            weights[0][i] if size == problems else weights[1] for i, (size, _) in enumerate(members)
        ]
        p = [chances(rng, r, kind, (repetitions, size)) for size, r in members]
        counts = [rng.binomial(n, one) for one in p]
        mean = float(np.mean([r for _, r in members]))
        scores = [one / n for one in counts]
        tally.note("average", ends(used, scores), mean, f"{rate}, {kind}, {name}")
        for second in ("the same", "always right on one in ten"):
            better = SECOND[second]
            ours = [
                rng.binomial(n, better(rng, one, r, kind))
                for one, (_, r) in zip(p, members, strict=True)
            ]
            gain = float(np.mean([truth(r, kind, better)[1] for _, r in members]))
            found = [(a - b) / n for a, b in zip(ours, counts, strict=True)]
            what = f"{rate}, {kind}, {name}, {second}"
            tally.note("average, paired", ends(used, found, -1.0), gain, what)


def processor() -> str:
    found = [
        x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")
    ]
    return found[0].partition(":")[2].strip() if found else "unknown processor"


def check() -> None:
    """The product's intervals, one by one, are what is computed here for all repetitions together."""
    rng = np.random.default_rng(0)
    for problems, n in ((3, 1), (5, 4), (30, 32)):
        weights = [dirichlet(rng, problems) for _ in range(2)]
        a, b = (rng.binomial(n, rng.beta(0.5, 1, (20, problems))) / n for _ in range(2))
        single, pair = ends(weights[:1], [a]), ends(weights[:1], [a - b], -1.0)
        both = ends(weights, [a, b])
        for row in range(20):
            for found, (low, high) in (
                (statistics.interval_over_problems(a[row]), single),
                (statistics.paired_difference(a[row], b[row]).interval, pair),
                (statistics.interval_of_average([a[row], b[row]]), both),
            ):
                assert abs(found.low - low[row]) < 0.05 and abs(found.high - high[row]) < 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions, start = parser.parse_args().repetitions, time.monotonic()
    check()
    shapes = [(p, n) for p in SIZES for n in SAMPLES]
    lines = [
        f"Percent of repetitions ({repetitions:,} of each population; half as many "
        f"over samples) in which the 95 % interval holds the truth: the lowest of "
        f"all {len(RATES) * len(KINDS)} populations of problems, times {len(SECOND)} second models "
        f"(paired), times {len(BENCHMARKS)} sets of benchmarks (averages). In brackets: mean width, points.",
        "The lowest of so many shares lies below the true one by chance alone, by up to two points.",
        "",
        f"| problems, samples each | {' | '.join(HEADS)} |\n|---|{'---|' * len(HEADS)}",
    ]
    worst: dict[str, tuple[float, str]] = dict.fromkeys(HEADS, (2.0, ""))
    for problems, n in shapes:
        tally = one_size(problems, n, repetitions)
        lines.append(f"| {problems}, {n} | {tally.cells()} |")
        print(lines[-1], flush=True)
        for head, (share, what) in tally.lowest.items():
            worst[head] = min(worst[head], (share, f"{problems} problems, {n} samples: {what}"))
    lines += ["", "Where each was lowest:", ""]
    lines += [f"- {head}: {100 * share:.1f} at {what}" for head, (share, what) in worst.items()]
    lines += ["", f"Rates: {', '.join(map(str, RATES))}. Chances of problems: {'; '.join(KINDS)}.",
              f"Second models: {'; '.join(SECOND)}. Benchmarks: {'; '.join(BENCHMARKS)}.", "",
              f"`python benchmarks/intervals.py --repetitions {repetitions}`, "
              f"{(time.monotonic() - start) / 60:.0f} minutes; {processor()}"]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "intervals.md").write_text(text)


if __name__ == "__main__":
    main()
