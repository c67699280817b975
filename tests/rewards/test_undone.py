"""Repeating the question's arithmetic is no answer, in any family of problems; any other right one is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.rewards.scorer import Scorer
from srft.rewards.undone import left_undone
from srft.rewards.verifiers import check_exact, check_math, check_numeric
from srft.types import Example

SUM = "State the final answer to the following arithmetic problem: 17 + 26 ="


@pytest.mark.parametrize(
    "text",
    ["17 + 26", "17 + 26 =", "17 + 26 = 17 + 26", "The answer is 17 + 26.", r"\boxed{17+26}", "#### 26 + 17",
     "$17+26$", "It is 17 - -26", r"\boxed{(17 + 26)}", "10 + 7 + 26", r"\boxed{\dfrac{17+26}{1}}",
     "17 + 26 + 0"],
)  # fmt: skip
def test_a_sum_that_was_asked_for_has_to_be_worked_out(text):
    assert check_math(text, "43", {"asked": SUM}, {}).score == 0.0
    # Nothing is held against it where it is not what was asked.
    assert check_math(text, "43", {"asked": "How old is Ann?"}, {}).score == 1.0


@pytest.mark.parametrize(
    "text",
    ["43", "43.0", "17 + 26 = 43", "43 = 17 + 26", "First, 17 + 26 = 43. The answer is 43.",
     r"\boxed{43}", "17 + 26 makes 43", "#### 43", "forty is 43", "17 + 26 = **43**",
     "**43**: 17 + 26 = *43*", "17 + 26 = 43.", "1. 17 + 26 = 43", "17 + 26 = `43`", "17 + 26\n= 43", "(43)"],
)  # fmt: skip
def test_an_answer_that_says_the_number_is_right_whatever_stands_beside_it(text):
    assert not left_undone(text, "43", SUM)
    assert check_math(text, "43", {"asked": SUM}, {}).score == 1.0


@pytest.mark.parametrize(
    ("text", "answer", "asked", "undone"),
    [
        ("0 - 5", "-5", "0 - 5 =", True),
        ("-5", "-5", "0 - 5 =", False),
        ("5 - 0", "5", "What is 5 - 0?", True),
        ("5", "5", "What is 5 - 0?", False),
        (r"6 \times 7", "42", r"Compute $6 \cdot 7$.", True),
        ("6 x 7", "42", "Solve the following multiplication: 6 * 7.", True),
        ("1,200 + 34", "1234", "Add 1,200 and 34.", True),
        ("3 + 5", "8", "Tom has 3 apples and buys 5. How many has he?", True),
        ("92/524", "23/131", "Simplify the fraction 92/524", True),
        (r"\frac{92}{524}", "23/131", r"Simplify the fraction $\frac{92}{524}$", True),
        ("23/131", "23/131", "Simplify the fraction 92/524", False),
        (r"\frac46", "2/3", r"Simplify $\frac{4}{6}$", True),
        ("43 (= 17 + 26)", "43", "What is 17 + 26?", False),
        ("The answer is 43, since 17 + 26 is that.", "43", "What is 17 + 26?", False),
        ("86 / 2", "43", "What is 86 / 2?", True),
        ("2^{10}", "1024", "What is 2^10?", True),
        ("4.3 * 10^4", "43000", "Write 4.3 * 10^4 as an ordinary number.", True),
        # What nobody asked to be worked out, or is worked out as far as it was asked.
        ("4/8", "1/2", "4 of 8 marbles are red. What share?", False),
        ("1/2", "0.5", "Which is larger, 1/2 or 0.4?", False),
        ("4/8", "4/8", "Which is larger, 4/8 or 0.4?", False),
        ("2^{10}", "2^{10}", "Which is larger, 2^{10} or 1000?", False),
        (r"2^{11} - 2^5", "2016", "Find the sum.", False),
        ("40 + 3", "43", "Tom is 17, and Ann 26 years older. How old is Ann?", False),
        ("It is **17 + 26**.", "43", "What is 17 + 26?", True),
        ("**17 + 26**", "43", "What is 17 + 26?", True),
        ("Step 1. 17 + 26", "43", "What is 17 + 26?", True),
        ("2 * 2,500,000 = 5 million", "5000000", "What is 2 * 2,500,000?", False),
        ("1/4 + 1/4 is 50%", "0.5", "What is 1/4 + 1/4?", False),
        ("0 + 3. We arrive at 3 as the answer.", "3", "0 + 3 =", False),
        ("x^2 + 2x", "x^2 + 2x", "Expand x(x + 2).", False),
        ("17 + 26", "17 + 26", "Which sum is 43: 17 + 26 or 1 + 2?", False),
        ("12 18", "6", "The GCD of 12 18?", False),
        ("9^9^9^9 + (((", "3", "9^9^9^9 + (((", False),
    ],
)
def test_by_hand(text, answer, asked, undone):
    assert left_undone(text, answer, asked) is undone


def test_every_verifier_that_goes_by_value_asks_the_question():
    asked = {"asked": "What is 2^10, and simplify 6/4?"}
    assert check_exact("2^10", "1024", asked, {}).score == 0.0
    assert check_exact("1024", "1024", asked, {}).score == 1.0
    assert check_numeric("6/4", "1.5", asked, {}).score == 0.0
    assert check_numeric("3/2", "1.5", asked, {}).score == 1.0


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        ("The final answer to the arithmetic problem is 83 - 29.", "83 - 29", "54"),
        ("Final answer to the arithmetic problem is 83 - 29.", "83 - 29", "54"),
        (
            "The final answer to the arithmetic problem is 54 + 86, which equals 130.",
            "54 + 86",
            "140",
        ),
        ("The final answer to the subtraction of 47 and 42 is 47 - 42 equals -1.", "47 - 42", "5"),
        (
            "The final answer to the arithmetic problem is 81 - 48, which is 81 - 48.",
            "81 - 48",
            "33",
        ),
        (
            "The final answer to the arithmetic problem is 3 - 1. To find this value, subtract.",
            "3 - 1",
            "2",
        ),
        ("The final answer to the arithmetic problem is 5 + 3, which equals 6.", "5 + 3", "8"),
        (
            "The final answer to the equation 74 + 47 is calculated by simply adding: 7 + 4 equals 11.",
            "74 + 47",
            "121",
        ),
    ],
)
def test_what_grpo_had_learned_to_say_is_wrong(text, question, answer):
    """SmolLM2 after 12 to 24 steps with a verifier that went by value alone, and paid for each of these."""
    asked = f"State the final answer to the following arithmetic problem: {question} ="
    assert check_math(text, answer, {}, {}).score == 1.0
    assert check_math(text, answer, {"asked": asked}, {}).score == 0.0
    for said in (
        f"{question} = {answer}",
        f"The final answer is {question}, which equals {answer}.",
    ):
        assert check_math(said, answer, {"asked": asked}, {}).score == 1.0


ARITHMETIC = (
    ("chain_sum", r":\s*(.+?)\s*=$"),
    ("products", r": (.+?)\. Give"),
    ("basic_arithmetic", r"(?:Calculate|Evaluate|Compute|What is|Solve|of)[^\d(-]*(.+?)(?:[.?=]|\s*$)"),
    ("decimal_chain_sum", r":\s*(.+?)\s*=$"),
    ("fraction_simplification", r"fraction (\S+)"),
)  # fmt: skip


@pytest.mark.parametrize(("family", "pattern"), ARITHMETIC)
def test_no_family_of_arithmetic_rewards_its_own_question(family, pattern):
    """In somebody else's opinion, reasoning-gym's scorer, the question is no answer, and the answer one."""
    gym = pytest.importorskip("reasoning_gym")
    data = gym.create_dataset(family, size=40, seed=5)
    examples, texts, wanted = [], [], []
    for row in data:
        found = re.search(pattern, row["question"])
        assert found, row["question"]
        for said in (found[1], row["answer"]):
            theirs = data.score_answer(said, row)
            for text in (said, f"The answer is {said}.", f"#### {said}"):
                examples.append(Example(prompt=row["question"], answer=row["answer"]))
                texts.append(text)
                wanted.append(theirs == 1.0)
    with Scorer("math", workers=1) as scorer:
        ours = [score.correct for score in scorer.score(examples, texts)]
    differ = [
        (e.prompt, t) for e, t, a, b in zip(examples, texts, ours, wanted, strict=True) if a != b
    ]
    assert differ == [] and 0.3 < sum(wanted) / len(wanted) < 0.7


def test_the_scorer_tells_the_question_of_a_conversation():
    messages = (
        {"role": "system", "content": "17 + 26"},
        {"role": "user", "content": "What is 1 + 2?"},
    )
    examples = [Example(prompt=messages, answer=answer) for answer in ("3", "3", "43")]
    with Scorer("math", workers=1) as scorer:
        scores = scorer.score(examples, ["1 + 2", "3", "17 + 26"])
    assert [score.reward for score in scores] == [0.0, 1.0, 1.0]


@settings(max_examples=150, deadline=None)
@given(
    st.text("0123456789+-*/^=(){}.,\\ x$", max_size=120),
    st.text("0123456789+-*/^=() .", max_size=120),
)
def test_it_ends_without_an_error_whatever_is_said(text, asked):
    assert left_undone(text, "43", asked) in (True, False)


def test_it_ends_soon_on_long_and_deep_texts():
    for text in (
        "(" * 5000 + "43" + ")" * 5000,
        "1+" * 50_000 + "1",
        "9^" * 3000 + "9",
        "-" * 9000 + "5",
        "1 " * 50_000,
    ):
        assert left_undone(text, "43", SUM) in (True, False)
