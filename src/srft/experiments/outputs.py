"""What models say to the same held-out problems, as responses for `srft analyze`.

    python -m srft.experiments.outputs lab q6/sft/seed0 q6/srft/seed0 --out outputs.jsonl
    srft analyze lab q6/sft/seed0 q6/srft/seed0 --data outputs.jsonl

Whose outputs are scored decides what a token shift looks like, so each author is a ``kind`` of its own:
``output of NAME`` for each model, and ``demonstration`` for the expert's traces. Sampled at temperature 1, at
which probabilities are compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from srft.evaluation.loading import find_model
from srft.lab import TASK_SETS, lab_eval
from srft.lab.measure import generate


def write_outputs(
    models: Sequence[str], out: Path, per_family: int = 10, tasks: str = "lab-hard", seed: int = 0
) -> None:
    """One line a response: prompt, response, kind. ``seed`` is that of sampling."""
    rows = lab_eval(per_family, tasks=tasks)
    prompts = [row["prompt"] for row in rows]
    lines = [
        {"prompt": p, "response": row["demonstration"], "kind": "demonstration"}
        for p, row in zip(prompts, rows, strict=True)
    ]
    for name in models:
        path = find_model(name)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        texts = generate(model, tokenizer, prompts, seed=seed)
        lines += [
            {"prompt": p, "response": text, "kind": f"output of {author(name)}"}
            for p, text in zip(prompts, texts, strict=True)
        ]
    out.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    out.write_text(text, encoding="utf-8")


def author(model: str) -> str:
    """The arm of a run of an experiment (ARM/seed0), else the last part of the path."""
    path = Path(model)
    return path.parent.name if path.name.startswith("seed") else path.name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write what models say to held-out problems.")
    parser.add_argument("models", nargs="+", help="model folders, run directories, or `lab`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-family", type=int, default=10)
    parser.add_argument("--tasks", choices=list(TASK_SETS), default="lab-hard")
    options = parser.parse_args()
    write_outputs(options.models, options.out, options.per_family, options.tasks)
