"""Numbers are read by value whatever their spelling, and what is not one number is not read."""

# ruff: noqa: RUF001

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction

import pytest

from srft.rewards.quantities import as_number, read_quantity, without_e_notation
from srft.rewards.scorer import Scorer
from srft.rewards.verifiers import check_exact, check_math, check_numeric
from srft.types import Example

CHECKS = {"math": check_math, "exact": check_exact, "numeric": check_numeric}


def spellings(value: Decimal) -> list[str]:
    """How people, Python, JSON and LaTeX write a decimal number."""
    power = value.adjusted()
    mantissa = format(value.scaleb(-power), "f")
    found = [
        f"{value:f}", f"{value:e}", f"{value:E}", f"{value:e}".replace("e+", "e"),
        rf"{mantissa}\times10^{{{power}}}", rf"{mantissa} \times 10^{{{power}}}",
        rf"{mantissa}\cdot 10^{{{power}}}", rf"${mantissa} \times 10^{{{power}}}$",
        f"{mantissa} * 10**{power}", f"{mantissa} x 10^{power}", f"{mantissa}×10^{power}",
        f"{mantissa}×10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}",
    ]  # fmt: skip
    if Decimal(repr(float(value))) == value:
        found.append(repr(float(value)))  # as JSON has it
    return found


def numbers(count: int, seed: int) -> list[Decimal]:
    rng = random.Random(seed)
    return [
        Decimal(f"{rng.choice(['', '-'])}{rng.randint(1, 10 ** rng.randint(1, 9))}e{rng.randint(-30, 30)}")
        for _ in range(count)
    ]  # fmt: skip


def test_every_spelling_of_a_number_has_the_value_that_decimal_gives_it() -> None:
    for value in numbers(400, seed=1):
        for text in spellings(value):
            read = read_quantity(text)
            assert read is not None and read.value == Fraction(value) == as_number(text), text


@pytest.mark.parametrize("name", CHECKS)
def test_numbers_are_right_by_value_in_both_directions(name: str) -> None:
    rng = random.Random(2)
    for value in numbers(150, seed=3):
        gold, answer = rng.sample(spellings(value), 2)
        assert CHECKS[name](rf"\boxed{{{answer}}}", gold, {}, {}).score == 1.0, (gold, answer)
        other = value * Decimal(rng.choice(["1.01", "10", "-1", "0.1", "0"]))
        answer = rng.choice(spellings(other)) if other else "0"
        assert CHECKS[name](rf"\boxed{{{answer}}}", gold, {}, {}).score == 0.0, (gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("3e8", "24e", False),
        ("3e8", "3*e*8", False),
        ("1e-05", "e-5", False),
        ("300000000", "3e8", True),
        ("2e^{3}", "2e3", False),
        ("2e^{3}", "2e^3", True),
        ("2e", "2e", True),
        ("1e-8", "0", False),
        ("0", "1e-8", False),
        ("1e-8", "1.5e-8", False),
        (r"(10^{-8}, 1)", "(0, 1)", False),
        (r"\frac{1}{3}", "0.333333", True),
        (r"\frac{1}{3}", "0.3333", False),
        ("6.02e+23", r"6.02 \times 10^{23} \text{ mol}^{-1}", True),
        ("9007199254740993", "9007199254740992", False),
        ("-1./3", r"-\frac13", True),
        ("np.arcsin(10/13)", r"\arcsin(10/13)", True),
        ("5000000", r"5\text{ million}", True),
        ("5", r"5\text{ million}", False),
    ],
)
def test_math_knows_numbers_from_products_with_eulers_number(
    gold: str, answer: str, right: bool
) -> None:
    assert check_math(rf"\boxed{{{answer}}}", gold, {}, {}).score == float(right)


def test_math_reads_e_notation_that_nothing_announces() -> None:
    for text in ("so it is 3e8 in all", "so it is $3 \\times 10^8$", "we get 300000000"):
        assert check_math(text, "3e8", {}, {}).score == 1.0
    assert check_math("we find $6.02\\times10^{23}$", "6.02e+23", {}, {}).score == 1.0


