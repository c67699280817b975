"""Figure 2 of the paper, stated exactly: the token shift of question 6's models, over seeds.

    srft lab questions --only 6 --seeds 3 --out lab
    python -m benchmarks.lab.figure2 lab/question6 --out lab/figure2

Whose outputs are scored decides what a shift looks like. So every model answers the same held-out problems
(sampled at temperature 1), and each author is a kind of its own in `srft analyze`: the expert, the base
model, and each tuned model. ``figure2.json`` has the figures of every seed, ``seed<k>/`` the whole analysis.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srft.experiments.arm_results import t_interval
from srft.runs.files import markdown_grid

BASE = "lab"
FIGURES = {
    "changed": "changed by > 0.1",
    "absolute_change": "mean change",
    "kl_forward": "KL(base, model)",
    "kl_backward": "KL(model, base)",
    "jsd": "JSD",
    "top_changed": "other first token",
    "entropy_after": "entropy",
    "entropy_correlation": "entropy and change",
}
AUTHORS = ("the expert", "the base", "the model itself")


def measure(folder: Path, out: Path, most: int = 5, per_family: int = 5) -> dict[str, Any]:
    """Analyses the first ``most`` seeds that all arms of ``folder`` have; author -> arm -> figure -> one
    value a seed."""
    from srft.analysis.analyze import analyze

    arms = sorted(path.name for path in folder.iterdir() if path.is_dir())
    seeds = sorted(
        set.intersection(*({p.name for p in folder.glob(f"{arm}/seed*")} for arm in arms))
    )
    shifts: dict[str, Any] = {a: {m: {f: [] for f in FIGURES} for m in arms} for a in AUTHORS}
    for seed in seeds[:most]:
        models = {arm: str(folder / arm / seed) for arm in arms}
        outputs = out / seed / "outputs.jsonl"
        write_outputs({BASE: BASE, **models}, outputs, per_family)
        result = analyze([BASE, *models.values()], outputs, out / seed)
        names = dict(zip(result.models[1:], arms, strict=True))
        for shift in result.shifts:
            arm = names[shift.model]
            kinds = ("demonstration", f"output of {BASE}", f"output of {arm}")
            if shift.kind in kinds:
                for figure, values in shifts[AUTHORS[kinds.index(shift.kind)]][arm].items():
                    values.append(_figure(shift, figure))
    return {"experiment": "figure2", "seeds": len(seeds[:most]), "shifts": shifts}


def _figure(shift: Any, name: str) -> float:
    if name == "changed":
        return float(shift.changed[0.1].value)
    if name == "entropy_correlation":
        return float(shift.entropy_correlation.value)
    return float(shift.means[name].value)


def write_outputs(models: Mapping[str, str], out: Path, per_family: int) -> None:
    """One line a response: prompt, response, kind. ``models``: author -> model or run directory."""
    import torch
    from benchmarks.lab.measure import generate
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from srft.evaluation.open_model import find_model
    from srft.lab import lab_eval
    from srft.lab.tasks import ANSWER_MARK

    rows = lab_eval(per_family, tasks="lab-hard")
    prompts = [row["prompt"] for row in rows]
    said = {"demonstration": [row["demonstration"] for row in rows]}
    for author, name in models.items():
        path = find_model(name).place
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        said[f"output of {author}"] = generate(model, tokenizer, prompts)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for kind, texts in said.items():
            for row, text in zip(rows, texts, strict=True):
                right = text.rpartition(ANSWER_MARK)[2].strip() == row["answer"]
                line = {"prompt": row["prompt"], "response": text, "kind": kind}
                file.write(json.dumps({**line, "reward": float(right)}) + "\n")


def table(result: Mapping[str, Any]) -> str:
    """One row for each author and model: means over seeds, ± half of the 95 % t interval for the share
    of changed tokens."""
    head = ["scored: outputs of", "model", *FIGURES.values()]
    rows = []
    for author, models in result["shifts"].items():
        for arm, figures in models.items():
            cells = [_cell(name, values) for name, values in figures.items()]
            rows.append([author, arm.replace("-then-", "->"), *cells])
    return f"{markdown_grid(head, rows, texts=2)}\n\nSeeds: {result['seeds']}."


def _cell(name: str, values: Sequence[float]) -> str:
    mean = float(np.mean(values))
    if name not in ("changed", "top_changed"):
        return f"{mean:.3f}"
    ends = t_interval(np.array(values)) if name == "changed" else None
    half = "" if ends is None else f" ± {100 * (ends[1] - mean):.1f}"
    return f"{100 * mean:.1f}{half} %"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure the token shift of question 6's models.")
    parser.add_argument("folder", type=Path, help="question 6's folder of runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5, help="at most so many")
    parser.add_argument("--per-family", type=int, default=5)
    options = parser.parse_args()
    found = measure(options.folder, options.out, options.seeds, options.per_family)
    (options.out / "figure2.json").write_text(json.dumps(found), encoding="utf-8")
