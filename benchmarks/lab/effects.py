"""What each factor of a factorial experiment is worth.

    python -m benchmarks.lab.effects lab/factorial/results.json

An arm is named by the factors that are not as in the reference, with commas between; arms that are methods
are left out. The effect of a factor is the mean accuracy of the arms that have it less that of those that do
not, under one seed; shown are its mean over seeds and, from three seeds on, Student's 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from srft.experiments.arm_results import t_interval
from srft.objective.methods import METHODS
from srft.runs.files import markdown_grid

_PARTS = {"in": "in distribution", "out": "out of it"}
_KINDS = {"accuracy": "", "greedy": ", greedy"}


def effects(result: Mapping[str, Any], kind: str, part: str) -> dict[str, list[float]]:
    """Factor -> its effect on a share of right answers, under each seed that has every arm of the design.

    kind: accuracy or greedy. part: in or out.
    """
    names = [a["name"] for a in result["arms"]]
    design = {
        name: set() if name == result["reference"] else set(name.split(", "))
        for name in names
        if name == result["reference"] or name not in METHODS
    }
    found: dict[int, dict[str, float]] = {}
    for run in result["runs"]:
        if run["arm"] in design:
            found.setdefault(run["seed"], {})[run["arm"]] = run[kind][part]
    whole = [scores for _, scores in sorted(found.items()) if len(scores) == len(design)]

    def effect(factor: str, scores: Mapping[str, float]) -> float:
        sides: tuple[list[float], list[float]] = ([], [])
        for arm, score in scores.items():
            sides[factor in design[arm]].append(score)
        return fmean(sides[True]) - fmean(sides[False])

    factors = dict.fromkeys(f for name in names if name in design for f in sorted(design[name]))
    return {factor: [effect(factor, scores) for scores in whole] for factor in factors}


def table(result: Mapping[str, Any]) -> str:
    """A row a factor, in points; the largest effect in distribution first."""
    columns = [(kind, part) for part in _PARTS for kind in _KINDS]
    found = [effects(result, kind, part) for kind, part in columns]
    if not any(found[0].values()):
        raise SystemExit("no seed has a run of every arm yet: run the whole factorial")
    order = sorted(found[0], key=lambda factor: -abs(fmean(found[0][factor])))
    rows = [[factor, *(_cell(column[factor]) for column in found)] for factor in order]
    grid = markdown_grid(["factor", *(_PARTS[p] + _KINDS[k] for k, p in columns)], rows, texts=1)
    return f"{grid}\n\nSeeds: {len(found[0][order[0]])}."


def _cell(values: list[float]) -> str:
    interval = t_interval(np.array(values))
    text = f"{100 * fmean(values):+.1f}"
    return (
        text if interval is None else f"{text} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The effects of a factorial experiment.")
    parser.add_argument("results", type=Path, help="results.json of the experiment")
    options = parser.parse_args()
    print(table(json.loads(options.results.read_text(encoding="utf-8"))))
