"""Scores of lm-eval and Inspect beside ours, answer by answer.

python examples/evaluation/same_scores.py LOG...    # their samples_*.jsonl, *.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from srft.rewards.scorer import Scorer
from srft.types import Example


def answers(log: Path) -> Iterator[tuple[str, str, bool]]:
    """(right answer, response, whether the harness found it right) of each sample."""
    if log.suffix == ".jsonl":  # lm-eval: --log_samples
        for line in log.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["target"], row["resps"][0][0], row["exact_match"] == 1
    else:  # Inspect: --log-format json
        for row in json.loads(log.read_text(encoding="utf-8"))["samples"]:
            yield row["target"], row["output"]["completion"], row["scores"]["match"]["value"] == "C"


def main(logs: list[str]) -> None:
    for log in map(Path, logs):
        rows = list(answers(log))
        examples = [Example("", answer=answer) for answer, _, _ in rows]
        ours = Scorer("math").score(examples, [text for _, text, _ in rows])
        theirs = [right for _, _, right in rows]
        other = [row for row, score in zip(rows, ours, strict=True) if row[2] != score.correct]
        print(
            f"{log.name}: {len(rows)} answers, {sum(theirs)} right there, "
            f"{sum(s.correct for s in ours)} here, {len(other)} judged otherwise"
        )
        for row in other:
            print(f"  {row}")


if __name__ == "__main__":
    main(sys.argv[1:])
