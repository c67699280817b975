r"""The one number that a short text is, as an exact fraction, or None where it is anything else.

Everything in the text has to be understood: the number, what stands before it (a currency, "about",
``x =``) and what stands after it (a scale such as "million", a percent sign, a unit). A formula, a
second number, a range or an inequality is not read, and nothing is cut off before reading.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

_LONGEST = 1200
_MOST_DIGITS = 1000  # of a power

_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
_VULGAR = re.compile("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_THIN_SPACE = re.compile("(?<=\\d)[\u2009\u202f\u00a0](?=\\d{3}(?!\\d))")
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|operatorname|mbox|hbox|bm|boldsymbol|"
    r"underline|emph)\s?\{((?:[^{}]|\{[^{}]*\})*)\}"
)
LOOKS = re.compile(
    r"\\(?:text)?color\s?\{[\w!]+\}|\\(?:large|Large|LARGE|huge|Huge|bf|displaystyle)(?![A-Za-z])"
)
_BRACED = re.compile(r"\{([^{}]*)\}|__([^_]+)__")
_QUOTES = ('""', "''", "\u201c\u201d", "\u2018\u2019", "\u00ab\u00bb")


def plain_text(answer: str) -> str:
    r"""`answer` without its dress: dollar signs, ``\text{}``, markdown stars, quotes around it, a
    final full stop; superscripts and vulgar fractions as ``^`` and ``/``."""
    text = _VULGAR.sub(" ", _THIN_SPACE.sub("", answer.replace("{,}", ",")))
    text = (
        unicodedata.normalize("NFKC", with_powers(text))
        .replace("\u2044", "/")
        .replace("\u2212", "-")
    )
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\,", "").replace("\\!", "")
    text = _TEXT_COMMAND.sub(r"\1", LOOKS.sub("", text))
    text = text.strip().strip("$*`").strip()
    if braced := _BRACED.fullmatch(text):
        text = (braced[1] or braced[2] or "").strip()
    if text[:2] + text[-2:] in ("\\(\\)", "\\[\\]"):
        text = text[2:-2].strip()
    if len(text) > 1:
        text = text.rstrip(".").strip()
    if len(text) > 2 and text[0] + text[-1] in _QUOTES:
        text = text[1:-1].rstrip(".,").strip()
    return text


def with_powers(text: str) -> str:
    """`text` with superscripts as LaTeX writes powers."""
    return _SUPERSCRIPT.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]) + "}", text)


def words(text: str) -> frozenset[str]:
    """The words of a text, for tables that people can read."""
    return frozenset(text.split())


# --- numbers --------------------------------------------------------------------------------------

_PLAIN = r"\d+(?:\.\d*)?|\.\d+"
_DIGITS = rf"(?:[1-9]\d{{0,2}}(?:,\d{{3}})+(?!\d)(?:\.\d*)?|{_PLAIN})"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]?)\s?(?P<currency>(?:(?:US)?[$€£¥₹]|(?:USD|EUR|GBP|Rs\.?)(?=[\s\d])))?\s?(?P<sign2>[+-]?)\s?
    (?: (?P<whole>\d+)\s(?P<n>\d+)\s?/\s?(?P<d>\d+)
      | (?P<top>{_DIGITS})\s?/\s?(?P<bottom>-?{_DIGITS})
      | (?P<base>\d+)\s?\^\s?[{{(]?\s?(?P<power>[+-]?\s?\d+)\s?[)}}]?
      | (?P<number>{_DIGITS})
        (?: \s?(?:\*|x)\s?10\s?\^\s?[{{(]?\s?(?P<ten>[+-]?\s?\d+)\s?[)}}]? | [eE](?P<e>[+-]?\d+) )?
    )""",
    re.VERBOSE,
)


def _with_point(number: re.Match[str]) -> str:
    """A number with a decimal comma, where its groups, its currency or its unit show that it is one."""
    several = not number["g"] and not (len(number["d"]) < 3 and (number["c"] or number["u"]))
    whole = re.sub(r"\D", "", number["w"])
    return number[0] if several else f"{number['a']}{number['c'] or ''}{whole}.{number['d']}"


OPERATORS: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])|[\u00d7\u00b7\u22c5]"), "*"),
    (re.compile(rf"\\[dtc]?frac\s*(?:\{{\s*(-?{_DIGITS})\s*\}}|(\d))\s*(?:\{{\s*({_DIGITS})\s*\}}|(\d))"),
     lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}"),
    (re.compile(r"\\(?:div|slash)(?![A-Za-z])|\u00f7|\{/\}"), "/"),
)  # fmt: skip
"""Signs and commands for products and fractions of numbers, and how they are spelled here."""

