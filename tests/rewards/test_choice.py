"""The letter that a completion chooses: not one out of a word, not one that is ruled out."""

# ruff: noqa: RUF001

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from srft.rewards.options import LETTERS, choice_in, gold_choice, options_of, read_choice
from srft.rewards.verifiers import check_choice

FOUR = dict(zip("ABCD", ["gravity", "spin", "charge", "mass"], strict=True))
TEN = {letter: f"option text {i}" for i, letter in enumerate(LETTERS[:10])}


@pytest.mark.parametrize(
    "text",
    [
        "Answer: B is ruled out, which leaves D", "Answer: B can be ruled out, leaving D.",
        "Answer: It cannot be B, so the answer is D", "The answer isn't B. It is D.", "Answer: Not B, but D",
        "A, B, and C are wrong, so D.", "Eliminate A, B and C, leaving D.", "Rule out A and C. So D",
        "The answer is D, because A, B and C are wrong.", "D is right and A is wrong", "We choose D over B.",
        "The answer is D rather than B.", "Unlike B, the answer is D", "The answer is D, not C",
        "The answer is option (D) mass", "The answer is choice (d): mass", "**D. mass**", "(d) mass is right",
        r"\boxed{D. mass}", r"\boxed{\textbf{(D)}}", r"\boxed{mass}", "The answer is mass.", "D: mass",
        "The answer is mass, of course", "So it must be D", "Hence, the correct option is D", "#### (D)",
        "<answer>D</answer>", "<answer>(D) mass</answer>", "#### Step A\nfoo\n\nThe answer is D.",
        "Answer: D\n\nExplanation: A is wrong.", "The answer is D. Remember that B is a popular trap.",
        "We need \\boxed{E \\gg \\langle V \\rangle}.\n\n**Answer: D**", "The answer is most likely D",
        "The answer is D (mass)", "The answer is 'D. mass'", "The answer is D!", "The answer is D – mass",
        "<think>B? No.</think>D", "(D). I hope this answer is clear.", "My final answer is D",
    ],
)  # fmt: skip
def test_the_letter_that_is_left_is_the_choice(text: str) -> None:
    assert choice_in(text, FOUR) == "D"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is d-orbital splitting", "The answer is e-mail", "The answer is A-level", "B-cells",
        "The answer is B12", "The answer is C++", "The answer is CO2", "The answer is D'Alembert's",
        "The answer is a mass of things", "The answer is not D", "D is ruled out", "not (D)", "D is wrong",
        "The answer is either B or D", "The answer is neither A nor D", "A and D", "(A) or (D)", "A, D",
        "\\boxed{A and D}\nAnswer: D", "vitamin C", "none of the above", "The answer is E", "I do not know",
        "It can't be D", "Both A and D are wrong",
    ],
)  # fmt: skip
def test_no_letter_is_read_out_of_a_word_or_of_several(text: str) -> None:
    assert choice_in(text, FOUR) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is C because I integrated by parts.", "C"), (r"\boxed{I}", "I"), ("Answer: J", "J"),
        ("The answer is I because of symmetry", "I"), ("I think it is option F", "F"), ("I am unsure", None),
        ("The answer is A, as I showed", "A"), ("The answer is option text 3", "D"), ("(K)", None),
    ],
)  # fmt: skip
def test_ten_options_with_the_pronoun_and_the_article_among_their_letters(
    text: str, letter: str | None
) -> None:
    assert choice_in(text, TEN) == letter


TEXTS = [f"text {i}" for i in range(6)]


