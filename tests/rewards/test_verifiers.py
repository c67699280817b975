"""The verifiers that run in this process, and countdown."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pytest

from srft.rewards.countdown import check_countdown, evaluate
from srft.rewards.quantities import read_quantity
from srft.rewards.registry import REWARDS
from srft.rewards.verifiers import (
    check_choice,
    check_exact,
    check_format,
    check_numeric,
    math_completion_text,
    math_gold_text,
)

OPTIONS = {"options": ["Rome", "Paris", "A city in France", "12"]}


@pytest.mark.parametrize(
    "text",
    [
        "(B)",
        "B",
        "B.",
        "b",
        "B) Paris",
        r"\boxed{B}",
        r"\boxed{\text{B}}",
        r"\boxed{\text{(B)}}",
        r"\boxed{(B)\ }",
        "The answer is B",
        "The answer is (B).",
        "The correct answer is **B**.",
        "the answer is: b",
        "Answer: B. Paris",
        "Option b",
        "So the right one is option B",
        "I would say (B)",
        "Thinking...\n\n**B**",
        "The answer is B because it is the capital",
        "#### B",
        "<think>A? C? No.</think>\nThe correct option is B.",
        r"$\boxed{\mathrm{B}}$",
        "Answer: [B]",
        "Paris",
        r"\boxed{Paris}",
        "The answer is Paris.",
    ],
)
def test_a_choice_is_recognised_in_every_dress(text: str) -> None:
    assert check_choice(text, "B", OPTIONS, {}).score == 1.0
    assert check_choice(text, "Paris", OPTIONS, {}).score == 1.0
    assert check_choice(text, "A", OPTIONS, {}).score == 0.0


@pytest.mark.parametrize(
    "text",
    ["", "I do not know", "A and B", "(A) or (B)", "The answer is a city", "A, B", "E", "AB"],
)
def test_no_letter_is_read_where_none_is_chosen(text: str) -> None:
    verdict = check_choice(text, "A", OPTIONS, {})
    assert (verdict.score, verdict.status) == (0.0, "no_answer")


def test_options_may_come_as_the_hub_gives_them() -> None:
    hub = {"choices": {"label": ["1", "2"], "text": ["Rome", "Paris"]}}
    assert check_choice("The answer is Paris", "Paris", hub, {}).score == 1.0
    mapping = {"options": {"A": "Rome", "B": "Paris"}}
    assert check_choice(r"\boxed{Paris}", "B", mapping, {}).score == 1.0
    assert check_choice("(B)", "B", {}, {}).score == 1.0


def test_options_may_be_numbered() -> None:
    for text in ("The answer is 2", "(2)", "2.", "option 2", r"\boxed{2}"):
        assert check_choice(text, "2", {}, {}).score == 1.0
        assert check_choice(text, "3", {}, {}).score == 0.0
    assert check_choice("The answer is 2.5", "2", {}, {}).status == "no_answer"
    assert check_choice("12", "1", {}, {}).status == "no_answer"


def test_a_choice_without_a_letter_as_ground_truth_does_not_apply() -> None:
    verdict = check_choice("(B)", "Berlin", OPTIONS, {})
    assert (verdict.score, verdict.status) == (None, "bad_gold")


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("3 * 6 = 18\n#### 18", "18", 1.0),
        ("#### 1,800.0", "1800", 1.0),
        (r"\boxed{Blue Whale}", "blue whale", 1.0),
        ("42", "42", 1.0),
        ("I think it is 42 or so", "42", 0.0),
        ("#### 18\n#### 19", "18", 0.0),
        ("#### 18", "some working\n#### 18", 1.0),
        ("", "18", 0.0),
    ],
)
def test_exact(text: str, answer: str, score: float) -> None:
    assert check_exact(text, answer, {}, {}).score == score


def test_numeric_allows_the_tolerance_and_no_more() -> None:
    close = {"tolerance": 1e-3}
    assert check_numeric(r"\boxed{1.001}", "1", {}, close).score == 1.0
    assert check_numeric(r"\boxed{1.0011}", "1", {}, close).score == 0.0
    relative = {"relative_tolerance": 0.01}
    assert check_numeric("#### 1005", "1000", {}, relative).score == 1.0
    assert check_numeric("#### 1011", "1000", {}, relative).score == 0.0
    assert check_numeric("#### 0.3333333", "1/3", {}, {}).score == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5", 1234.5),
        ("$-3$", -3),
        ("-$5", -5),
        (r"\$1,200.00", 1200),
        ("3/4", 0.75),
        (r"-\frac{3}{4}", -0.75),
        ("1 1/2", 1.5),
        (r"1\frac{1}{2}", 1.5),
        (r"1.2 \times 10^{3}", 1200),
        ("6.02e23", 6.02e23),
        ("5 cm", 5),
        (r"5\text{ m}^2", 5),
        ("x = 5", 5),
        ("90^\\circ", 90),
        ("12 dollars per day", 12),
    ],
)
def test_numbers_are_read_in_the_usual_spellings(text: str, value: float) -> None:
    read = read_quantity(text)
    assert read is not None and float(read.value) == value


@pytest.mark.parametrize(
    "text",
    [
        *(r"2\sqrt{3}", "2x", "3, 5", "2 and 3", "(1, 2)", "1/0", "1,23", "9^9^9", "10 - 3"),
        *("", ".", "9" * 100_000, "1e999999999", "((" * 50_000),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_not_one_number_is_not_read_as_one(text: str) -> None:
    assert read_quantity(text) is None


def test_a_percent_sign_on_one_side_allows_both_readings() -> None:
    for text, answer in (("50%", "50"), ("50%", "0.5"), ("50", "50%"), ("0.5", "50%")):
        assert check_numeric(f"#### {text}", answer, {}, {}).score == 1.0
    assert check_numeric("#### 50%", "0.5%", {}, {}).score == 0.0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>why</think> 5", 1.0),
        ("\n<think>\nwhy\n</think>\n\n5", 1.0),
        ("<think>why</think>", 0.0),
        ("<think></think> 5", 0.0),
        ("<think>why 5", 0.0),
        ("why</think> 5", 0.0),
        ("well <think>why</think> 5", 0.0),
        ("<think>a</think><think>b</think> 5", 0.0),
        ("5", 0.0),
    ],
)
def test_format_wants_one_thought_and_then_an_answer(text: str, score: float) -> None:
    assert check_format(text, None, {}, {}).score == score


@pytest.mark.parametrize(
    ("end", "text", "score"),
    [
        ("assistant\n<think>\n", "why\n</think>\n\n5", 1.0),
        ("assistant\n<think>", "<think>\nwhy\n</think>\n\n5", 1.0),
        ("assistant\n<think>\n", "The answer is 5.", 0.0),
        ("assistant\n<think>\n", "why</think>", 0.0),
        ("assistant\n<think>\n", "a</think><think>b</think>5", 0.0),
        ("assistant\n<think>\n\n</think>\n\n", "why</think> 5", 0.0),
        ("assistant\n<think>\n\n</think>\n\n", "<think>why</think> 5", 1.0),
        ("Use <think> tags. assistant\n", "why</think> 5", 0.0),
    ],
)
def test_format_goes_on_where_the_prompt_has_opened_the_thought(
    end: str, text: str, score: float
) -> None:
    assert check_format(text, None, {"prompt_end": end}, {}).score == score


NUMBERS: dict[str, Any] = {"numbers": [3, 5, 7, 100], "target": 485}


@pytest.mark.parametrize(
    ("text", "score", "status"),
    [
        ("<answer>100 * 5 - (3 * 5)</answer>", 0.0, "ok"),
        ("<answer>(100 - 3) * 5</answer>", 0.0, "ok"),
        ("<answer>(100 - 3) * 5 * 7 / 7</answer>", 0.0, "ok"),
        ("<answer>100 / 0 + 3 + 5 + 7</answer>", 0.0, "ok"),
        ("<answer>9**9**9**9</answer>", 0.0, "no_answer"),
        ("<answer>__import__('os').system('true')</answer>", 0.0, "no_answer"),
        ("<answer>True + 484</answer>", 0.0, "no_answer"),
        ("<answer>485.0</answer>", 0.0, "no_answer"),
        ("<answer>" + "(" * 500 + "1" + ")" * 500 + "</answer>", 0.0, "no_answer"),
        ("<answer>" + "1+" * 400_000 + "1</answer>", 0.0, "no_answer"),
        ("nothing", 0.0, "no_answer"),
    ],
)
def test_countdown_refuses(text: str, score: float, status: str) -> None:
    verdict = check_countdown(text, None, NUMBERS, {})
    assert (verdict.score, verdict.status) == (score, status)


def test_countdown_accepts_the_target_from_each_number_once() -> None:
    columns = {"nums": [25, 3, 4], "target": 100}
    assert check_countdown("<answer>25 * (3 - 4) + 100</answer>", None, columns, {}).score == 0.0
    assert check_countdown("<answer>25 * 4</answer>", None, columns, {}).score == 0.0
    assert check_countdown("<answer>25 * 4</answer>", None, columns, {"use_all": False}).score == 1
    columns = {"nums": [25, 3, 4], "target": 97}
    assert check_countdown("<answer>25 * 4 - 3 = 97</answer>", None, columns, {}).score == 1.0
    assert check_countdown(r"\boxed{25 \times 4 - 3}", None, columns, {}).score == 1.0
    assert check_countdown("<answer>1</answer>", "1", {"numbers": None}, {}).status == "bad_gold"


def test_countdown_is_exact_where_floats_are_not() -> None:
    value, used = evaluate("1 / 3 + 1 / 3 + 1 / 3")
    assert value == 1 and used == {1: 3, 3: 3}


@pytest.mark.parametrize(
    "text",
    ["(" * 999, "-" * 999 + "1", "1" + "+1" * 499, "(" * 499 + "1" + ")" * 499, "9**9**9**9"],
)
def test_the_work_of_an_expression_is_bounded_by_its_length(text: str) -> None:
    """Calls are counted, each of which does one operation on numbers that are as long as the text."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        with contextlib.suppress(ValueError):
            evaluate(text)
    finally:
        sys.setprofile(None)
    assert 0 < calls < 50 * len(text)


