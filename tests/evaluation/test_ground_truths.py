"""Every ground truth of the local benchmarks is right by its own verifier, and no other one is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from srft.evaluation.benchmarks import BENCHMARKS
from srft.evaluation.problems import load_benchmark
from srft.rewards.scorer import Scorer

DATA = Path(os.environ.get("SRFT_DATA_DIR", Path(__file__).parents[2] / ".." / "shared" / "data"))
LOCAL = [b for b in BENCHMARKS.values() if b.file]

pytestmark = pytest.mark.skipif(
    not (DATA / "benchmarks").is_dir(), reason="benchmark files absent: set SRFT_DATA_DIR"
)


def boxed(answer: str) -> str:
    return f"So the final answer is \\boxed{{{answer.strip().strip('$')}}}."


@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda b: b.name)
def test_every_ground_truth_verifies_against_itself(benchmark):
    examples = load_benchmark(benchmark, DATA)
    # Generous, so that a busy machine makes no wrong answer of a right one.
    with Scorer(benchmark.verifier, timeout_s=60) as scorer:
        scores = scorer.score(examples, [boxed(e.answer) for e in examples])
    refused = [(e.source, e.answer) for e, s in zip(examples, scores, strict=True) if not s.correct]
    assert refused == []


@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda b: b.name)
def test_another_problems_answer_is_wrong(benchmark):
    examples = load_benchmark(benchmark, DATA, limit=60)
    shifted = examples[1:] + examples[:1]
    with Scorer(benchmark.verifier) as scorer:
        scores = scorer.score(examples, [boxed(e.answer) for e in shifted])
    accepted = [
        (e.answer, o.answer)
        for e, o, s in zip(examples, shifted, scores, strict=True)
        if s.correct and boxed(e.answer) != boxed(o.answer)
    ]
    assert accepted == []
