"""majority@k votes with the verifier's own eyes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from srft.evaluation.accuracy_statistics import majority_at_k
from srft.evaluation.votes import vote_of
from srft.rewards.scorer import Scorer
from srft.types import Example

CELL = ["mito", "nucleus", "wall"]
CHOSEN = [r"\boxed{B}", r"\boxed{(B)}", r"\boxed{B. nucleus}", r"\boxed{A}", r"\boxed{A}"]


@pytest.mark.parametrize(
    ("verifier", "gold", "texts", "columns"),
    [
        ("choice", "B", ["B", "B", "B", "A"], {}),
        ("choice", "B", ["(B)", "The answer is nucleus.", "**B**", "A", "A"], {"options": CELL}),
        ("choice", "B", CHOSEN, {"options": {"A": "mito", "B": "nucleus"}}),
        ("choice", "B", CHOSEN, {"choices": {"label": ["A", "B"], "text": ["mito", "nucleus"]}}),
        ("choice", "1", CHOSEN, {"choices": np.array(CELL)}),
        ("exact", "yes", ["The answer is Yes.", "answer: yes", "The answer is YES", "no", "no"], {}),
        ("exact", "1000", ["1000", "#### 1e3", r"\boxed{1,000}", "7", "7"], {}),
        ("math", "5", [r"\boxed{5}. The answer is certain.", r"\boxed{5}. The answer is clear.",
                       r"\boxed{5.0}", r"\boxed{6}", r"\boxed{6}"], {}),
        ("math", r"\frac{1}{2}", [r"\boxed{0.5}", r"\boxed{\frac{2}{4}}", "so 1/2", r"\boxed{2}",
                                  r"\boxed{2}"], {}),
        ("math", "x+1", [r"\boxed{1+x}", r"\boxed{x + 1}", r"\boxed{\frac{x^2-1}{x-1}}", r"\boxed{x}",
                         r"\boxed{x}"], {}),
        ("math", "3", ["so we get 3", "it is 3", "thus 3.", "so 4", "so 4"], {}),
        ("numeric", "0.5", ["50%", "1/2", "5e-1", "#### 2", "#### 2"], {}),
        ("numeric", "5000000", ["5 million", "5e6", "It costs $5,000,000.", "5", "5"], {}),
    ],
)  # fmt: skip
def test_most_samples_right_means_the_vote_is_right(
    verifier: str, gold: str, texts: list[str], columns: dict[str, Any]
) -> None:
    with Scorer([verifier], workers=1) as scorer:
        example = Example("q", answer=gold, columns=columns)
        right = [s.correct for s in scorer.score([example] * len(texts), texts)]
    assert right == [True] * (len(texts) // 2 + 1) + [False] * (len(texts) - len(texts) // 2 - 1)
    votes = [
        vote_of(text, columns, [verifier], gold if is_right else None)
        for text, is_right in zip(texts, right, strict=True)
    ]
    assert majority_at_k(votes, right, len(texts)) == 1.0


def test_wrong_samples_that_agree_outvote_right_ones() -> None:
    votes = [
        vote_of(text, {}, ["numeric"]) for text in ("#### 6", "six: 6", "It is 6.0", "#### 5", "5")
    ]
    assert votes == ["6", "6", "6", "5", "5"]


@pytest.mark.parametrize(
    ("text", "columns", "vote"),
    [
        ("B", {}, "B"), (r"\boxed{nucleus}", {"options": CELL}, "B"), (r"\boxed{$5$}", {}, "5"),
        (r"\boxed{1e3}", {}, "1000"), (r"\boxed{\dfrac{x}{2}}", {}, r"\fracx2"), ("who knows", {}, None),
        ("The answer is YES", {}, "yes"), (r"\boxed{5}. Is the answer clear?", {}, "5"),
    ],
)  # fmt: skip
def test_votes_without_a_verifier(text: str, columns: dict[str, Any], vote: str | None) -> None:
    assert vote_of(text, columns) == vote


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        (r"So we get $\frac{3}{4}$.", "3/4"),
        (r"So we get $\dfrac{5}{4}$.", "5/4"),
        ("We get 5, as wanted.", "5"),
        ("We get 5.", "5"),
        ("It is 1,234 in all", "1234"),
        ("so -5", "-5"),
        ("so 3/4", "3/4"),
        ("of 1, 2 and 3", "3"),
    ],
)
def test_the_last_number_votes_where_nothing_is_announced(text: str, vote: str) -> None:
    assert vote_of(text, {}, ["math"]) == vote


def test_the_whole_text_votes_for_reasoning_gym() -> None:
    assert vote_of(" 5\n", {}, ["reasoning-gym"]) == "5"
    assert vote_of("x y", {}, ["reasoning-gym"]) == "xy"
    assert vote_of("the answer is 7", {}, ["reasoning-gym"]) == "7"
