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


ASKED_FOR = [
    (r"\frac{3}{4} \div \frac{2}{5}", r"\frac{15}{8}"), (r"\frac34 \div \frac25", "15/8"),
    (r"6 \div \frac{1}{2}", "12"), (r"\frac{1}{2}\cdot\frac{4}{6}", r"\frac13"),
    (r"\frac{\frac{1}{2}}{\frac{1}{4}}", "2"), (r"2\frac{1}{2} + 1\frac{1}{2}", "4"),
    (r"2\frac12 \times 4", "10"), (r"\frac{2}{3}^2", r"\frac49"),
    (r"\left(\frac{2}{3}\right)^2", r"\frac49"), ("3\u00b2 + 4\u00b2", "25"), ("2^{3^2}", "512"),
    ("(3+4)(2+5)", "49"), ("3(4+5)", "27"), ("2(3)(4)", "24"), (r"(1.2\times10^3)(3\times10^2)", "360000"),
    ("[2+3] \\times 4", "20"), (r"\left[2+3\right]\times 4", "20"), (r"2 \times \{3 + [4 - 1]\}", "12"),
    (r"25\% \times 80", "20"), ("12 : 4", "3"), ("12:4", "3"), (r"\sqrt{144}", "12"),
    (r"\sqrt{16} + 3", "7"), (r"\sqrt{1}", "1"), (r"\sqrt[3]{8}", "2"), ("5!", "120"), ("1!", "1"),
    (r"\frac{5!}{4!}", "5"), ("|-5|", "5"), ("|{-5}| + 3", "8"), (r"\binom{5}{2}", "10"),
    (r"\binom{5}{1}", "5"), (r"\log_2 8", "3"), (r"17 \mod 5", "2"), (r"\lceil 3.6 \rceil^2", "16"),
    (r"58_9 - 18_9", "40_9"), (r"\arcsin\left(-\frac{1}{2}\right)", r"-\frac{\pi}{6}"),
    (r"\sqrt{12}", r"2\sqrt{3}"), (r"\frac{3}{\sqrt{27}}", r"\frac{\sqrt{3}}{3}"), ("x(x + 2)", "x^2 + 2x"),
    ("19x + 1 - 4x - 81", "15x - 80"), ("ab+5b+2a+10", "(a+5)(b+2)"), (r"(1+2i)6-3i", "6+9i"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "answer"), ASKED_FOR)
def test_the_expression_of_the_question_is_no_answer_to_it(expression, answer):
    for question in ("What is $%s$?", "Evaluate %s.", "Calculate: %s = ?"):
        asked = {"asked": question % expression}
        for text in (
            r"The answer is $\boxed{%s}$.",
            r"\boxed{%s}",
            "The answer is $%s$.",
            r"$%s = %s$",
        ):
            said = text.replace("%s", expression)
            assert check_math(said, answer, asked, {}).score == 0.0, said
        assert check_math(rf"\boxed{{{answer}}}", answer, asked, {}).score == 1.0
        assert check_math(rf"So ${expression} = {answer}$.", answer, asked, {}).score == 1.0


@pytest.mark.parametrize(
    ("answer", "truth", "asked"),
    [
        (r"\frac{3}{4}", "3/4", r"Which is larger, $\frac{3}{4}$ or $0.7$?"),
        (r"\frac34", "0.75", r"Write $\frac34$ or $\frac{6}{8}$ in lowest terms."),
        ("2\\frac{1}{2}", "5/2", r"Which is larger, $2\frac{1}{2}$ or $\frac{7}{3}$?"),
        (r"2\frac12", r"\frac{5}{2}", r"Of $2\frac12$ and $2$, which is no integer?"),
        (r"2\sqrt{3}", r"\sqrt{12}", r"One side is $2\sqrt{3}$, the others $3$. Find the first."),
        (r"\frac{\sqrt{3}}{2}", r"\frac12\sqrt3", r"Of $\frac{\sqrt{3}}{2}$ and $\frac12$ which is larger?"),
        (r"\frac{\pi}{4}", r"\pi/4", r"Is it $\frac{\pi}{4}$ or $\pi$?"),
        ("x+1", "x+1", "Which is a factor of x^2-1: x+1 or x+2?"),
        ("x + 1", "x+1", r"Simplify $\frac{(x+1)(x+3)}{x+3}$."),
        ("(x+1)", "x+1", r"Simplify $\frac{(x+1)(x+3)}{x+3}$."),
        ("1+x", "x+1", r"Simplify $\frac{(1+x)(x+3)}{x+3}$."),
        ("2^{10}", "2^{10}", "Which is larger, $2^{10}$ or $1000$?"),
        ("(x+1)^2", "(x+1)^2", "Factor $x^2+2x+1$."),
        ("5:3", "5:3", "The ratio is 5:3. Which ratio is that in lowest terms?"),
        ("5:3", "5/3", "Is the ratio 5:3 or 5:4?"),
        (r"50\%", "0.5", r"Is it 50\% or 60\%?"),
        (r"50\%", r"50\%", r"Is it 50\% or 60\%?"),
        ("y = 2x+1", "2x+1", "Is it the line y = 2x+1 or y = 3x?"),
        ("x = 5", "5", "If x = 5, what is x?"),
        ("d(1)=1/3", "1/3", "Let d(1)=1/3. What is d(1)?"),
        ("5 km/h", "5", "He walks 5 km/h or 6 km/h?"),
        (r"(-1, 5]", "(-1,5]", "Is it (-1,5] or (-1,5)?"),
        (r"[0, 2\pi]", r"\left[0,2\pi\right]", r"For $x$ in $[0, 2\pi]$ it is zero. Where?"),
        (r"\dfrac{x+1}{2}", r"\frac{x+1}{2}", r"Let $f(x) = \frac{x+1}{2}$. What is $f(x)$?"),
        ("-5", "-5", "Is it 3 - 5 or -5?"),
    ],
)  # fmt: skip
def test_an_answer_that_stands_in_the_question_as_it_has_to_be_is_right(answer, truth, asked):
    for text in (
        rf"The answer is $\boxed{{{answer}}}$.",
        f"The answer is ${answer}$.",
        f"#### {answer}",
    ):
        assert not left_undone(text, truth, asked), text
    assert check_math(rf"\boxed{{{answer}}}", truth, {"asked": asked}, {}).score == 1.0


def test_where_the_number_is_said_as_well_the_expression_may_stand_in_the_box():
    asked = {"asked": "What is 5! + 17?"}
    assert check_math(r"5! + 17 = 137, so \boxed{5! + 17}.", "137", asked, {}).score == 1.0
    assert check_math(r"So \boxed{5! + 17}.", "137", asked, {}).score == 0.0


def test_no_right_answer_to_a_benchmark_is_taken_for_its_question(benchmarks):
    for example in benchmarks:
        truths = example.answer if isinstance(example.answer, (list, tuple)) else [example.answer]
        for truth in map(str, truths):
            for text in (rf"\boxed{{{truth}}}", f"The answer is ${truth}$.", f"#### {truth}"):
                for said in (text, text.replace(r"\frac", r"\dfrac")):
                    assert not left_undone(said, truth, example.asked), (example.source, said)


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
