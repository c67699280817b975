"""One order of precedence for all verifiers and votes: marks, then ####, then prose."""

from __future__ import annotations

import itertools

import pytest

from srft.evaluation.votes import vote_of
from srft.rewards.answers import announcements, extract_answer
from srft.rewards.verifiers import check_choice, check_exact, check_math, check_numeric

CHECKS = {
    "math": check_math,
    "exact": check_exact,
    "numeric": check_numeric,
    "choice": check_choice,
}
MARKS = [
    r"\boxed{5}", r"$\boxed{5}$", r"\fbox{5}", "<answer>5</answer>", "<answer> 5 </answer>", "#### 5",
    "<answer>\\boxed{5}</answer>", "The final answer is 5. I hope it is correct", r"\boxed{\text{5}}",
]  # fmt: skip
AFTER = [
    "Let me know if this answer is clear.", "I hope the answer is right.", "Is this answer: helpful?",
    "So the answer is consistent with the check.", "If the answer is 7, we made an error.",
    "Our answer is therefore correct.", "Every step was checked once more and agrees. " * 20,
    "Note that the answer is not 7.", "\n#### Verification\n2 + 3 = 5, as it should be.",
    "\n#### 3 facts to remember\n- it adds up", "\n##### Check 7\nfine", "\n#### Step 3: look back\ngood",
    "\n#### 2. Remarks\nnone", "\n#### Conclusion",
]  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_a_mark_outranks_whatever_follows_it(name: str) -> None:
    for mark, after in itertools.product(MARKS, AFTER):
        text = f"We add 2 and 3. {mark}\n{after}"
        assert extract_answer(text) == "5" or r"\text" in mark, text
        assert CHECKS[name](text, "5", {}, {}).score == 1.0, text
        assert vote_of(text, {}, [name]) == "5"


@pytest.mark.parametrize("name", CHECKS)
def test_prose_about_the_answer_does_not_replace_an_answer_in_prose(name: str) -> None:
    for said, after in itertools.product(
        ("The answer is 5.", "**Final Answer:** 5.", "Answer: **5**"), AFTER
    ):
        text = f"We add 2 and 3.\n{said}\n{after}"
        assert CHECKS[name](text, "5", {}, {}).score == 1.0, text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### Step 1: Add\n5 + 7 = 12\n\nThe final answer is $12$.", "$12$"),
        ("#### 12\n\n#### Check\n12 - 7 = 5", "12"),
        ("#### 18 dollars\nThat is all.", "18 dollars"),
        ("#### Answer: 18", "18"),
        ("#### Final Answer\n\n18", "18"),
        ("## Answer\n18", "18"),
        ("**Final Answer**\n\n$$\n18\n$$", "18"),
        ("so 3 + 4 = 7 #### 7", "7"),
        ("#### (2, 3)\nbye", "(2, 3)"),
        (r"#### \frac{1}{2}" + "\nbye", r"\frac{1}{2}"),
        ("#### Paris", "Paris"),
        ("The answer is 12\n#### Verification", "12"),
        ("#### Verification\n5 - 3 = 2", None),
        ("#### 3 facts to remember\n- one", None),
        ("##### 12", None),
        ("### 12", None),
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, $\boxed{2}$, and $\boxed{3}$.", "1, 2, 3"),
        (r"\boxed{1} \quad \text{or} \quad \boxed{2}", "1, 2"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{1}, wait, that is not right: \boxed{2}", "2"),
        ("\\boxed{1}.\n\nNow the second way. \\boxed{2}", "2"),
        (r"\boxed{2} ... \boxed{2}", "2"),
        (r"\boxed{5} million", "5 million"),
        (r"\boxed{50}\%", r"50 \%"),
        ("<answer>12", "12"),
        ("<answer></answer> then \\boxed{3}", "3"),
        ("<answer>The answer is 4.</answer>", "4"),
        (r"<answer>4</answer> so \boxed{5}", "5"),
        (r"\boxed{5} so <answer>4</answer>", "4"),
        (r"<think>\boxed{3}</think> The answer is 5.", "5"),
        (r"<think>\boxed{3}</think> Let me know if the answer is clear.", "3"),
        ("The answer to the second question is 8.", "8"),
        ("The answers are 3 and 4.", "3 and 4"),
        ("So the answer must be 9.", "9"),
        ("The answer is Dr. Smith. He cures.", "Dr. Smith"),
        ("The answer is 5 m. I hope so.", "5 m"),
        ("The answer is C. Remember that D is a trap.", "C"),
        ("The answer is right.", "right"),
        (r"\boxed{5}. I put it in \boxed{}.", "5"),
        (r"so \\boxed{5}", "5"),
        ("Answer:\n- 5 apples", "5 apples"),
        ("The answer is -5", "-5"),
        ("Is the answer 5? The answer is 6? Yes.", "6"),
    ],
)
def test_the_order_of_precedence(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_announcements_come_in_order_with_their_kinds_and_places() -> None:
    text = "<think>x</think>The answer is 1.\n#### 2\nso \\boxed{3}. If the answer is 4, fine."
    found = announcements(text)
    assert [(one.kind, one.content) for one in found] == [
        ("mark", "3"), ("hashes", "2"), ("prose", "1"),
    ]  # fmt: skip
    assert [text[one.start :][:4] for one in found] == ["\\box", "####", "answ"]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Dr. Smith", True), ("Mt. Everest", True), ("U.S. Senate", True), ("Washington, D.C.", True),
        ("J. R. R. Tolkien", True), ("St. Petersburg, Russia", True), ("No. 5", True), ("vitamin C", True),
        ("John F. Kennedy", True), ("3 p.m. on Monday", True), ("Acme Corp. of Ohio", True), ("no", True),
    ],
)  # fmt: skip
def test_exact_answers_are_cut_at_ends_of_sentences_and_not_at_abbreviations(
    answer: str, right: bool
) -> None:
    for said in (
        "The answer is {}.",
        "The answer is {}. It is known.",
        "Answer: {}",
        '"{}"',
        "“{}”",
    ):
        assert check_exact(said.format(answer), answer, {}, {}).score == float(right), said
    assert check_exact(f"The answer is {answer}.", answer.split()[0] + " x", {}, {}).score == 0.0


def test_exact_heeds_case_where_it_is_told_to() -> None:
    text = "The answer is Polish."
    assert check_exact(text, "polish", {}, {}).score == 1.0
    assert check_exact(text, "polish", {}, {"case_sensitive": True}).score == 0.0
    assert check_exact(text, "Polish", {}, {"case_sensitive": True}).score == 1.0


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("blue", "lube", False), (r"\text{blue}", r"\text{lube}", False), (r"\text{no}", r"\text{on}", False),
        ("no", "on", False), ("tea", "eat", False), ("blue", "Blue", True), (r"\text{east}", "east", True),
        ("xy", "yx", True), ("abc", "bca", True), ("pqr", "rpq", True),
        ("8 and 27", "8", False), ("8 and 27", "8, 27", True), ("2x+3y+5=0", "2x-y+1=0", False),
        (r"\boxed{1} and \boxed{2}", r"\{2, 1\}", True), (r"\boxed{1}, \boxed{2}", "1", False),
    ],
)  # fmt: skip
def test_math_compares_words_letter_by_letter_and_all_of_several_answers(
    gold: str, answer: str, right: bool
) -> None:
    assert check_math(rf"\boxed{{{answer}}}", gold, {}, {}).score == float(right)
