r"""Answers that leave the arithmetic of the question undone: `17 + 26` to "What is 17 + 26?".

Such an answer has the right value, and a verifier that goes by value calls it right; training by reward then
finds it within a few steps, and the policy learns to repeat the question. It is told by the question alone,
so that an answer such as ``2^{11} - 2^5`` stays right where the question does not say it.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from srft.rewards.answers import extract_answer, final_part
from srft.rewards.quantities import OPERATORS, Quantity, read_quantity

_LONGEST = 10_000  # characters that are looked at, from the end
_LONGEST_RUN = 200
_MOST_BITS = 4000  # of a power
_SPELLINGS: tuple[tuple[re.Pattern[str], Any], ...] = (
    *OPERATORS,
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"[\u2212\u2013]"), "-"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[()\[\],!;: ]|[$~]"), " "),
    (re.compile(r"(?<=\d)\{?,\}?(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=[\d)])\s*\*\*\s*(?=[\d(-])"), "^"),
    (re.compile(r"\^\s*\{\s*(-?\d+)\s*\}"), r"^\1"),
    (re.compile(r"(?<=\d)\s*x\s*(?=[\d(-])"), "*"),
)
_RUN = re.compile(r"[\d.()+\-*/^=][\d.()+\-*/^= \t]*")
# The number itself, and no operator before it.
_LAST = re.compile(r"[=#:{A-Za-z]\s*\$?(-?\d+)[\s.}$*]*$")
_SIDES = re.compile(r"=|\.\s")
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
_OPERATOR = re.compile(r"[\d)}]\s*[^\s\d.,;:)}$]|frac")  # something stands behind a number
_SCALED = re.compile(
    r"\d\s*(?:\\?%|per\s?cent|(?:hundred|thousand|million|billion|trillion|dozen)s?\b)"
)
_NUMERAL = re.compile(r"\d+(?:\.\d+)?|\.\d+")


def left_undone(text: str, answer: str, asked: str) -> bool:
    """Whether ``text``, whose answer has the value of the number ``answer``, only repeats arithmetic that the
    question ``asked`` holds: a sum or a product of the question's own numbers, or any where the question is
    an expression to be worked out; a fraction that can be reduced, a power or a multiple of a power of ten
    where the question has it letter by letter.

    >>> left_undone("The answer is 17 + 26.", "43", "What is 17 + 26?")
    True
    >>> left_undone("17 + 26 = 43", "43", "What is 17 + 26?")
    False
    >>> left_undone("40 + 3", "43", "Tom is 17, and Ann 26 years older. How old is Ann?")
    False
    """
    last = _LAST.search(text[-100:])
    if last and last[1] == answer.strip():  # the usual case, and a tenth of the time
        return False
    said, asked = final_part(text)[-_LONGEST:], asked[-_LONGEST:]
    if not (_OPERATOR.search(said) and _NUMERAL.search(asked)) or _SCALED.search(said):
        return False
    truth = extract_answer(answer) or answer
    gold = read_quantity(truth)
    if gold is None:
        return False
    found = [(side, one) for side, one in _expressions(said) if _same(_value(one), gold)]
    if any(_is_number(one) for _, one in found):
        return False
    # Without one of these the value was said in another way.
    return bool(found) and all(_is_asked(side, one, asked, truth, gold) for side, one in found)


def _is_asked(side: str, read: ast.expr, asked: str, truth: str, gold: Quantity) -> bool:
    if _squeezed(side) == _squeezed(_spelled(truth)):
        return False
    if _is_worked(read):
        return _squeezed(side) in _squeezed(_spelled(asked))
    return _numerals(side) <= _numerals(_spelled(asked)) or _asks_for(asked, gold)


def _spelled(text: str) -> str:
    for pattern, meant in _SPELLINGS:
        text = pattern.sub(meant, text)
    return text


def _expressions(text: str) -> Iterator[tuple[str, ast.expr]]:
    """What can be read as arithmetic, number or expression, each side of an equation by itself."""
    for run in _RUN.findall(_spelled(text)):
        for side in _SIDES.split(run):
            side = side.strip(" \t.*")  # of a sentence, or of Markdown
            if len(side) <= _LONGEST_RUN and (read := _read(side)) is not None:
                yield side, read


@functools.lru_cache(maxsize=4096)
def _read(side: str) -> ast.expr | None:
    if not any(character.isdigit() for character in side):
        return None
    python = _LEADING_ZEROS.sub("", side).replace("^", "**")
    try:
        read = ast.parse(python, mode="eval").body
        _value(read)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return read


_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _value(read: ast.expr) -> Fraction:
    """Raises ValueError or ZeroDivisionError where it has none."""
    match read:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            base, exponent = _value(left), _value(right)
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if exponent.denominator != 1 or abs(exponent) * bits > _MOST_BITS:
                raise ValueError("no power that is worked out here")
            return base ** int(exponent)
        case ast.BinOp(left=left, op=operation, right=right):
            return _OPERATIONS[type(operation)](_value(left), _value(right))
    raise ValueError("no arithmetic")


def _same(value: Fraction, gold: Quantity) -> bool:
    targets = (gold.value, gold.value / 100) if gold.percent else (gold.value,)
    return any(abs(value - target) <= abs(target) / 10**6 for target in targets)


def _is_number(read: ast.expr) -> bool:
    """A number with its sign, or a fraction in lowest terms."""
    match read:
        case ast.Constant():
            return True
        case ast.UnaryOp(operand=inner):
            return _is_number(inner)
        case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant(value=int() as below)):
            top = left.operand if isinstance(left, ast.UnaryOp) else left
            whole = isinstance(top, ast.Constant) and isinstance(top.value, int)
            return whole and below > 1 and math.gcd(int(_value(top)), below) == 1
    return False


def _is_worked(read: ast.expr) -> bool:
    """One operation that numbers are written with: a fraction, a power, a multiple of a power of ten."""
    match read:
        case ast.UnaryOp(operand=inner):
            return _is_worked(inner)
        case ast.BinOp(left=left, op=ast.Div() | ast.Pow(), right=right):
            return all(_signed(part) for part in (left, right))
        case ast.BinOp(
            left=left, op=ast.Mult(), right=ast.BinOp(ast.Constant(value=10), ast.Pow(), power)
        ):
            return _signed(left) and _signed(power)
    return False


def _signed(read: ast.expr) -> bool:
    return isinstance(read.operand if isinstance(read, ast.UnaryOp) else read, ast.Constant)


def _numerals(spelling: str) -> set[Fraction]:
    return {Fraction(numeral) for numeral in _NUMERAL.findall(spelling)}


def _squeezed(spelling: str) -> str:
    return re.sub(r"[\s()]", "", spelling)


@functools.lru_cache(maxsize=1024)
def _asks_for(asked: str, gold: Quantity) -> bool:
    """Whether the question holds an expression that is worth the right answer."""
    return any(not _is_number(one) and _same(_value(one), gold) for _, one in _expressions(asked))