def test_math_reads_the_ground_truth_out_of_its_dress() -> None:
    for answer in ("7", "$7$", r"\boxed{7}", "3 + 4 = 7\n#### 7", r"so $\boxed{7}$.", r"\fbox{7}"):
        assert math_gold_text(answer) == r"\boxed{7}"
    assert math_gold_text(r"\boxed{7} and \boxed{8}") == r"\boxed{7, 8}"
    assert math_gold_text("$2$ and $3$") == r"\boxed{$2$ and $3$}"


def test_math_boxes_what_a_mark_announces_and_leaves_all_else_alone() -> None:
    marked = [
        "3 answers of 4\n#### 12",
        "<answer>12</answer>",
        r"\fbox{12}",
        r"so \boxed{12}. The answer is 3",
    ]
    for text in marked:
        assert math_completion_text(text) == r"\boxed{12}"
    assert math_completion_text("the answer is 7") == r"\boxed{7}"
    for text in ("the answer is $7$", "", "so 7", "#### Step 1: add\nit is 7"):
        assert math_completion_text(text) == text
    assert math_completion_text("<think>\\boxed{3}</think>The answer is $4$") == "The answer is $4$"


def test_every_verifier_of_the_registry_exists_and_is_described() -> None:
    import importlib

    for verifier in REWARDS.values():
        module, _, name = verifier.check.partition(":")
        assert getattr(importlib.import_module(module), name).__doc__
