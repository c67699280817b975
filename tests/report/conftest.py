"""Run directories of any size from the records of a real run."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from srft.runs.files import read_jsonl

HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><img src=x onerror=window.pwned=1>",
    "<!--<script>",
    "‮מימין לשמאל‬ 👩‍🔬🎉 \u2028 \x00 é",
    "{{DATA}} ${x} \\u003c &lt;b&gt;",
)


def metric(template: dict[str, Any], step: int, total: int, rng: random.Random) -> dict[str, Any]:
    """A step under the keys of a real one, its figures moved so that curves bend."""
    grown = 1 + 0.5 * step / max(1, total)
    moved = {
        key: value * grown * rng.uniform(0.95, 1.05) if isinstance(value, float) else value
        for key, value in template.items()
    }
    totals = {key: 100.0 * step for key in template if key.startswith("total/")}
    # A figure that does not exist at this step.
    return {**moved, **totals, "step": step, "mismatch/abs": None}


def response(
    template: dict[str, Any], rng: random.Random, kind: str, words: list[str], correct: bool
) -> dict[str, Any]:
    n = len(words)
    logprob = [-round(rng.random() ** 3, 5) for _ in range(n)]
    return {
        **template,
        "token_ids": list(range(n)),
        "kind": kind,
        "text": "".join(words),
        "reward": 1.0 if correct else 0.0,
        "correct": correct,
        "truncated": False,
        "advantage": rng.gauss(0, 1),
        "tokens": words,
        "logprob": logprob,
        "entropy": [round(2 * rng.random() ** 2, 5) for _ in range(n)],
        "loss": [round(0.02 * rng.random() - 0.01, 5) for _ in range(n)],
    }


def sample(
    template: dict[str, Any], rng: random.Random, step: int, row: int, rollouts: int, tokens: int
) -> dict[str, Any]:
    """A group of the form of a real one, of any size, some with hostile texts."""
    vocabulary = [" so", " 3", " +", " 4", " =", " 7", " ;", "\n", " wait", " x", " then", " #"]
    if row % 7 == 0:
        vocabulary = [*vocabulary, *HOSTILE]

    def words() -> list[str]:
        return [rng.choice(vocabulary) for _ in range(max(1, int(rng.gauss(tokens, tokens / 4))))]

    hostile = HOSTILE[row % len(HOSTILE)] if row % 7 == 0 else ""
    real = template["responses"][0]
    return {
        **template,
        "step": step,
        "prompt": f"a = 3 + 4 ; b = a * {row} ; b ? {hostile}",
        "asked": f"a = 3 + 4 ; b = a * {row} ; b ? {hostile}",
        "answer": str(row % 10),
        "source": f"train.jsonl:{row}",
        "columns": {"family": ("chain", "story", "dot")[row % 3]},
        "responses": [
            response(real, rng, "demonstration", words(), True),
            *(response(real, rng, "rollout", words(), rng.random() < 0.4) for _ in range(rollouts)),
        ],
    }


def write_jsonl(path: Path, records: list[Any]) -> None:
    path.write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8"
    )


def build_run(
    real: Path,
    path: Path,
    *,
    method: str = "srft",
    steps: int = 60,
    seed: int = 0,
    groups: int = 12,
    rollouts: int = 4,
    tokens: int = 30,
) -> Path:
    """A finished run directory without model and checkpoints, of any length, from the records of the
    ``real`` one."""
    rng = random.Random(f"{method}/{seed}")
    path.mkdir(parents=True)
    config = yaml.safe_load((real / "config.yaml").read_text())
    config["train"] |= {"steps": steps, "seed": seed}
    config["run"]["dir"] = str(path)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(real / "environment.json", path)
    rows = read_jsonl(real / "metrics.jsonl")
    write_jsonl(
        path / "metrics.jsonl",
        [metric(rows[s % len(rows)], s, steps, rng) for s in range(1, steps + 1)],
    )
    evaluations = read_jsonl(real / "evaluation.jsonl")
    at = sorted({0, steps // 2, steps})
    write_jsonl(
        path / "evaluation.jsonl",
        [{**evaluations[0], "step": s, "accuracy": 0.25 + 0.4 * s / steps} for s in at],
    )
    template = read_jsonl(real / "samples.jsonl")[0]
    write_jsonl(
        path / "samples.jsonl",
        [
            sample(template, rng, 1 + g * steps // max(1, groups), g, rollouts, tokens)
            for g in range(groups)
        ],
    )
    warning = {"step": 3, "level": "warning", "message": f"3 rollouts were cut {HOSTILE[0]}"}
    write_jsonl(path / "events.jsonl", [warning])
    return path


@pytest.fixture
def make_run(tmp_path: Path, real_run: Callable[[str], Path]) -> Callable[..., Path]:
    """``make_run("name", method=..., steps=..., seed=..., groups=...)`` -> run directory."""

    def make(name: str = "run", method: str = "srft", **options: Any) -> Path:
        return build_run(real_run(method), tmp_path / name, method=method, **options)

    return make
