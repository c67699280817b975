r"""Answers that leave the work of the question undone: `17 + 26` to "What is 17 + 26?".

Such an answer has the right value, and a verifier that goes by value calls it right; training by reward then
finds it within a few steps, and the policy learns to repeat the question. It is told by the question alone,
so that an answer such as ``2^{11} - 2^5`` stays right where the question does not say it. Arithmetic is
worked out; anything else (``5!``, ``x(x + 2)``) is undone where it stands in the question letter by letter.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from srft.rewards.answers import extract_answer, final_part
from srft.rewards.quantities import OPERATORS, Quantity, read_quantity, with_powers

_LONGEST = 10_000  # characters that are looked at, from the end
_LONGEST_FINAL = 1000
_LONGEST_RUN = 200
_MOST_BITS = 4000  # of a power
_FRACTION = (
    re.compile(r"\\[dtc]?frac\s*(?:(\d)|\{([^{}]*)\})\s*(?:(\d)|\{([^{}]*)\})"),
    lambda m: f"(({m[1] or m[2]})/({m[3] or m[4]}))",
)
_SPELLINGS: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile("[\u00bc-\u00be\u2150-\u215e]"),
     lambda m: "(({})/({}))".format(*unicodedata.normalize("NFKC", m[0]).split("\u2044"))),
    (re.compile(r"(?:\\sqrt|\u221a)\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+))"),
     lambda m: f"\u221a({m[1] or m[2] or m[3]})"),
    *3 * (_FRACTION,),  # one in another
    *OPERATORS,
    (re.compile(r"[\u2212\u2013]"), "-"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[()\[\],!;: ]|[$~]"), " "),
    (re.compile(r"\[|\\\{"), "("),
    (re.compile(r"\]|\\\}"), ")"),
    (re.compile(r"(?<=\d)\{?,\}?(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=[\d)])\s*\*\*\s*(?=[\d(-])"), "^"),
    (re.compile(r"\^\s*\{\s*(-?\d+)\s*\}"), r"^\1"),
    (re.compile(r"\^\s*\{([^{}]*)\}"), r"^(\1)"),
    (re.compile(r"(?<=\d)\s*x\s*(?=[\d(-])"), "*"),
    (re.compile(r"(?<=\d)(?P<gap>\s?):(?P=gap)(?=\d)"), "/"),
    (re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*\\?%"), r"(\1%100)"),
    (re.compile(r"(?<![\d.^/)])(\d+)\s*(?=\(\(\d+\)/\(\d+\)\))"), r"\1@"),
    (re.compile(r"(?<![\d.^/)])(\d+)\s+(\d+)\s?/\s?(\d+)(?![\d.])"), r"\1@((\2)/(\3))"),
    (re.compile(r"(?<!\d)(\d+)@\(\((\d+)\)/\((\d+)\)\)"), r"(\1@((\2)/(\3)))"),
    (re.compile(r"(?<=[\d)])(?=[(\u221a])|(?<=\))(?=\d)"), "*"),
)  # fmt: skip
"""How arithmetic is written here: as in Python, but `^` for powers, `\u221a()` for roots, and of
numbers that are written with an operator `(2@((1)/(2)))` for 2 1/2 and `(50%100)` for 50 percent."""
_RUN = re.compile(r"[\d.()+\-*/^=\u221a][\d.()+\-*/^=@%\u221a \t]*")
# The number itself, and no operator before it.
_LAST = re.compile(r"(?:[=#:]|\\boxed\{|(?<![\\A-Za-z])[A-Za-z]+\s)\s*\$?(-?\d+)[\s.}$*]*$")
_SIDES = re.compile(r"=|\.\s")
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
_OPERATOR = re.compile(r"[\d)}]\s*[^\s\d.,;:)}$]|frac")  # something stands behind a number
_SCALED = re.compile(r"\d\s*(?:per\s?cent|(?:hundred|thousand|million|billion|trillion|dozen)s?\b)")
_NUMERAL = re.compile(r"(?<!%)(?:\d+(?:\.\d+)?|\.\d+)")
# Something to work out. A minus behind something is an operator, else a sign.
_WORK = re.compile(
    r"[+*/^\u221a]|[\w)}|]\s*-|(?<![A-Za-z])\w!|\)!|\|[^|]+\||(?<![A-Za-z])(?:mod|choose)(?![A-Za-z])"
    r"|\\(?:sqrt|[dtc]?frac|[dt]?binom|log|ln|lg|exp|(?:arc)?(?:sin|cos|tan)|sec|csc|cot|[bp]?mod|gcd|lcm|max|min"
    r"|sum|prod|int|lim|lfloor|lceil|det)(?![a-z])"
)
_SIMPLEST = re.compile(r"-?(?:\d+@)?(\d*)\*?(?:\u221a(\d+)|\\pi)?(?:/(\d+))?|-?[\d.]+%100")
_GOES_ON = re.compile(r"(?:[-+*/^(|\u221a!_@%\d]\s*|[A-Za-z\\])$")
_GOES_BACK = re.compile(r"\s*[-+*/^)|\u221a!_@%\d\\]|[A-Za-z(]")
_COMMENT = re.compile(r",?\s+[a-z]{2,}(?<!mod)\b\D*$")
_BRACES = re.compile(r"[{}]")
_LEADS = re.compile(r"\s*(?:[A-Za-z']{2,}[\s:,]+)+")
_NAME = re.compile(r"[A-Za-z]\w*")


def left_undone(text: str, answer: str, asked: str) -> bool:
    """Whether ``text``, whose answer has the value of ``answer``, only repeats what the question ``asked``
    holds: a formula with something to work out, letter by letter, that is not spelled as ``answer`` is; where
    that is a number, a sum or a product of the question's own numbers, or any where the question is an
    expression to be worked out; a fraction that can be reduced, a power or a multiple of a power of ten.

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
    truth = extract_answer(answer) or answer
    gold = read_quantity(truth)
    final = extract_answer(text) or said.rpartition("\n")[2]
    if not (gold and read_quantity(final)) and _repeats(final[-_LONGEST_FINAL:], truth, asked):
        return gold is None or not any(
            _is_number(one) for _, one in _worth(said.replace(final, " "), gold)
        )
    if not (_OPERATOR.search(said) and _NUMERAL.search(asked)) or _SCALED.search(said):
        return False
    if gold is None:
        return False
    found = _worth(said, gold)
    if any(_is_number(one) for _, one in found):
        return False
    # Without one of these the value was said in another way.
    return bool(found) and all(_is_asked(side, one, asked, truth, gold) for side, one in found)


