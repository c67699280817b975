"""Word problems of few templates with worked solutions, for a small model on a CPU.

    python -m benchmarks.lab.symbolic symbolic

The problems are reasoning-gym's ``gsm_symbolic``: questions of GSM8K with names and numbers drawn anew. Of
its templates those with the shortest worked solutions are taken; in the order of that length every second one
is trained on, the others are out of distribution. Written are, as ``question`` and ``answer``:

- ``train.jsonl`` and ``held-out.jsonl``: problems of the same templates, each question in one file only;
- ``other.jsonl``: problems of the other templates.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import reasoning_gym

TEMPLATES = 16
DRAWN = 12000
"""Problems that are drawn, some 140 of a template."""
TRAIN, HELD_OUT, OTHER = 30, 38, 10
"""Problems of a template in each file."""

Problem = dict[str, str]


def by_template(seed: int, count: int = DRAWN) -> list[list[Problem]]:
    """``count`` problems drawn with ``seed``, by template, each question once; first the templates with the
    shortest worked solutions on average."""
    drawn: Any = reasoning_gym.create_dataset("gsm_symbolic", size=count, seed=seed)
    templates: dict[int, dict[str, Problem]] = defaultdict(dict)
    for template, entry in zip(drawn.task_indices, drawn, strict=True):
        question = entry["question"]
        templates[template][question] = {
            "question": question,
            "answer": entry["metadata"]["answer_cot"],
        }
    distinct = (list(problems.values()) for problems in templates.values())
    return sorted(
        distinct, key=lambda problems: mean(len(problem["answer"]) for problem in problems)
    )


def split(templates: list[list[Problem]]) -> dict[str, list[Problem]]:
    """What goes into which file (without its ending). Raises ValueError where a template has too few."""
    chosen = templates[:TEMPLATES]
    short = min(len(problems) for problems in chosen)
    if short < TRAIN + HELD_OUT:
        raise ValueError(
            f"a template has {short} problems, and {TRAIN + HELD_OUT} are needed: draw more"
        )
    return {
        "train": [problem for problems in chosen[::2] for problem in problems[:TRAIN]],
        "held-out": [
            problem for problems in chosen[::2] for problem in problems[TRAIN : TRAIN + HELD_OUT]
        ],
        "other": [problem for problems in chosen[1::2] for problem in problems[:OTHER]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab.symbolic")
    parser.add_argument("out", type=Path, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, problems in split(by_template(seed=1)).items():
        path = out / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps(problem) + "\n" for problem in problems), encoding="utf-8"
        )
        print(f"{path}: {len(problems)} problems")


if __name__ == "__main__":
    main()
