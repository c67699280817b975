"""Problems without end from reasoning-gym: ``reasoning-gym:chain_sum?size=2000&seed=1``.

A source names one family or several (``chain_sum+products``), with weights where they are not to be
equal (``chain_sum*3+products``). After the question mark: ``size`` and ``seed`` of the set, and
settings of the families (``max_terms=3`` for every family that has it, ``products.max_digits=1`` for
one). Demonstrations are written where a family's problem holds a worked solution or an expression
whose steps can be written out; elsewhere there are none (``srft data demonstrate`` makes some).
"""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from fractions import Fraction
from typing import Any
from urllib.parse import parse_qsl

from srft.errors import DataError, did_you_mean

PREFIX = "reasoning-gym:"
# The column that holds what reasoning-gym's scorer reads (``rewards/gym.py``).
ENTRY = "reasoning_gym"
_SIZE = 1000


def rows_of(source: str, limit: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Rows ``prompt``, ``answer``, ``family``, ``reasoning_gym`` and, where it has one,
    ``demonstration``. ``limit`` and ``seed`` are read where the source does not set its own.

    Raises DataError for an unknown family or setting, by name, and where reasoning-gym is missing.
    """
    gym = _package()
    weights, settings = _parse(source)
    size = _whole(source, "size", settings.pop("size", None), limit or _SIZE)
    seed = _whole(source, "seed", settings.pop("seed", None), seed)
    own = _settings_of(source, weights, settings)
    if len(weights) == 1:
        (family,) = weights
        dataset = _made(source, gym.create_dataset, family, size=size, seed=seed, **own[family])
    else:
        specs = [
            gym.composite.DatasetSpec(name=name, weight=weight, config=own[name])
            for name, weight in weights.items()
        ]
        dataset = _made(
            source, gym.create_dataset, "composite", size=size, seed=seed, datasets=specs
        )
    count = size if limit is None else min(size, limit)
    return [_row(dataset[number]) for number in range(count)]


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise DataError(
            "a reasoning-gym source needs the package reasoning-gym: pip install 'srft[gym]'"
        ) from error
    return reasoning_gym


def _parse(source: str) -> tuple[dict[str, float], dict[str, str]]:
    """The families with their weights, and the settings as text."""
    names, _, query = source.removeprefix(PREFIX).partition("?")
    weights: dict[str, float] = {}
    for part in names.split("+"):
        name, _, weight = part.partition("*")
        try:
            weights[name.strip()] = float(weight or 1)
        except ValueError:
            raise DataError(f"{source}: the weight {weight!r} of {name} is not a number") from None
    from reasoning_gym.factory import DATASETS

    for name in weights:
        if name not in DATASETS or name == "composite":
            raise DataError(f"{source}: no family {name!r}{_hint(name, DATASETS)}")
    try:
        return weights, dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError:
        raise DataError(
            f"{source}: cannot read {query!r}; settings are written as size=2000&seed=1"
        ) from None


def _settings_of(
    source: str, weights: Mapping[str, float], settings: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The settings of each family, as values of the type the family's own config has."""
    from reasoning_gym.factory import DATASETS

    known = {name: {f.name for f in fields(DATASETS[name][1])} for name in weights}
    own: dict[str, dict[str, Any]] = {name: {} for name in weights}
    for key, text in settings.items():
        family, dot, setting = key.rpartition(".")
        chosen = [family] if dot else [name for name in weights if key in known[name]]
        if any(name not in weights for name in chosen):
            raise DataError(f"{source}: {key} is for the family {family!r}, which is not requested")
        if not chosen or any(setting not in known[name] for name in chosen):
            every = sorted(set().union(*known.values()) - {"seed", "size"})
            raise DataError(f"{source}: no setting {setting!r}{_hint(setting, every)}")
        for name in chosen:
            own[name][setting] = _value(text)
    return own


def _value(text: str) -> Any:
    """A number, truth value, tuple or list as Python writes it, else the text."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def _whole(source: str, key: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    if not text.isdecimal() or (key == "size" and int(text) == 0):
        raise DataError(f"{source}: {key} must be a whole number, not {text!r}")
    return int(text)


def _made(source: str, create: Callable[..., Any], name: str, **settings: Any) -> Any:
    try:
        return create(name, **settings)
    # reasoning-gym's configs check themselves by assertions.
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(f"{source}: {name} refuses its settings: {error}") from None


def _row(entry: Mapping[str, Any]) -> dict[str, Any]:
    metadata = entry["metadata"]
    row = {
        "prompt": entry["question"],
        "answer": str(entry["answer"]),
        "family": metadata.get("source_dataset", ""),
        ENTRY: json.dumps(dict(entry), default=str),
    }
    demonstration = worked_solution(entry)
    return row if demonstration is None else {**row, "demonstration": demonstration}


def worked_solution(entry: Mapping[str, Any]) -> str | None:
    """A solution in words: the family's own, or the steps of its expression from left to right.

    Worked: ``90 + 66 - 29`` becomes "First, 90 + 66 = 156, then 156 - 29 = 127. The answer is 127."
    """
    metadata = entry["metadata"]
    if "answer_cot" in metadata:
        return str(metadata["answer_cot"])
    expression = metadata.get("expression")
    if not isinstance(expression, str):
        return None
    steps = _steps(expression)
    if steps is None or steps[1] != _number(str(entry["answer"])):
        return None
    if not steps[0]:
        return f"The answer is {entry['answer']}."
    text = ", then ".join(steps[0])
    return f"First, {text}. The answer is {entry['answer']}."


_OPERATORS: dict[type, tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}


def _steps(expression: str) -> tuple[list[str], Fraction] | None:
    """The steps of an arithmetic expression, innermost first, and its value; None for any other."""
    steps: list[str] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return Fraction(str(node.value))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
            raise ValueError
        sign, apply = _OPERATORS[type(node.op)]
        left, right = value(node.left), value(node.right)
        result = apply(left, right)
        steps.append(f"{_shown(left)} {sign} {_shown(right)} = {_shown(result)}")
        return result

    try:
        return steps, value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _shown(value: Fraction) -> str:
    """As a whole number or decimals; raises ValueError where neither is exact."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10**6
    if scaled.denominator != 1:
        raise ValueError
    return f"{float(value):.6f}".rstrip("0")


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known, f"; known are {', '.join(sorted(known))}", most=2)