def _worth(said: str, gold: Quantity) -> list[tuple[str, ast.expr]]:
    return [(side, one) for side, one in _expressions(said) if _same(_value(one), gold)]


def _repeats(final: str, truth: str, asked: str) -> bool:
    """Whether each side of the answer stands in the question letter by letter, with something to work out,
    and none is spelled as the truth is."""
    spelled, asked = _spelled(_COMMENT.sub("", final)), _BRACES.sub("", _spelled(asked))
    sides = [
        _outside(side[led.end() if (led := _LEADS.match(side)) else 0 :])
        for side in spelled.split("=")
    ]
    sides = [side for side in sides if side and not _NAME.fullmatch(side)]
    truths = {_squeezed(side).casefold() for side in (_spelled(truth), *_spelled(truth).split("="))}
    if any(_squeezed(side).casefold() in truths for side in sides):
        return False
    return any(
        any(map(_has_work, parts)) and all(_stands(part, asked) for part in parts)
        for parts in (sides, [_outside(spelled)])
    )


def _outside(side: str) -> str:
    """Without white space, Markdown, braces, and parentheses around all of it."""
    side = re.sub(r"\s", "", _BRACES.sub("", side)).strip("*_`.,:?")
    inner = side[1:-1]
    return inner if side[:1] + side[-1:] == "()" and not {"(", ")"} & {*inner} else side


