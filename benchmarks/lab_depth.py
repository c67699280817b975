"""Accuracy at the depths the base model has read, and beyond them, of the arms of a lab experiment.

    python benchmarks/lab_depth.py lab/table2 [ARM ...]

`known`: problems of the families trained on at depths that are in the base model's corpus; `deeper`: one
step more, which only training can teach. Sampled / greedy, mean over seeds and problems, in %. Reads the
runs' records (evaluation.jsonl, greedy.jsonl) of an experiment on `lab-hard`.
"""

import json
import sys
from pathlib import Path

from srft.data.data_config import DataConfig
from srft.data.reading import load_splits
from srft.lab import FAMILIES, TASK_SETS


def depth_of(family: str, demonstration: str) -> int:
    """How deep a problem is: its trace has one step a depth, or two a degree of a polynomial."""
    steps = demonstration.split(" #### ")[0].count(";") + 1
    return steps // 2 if family == "poly" else steps


def deeper_problems(limit: int) -> dict[str, list[bool]]:
    """Of each family trained on, which problems are deeper than the corpus, in evaluation's order."""
    data = DataConfig(train="lab-hard", limit=1, eval="lab-hard", eval_limit=limit)
    found: dict[str, list[bool]] = {f: [] for f in TASK_SETS["lab-hard"].inside}
    for example in next(iter(load_splits(data).eval.values())):
        family = example.columns["family"]
        if family in found:
            known = max(FAMILIES[family].depths)
            found[family].append(depth_of(family, example.demonstrations[0]) > known)
    return found


def shares(path: Path, deeper: dict[str, list[bool]]) -> tuple[list[float], list[float]]:
    """Scores at known depths and beyond, from the last line of a run's records."""
    record = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    parts: tuple[list[float], list[float]] = ([], [])
    for family, marks in deeper.items():
        for right, beyond in zip(record["correct"][family], marks, strict=True):
            parts[beyond].append(right / record["n"])
    return parts


def main(folder: Path, arms: list[str]) -> None:
    """Prints one row an arm."""
    first = next(folder.glob("*/seed0/evaluation.jsonl"), None)
    if first is None:
        raise SystemExit(f"{folder}: no run has been evaluated there yet")
    limit = json.loads(first.read_text().splitlines()[-1])
    deeper = deeper_problems(limit["n_problems"])
    count = sum(map(sum, deeper.values()))
    total = sum(map(len, deeper.values()))
    print(f"| arm | known ({total - count} problems) | deeper ({count}) |\n|---|---:|---:|")
    for arm in arms or sorted(p.name for p in folder.iterdir() if p.is_dir()):
        cells = []
        for name in ("evaluation.jsonl", "greedy.jsonl"):
            runs = [shares(p, deeper) for p in sorted(folder.glob(f"{arm}/seed*/{name}"))]
            cells.append([sum(sum(run[k], 0.0) for run in runs) for k in (0, 1)])
            sizes = [sum(len(run[k]) for run in runs) for k in (0, 1)]
            cells[-1] = [100 * cells[-1][k] / sizes[k] for k in (0, 1)]
        pairs = [f"{cells[0][k]:.1f} / {cells[1][k]:.1f}" for k in (0, 1)]
        print(f"| {arm} | {' | '.join(pairs)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
