"""Numbers, formulas and options in every spelling that people and models use, by value."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction

import pytest

from srft.evaluation.votes import vote_of
from srft.rewards.verifiers import check_choice, check_exact, check_math, check_numeric

WAYS = (
    r"\boxed{%s}",
    r"$\boxed{%s}$",
    "<answer>%s</answer>",
    "The answer is %s.",
    "**Answer:** %s",
    "#### %s",
    '{"answer": "%s"}',
    "<think>The answer is 97.</think>\n\n%s",
    "\u7b54\u6848\uff1a%s",
)


def whole(i: int) -> Iterator[str]:
    """Spellings of a whole number."""
    yield from (f"{i}", f"{i}.0", f"${i}$", rf"\({i}\)", f"**{i}**", f"`{i}`", f"__{i}__", f"({i})")
    for separator in (
        ",",
        "{,}",
        r"\,",
        r"\!",
        r"\;",
        r"\ ",
        "~",
        " ",
        "'",
        "_",
        "\u202f",
        "\u00a0",
    ):
        yield f"{i:,}".replace(",", separator)
    if abs(i) >= 10**6:
        yield f"{i:,}".replace(",", ".")  # as German has it; of one group nobody knows
    for command in (
        r"\textcolor{red}",
        r"\color{red}",
        r"\bm",
        r"\boldsymbol",
        r"\underline",
        r"\text",
    ):
        yield f"{command}{{{i}}}"
    yield from (rf"\frac{{{3 * i}}}{{3}}", f"{2 * i}/2", f"({2 * i})/(2)", rf"{2 * i} \div 2")
    if i < 0:
        yield from (f"\u2212{-i}", f"- {-i}", f"\u2013{-i}", f"negative {-i}", f"minus {-i}")
    else:
        yield from (
            f"x = {i}",
            f"m+n={i}",
            f"a_1 + a_2 = {i}",
            f"+{i}",
            rf"\${i}",
            f"{i} (in all)",
            f"Rs. {i}",
        )
        yield from (
            f"{i}^\\circ",
            f"{i} cm\u00b2",
            rf"{i}\ \text{{cm}}",
            rf"\({i}\) cm",
            f"{i:,}.50".replace(".50", ""),
        )
    if i and i % 10**6 == 0:
        yield from (
            f"{i // 10**6} million",
            rf"$\${i // 10**6}$ million",
            rf"{i // 10**6}  \times  10^{{6}}",
        )


def ratio(x: Fraction) -> Iterator[str]:
    """Spellings of a fraction that is no whole number."""
    sign, a, b = "-" if x < 0 else "", abs(x.numerator), x.denominator
    for spelled in (
        "{}/{}",
        r"\frac{{{}}}{{{}}}",
        r"\dfrac {{{}}} {{{}}}",
        r"{}\div{}",
        "{}{{/}}{}",
        "({})/({})",
    ):
        yield sign + spelled.format(a, b)
    yield rf"\frac{{{sign}{a}}}{{{b}}}"
    if a > b:
        for spelled in (
            "{} {}/{}",
            r"{}\frac{{{}}}{{{}}}",
            r"{} \frac{{{}}}{{{}}}",
            r"{}\ \tfrac{{{}}}{{{}}}",
        ):
            yield sign + spelled.format(a // b, a % b, b)
    if 10**4 % b == 0:
        decimals = f"{float(a / b):g}"
        yield from (
            sign + decimals,
            sign + decimals.replace(".", "{.}"),
            f"{sign}{decimals.replace('.', ',')} kg",
        )


VALUES = [
    Fraction(v)
    for v in ("0", "7", "-12", "1234", "-1234567", "5000000", "1/2", "-3/4", "7/2", "-13/4", "22/7")
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_number_is_right_in_every_spelling_and_another_in_none(value: Fraction) -> None:
    rng = random.Random(0)
    spellings = list(whole(int(value)) if value.denominator == 1 else ratio(value))
    for spelled in spellings:
        text = rng.choice(WAYS) % spelled
        if text.startswith("{") and "\\" in spelled:  # JSON doubles it
            text = WAYS[0] % spelled
        for gold, said, right in (
            (str(value), text, 1.0),
            (spelled, rf"\boxed{{{value}}}", 1.0),
            (str(value + Fraction(rng.choice((1, -1, 100)), rng.choice((1, 7)))), text, 0.0),
        ):
            assert check_numeric(said, gold, {}, {}).score == right, (gold, said)
            assert check_math(said, gold, {}, {}).score == right, (gold, said)
        assert vote_of(text, {}, ["math"]) == str(value), text


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("1234.56", "1.234,56", True),
        ("1234.5", "1 234,5", True),
        ("12.5", "12,5 %", True),
        ("29", "29,00 \u20ac", True),
        ("3.5", "3,5", False),
        ("3", "3,5", False),
        ("3", "\u22123", False),
        ("1000", "10\u00b3", True),
        ("103", "10\u00b3", False),
        ("3", "x + 2 = 3", False),
        ("3", "3 or 4", False),
        ("5", "5 (mod 7)", False),
        ("5", "not 5", False),
    ],
)
def test_commas_signs_and_equations_of_numbers(gold: str, text: str, right: bool) -> None:
    assert (check_numeric(rf"\boxed{{{text}}}", gold, {}, {}).score == 1.0) == right


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        (r"2\sqrt{3}", "The answer is 2\u221a3.", True),
        (r"\sqrt{x+1}", "\\boxed{\u221a(x+1)}", True),
        ("x^2+2x+1", "\\boxed{x\u00b2+2x+1}", True),
        (r"(-\infty,2)\cup(3,\infty)", "\\boxed{(-\u221e,2)\u222a(3,\u221e)}", True),
        ("]0,1]", r"\boxed{(0,1]}", True),
        ("[0,1[", r"\boxed{[0,1]}", False),
        (r"\emptyset", r"\boxed{\varnothing}", True),
        ("x+1", r"\boxed{\textcolor{blue}{x+1}}", True),
        ("x+1", r"\boxed{\mathbf{x+1}}", True),
        (r"\text{June 20}", r"\boxed{June 20}", True),
        ("4343_6", r"\boxed{4343_{6}}", True),
        ("4343_6", r"\boxed{4343_7}", False),
        ("5", "The answer is 5, not 6.", True),
        ("6", "The answer is 5, not 6.", False),
        ("5", "The answer is not 5.", False),
        ("6", "The answer isn't 5, it is 6", True),
        ("5", "The answer isn't 5, it is 6", False),
        ("12", "\\boxed{1 2}", False),
        ("1234", "\\boxed{12 34}", False),
        ("42", "In 42 it was good. The answer is unknown.", False),
        ("5", "The answer is 5 or 6.", False),
        ("5", "The answer is between 5 and 6.", False),
        ("5, 6", "The answer is 5 or 6.", True),
        ("5", "<think>The answer is 6.</think>\n\n$5$", True),
        ("5", "<think>\\boxed{5}</think>\n\nHope this helps!", True),
        ("5", "\\boxed{\u22655}", False),
        ("5", r"\boxed{\ge 5}", False),
        ("5", r"\boxed{>= 5}", False),
        ("5", "The answer is $\u2264 5$.", False),
        ("5", r"\boxed{\neq 5}", False),
        ("5", r"\boxed{\not= 5}", False),
        ("5", "\u22655", False),
        ("5", r"\boxed{\approx 5}", True),
        ("5", r"\boxed{= 5}", True),
        (r"x \ge 5", "\\boxed{x \u2265 5}", True),
        ("3000000", "The population is 3 million.", True),
        ("3", "The population is 3 million.", False),
        ("3000000", "The population is $3$ million.", True),
        ("24", "We get 2 dozen.", True),
        ("24", "That is 2 dozen, or 24.", True),
        ("1500000", "It costs $1.5 million.", True),
        ("5", "Some 2 million people live in 5 cities.", True),
    ],
)
def test_formulas_in_unicode_and_dress_and_answers_that_are_denied(
    gold: str, text: str, right: bool
) -> None:
    assert (check_math(text, gold, {}, {}).score == 1.0) == right


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [
        ("Paris", "<think>The answer is London.</think>\n\nParis", True),
        ("London", "<think>The answer is London.</think>\nParis", False),
        ("Yahoo!", "The answer is Yahoo!", True),
        ("Who?", "Answer: Who?", True),
        ("5", "5!", False),
        ("5", "5 apples", False),
        ("29", "Her order costs $29.00.", True),
        ("Paris", '{"answer": "Paris"}', True),
        ("5", '{"x": 1, "answer": 5}', True),
        ("\u6771\u4eac", "\u7b54\u6848\u662f\u6771\u4eac\u3002", True),
    ],
)
def test_exact_answers_behind_a_thought_in_json_and_in_full_sentences(
    gold: str, text: str, right: bool
) -> None:
    assert (check_exact(text, gold, {}, {}).score == 1.0) == right


OPTIONS = ["gravity", "spin", "charge", "mass"]
SAID = (
    "{0}",
    "({0})",
    "[{0}]",
    "**{0}.**",
    "The answer is {0}.",
    "The correct option is ({0}).",
    "Answer: {0}) {1}",
    "### {0}",
    "Answer - {0}",
    '{{"answer": "{0}"}}',
    "I would go with {0}.",
    "The answer is {0} as the {1} matters.",
    "Correct: {0}",
    "The answer is {0}; the rest is noise.",
    "The answer is the {1}.",
    r"\boxed{{\textbf{{({0}) }}{1}}}",
    "<answer>{0}. {1}</answer>",
    "<think>The answer is A.</think>\n{0}",
    "The answer is {0}\n\nA is wrong; B too.",
    "\u7b54\u6848\u662f{0}",
    r"The answer is $\boxed{{{0}}}$.",
)


def test_an_option_is_chosen_in_many_ways_and_never_two_at_once() -> None:
    for place, letter in enumerate("ABCD"):
        for way in SAID:
            text = way.format(letter, OPTIONS[place])
            scores = [check_choice(text, gold, {"options": OPTIONS}, {}).score for gold in "ABCD"]
            assert scores == [float(gold == letter) for gold in "ABCD"], text
    for text in (
        "The answer is a vector.",
        "Type A blood",
        "vitamin C",
        "25 C",
        "\\boxed{A, C}",
        "I think so.",
        "either A or C",
    ):
        assert {check_choice(text, gold, {"options": OPTIONS}, {}).score for gold in "ABCD"} == {
            0.0
        }, text


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("1.6e-19", r"1.6 \times 10^{-19}", True),
        (r"1.6 \times 10^{-19}", r"16 \cdot 10^{-20}", True),
        ("-19", r"1.6 \times 10^{-19}", False),
        ("x^2+1", "x^2 + 1", True),
        ("1", "x^2 + 1", False),
        ("(0,1)", "(0, 1).", True),
        ("1", "(0, 1)", False),
        ("(2,3)", "(3,2)", False),
        (r"\{1,2\}", r"\{2, 1\}", True),
        (r"\text{east}", "east", True),
        ("north", "east", False),
        ("3", "f(x) = 3", True),
    ],
)
def test_a_response_that_is_a_formula_and_nothing_else_is_read_whole(gold, response, right):
    """Whatever math-verify would find in it by itself: of `1.6 \\times 10^{-19}` the -19."""
    assert bool(check_math(response, gold, {}, {}).score) is right