def _has_work(side: str) -> bool:
    return any(_WORK.search(part) and not _is_simplest(part) for part in re.split("[,;]", side))


def _is_simplest(part: str) -> bool:
    """A reduced fraction, a mixed number, percent, a multiple of pi or of a root that cannot be reduced."""
    number = _SIMPLEST.fullmatch(_squeezed(part))
    if number is None:
        return False
    top, root, below = (int(group or 1) for group in number.groups())
    squares = (n * n for n in range(2, min(math.isqrt(root), 1000) + 1))
    return (
        math.gcd(top, below) == 1
        and (root > 1) is bool(number[2])
        and all(root % n for n in squares)
    )


def _stands(part: str, asked: str) -> bool:
    """Whether the question holds it, and not as a part of something longer."""
    if len(part) > _LONGEST_RUN or part.count("(") != part.count(")"):
        return False
    for found in re.finditer(r"\s*".join(map(re.escape, part)), asked):
        start, end = found.span()
        before, after = asked[max(0, start - 20) : start], asked[end : end + 20]
        if not _GOES_ON.search(before) and not _GOES_BACK.match(after):
            return True
    return False


def _is_asked(side: str, read: ast.expr, asked: str, truth: str, gold: Quantity) -> bool:
    if _squeezed(side) == _squeezed(_spelled(truth)):
        return False
    if _is_worked(read):
        return _squeezed(side) in _squeezed(_spelled(asked))
    return _numerals(side) <= _numerals(_spelled(asked)) or _asks_for(asked, gold)


@functools.lru_cache(maxsize=256)
def _spelled(text: str) -> str:
    text = with_powers(text)
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
    python = _LEADING_ZEROS.sub("", side).replace("^", "**").replace("\u221a", "~")
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
        case ast.UnaryOp(op=ast.Invert(), operand=inner):
            return _root(_value(inner))
        case ast.BinOp(left=left, op=ast.MatMult(), right=ast.BinOp(op=ast.Div()) as part):
            return _value(left) + _value(part)
        case ast.BinOp(left=left, op=ast.Mod(), right=ast.Constant(value=100)):
            return _value(left) / 100
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


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise ValueError("no root")
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise ValueError("no root that is a fraction")
    return root


def _same(value: Fraction, gold: Quantity) -> bool:
    targets = (gold.value, gold.value / 100) if gold.percent else (gold.value,)
    return any(abs(value - target) <= abs(target) / 10**6 for target in targets)


def _is_number(read: ast.expr) -> bool:
    """A number with its sign, percent, or a fraction in lowest terms, alone or behind a whole number."""
    match read:
        case ast.Constant() | ast.BinOp(op=ast.Mod()):
            return True
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=inner):
            return _is_number(inner)
        case ast.BinOp(op=ast.MatMult(), right=part):
            return _is_number(part)
        case ast.BinOp(left=left, op=ast.Div(), right=ast.Constant(value=int() as below)):
            top = left.operand if isinstance(left, ast.UnaryOp) else left
            whole = isinstance(top, ast.Constant) and isinstance(top.value, int)
            return whole and below > 1 and math.gcd(int(_value(top)), below) == 1
    return False


def _is_worked(read: ast.expr) -> bool:
    """One operation that numbers are written with: a fraction, a power, a multiple of a power of ten."""
    match read:
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=inner):
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
    return re.sub(r"[\s(){}]", "", spelling)


@functools.lru_cache(maxsize=1024)
def _asks_for(asked: str, gold: Quantity) -> bool:
    """Whether the question holds an expression that is worth the right answer."""
    return any(not _is_number(one) and _same(_value(one), gold) for _, one in _expressions(asked))
