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


@pytest.fixture(scope="module")
def scorers():
    # A generous limit, so that a busy machine makes no wrong answer of a right one.
    with Scorer("math", timeout_s=60) as math, Scorer("choice") as choice:
        yield {"math": math, "choice": choice}


def refused(benchmark, scorers, limit: int | None) -> list[tuple[str, str | None]]:
    examples = load_benchmark(benchmark, DATA, limit=limit)
    scores = scorers[benchmark.verifier].score(examples, [boxed(e.answer) for e in examples])
    return [(e.source, e.answer) for e, s in zip(examples, scores, strict=True) if not s.correct]


@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda b: b.name)
def test_a_sample_of_ground_truths_verifies_against_itself(benchmark, scorers):
    assert refused(benchmark, scorers, 15) == []


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda b: b.name)
def test_every_ground_truth_verifies_against_itself(benchmark, scorers):
    assert refused(benchmark, scorers, None) == []


@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda b: b.name)
def test_another_problems_answer_is_wrong(benchmark, scorers):
    examples = load_benchmark(benchmark, DATA, limit=15)
    shifted = examples[1:] + examples[:1]
    scores = scorers[benchmark.verifier].score(examples, [boxed(e.answer) for e in shifted])
    accepted = [
        (e.answer, o.answer)
        for e, o, s in zip(examples, shifted, scores, strict=True)
        if s.correct and boxed(e.answer) != boxed(o.answer)
    ]
    assert accepted == []
