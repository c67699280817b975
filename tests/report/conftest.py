"""Run directories made by hand: what the trainer would write, without training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

HOSTILE = (
    "<script>window.pwned=1</script>",
    "</script><img src=x onerror=window.pwned=1>",
    "<!--<script>",
    "‮מימין לשמאל‬ 👩‍🔬🎉 \u2028 \x00 é",
    "{{DATA}} ${x} \\u003c &lt;b&gt;",
)


def metric(step: int, total: int, rng: random.Random, seed: int, method: str) -> dict[str, Any]:
    x = step / max(1, total)
    noise = rng.gauss
    accuracy = min(
        1.0, max(0.0, 0.22 + 0.5 * (1 - math.exp(-3 * x)) + noise(0, 0.03) + 0.01 * seed)
    )
    entropy = 0.75 - 0.25 * x + noise(0, 0.02)
    return {
        "step": step,
        "method": method,
        "stage": 0,
        "loss": 0.6 - 0.3 * x + noise(0, 0.03),
        "loss/sft": 0.35 - 0.15 * x + noise(0, 0.01),
        "loss/demo_rl": -0.1 - 0.1 * x + noise(0, 0.01),
        "loss/rollout": 0.1 * noise(0, 0.3),
        "loss/all_sft": 0.35 - 0.15 * x,
        "loss/all_rl": -0.1 - 0.1 * x,
        "reward/mean": accuracy,
        "reward/accuracy": accuracy,
        "rollout/entropy": entropy,
        "rollout/length_mean": 14 + 22 * x + noise(0, 1),
        "rollout/truncated": 0.02,
        "groups/all_right": accuracy**3,
        "groups/all_wrong": (1 - accuracy) ** 3,
        "groups/equal_reward": accuracy**3 + (1 - accuracy) ** 3,
        "demo/reward_mean": 1.0,
        "demo/length_mean": 38.0 + noise(0, 1),
        "weight/sft": 0.5 * math.exp(-entropy),
        "weight/sft/min": 0.02,
        "weight/sft/max": 0.5,
        "weight/rl": 0.1 * math.exp(entropy),
        "weight/rl/min": 0.1,
        "weight/rl/max": 0.1 * math.exp(entropy + 1),
        "entropy/demos": entropy + 0.2,
        "entropy/rollouts": entropy,
        "train/gradient_norm": abs(1.1 - 0.5 * x + noise(0, 0.15)),
        "train/tokens": 8000.0,
        "train/response_tokens": 5200.0,
        "learning_rate": 3e-5,
        "mismatch/abs": None,
        "time/generate": 2.1 + 0.8 * x + abs(noise(0, 0.1)),
        "time/score": 0.2,
        "time/train": 1.4 + abs(noise(0, 0.1)),
        "time/sync": 0.02,
        "time/other": 0.08,
        "time/step": 3.8 + 0.8 * x,
        "tokens_per_second": 2100.0,
        "total/rollout_tokens": 2800.0 * step,
        "total/trained_tokens": 8000.0 * step,
        "total/seconds": 4.0 * step,
    }


def response(rng: random.Random, kind: str, words: list[str], correct: bool) -> dict[str, Any]:
    n = len(words)
    logprob = [-round(rng.random() ** 3, 5) for _ in range(n)]
    return {
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


def sample(rng: random.Random, step: int, row: int, rollouts: int, tokens: int) -> dict[str, Any]:
    vocabulary = [" so", " 3", " +", " 4", " =", " 7", " ;", "\n", " wait", " x", " then", " #"]
    if row % 7 == 0:
        vocabulary = [*vocabulary, *HOSTILE]

    def words() -> list[str]:
        return [rng.choice(vocabulary) for _ in range(max(1, int(rng.gauss(tokens, tokens / 4))))]

    hostile = HOSTILE[row % len(HOSTILE)] if row % 7 == 0 else ""
    return {
        "step": step,
        "prompt": f"a = 3 + 4 ; b = a * {row} ; b ? {hostile}",
        "answer": str(row % 10),
        "source": f"train.jsonl:{row}",
        "columns": {"family": ("chain", "story", "dot")[row % 3]},
        "responses": [
            response(rng, "demonstration", words(), True),
            *(response(rng, "rollout", words(), rng.random() < 0.4) for _ in range(rollouts)),
        ],
    }


def write_jsonl(path: Path, records: list[Any]) -> None:
    path.write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8"
    )


def build_run(
    path: Path,
    *,
    method: str = "srft",
    steps: int = 60,
    seed: int = 0,
    groups: int = 12,
    rollouts: int = 4,
    tokens: int = 30,
) -> Path:
    """A finished run directory without model and checkpoints."""
    rng = random.Random(f"{method}/{seed}")
    path.mkdir(parents=True)
    config = {
        "method": method,
        "model": {"path": "lab"},
        "train": {"steps": steps, "seed": seed, "learning_rate": 3e-5},
        "rollout": {"group_size": rollouts},
        "run": {"dir": str(path)},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "versions": {"srft": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "machine": {"system": "Linux", "cores": 2, "device": "cpu"},
        "started": "2026-11-23T14:00:00",
        "command": f"srft train recipe.yaml method={method}",
    }
    (path / "environment.json").write_text(json.dumps(environment))
    write_jsonl(
        path / "metrics.jsonl", [metric(s, steps, rng, seed, method) for s in range(1, steps + 1)]
    )
    families = ("chain", "program", "story", "dot")
    write_jsonl(
        path / "evaluation.jsonl",
        [
            {
                "step": s,
                "name": "eval",
                "accuracy": 0.25 + 0.4 * s / steps,
                "n_problems": 200,
                "by_family": {
                    f: min(1, 0.2 + 0.1 * i + 0.4 * s / steps) for i, f in enumerate(families)
                },
                "length_mean": 20.0,
                "truncated": 0.01,
                "interval": [0.2 + 0.4 * s / steps, 0.3 + 0.4 * s / steps],
            }
            for s in (0, steps // 2, steps)
        ],
    )
    write_jsonl(
        path / "samples.jsonl",
        [sample(rng, 1 + g * steps // max(1, groups), g, rollouts, tokens) for g in range(groups)],
    )
    write_jsonl(
        path / "events.jsonl",
        [{"step": 3, "level": "warning", "message": f"3 rollouts were cut {HOSTILE[0]}"}],
    )
    return path


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run("name", method=..., steps=..., seed=..., groups=...)`` -> run directory."""

    def make(name: str = "run", **options: Any) -> Path:
        return build_run(tmp_path / name, **options)

    return make
