"""Every ground truth of the local benchmarks is right by its own verifier in several spellings, and no
other one is."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest

from srft.evaluation.benchmarks import BENCHMARKS
from srft.evaluation.problems import load_benchmark
from srft.rewards.audit import other_spelling
from srft.rewards.quantities import as_number
from srft.rewards.scorer import Scorer

LOCAL = [b for b in BENCHMARKS.values() if b.file and b.name not in ("gpqa_diamond", "mmlu_pro")]


def boxed(answer: str) -> str:
    return f"So the final answer is \\boxed{{{answer.strip().strip('$')}}}."


@pytest.fixture(scope="module")
def scorers():
    # A generous limit, so that a busy machine makes no wrong answer of a right one.
    with Scorer("math", timeout_s=60) as math, Scorer("choice") as choice:
        yield {"math": math, "choice": choice}


def spellings(example, verifier: str) -> list[str]:
    """The ground truth as it stands, as the self-check spells it a second time, and numbers by value."""
    found = [example.answer.strip().strip("$"), other_spelling(example, verifier)]
    number = as_number(example.answer)
    if verifier == "math" and number is not None:
        python = repr(float(number))  # 3e+33, 1e-05
        if Fraction(python) == number:
            found += [python, f"{Decimal(python):E}", f"${Decimal(python):f}$"]
    return [text for text in found if text is not None]


def refused(benchmark, folder, scorers, limit: int | None) -> list[tuple[str, str]]:
    examples = load_benchmark(benchmark, folder, limit=limit)
    pairs = [(e, boxed(s)) for e in examples for s in spellings(e, benchmark.verifier)]
    assert len(pairs) >= 2 * len(examples)
    scores = scorers[benchmark.verifier].score([e for e, _ in pairs], [text for _, text in pairs])
    return [(e.source, text) for (e, text), s in zip(pairs, scores, strict=True) if not s.correct]


@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda b: b.name)
def test_a_sample_of_ground_truths_verifies_in_several_spellings(benchmark, real_data, scorers):
    assert refused(benchmark, real_data, scorers, 15) == []


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda b: b.name)
def test_every_ground_truth_verifies_in_several_spellings(benchmark, real_data, scorers):
    assert refused(benchmark, real_data, scorers, None) == []


@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda b: b.name)
def test_another_problems_answer_is_wrong(benchmark, real_data, scorers):
    examples = load_benchmark(benchmark, real_data, limit=15)
    shifted = examples[1:] + examples[:1]
    scores = scorers[benchmark.verifier].score(examples, [boxed(e.answer) for e in shifted])
    accepted = [
        (e.answer, o.answer)
        for e, o, s in zip(examples, shifted, scores, strict=True)
        if s.correct and boxed(e.answer) != boxed(o.answer)
    ]
    assert accepted == []
