"""Two models on the same problems: paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from srft.errors import DataError
from srft.evaluation import accuracy_statistics
from srft.evaluation.accuracy_statistics import Interval, PairedDifference
from srft.evaluation.results import EvaluationResult

AnyResult = EvaluationResult | Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One benchmark: accuracies of a and b over the problems that both were asked, and a - b.

    ``left_out``: problems that only one of them was asked.
    """

    name: str
    a: float
    b: float
    difference: PairedDifference
    left_out: int


@dataclass(frozen=True)
class ComparisonTable:
    """All benchmarks that both models have, and the average of the differences."""

    label_a: str
    label_b: str
    rows: tuple[Comparison, ...]
    average: Interval

    def as_dict(self) -> dict[str, Any]:
        """The table for scripts; shares of 1."""
        return {
            "a": self.label_a,
            "b": self.label_b,
            "benchmarks": {row.name: asdict(row) for row in self.rows},
            "average": asdict(self.average),
        }

    def markdown(self) -> str:
        """The table as Markdown; accuracies and differences in percent points."""
        a, b = self.label_a, self.label_b
        lines = [
            f"a = {a}, b = {b}. Difference a - b in percentage points with its "
            f"{self.average.confidence:.0%} interval (over problems), p of a sign-flip test, "
            "and on how many problems a scores higher or lower.",
            "",
            "| benchmark | problems | a | b | a - b | interval | p | higher / lower |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            d = row.difference
            count = f"{d.problems}" + (f" ({row.left_out} left out)" if row.left_out else "")
            lines.append(
                f"| {row.name} | {count} | {100 * row.a:.1f} | {100 * row.b:.1f} "
                f"| {_signed(d.interval)} | {d.p_value:.3g} | {d.wins} / {d.losses} |"
            )
        if len(self.rows) > 1:
            a_mean = sum(row.a for row in self.rows) / len(self.rows)
            b_mean = sum(row.b for row in self.rows) / len(self.rows)
            lines.append(
                f"| average | | {100 * a_mean:.1f} | {100 * b_mean:.1f} "
                f"| {_signed(self.average)} | | |"
            )
        return "\n".join(lines) + "\n"


def _signed(interval: Interval) -> str:
    low, high = 100 * interval.low, 100 * interval.high
    return f"{100 * interval.estimate:+.1f} | {low:+.1f} to {high:+.1f}"


def compare(
    result_a: AnyResult, result_b: AnyResult, seed: int = 0, confidence: float = 0.95
) -> ComparisonTable:
    """The paired difference of two models, benchmark by benchmark.

    Each argument is one ``EvaluationResult``, or what ``results.json`` holds (``load_results``).
    Problems are the same if their text and answer are, whatever the tokenizer or template.

    Raises:
        DataError: they have no benchmark, or in one of them no problem, in common.
    """
    label_a, sets_a = _sets(result_a)
    label_b, sets_b = _sets(result_b)
    names = [name for name in sets_a if name in sets_b]
    if not names:
        raise DataError(
            f"nothing to compare: {label_a} has {', '.join(sets_a)}, {label_b} has "
            f"{', '.join(sets_b)}. Evaluate both on the same benchmark."
        )
    rows, differences = [], []
    for name in names:
        a, b = sets_a[name], sets_b[name]
        common = sorted(a.keys() & b.keys())
        if not common:
            raise DataError(
                f"{name}: the two results share no problem. {_why(name, result_a, result_b)}"
            )
        score_a, score_b = [a[i] for i in common], [b[i] for i in common]
        found = accuracy_statistics.paired_difference(score_a, score_b, seed, confidence)
        differences.append(accuracy_statistics.paired(score_a, score_b))
        mean_a, mean_b = sum(score_a) / len(common), sum(score_b) / len(common)
        left_out = len(a.keys() ^ b.keys())
        rows.append(Comparison(name, mean_a, mean_b, found, left_out))
    average = accuracy_statistics.interval_of_average(differences, seed, confidence, lowest=-1.0)
    return ComparisonTable(label_a, label_b, tuple(rows), average)


def _why(name: str, *results: AnyResult) -> str:
    """Why two results on a benchmark are on no problem in common."""
    plain = [r for r in results if not isinstance(r, EvaluationResult)]
    made = [r["benchmarks"][name].get("made", r.get("settings", {})) for r in plain]
    prompts = [one.get("system_prompt") for one in made]
    if len({*prompts}) > 1:
        told = " and ".join("the data's own" if p is None else repr(p[:80]) for p in prompts)
        return (
            f"Their system prompts differ ({told}), and with them what is asked: use one for both."
        )
    seeds = {one.get("seed") for one in made}
    places = [r.get("sources", {}).get(name) for r in plain]
    if len(seeds) < 2 and len({*places}) > 1:
        return f"They were read at {' and '.join(map(str, places))}: read both at one place."
    return (
        "With other seeds other problems are drawn under a limit, and the options of multiple-choice "
        "questions stand in another order: use one seed for both."
    )


def _sets(result: AnyResult) -> tuple[str, dict[str, dict[str, float]]]:
    """A label, and for each benchmark the score of each problem."""
    if isinstance(result, EvaluationResult):
        label = str(result.settings.get("weights", result.name))
        return label, {result.name: {p.id: p.score for p in result.problems}}
    sets = {
        name: {i: p["correct"] / p["n"] for i, p in found["problems"].items()}
        for name, found in result["benchmarks"].items()
    }
    return str(result.get("model", "model")), sets
