"""The lab's data sets as plain rows: `prompt`, `demonstration`, `answer`, `family`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from srft.lab.tasks import FAMILIES, IN_DISTRIBUTION, Problem, make_problem

Row = dict[str, str]


def _row(problem: Problem) -> Row:
    return {
        "prompt": problem.prompt,
        "demonstration": problem.trace,
        "answer": problem.answer,
        "family": problem.family,
    }


def _distinct(family: str, count: int, seed: int, *, held_out: bool) -> list[Row]:
    """The first `count` problems of a family's stream, repeated prompts left out."""
    rows: dict[str, Row] = {}
    index = 0
    while len(rows) < count:
        problem = make_problem(family, seed, index, held_out=held_out)
        rows.setdefault(problem.prompt, _row(problem))
        index += 1
    return list(rows.values())


def lab_train(n: int = 1000, seed: int = 0) -> list[Row]:
    """`n` training problems with expert demonstrations, the in-distribution families in turn.

    The first m of them are the same for every n >= m.
    """
    families = len(IN_DISTRIBUTION)
    each = -(-n // families)
    columns = [_distinct(f, each, seed, held_out=False) for f in IN_DISTRIBUTION]
    return [columns[i % families][i // families] for i in range(n)]


def lab_eval(n_per_family: int, seed: int = 0, families: Sequence[str] = ()) -> list[Row]:
    """`n_per_family` held-out problems of each family (all of them by default), grouped by family.

    Disjoint from `lab_train` of any seed and from the pre-training corpus.

    Raises:
        ValueError: a family that does not exist.
    """
    unknown = sorted(set(families) - set(FAMILIES))
    if unknown:
        raise ValueError(f"unknown lab family {unknown[0]!r}; known: {', '.join(FAMILIES)}")
    rows: list[Row] = []
    for family in families or FAMILIES:
        rows += _distinct(family, n_per_family, seed, held_out=True)
    return rows


def write_jsonl(rows: Iterable[Row], path: str | Path) -> None:
    """One JSON object a line."""
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
