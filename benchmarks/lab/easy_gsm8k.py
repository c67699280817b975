"""Short problems of GSM8K with short human-written solutions, for a small model on a CPU.

    python -m benchmarks.lab.easy_gsm8k gsm8k easy
    srft lab verdict --recipe benchmarks/lab/easy-gsm8k.yaml --seeds 3 --out gsm8k model.path=SMOLLM2 ...

``gsm8k`` is a folder with the data set's ``train.jsonl`` and ``test.jsonl``. Written are, as ``question`` and
``answer``, without the annotations ``<<48/2=24>>`` that the data set puts into its solutions:

- ``train.jsonl``: problems of the training file that take at most two calculations;
- ``held-out.jsonl``: others of the same kind, those of the test file first;
- ``three.jsonl``: problems of the test file that take exactly three.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

ANNOTATION = re.compile(r"<<[^<>]*>>")
"""A calculation in a solution, for a calculator to be called at: ``<<48/2=24>>``."""
LONGEST = 160
"""Characters that a question, and that a solution may have; for three calculations half as many again."""
TRAIN, HELD_OUT, THREE = 300, 400, 100

Problem = dict[str, str]


def calculations(solution: str) -> int:
    """How many calculations a solution of GSM8K is annotated with."""
    return len(ANNOTATION.findall(solution))


def short(
    problems: Iterable[Problem], counts: range, longest: int, taken: Iterable[Problem] = ()
) -> list[Problem]:
    """The problems with so many calculations whose question and solution have at most ``longest`` characters,
    in their order, annotations removed; each question once, and none that stands in ``taken``."""
    seen = {_words(problem["question"]) for problem in taken}
    found = []
    for problem in problems:
        solution = ANNOTATION.sub("", problem["answer"])
        fits = max(len(problem["question"]), len(solution)) <= longest
        words = _words(problem["question"])
        if fits and calculations(problem["answer"]) in counts and words not in seen:
            seen.add(words)
            found.append({"question": problem["question"], "answer": solution})
    return found


def split(train: list[Problem], test: list[Problem]) -> dict[str, list[Problem]]:
    """What goes into which file (without its ending), from GSM8K's two."""
    one_or_two = range(1, 3)
    easy = short(test, one_or_two, LONGEST)
    pool = short(train, one_or_two, LONGEST, taken=easy)
    return {
        "train": pool[:TRAIN],
        "held-out": [*easy, *pool[TRAIN:]][:HELD_OUT],
        "three": short(test, range(3, 4), LONGEST * 3 // 2)[:THREE],
    }


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def _read(path: Path) -> list[Problem]:
    # Not str.splitlines: it would also cut at U+2028 within a text.
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab.easy_gsm8k")
    parser.add_argument("gsm8k", type=Path, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("out", type=Path, help="folder to write to")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    parts = split(_read(given.gsm8k / "train.jsonl"), _read(given.gsm8k / "test.jsonl"))
    for name, problems in parts.items():
        path = given.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in problems), encoding="utf-8")
        print(f"{path}: {len(problems)} problems")


if __name__ == "__main__":
    main()