def test_e_notation_becomes_decimals_and_nothing_else_does() -> None:
    for value in numbers(200, seed=4):
        text = f"{value:e}"
        assert Decimal(without_e_notation(text)) == value and "e" not in without_e_notation(text)
    for text in ("2e^{3}", "x2e5", "2e3x", r"\alpha2e3", "52_8e3", "1.2e3.4", "e5", "2e", "the 3e"):
        assert without_e_notation(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5 million", 5_000_000), ("2 dozen", 24), ("$4.5 billion", 4_500_000_000), ("$5M", 5_000_000),
        ("3 hundred thousand", 300_000), (r"\$2\text{ thousand}", 2000), ("1/2 million", 500_000),
        ("1{,}234", 1234), (r"\frac12", Fraction(1, 2)), (r"\tfrac{3}4", Fraction(3, 4)),
        ("10^{-5}", Fraction(1, 10**5)), (r"45^{\circ}", 45), ("45°", 45), ("5 degrees Celsius", 5),
        (r"5\ \text{cm}", 5), ("- 3", -3), ("−3", -3), ("–3", -3), ("about 3", 3), (r"\approx 3.5", 3.5),
        ("x = 5", 5), (r"m\angle A = 45^\circ", 45), ("f(1, 2) = 5", 5), ("3 + 4 = 7", 7), ("5 %", 5),
        ("1½", 1.5), ("½", 0.5), ("10⁸", 10**8), ("5²", 25), ("1 1/2", 1.5), ("5 m/s^2", 5),
        (r"5~\mathrm{erg~s^{-1}}", 5), ("12 dollars a day", 12), ("USD 5", 5), ("5€", 5), ("300 K", 300),
        ("1\u202f234\u202f567", 1_234_567), ("2^{10}", 1024), ('"5"', 5), (r"\[5\]", 5), ("5 times", 5),
        ("9007199254740993", 9007199254740993), ("٣", 3), ("５", 5),
    ],
)  # fmt: skip
def test_quantities_are_read_in_the_spellings_people_use(text: str, value: float) -> None:
    read = read_quantity(text)
    assert read is not None and read.value == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "x >= 5", r"x \geq 5", "x < 5", "5 times 3", "5 times as many", "5i", "5 \\pi", "5e", "5!", "5x",
        "1 hour 2", "1 hour 2 minutes", "1 hour and two minutes", "5 feet 3 inches", "5 or 6", "5 to 10",
        "5-10", "5–10", "5 and a half", "5 plus three", "5 squared", "5 thirds", "5 out of 8", "5:30",
        "at least 5", "more than 5", "5 or more", "5+", "5 more than x", r"\pm 5", "5 ± 1", "|x| = 5",
        "2x = 10", "x^2 = 4", "2x + 3y + 5 = 0", "a = 3, b = 5", "x = 3 or x = 5", r"\{5\}", "(5, 6)",
        "5K", "5k", "5B", "52_8", "5 x 3", "5/x", "5 (mod 7)", "1,23", "12,34", "1. Introduction",
        "half", "5 is wrong", "NaN", "inf", "1/0", "0^{-1}", "5 million 3", "5 hundredths", "1.2.3",
        "1 h 2 min", "1h 2", "5C2", "5 C2", "5" + " apples" * 300, "1234567" + "0" * 1300, "1e99999999",
    ],
    ids=lambda text: text[:16],
)  # fmt: skip
def test_what_was_not_read_to_its_end_is_no_number(text: str) -> None:
    assert read_quantity(text) is None
    assert check_numeric(text, "5", {}, {}).score == 0.0
    assert check_numeric(rf"\boxed{{{text}}}", "5", {}, {}).score == 0.0


def test_a_text_is_never_cut_where_a_number_would_end() -> None:
    for length in range(380, 420):
        digits = "1234" + "5" * length
        for cut in range(200, len(digits), 20):
            assert check_numeric(digits, digits[:cut], {}, {}).score == 0.0
        assert check_numeric(f"\\boxed{{{' ' * length}1234567}}", "1234", {}, {}).score == 0.0
        assert check_numeric(" " * length + "1234567", "1234", {}, {}).score == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Her order costs $29.00.", 29),
        ("Some working 3 + 4\nThe total is 7 apples", 7),
        ("Step 1\nA: 26", 26),
        ("<think>1 + 1, or 3?</think>\n\n2", 2),
        ("Therefore, x = 8.", 8),
        ("So 3 + 4 = 7.", 7),
        ("So x >= 5", None),
        ("so 5 or 6", None),
        ("It takes 5 to 6 days", None),
        ("There are not 5", None),
        ("She needs more than 5", None),
        ("See equation 5", None),
        ("- 5", -5),
        ("She has 3 apples and 4 pears", None),
    ],
)
def test_without_an_announcement_the_last_line_counts_where_it_is_plain(
    text: str, value: int | None
) -> None:
    verdict = check_numeric(text, str(value or 5), {}, {})
    assert verdict.status == ("ok" if value else "no_answer")
    assert verdict.score == float(value is not None)


def test_the_default_tolerance_makes_no_small_number_right() -> None:
    for gold, answer in (("1e-8", "0"), ("1e-10", "7e-7"), ("0", "1e-9"), ("1e-8", "1.1e-8")):
        assert check_numeric(rf"\boxed{{{answer}}}", gold, {}, {}).score == 0.0
        assert check_numeric(rf"\boxed{{{answer}}}", gold, {}, {"tolerance": 1e-6}).score == 1.0
    for gold, answer in (("1/3", "0.333333"), ("1e-8", "1.00000001e-8"), ("3", "3.0000001")):
        assert check_numeric(rf"\boxed{{{answer}}}", gold, {}, {}).score == 1.0


@pytest.mark.parametrize(
    "text",
    ["5" + " " * 1500 + "x", "5" + " 5" * 50_000 + "!", "5 a " * 25_000, "5" + " + 0" * 500 + " z"],
)
def test_of_a_long_announcement_no_number_is_taken_from_within(text: str) -> None:
    assert check_math(rf"\boxed{{{text}}}", "5", {}, {}).score == 0.0


TUPLES = ("(0,100)", "(1,200)", "(2,251,252)", "(-1,000)", "(312,123,231)", "0,100", "00,100")


def test_points_and_intervals_are_no_number() -> None:
    assert {read_quantity(text) for text in TUPLES} == {None}
    assert [read_quantity(t).value for t in ("(5)", "(-1.5)", "1,200", "$1,234.5")] == [  # type: ignore[union-attr]
        5, Fraction(-3, 2), 1200, Fraction(2469, 2)
    ]  # fmt: skip


@pytest.mark.parametrize("text", TUPLES)
def test_a_point_is_right_as_a_point_alone(text: str) -> None:
    as_number = text.strip("()").replace(",", "").lstrip("0") or "0"
    golds = [Example("q", answer=text)] * 2 + [Example("q", answer=as_number)]
    said = [rf"\boxed{{{text}}}", rf"\boxed{{{as_number}}}", rf"\boxed{{{text}}}"]
    with Scorer("math", workers=1) as scorer:
        assert [s.reward for s in scorer.score(golds, said)] == [1.0, 0.0, 0.0]
