r"""The verifiers: is the answer in a completion the right one?

Each is a function of one completion ``(text, answer, columns, options) -> Verdict`` without state,
so that it can run here or in a worker process. This module is imported by the workers: it imports
neither torch nor anything of the package that does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from srft.rewards.answers import (
    after_hashes,
    as_decimal,
    extract_answer,
    last_box,
    plain_text,
    same_answer,
)

Status = Literal["ok", "text_only", "no_answer", "bad_gold", "timeout", "memory", "crash"]


@dataclass(frozen=True)
class Verdict:
    """What came of verifying one completion.

    score: in [0, 1], or None where the verifier does not apply (its ground truth is unusable).
    status: "ok" it was compared; "text_only" it was compared as text, because math-verify finds no
        meaning in the ground truth, so that only the same spelling is right; "no_answer" no answer
        could be read in the completion (score 0); "bad_gold" the ground truth could not be read
        (score None); "timeout", "memory", "crash" the worker was stopped or died while verifying it
        (score 0).
    """

    score: float | None
    status: Status = "ok"


RIGHT, WRONG = Verdict(1.0), Verdict(0.0)
NO_ANSWER, BAD_GOLD = Verdict(0.0, "no_answer"), Verdict(None, "bad_gold")


# --- math -----------------------------------------------------------------------------------------


def math_gold_text(answer: str) -> str:
    r"""The text math-verify reads the ground truth from: ``\boxed{answer}``.

    Ground truths come bare (``\frac{1}{2}``), between dollars, boxed, or at the end of a solution
    (``... #### 7``); without a box math-verify looks for prose around numbers and misreads
    bare LaTeX (``\text{east}``, ``x^2 + 1``).
    """
    boxed, hashes = last_box(answer), after_hashes(answer)
    if boxed or hashes:
        answer = max(place for place in (boxed, hashes) if place)[1]
    answer = answer.strip()
    if len(answer) > 1 and answer[0] == answer[-1] == "$" and answer.strip("$").count("$") == 0:
        answer = answer.strip("$")
    return f"\\boxed{{{answer}}}"


def math_completion_text(text: str) -> str:
    r"""The text math-verify reads the model's answer from: the completion itself, except that an
    answer announced by ``####``, a mark math-verify does not know, is boxed for it."""
    hashes, boxed = after_hashes(text), last_box(text)
    if hashes and not (boxed and boxed[0] > hashes[0]):
        return f"\\boxed{{{plain_text(hashes[1])}}}"
    return text


@lru_cache(maxsize=512)
def _parsed_gold(answer: str) -> list[Any]:
    from math_verify import parse

    # math-verify's own limits are signals, which exist in the main thread only; the pool has its
    # own clock, so they are switched off.
    parsed: list[Any] = parse(math_gold_text(answer), parsing_timeout=None)
    return parsed


def check_math(
    text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """math-verify's verdict. Runs without a time limit of its own: call it through the pool."""
    from math_verify import parse, verify

    gold = _parsed_gold(answer)
    if not gold:
        return BAD_GOLD
    if options.get("announced_only"):
        announced = extract_answer(text)
        if announced is None:
            return NO_ANSWER
        text = f"\\boxed{{{announced}}}"
    found = parse(math_completion_text(text), parsing_timeout=None)
    if not found:
        return NO_ANSWER
    right = verify(gold, found, timeout_seconds=None)
    return Verdict(float(right), "text_only" if all(isinstance(g, str) for g in gold) else "ok")


# --- exact ----------------------------------------------------------------------------------------


def check_exact(
    text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The announced answer (the whole completion where nothing is announced) equals the ground
    truth after normalisation (`srft.rewards.answers.same_answer`)."""
    gold = extract_answer(answer) or answer
    if not plain_text(gold):
        return BAD_GOLD
    found = extract_answer(text) or text
    if not found.strip():
        return NO_ANSWER
    return RIGHT if same_answer(found, gold) else WRONG


# --- choice ---------------------------------------------------------------------------------------

_LETTER_ALONE = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s*(?:is\s*)?:?\s*)?"
    r"[(\[{]?\s*([A-Za-z1-9])\s*[)\]}]?\s*[.:,;]?",
    re.IGNORECASE,
)
_LETTER_FIRST = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice)\s+([A-Za-z1-9])\b"
    r"|\(\s*([A-Za-z1-9])\s*\)"
    r"|\[\s*([A-Za-z1-9])\s*\]"
    r"|([A-Za-z1-9])\s*[).:](?!\d)"
    r"|([B-HJ-Z])\s*(?:,|-|\s(?:because|since|as|is)\b)"
    r"|(A)\s*(?:,|-|\s(?:because|since)\b))",
    re.IGNORECASE,
)
_OPTION_LAST = re.compile(
    r"\b(?:option|choice)\s+[(\[]?([A-Za-z1-9])\b[)\]]?|\(([A-Z1-9])\)", re.IGNORECASE
)
_MORE_LETTERS = re.compile(
    r"\s*(?:,|/|&|\band\b|\bor\b)\s*[(\[]?[A-Za-z1-9][)\]]?(?![A-Za-z0-9])", re.I
)
_LONGEST_LINE = 2000


def _options_of(columns: Mapping[str, Any]) -> dict[str, str]:
    """The options by letter, from a column `options` or `choices`: a list of texts, a mapping from
    letters to texts, or the hub's ``{"label": [...], "text": [...]}``."""
    raw = columns.get("options", columns.get("choices"))
    if isinstance(raw, Mapping):
        if "text" in raw and "label" in raw:
            return {str(k).upper(): str(v) for k, v in zip(raw["label"], raw["text"], strict=False)}
        return {str(k).upper(): str(v) for k, v in raw.items()}
    if isinstance(raw, list | tuple):
        return {chr(ord("A") + i): str(text) for i, text in enumerate(raw[:26])}
    return {}


def read_choice(answer: str, choices: Mapping[str, str]) -> str | None:
    """The option's letter (upper case) or digit that a short answer names, or None.

    >>> [read_choice(a, {}) for a in ("(B)", "B.", "Option b", "B. Paris", "A and C")]
    ['B', 'B', 'B', 'B', None]
    >>> read_choice("Paris", {"A": "Rome", "B": "Paris"})
    'B'
    """
    text = plain_text(answer[:_LONGEST_LINE])
    named = [letter for letter, option in choices.items() if same_answer(text, option)]
    if len(named) == 1:
        return named[0]
    alone = _LETTER_ALONE.fullmatch(text)
    first = None if alone else _LETTER_FIRST.match(text)
    match = alone or first
    if match is None:
        return None
    letter = next(group for group in match.groups() if group).upper()
    if first and any(_MORE_LETTERS.match(text, first.end() - back) for back in (0, 1)):
        return None
    if choices and letter not in choices:
        return None
    return letter


def _choice_in(text: str, choices: Mapping[str, str]) -> str | None:
    announced = extract_answer(text)
    if announced is not None:
        return read_choice(announced, choices)
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None
    last = lines[-1].strip()
    found = read_choice(last, choices)
    if found is None:
        letters = {(m[1] or m[2]).upper() for m in _OPTION_LAST.finditer(last[-_LONGEST_LINE:])}
        found = letters.pop() if len(letters) == 1 else None
    return found


def check_choice(
    text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The announced option, by letter or by its text, is the right one."""
    choices = _options_of(columns)
    gold = read_choice(extract_answer(answer) or answer, choices)
    if gold is None:
        return BAD_GOLD
    found = _choice_in(text, choices)
    if found is None:
        return NO_ANSWER
    return RIGHT if found == gold else WRONG


# --- numeric --------------------------------------------------------------------------------------

_NUMBER = r"[+-]?(?:\d{1,3}(?:,\d{3})+(?:\.\d{0,50})?|\d{1,50}(?:\.\d{0,50})?|\.\d{1,50})"
_TIMES_TEN = r"(?:\\times|\\cdot|\u00d7|\*|x)\s?10\s?(?:\^|\*\*)\s?"
_EXPONENT = rf"(?:\s?(?:[eE]\s?|{_TIMES_TEN})\{{?([+-]?\d{{1,3}})\}}?)?"
_SCIENTIFIC = re.compile(rf"({_NUMBER}){_EXPONENT}")
_FRACTION = re.compile(
    r"([+-])?\s?(?:(\d{1,15})\s?)??(?:\\[dt]?frac\s?\{\s?([+-]?\d{1,15})\s?\}\s?\{\s?(\d{1,15})\s?\}"
    r"|(\d{1,15})\s?/\s?(\d{1,15}))"
)
_MIXED = re.compile(r"([+-])?\s?(\d{1,15})\s+(\d{1,15})\s?/\s?(\d{1,15})")
# What may follow the number: nothing, a percent sign or a unit; not a formula ("2\\sqrt{3}", "2x"),
# a second number ("3, 5", "2 and 3") or the rest of a sum.
_UNIT = re.compile(
    r"\s*(?:%|\^?\\?(?:circ|degree)|(?!(?:and|or)\b|[a-eknpqxyz](?![A-Za-z]))"
    r"[A-Za-z\u00b0\u00b5\u03a9$\u20ac\u00a3][^\d\\=+*<>]*(?:[\^]?\{?-?[123]\}?)?)?\s*"
)
_CURRENCY = re.compile(r"^(?:[$€£¥₹]|USD|EUR|GBP)\s?|^([+-])\s?[$€£¥₹]\s?")


def read_number(answer: str) -> tuple[float, bool] | None:
    r"""The number at the start of a short answer and whether a percent sign follows it, or None.

    Reads ``1,234.5``, ``$5``, ``3/4``, ``\frac{3}{4}``, ``1 1/2``, ``1.2 \times 10^{3}``, ``5 cm``
    and ``x = 5``.
    """
    text = plain_text(answer[:_MAX_NUMBER_TEXT])
    if "=" in text:
        text = text.rsplit("=", 1)[1].strip()
    text = _CURRENCY.sub(lambda m: m.group(1) or "", text).strip()
    text = text.removeprefix("\\approx").removeprefix("\u2248").strip()
    value, rest = _leading_number(text)
    if value is None or not _UNIT.fullmatch(rest):
        return None
    return value, rest.lstrip().startswith(("%", "percent"))


_MAX_NUMBER_TEXT = 400


def _leading_number(text: str) -> tuple[float | None, str]:
    mixed = _MIXED.match(text)
    if mixed and int(mixed[4]):
        value = int(mixed[2]) + int(mixed[3]) / int(mixed[4])
        return (-value if mixed[1] == "-" else value), text[mixed.end() :]
    fraction = _FRACTION.match(text)
    if fraction:
        top, bottom = int(fraction[3] or fraction[5]), int(fraction[4] or fraction[6])
        if bottom == 0:
            return None, text
        value = int(fraction[2] or 0) + top / bottom
        return (-value if fraction[1] == "-" else value), text[fraction.end() :]
    number = _SCIENTIFIC.match(text)
    if number is None:
        return None, text
    return float(f"{number[1].replace(',', '')}e{number[2] or 0}"), text[number.end() :]


def check_numeric(
    text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The announced number is within ``tolerance`` (absolute) or ``relative_tolerance`` times the
    ground truth. A percent sign on one side only may mean either reading: 50% matches 50 and 0.5.
    """
    gold = read_number(extract_answer(answer) or answer)
    if gold is None:
        return BAD_GOLD
    announced = extract_answer(text)
    found = read_number(announced if announced is not None else text.strip())
    if found is None:
        return NO_ANSWER
    target, target_percent = gold
    value, percent = found
    relative = options.get("relative_tolerance", 0.0)
    allowed = max(options.get("tolerance", 1e-6), relative * abs(target))
    readings = [(value, target)]
    if percent != target_percent:
        readings.append((value / 100, target) if percent else (value, target / 100))
    # The slack is the rounding of the subtraction itself: 1.001 is within 0.001 of 1.
    close = any(abs(a - b) <= allowed * (1 + 1e-9) + 4e-16 * abs(b) for a, b in readings)
    return RIGHT if close else WRONG


# --- format ---------------------------------------------------------------------------------------


def check_format(
    text: str, answer: str | None, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The completion is ``<think>`` reasoning ``</think>`` and then an answer, each tag once."""
    head, opened, rest = text.partition("<think>")
    thought, closed, said = rest.partition("</think>")
    tags = text.count("<think>") == text.count("</think>") == 1
    good = opened and closed and tags and not head.strip() and thought.strip() and said.strip()
    return RIGHT if good else WRONG


__all__ = [
    "Verdict",
    "as_decimal",
    "check_choice",
    "check_exact",
    "check_format",
    "check_math",
    "check_numeric",
    "read_choice",
    "read_number",
]