_SPELLINGS: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"\\[,!;: ]|\\(?:left|right|q?quad|displaystyle)(?![A-Za-z])|~"), " "),
    (re.compile(r"\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?|\\degree(?![A-Za-z])"), "°"),
    *OPERATORS,
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\(?:approx|simeq)(?![A-Za-z])|[≈≃]"), "="),
    (re.compile(r"\{\.\}"), "."),
    (re.compile(r"^\s*(?:[\u2013\u2014]|(?:negative|minus)\s)(?=\s?\$?[\d.])"), "-"),
    (re.compile(r"\\[()\[\]]|(?<=\d)\$(?=\s)|\s+"), " "),
    # (-5), not the point or interval (2,500)
    (re.compile(rf"(?<![\w)}}\]])\((-?(?:{_PLAIN}))\)(?!\s?[\w(^!])"), r"\1"),
    (re.compile(  # 1.234,5 and 1 234,5; of 3,5 alone nobody knows whether it is one number
        r"(?P<a>^[-+]?\s?)(?P<c>[$€£]\s?|EUR\s)?(?P<w>\d{1,3}(?P<g>[. ]\d{3})+|\d+),(?P<d>\d+)"
        r"(?=(?P<u>\s?(?:[€%]|[A-Za-z]+))?)(?![\d,])"), _with_point),
    (re.compile(  # 1 234 567, 1'234 and 1.234.567, but not the mixed fraction 1 234/567
        r"(?<![\w.,/^{])[1-9]\d{0,2}(?:([ '\u2019_~])\d{3}(?:\1\d{3})*|\.\d{3}(?:\.\d{3})+)"
        r"(?![\d/]|\s?/)"),
     lambda m: re.sub(r"\D", "", m[0])),
)  # fmt: skip


def _spelled(answer: str) -> str:
    """`answer` without dress and with one spelling of each operator; "" where it is too long."""
    if len(answer) > _LONGEST:
        return ""
    text = plain_text(answer)
    for pattern, meant in _SPELLINGS:
        text = pattern.sub(meant, text)
    return text.strip()


def as_number(text: str) -> Fraction | None:
    r"""The value of a text that is a number and nothing else: digits with thousands commas, decimals,
    E notation, a power, ``1.2 \times 10^{3}``; None for fractions and all else."""
    match = _NUMBER.fullmatch(_spelled(text))
    if match is None or match["top"] or match["whole"] or match["currency"]:
        return None
    return _value(match)


def _value(number: re.Match[str]) -> Fraction | None:
    if number["sign"] and number["sign2"]:
        return None
    sign = -1 if "-" in (number["sign"], number["sign2"]) else 1
    if number["base"]:
        value = _power(number["base"], number["power"])
    elif number["number"]:
        value = _power("10", number["ten"] or number["e"] or "0")
        value = None if value is None else _fraction(number["number"]) * value
    else:
        divisor = _fraction(number["d"] or number["bottom"])
        top = _fraction(number["n"] or number["top"])
        value = None if divisor == 0 else _fraction(number["whole"] or "0") + top / divisor
    return None if value is None else sign * value


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _power(base: str, exponent: str) -> Fraction | None:
    exponent = exponent.replace(" ", "")
    if len(exponent) > 6 or abs(int(exponent)) * len(base) > 2 * _MOST_DIGITS:
        return None
    if int(base) == 0 and int(exponent) <= 0:
        return None
    return Fraction(int(base)) ** int(exponent)


_E_NUMBER = re.compile(
    r"(?<![\w.\\^])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,6})(?![\w^]|\.\d|\{)"
)  # not the base of a power of Euler's number (2e^{3}), nor part of a name


def without_e_notation(text: str) -> str:
    r"""`text` with its numbers in E notation written in decimals: ``1.5e3`` is ``1500``."""
    return _E_NUMBER.sub(_in_decimals, text)


def _in_decimals(match: re.Match[str]) -> str:
    mantissa, exponent = match[1], int(match[2])
    if abs(exponent) > _MOST_DIGITS:
        return rf"{mantissa}\times10^{{{exponent}}}"
    return format(Decimal(f"{mantissa}e{exponent}"), "f")


# --- quantities -----------------------------------------------------------------------------------