@pytest.mark.parametrize(
    "columns",
    [
        {"options": TEXTS}, {"choices": tuple(TEXTS)}, {"options": np.array(TEXTS)},
        {"choices": np.array(TEXTS, dtype=object), "options": None},
        {"options": dict(zip("abcdef", TEXTS, strict=True))},
        {"choices": {"label": list("ABCDEF"), "text": TEXTS}},
        {"choices": {"label": np.array(list("ABCDEF")), "text": np.array(TEXTS)}},
        {"options": [f"{letter}) {text}" for letter, text in zip("ABCDEF", TEXTS, strict=True)]},
        {"options": [f"({letter}) {text}" for letter, text in zip("ABCDEF", TEXTS, strict=True)]},
        {"options": [{"label": letter, "text": t} for letter, t in zip("ABCDEF", TEXTS, strict=True)]},
    ],
    ids=lambda columns: type(next(iter(columns.values()))).__name__,
)  # fmt: skip
def test_options_are_read_in_every_form(columns: dict[str, Any]) -> None:
    assert options_of(columns) == dict(zip("ABCDEF", TEXTS, strict=True))
    for gold in ("F", "f", "(F)", "F.", "text 5", "F) text 5", "5"):
        assert check_choice(r"\boxed{F}", gold, columns, {}).score == 1.0, gold
        assert check_choice("The answer is text 5.", gold, columns, {}).score == 1.0, gold
        assert check_choice(r"\boxed{E}", gold, columns, {}).score == 0.0, gold


def test_a_number_as_ground_truth_is_a_place_where_the_row_held_a_number() -> None:
    choices = dict(zip("ABCD", "1234", strict=True))
    assert [gold_choice(str(i), choices, i) for i in range(4)] == list("ABCD")
    assert [gold_choice(str(i), choices) for i in range(1, 5)] == list("ABCD")
    assert gold_choice("2", FOUR) == "C" and gold_choice("2.0", FOUR) == "C"
    assert gold_choice("7", FOUR) is None
    assert gold_choice("3", {"1": "x", "2": "y", "3": "z"}, 3) == "3"  # a label


def test_options_that_differ_in_case_alone_are_told_apart() -> None:
    options = {"options": ["RR", "Rr", "rr"]}
    assert check_choice(r"\boxed{Rr}", "B", options, {}).score == 1.0
    assert check_choice(r"\boxed{rR}", "B", options, {}).status == "no_answer"


@pytest.mark.parametrize("form", ["({}) {}", "{}) {}", "{}. {}", "{}: {}"])
@pytest.mark.parametrize(
    "options",
    [["True", "False"], ["too small", "uniform"], ["Not defined", "wrong"], ["out", "excluded by it"],
     ["Unlike snakes, birds are warm.", "Underground mining reduces it."]],
)  # fmt: skip
def test_an_option_whose_text_begins_like_a_verdict_is_named_in_full(
    form: str, options: list[str]
) -> None:
    for columns in ({"options": options}, {}):
        choices = options_of(columns)
        for letter, text in zip("AB", options, strict=True):
            assert read_choice(form.format(letter, text), choices) == letter
            assert read_choice(form.format(letter, text) + ".", choices) == letter


def test_a_verdict_on_an_option_is_none_of_its_text() -> None:
    for choices in ({}, options_of({"options": ["x", "y", "z"]})):
        assert read_choice("(B) is wrong", choices) is None
        assert read_choice("(B) is wrong", {"A": "o", "B": "i", "C": "u"}) is None
        assert read_choice("A) cannot be right", choices) is None
        assert read_choice("(A) isn't it, so it must be C.", choices) == "C"


@pytest.mark.parametrize(
    "options", [["O", "A", "B", "AB"], ["B", "A", "AB", "O"], ["C", "D", "A", "B"]]
)
def test_of_options_that_are_letters_the_label_is_meant(options: list[str]) -> None:
    choices = options_of({"options": options})
    for letter in "ABCD":
        assert gold_choice(letter, choices) == letter
        for said in (letter, f"({letter})", f"{letter}.", f"Answer: {letter}"):
            assert read_choice(said, choices) == letter
    assert gold_choice("O", choices) == ("ABCD"[options.index("O")] if "O" in options else None)


def test_labels_that_are_digits_go_before_texts_that_are() -> None:
    choices = options_of({"choices": {"label": ["1", "2", "3"], "text": ["3", "1", "2"]}})
    assert [gold_choice(d, choices) for d in "123"] == [*"123"]
    assert [read_choice(d, choices) for d in "123"] == [*"123"]
