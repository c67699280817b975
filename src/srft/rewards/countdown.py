"""Countdown: reach a target from given numbers with + - * /, each number used at most once."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from srft.rewards.answers import extract_answer
from srft.rewards.quantities import plain_text
from srft.rewards.verifiers import BAD_GOLD, NO_ANSWER, RIGHT, WRONG, Verdict

_MAX_LENGTH = 1000
_WRITTEN = (
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("\u00d7", "*"),
    ("\u00f7", "/"),
    ("\\left", ""),
    ("\\right", ""),
)


class _NotArithmeticError(ValueError):
    """The expression is not made of whole numbers, + - * / and parentheses."""


def _value(node: ast.expr, used: Counter[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            used[number] += 1
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, used)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, used), _value(right, used)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    raise _NotArithmeticError(ast.dump(node)[:80])


def evaluate(expression: str) -> tuple[Fraction, Counter[int]]:
    """The exact value of an arithmetic expression and how often each number occurs in it.

    Walks the syntax tree and knows + - * / and whole numbers alone: no powers, names or calls, so
    the work is bounded by the length.

    Raises: ValueError where it is something else or too long, ZeroDivisionError.
    """
    if len(expression) > _MAX_LENGTH:
        raise _NotArithmeticError("too long")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        used: Counter[int] = Counter()
        return _value(tree.body, used), used
    except (SyntaxError, RecursionError, MemoryError) as error:
        # The parser gives MemoryError for expressions nested too deeply for its stack.
        raise _NotArithmeticError(str(error)) from error


def _expression_in(text: str) -> str | None:
    found = extract_answer(text)
    if not found:
        return None
    expression = plain_text(found)
    for written, meant in _WRITTEN:
        expression = expression.replace(written, meant)
    return expression.split("=", 1)[0].strip()


def check_countdown(
    text: str, answer: str | None, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The announced expression (``<answer>...</answer>`` or otherwise) has exactly the
    target's value and uses each given number at most once (exactly once with ``use_all``).

    Reads the columns ``numbers`` (or ``nums``) and ``target`` (or the example's answer).
    """
    numbers = columns.get("numbers", columns.get("nums"))
    target = columns.get("target", answer)
    try:
        given = Counter(int(number) for number in numbers)
        goal = Fraction(str(target))
    except (TypeError, ValueError, ZeroDivisionError):
        return BAD_GOLD
    expression = _expression_in(text)
    if expression is None:
        return NO_ANSWER
    try:
        value, used = evaluate(expression)
    except ValueError:
        return NO_ANSWER
    except ZeroDivisionError:
        return WRONG
    allowed = used == given if options.get("use_all", True) else used <= given
    return RIGHT if value == goal and allowed else WRONG