_NO_VALUE = re.compile(  # relations other than equality, and what stands for two values
    r"[<>≤≥≠±|]|!=|\\(?:leq?|geq?|neq?|lt|gt|pm|mp|in|leqslant|geqslant|not)(?![A-Za-z])"
)
_NAME = re.compile(r"(?![\d\s])(?!.*(?:sqrt|frac|log|ln|exp|!))[\w\s\\'°.:$(){}\[\],]+")
_SUM_OF_NAMES = re.compile(r"[A-Za-z](?:[A-Za-z\s]|[-+*/](?=\s?[A-Za-z])|_\{?\d\}?)*")  # m + n
_TWO = re.compile(r"[,;]|\b(?:and|or)\b")
_BRACKETS = re.compile(r"\([^()]*\)|\{[^{}]*\}")
_ABOUT = re.compile(
    r"(?:(?:is|are|equals|equal to|about|approximately|approx\.?|around|roughly|nearly|almost|"
    r"exactly|precisely|just|only|a total of|circa)\s+|[:]\s*)*",
    re.IGNORECASE,
)
_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12, "doz": 12, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
_SCALE = re.compile(rf"[\s-]{{0,3}}({'|'.join(_SCALES)})s?\b", re.IGNORECASE)
_MONEY_SCALE = re.compile(r"\s?([kmbt])n?(?![A-Za-z])", re.IGNORECASE)
_DOLLARS = re.compile(r"\s*\\?\$\s?[\d.,]+\s?[A-Za-z]+\W*(?<!\$)$")
_MONEY = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_PERCENT = re.compile(r"\s*(?:%|(?:per\s?cent|percentage|pct)\b)(?:\s*points?\b)?", re.IGNORECASE)
_NOT_A_UNIT = re.compile(r"[kKMB](?![A-Za-z])|\s*[-+*!^()]")
_REMARK = re.compile(r"\s[(\[](?!mod|not|wrong)[A-Za-z][A-Za-z .,-]*[)\]]\s*$")
_UNIT_POWER = re.compile(r"\^(?:\{\s*-?\d\s*\}|-?\d)|(?:(?<=[A-Za-z]{2})|(?<=\b[ms]))[23](?![\d.])")
_UNIT_WORD = re.compile(r"[^\W\d_]+'?[a-z]*|[°$€£¥Ω]+[CF]?")
_LETTER_UNITS = frozenset("mgshlLJNWVACFTHSK°$€£¥ΩÅ")
# Words behind a number that make another number of it.
_CHANGES = words(
    "and or to through till until than plus minus over times by divided multiplied squared cubed "
    "factorial choose mod modulo pi root sqrt out half halves third thirds quarter quarters "
    "fourth fourths fifth fifths sixth sixths seventh eighth eighths ninth ninths tenth tenths "
    "hundredth hundredths thousandth thousandths millionth millionths if not but instead unless "
    "except least most minimum maximum twice double triple zero one two three four five six seven "
    "eight nine ten eleven twelve twenty thirty forty fifty sixty seventy eighty ninety hundred "
    "thousand million billion trillion dozen gross mil mn bn mio mrd tn wrong incorrect false"
)


@dataclass(frozen=True)
class Quantity:
    """A number that was read. percent: a percent sign follows it (and is not in `value`). rounded:
    it is written with a decimal point or a power of ten, so that digits may have been left out."""

    value: Fraction
    percent: bool = False
    rounded: bool = False


def read_quantity(answer: str) -> Quantity | None:
    r"""The number that `answer` is, or None where it is not exactly one.

    >>> texts = ("1{,}234.5", "\\frac12", "1 1/2", "5 million", "3e-5", "x = \\$5", "45^{\\circ}")
    >>> " ".join(str(read_quantity(text).value) for text in texts)
    '2469/2 1/2 3/2 5000000 3/100000 5 45'
    >>> {read_quantity(t) for t in ("x >= 5", "5 times 3", "5i", "1 hour 2", "2\\sqrt{3}", "3, 5")}
    {None}
    """
    text = _spelled(answer)
    if not any(c.isdigit() for c in text) or _NO_VALUE.search(text):
        return None
    text = _right_side(text).strip()
    before = _ABOUT.match(text)
    number = _NUMBER.match(text, before.end() if before else 0)
    value = None if number is None else _value(number)
    if number is None or value is None:
        return None
    rest = text[number.end() :]
    if rest and number[0].endswith("."):
        return None  # "1. Introduction"
    rounded = bool(number["ten"] or number["e"]) or "." in number[0]
    money = _MONEY_SCALE.match(rest) if number["currency"] or _DOLLARS.match(answer) else None
    if money:
        value, rest = value * _MONEY[money[1].lower()], rest[money.end() :]
    while scale := _SCALE.match(rest):
        value, rest = value * _SCALES[scale[1].lower()], rest[scale.end() :]
    percent = _PERCENT.match(rest)
    rest = rest[percent.end() :] if percent else rest
    return Quantity(value, bool(percent), rounded) if _is_unit(rest) else None


def _right_side(text: str) -> str:
    """What stands behind the last equals sign, where it says what a name or worked numbers are;
    "" for any other equation."""
    *left, right = text.split("=")
    bare = [_BRACKETS.sub("", side) for side in left]
    if any(_TWO.search(side) for side in bare):
        return ""
    name = left[0].strip() if left else ""
    named = not name or _NAME.fullmatch(name) or _SUM_OF_NAMES.fullmatch(name)
    worked = not any(c.isalpha() for side in left for c in side)
    return right if named or worked else ""


def _is_unit(rest: str) -> bool:
    """Whether what stands behind a number is nothing, or words that leave it as it is."""
    rest = _REMARK.sub("", rest).rstrip(" .")
    if not rest:
        return True
    if _NOT_A_UNIT.match(rest):
        return False
    parts = [word for word in re.split(r"[\s*/.()-]+", _UNIT_POWER.sub("", rest)) if word]
    if [word.lower() for word in parts] == ["times"]:  # how often
        return True
    return len(parts) <= 8 and all(
        _UNIT_WORD.fullmatch(word)
        and word.lower() not in _CHANGES
        and (len(word) > 1 or word in _LETTER_UNITS or (place and word == "a"))
        for place, word in enumerate(parts)
    )
