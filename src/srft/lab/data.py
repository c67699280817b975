"""The lab's data sets as plain rows: `prompt`, `demonstration`, `answer`, `family`."""

from __future__ import annotations

from collections.abc import Sequence

from srft.lab.tasks import TASK_SETS, Problem, make_problem

Row = dict[str, str]


def _row(problem: Problem) -> Row:
    return {
        "prompt": problem.prompt,
        "demonstration": problem.trace,
        "answer": problem.answer,
        "family": problem.family,
    }


def _distinct(
    family: str, depths: tuple[int, ...], count: int, seed: int, *, held_out: bool
) -> list[Row]:
    """The first `count` problems of a family's stream, repeated prompts left out."""
    rows: dict[str, Row] = {}
    index = 0
    while len(rows) < count:
        problem = make_problem(family, seed, index, held_out=held_out, depths=depths)
        rows.setdefault(problem.prompt, _row(problem))
        index += 1
    return list(rows.values())


def lab_train(n: int = 1000, seed: int = 0, tasks: str = "lab") -> list[Row]:
    """`n` training problems with expert demonstrations, the families trained on in turn. `tasks` is a
    name of `TASK_SETS`.

    The first m of them are the same for every n >= m.
    """
    inside = TASK_SETS[tasks].inside
    each = -(-n // len(inside))
    columns = [_distinct(f, d, each, seed, held_out=False) for f, d in inside.items()]
    return [columns[i % len(inside)][i // len(inside)] for i in range(n)]


def lab_eval(
    n_per_family: int, seed: int = 0, families: Sequence[str] = (), tasks: str = "lab"
) -> list[Row]:
    """`n_per_family` held-out problems of each family of `tasks` (or of `families` alone), grouped by
    family, those trained on first.

    Disjoint from `lab_train` of any seed and set, and from the pre-training corpus.

    Raises:
        ValueError: a family that does not exist.
    """
    known = TASK_SETS[tasks].families
    unknown = sorted(set(families) - set(known))
    if unknown:
        raise ValueError(f"unknown lab family {unknown[0]!r}; known: {', '.join(known)}")
    rows: list[Row] = []
    for family in families or known:
        rows += _distinct(family, known[family], n_per_family, seed, held_out=True)
    return rows
