"""The lab's demonstrations in a style of the expert's own, the solutions unchanged.

    python -m benchmarks.lab.restyle styled.jsonl
    srft lab beyond --seeds 3 --out styled data.train=styled.jsonl

The base model has read worked solutions in the lab's notation, so that the expert speaks as the policy does.
Here the same steps are written with other words: `v is 9 * 7 is 3 . c is 3 * 7 is 1 #### 1` in place of
`v = 9 * 7 = 3 ; c = 3 * 7 = 1 #### 1`. Prints how surprised the base model is by either.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.lab.measure import demonstration_ids, loss_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from srft.lab import base_model_path
from srft.lab.data import Row, lab_train

WORDS = {"=": "is", ":": "is", ";": "."}
"""What the lab writes -> what this expert writes; all of them are words of the base model's vocabulary."""


def restyle(demonstration: str) -> str:
    """The same solution in the expert's own words."""
    return " ".join(WORDS.get(word, word) for word in demonstration.split())


def surprise(rows: Sequence[Row]) -> float:
    """Mean of -log p of a demonstration's tokens under the base model, nats; the end token not counted."""
    path = base_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return loss_of(model, demonstration_ids(tokenizer, rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab.restyle")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", default="lab-hard")
    parser.add_argument("--n", type=int, default=400)
    given = parser.parse_args()
    rows = lab_train(given.n, tasks=given.tasks)
    styled = [{**row, "demonstration": restyle(row["demonstration"])} for row in rows]
    given.out.write_text("".join(json.dumps(row) + "\n" for row in styled), encoding="utf-8")
    print(f"{given.out}: {len(styled)} rows; {styled[0]['demonstration']}")
    print(
        f"nats a token under the base model: {surprise(rows):.2f}, restyled {surprise(styled):.2f}"
    )


if __name__ == "__main__":
    main()
