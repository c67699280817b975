"""Finding the announced answer, and comparing short answers."""

from __future__ import annotations

import json

import pytest

from srft.rewards.answers import as_number, extract_answer, last_box, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{\frac{a}{\sqrt{b}}}", r"\frac{a}{\sqrt{b}}"),
        (r"\boxed{1} or rather \boxed{2}", "2"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"first \boxed{3}, then \boxed{4", "3"),
        (r"\boxed{", None),
        (r"a stray } before \boxed{x}}", "x"),
        (r"\boxed 7 without braces", "7"),
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234 \n", "1,234"),
        ("####", None),
        ("The answer is 12. I hope it is correct.", "12"),
        ("The final answer is: $\\boxed{9}$.", "9"),
        ("**Answer:** B", "B"),
        ("Answer:\n\n42\n", "42"),
        ("answer = 3.5.", "3.5"),
        ("The answer: the answer is 5", "5"),
        ("#### 9\nNo: the answer is 10.", "9"),
        (r"The answer is 1, so \boxed{2}" + "\n#### 3", "2"),
        ("Antwort: 5", None),
        ("answering is 5", None),
        ("", None),
    ],
)
def test_the_announcement_that_counts(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "{" * 1_000_000,
        r"\boxed{" * 140_000,
        r"\boxed{" + "{" * 300_000 + "}" * 300_000 + "}",
        "answer is " * 100_000,
        "#### " * 200_000,
        "$" * 1_000_000,
        "\\" * 1_000_000,
        "\\" * 1_000_000 + r"\boxed{1}",
        r"\boxed{" * 70_000 + "}" * 70_000,
        r"\boxed{1} and " * 50_000,
        "answer: a " * 50_000,
        "answer is " + "a. " * 300_000,
        "<answer> " * 100_000,
        "####1 " * 100_000,
        "</think> answer is x" * 30_000,
        r"\boxed " * 140_000,
        "answer" + " " * 1_000_000,
        "\U0001f600\u202e" * 100_000,
    ],
    ids=lambda text: repr(text[:10]),
)
@pytest.mark.timeout(120)
def test_a_megabyte_of_anything_takes_linear_time(text: str) -> None:
    """Milliseconds; a reading that went back over the text for each of its characters takes hours."""
    extract_answer(text)


def test_boxes_nested_in_a_box_belong_to_the_outer_one() -> None:
    place = last_box(r"x \boxed{a \boxed{b} c}")
    assert place == (2, r"a \boxed{b} c")


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("1,234.50", "1234.5", True),
        ("$18$", "18", True),
        ("\\$18.00", "18", True),
        ("18.", "18", True),
        ("-5", "\u22125", True),
        ("+5", "5", True),
        ("007", "7", True),
        ("  New   York ", "new york", True),
        ("\\text{Paris}", "paris", True),
        ("12", "1 2", False),
        ("1,2", "12", False),
        ("5", "5.01", False),
        ("x+1", "x + 1", False),
        ("9" * 10_000, "9" * 10_000, True),
    ],
)
def test_same_answer(left: str, right: str, same: bool) -> None:
    assert same_answer(left, right) is same


def test_as_number_refuses_what_is_not_just_a_number() -> None:
    for text in ("12 cm", "1,23", "1/2", "2e", "e5", "1e5x", "5%", "3, 4", "9" * 2000):
        assert as_number(text) is None


@pytest.mark.parametrize("gold", ['say "hi"', "Zürich", r"\frac{1}{2}", "a/b", "日本 🙂", "C:\\x"])
def test_json_strings_are_read_as_they_are_meant(gold: str) -> None:
    for ascii_only in (True, False):
        assert extract_answer(json.dumps({"answer": gold}, ensure_ascii=ascii_only)) == gold


@pytest.mark.parametrize("latex", [r"\frac{1}{2}", r"\times 3", r"\sqrt{2}", r"\beta", r"\neq"])
def test_latex_in_json_that_is_not_escaped_is_kept(latex: str) -> None:
    assert extract_answer(f'{{"answer": "{latex}"}}') == latex
