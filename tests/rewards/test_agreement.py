"""Our `math` says what math-verify says when called directly, on real data and on odd answers."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
from math_verify import parse, verify

from srft.rewards.audit import check_answers, check_demonstrations
from srft.rewards.scorer import Scorer
from srft.rewards.verifiers import math_completion_text
from srft.types import Example

logging.getLogger("math_verify").setLevel(logging.CRITICAL)


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer("math", workers=2, timeout_s=10.0) as made:
        yield made


def _direct(answer: str, text: str) -> float:
    return float(verify(parse(rf"\boxed{{{answer}}}"), parse(text)))


def _ours(scorer: Scorer, pairs: list[tuple[str, str]]) -> list[float]:
    examples = [Example(prompt="q", answer=answer) for answer, _ in pairs]
    return [score.reward for score in scorer.score(examples, [text for _, text in pairs])]


ODD: list[tuple[str, str]] = [
    (r"\frac{1}{2}", r"\boxed{0.5}"),
    (r"\frac{1}{2}", r"$\frac{2}{4}$"),
    ("1/2", "the answer is 1/2"),
    ("0.333333", r"\boxed{1/3}"),
    (r"(0, 1]", r"\boxed{(0,1]}"),
    (r"(0, 1]", r"\boxed{[0,1]}"),
    (r"[-1, 1]", r"$-1 \le x \le 1$"),
    (r"(-\infty, 2) \cup (3, \infty)", r"\boxed{(-\infty,2)\cup(3,\infty)}"),
    (r"\{1, 2, 3\}", r"\boxed{\{3, 2, 1\}}"),
    ("1, 2, 3", r"\boxed{1,2,3}"),
    ("1, 2", r"\boxed{1} and \boxed{2}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
     r"\boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 2 \\ 1 \end{pmatrix}}"),
    (r"5 \text{ cm}", r"\boxed{5}"),
    ("5", r"\boxed{5\text{ meters}}"),
    (r"50\%", r"\boxed{50}"),
    (r"50\%", r"\boxed{0.5}"),
    ("50", "50 percent"),
    (r"3\frac{1}{2}", r"\boxed{3.5}"),
    (r"3\frac{1}{2}", r"\boxed{\frac{7}{2}}"),
    (r"2\sqrt{3}", r"\boxed{\sqrt{12}}"),
    ("x^2 + 2x + 1", r"\boxed{(x+1)^2}"),
    ("x = 3", r"\boxed{3}"),
    ("3", r"\boxed{x = 3}"),
    ("y = 2x + 1", r"\boxed{2x - y + 1 = 0}"),
    (r"\text{east}", r"\boxed{east}"),
    (r"\text{east}", r"\boxed{\text{west}}"),
    ("1,000", r"\boxed{1000}"),
    (r"10^{3}", r"\boxed{1000}"),
    ("3", r"\boxed{3} so not \boxed{4}"),
    ("3", r"unclosed \boxed{3"),
    ("3", r"\boxed{"),
    ("i", r"\boxed{\sqrt{-1}}"),
    (r"\pi", "3.14159265"),
    ("12", "no number at all"),
    ("12", "twelve is 12."),
    (r"90^\circ", r"\boxed{90}"),
    ("A", r"\boxed{\text{A}}"),
    ("(B)", r"\boxed{B}"),
    ("-5", "\\boxed{\u22125}"),
]  # fmt: skip


def test_odd_answers_get_the_verdict_math_verify_gives(scorer: Scorer) -> None:
    ours = _ours(scorer, ODD)
    direct = [_direct(answer, text) for answer, text in ODD]
    assert [p for p, a, b in zip(ODD, ours, direct, strict=True) if a != b] == []
    assert 0.3 < sum(ours) / len(ours) < 0.9


def test_gsm8k_solutions_all_verify_and_differ_from_math_verify_only_where_it_misreads(
    scorer: Scorer, gsm8k: list[Example]
) -> None:
    rows = {227, 259, 877, 1304}
    gsm8k = [e for n, e in enumerate(gsm8k, start=1) if n % 5 == 0 or n in rows]
    report = check_demonstrations(gsm8k, scorer)
    assert report.failed == () and report.passed == len(gsm8k)
    differ = []
    for example in gsm8k:
        text = example.demonstrations[0]
        answer = str(example.answer)
        assert _direct(answer, math_completion_text(text)) == 1.0
        if _direct(answer, text) != 1.0:
            differ.append(example.source)
    # "the answer to the previous step" in the working: math-verify does not know the #### mark.
    assert differ == ["test.jsonl:227", "test.jsonl:259", "test.jsonl:877", "test.jsonl:1304"]


def test_ground_truths_of_the_benchmarks_verify_against_themselves(
    scorer: Scorer, benchmarks: list[Example]
) -> None:
    """Every eighth here; all 1,590 in benchmarks/verifier.py."""
    some = benchmarks[::8]
    report = check_answers(some, scorer)
    assert report.checked == len(some) > 0
    assert report.failed == ()


def test_right_and_wrong_answers_to_the_benchmarks_agree_with_math_verify(
    scorer: Scorer, benchmarks: list[Example]
) -> None:
    answers: list[Any] = [example.answer for example in benchmarks][4::16]
    pairs = [(a, rf"Hence $x = 1$, and \boxed{{{a}}} is it.") for a in answers]
    pairs += [(a, rf"It is $\boxed{{{b}}}$") for a, b in itertools.pairwise(answers)]
    ours = _ours(scorer, pairs)
    differ = [pair for pair, score in zip(pairs, ours, strict=True) if score != _direct(*pair)]
    assert differ == []
    assert sum(ours[: len(answers)]) == len(answers) and sum(ours) < 1.2 * len(answers)


def test_announced_only_reads_no_number_in_passing() -> None:
    pairs = [("7", "there are 7"), ("7", "#### 7"), ("7", r"\boxed{7}"), ("7", "the answer is 7.")]
    examples = [Example(prompt="q", answer=answer) for answer, _ in pairs]
    texts = [text for _, text in pairs]
    from srft.rewards.reward_config import RewardConfig

    strict = RewardConfig.model_validate({"name": "math", "announced_only": True, "workers": 1})
    with Scorer(strict) as scorer:
        assert [s.reward for s in scorer.score(examples, texts)] == [0.0, 1.0, 1.0, 1.0]
    with Scorer("math", workers=1) as scorer:
        assert [s.reward for s in scorer.score(examples, texts)] == [1.0] * 4


WAYS = (
    r"\boxed{%s}", r"So $x$ is found, $\boxed{%s}$.", r"The final answer is $%s$.", "We get\n\n$$%s$$",
    r"The answer is $%s$. I hope it is correct.", r"Therefore \[ \boxed{%s} \]", r"**Answer:** $%s$",
    r"Final Answer: The final answer is $%s$. I hope it is correct.", "The result is $%s$.",
)  # fmt: skip


def _formula(rng: random.Random) -> str:
    a, b, c = rng.randint(-12, 30), rng.randint(2, 19), rng.randint(2, 19)
    return rng.choice(
        [
            f"{a}", rf"\frac{{{a}}}{{{b}}}", rf"{b}\sqrt{{{c}}}", rf"{b}\pi", f"({a},{b})", f"[{a}, {a + b}]",
            f"({a}, {b}, {c})", rf"\{{{a}, {b}, {c}\}}", f"{a}, {b}", f"x^2 + {b}x - {c}", f"{b}(x+{c})",
            f"x = {a}", f"y = {b}x + {c}", f"{a} + {b}i", f"{a / 10}", f"{b}^{{{c % 5}}}", rf"{b * 5}\%",
            rf"{b * 10}^\circ", rf"\frac{{\sqrt{{{b}}}}}{{{c}}}", rf"{b}\text{{ cm}}", f"{b * 1234:,}",
            rf"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}", rf"(-\infty, {a}) \cup ({a + b}, \infty)",
            rf"x \ge {a}", rf"{a} \pm {b}", rf"\${b}", f"{b}x^{{{c}}}", f"{a}/{b}", rf"{b}\frac{{1}}{{{c}}}",
            rf"\log_2 {b}", f"e^{{{b}}}", f"{b}e", f"{b:.2f}", rf"\text{{{rng.choice(('even', 'yes'))}}}",
        ]
    )  # fmt: skip


def test_formulas_of_every_kind_get_math_verifys_verdict_however_they_are_announced(
    scorer: Scorer,
) -> None:
    """On the untouched text; right and wrong ones."""
    rng = random.Random(0)
    pairs = []
    for _ in range(120):
        gold = _formula(rng)
        answer = gold if rng.random() < 0.35 else _formula(rng)
        if rng.random() < 0.3:
            answer = answer.replace(r"\frac", r"\dfrac").replace(", ", ",")
        pairs.append((gold, rng.choice(WAYS) % answer))
    ours = _ours(scorer, pairs)
    assert [p for p, score in zip(pairs, ours, strict=True) if score != _direct(*p)] == []
    assert 0.3 < sum(ours) / len(ours) < 0.6
