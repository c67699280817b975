"""The vote a response casts in majority@k, read as the verifier reads it. It decides nothing about
right or wrong: that is the verifier's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from srft.rewards.answers import extract_answer, final_part
from srft.rewards.options import choice_in, options_of
from srft.rewards.quantities import as_number, plain_text, read_quantity
from srft.rewards.verifiers import number_in, squeezed

_NUMBERS = re.compile(
    r"\\[dt]?frac\s*\{-?\d+\}\s*\{\d+\}|(?<![\d.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?|(?<!\d)-?\.\d+"
)


def vote_of(
    text: str, columns: Mapping[str, Any], verifiers: Collection[str] = (), right: str | None = None
) -> str | None:
    r"""The answer in `text` in one spelling; None where the verifier reads none.

    verifiers: names of those that judge it. right: the ground truth where they call the text right;
    it is the vote then, since all that is right is equal to the verifier's eyes. Numbers vote by
    value (``5``, ``5.0``, ``$5$``, ``\frac{10}{2}``), options by their letter, words whatever their
    case. Wrong answers that are equal for deeper reasons (x + 1 and 1 + x) remain two votes.
    """
    if right is not None:
        return _one_spelling(extract_answer(right) or right)
    choices, announced = options_of(columns), extract_answer(text)
    if "choice" in verifiers or (not verifiers and (choices or announced is None)):
        letter = choice_in(text, choices)
        if letter is not None or "choice" in verifiers:
            return letter
    if "numeric" in verifiers:
        number = number_in(text)
        return None if number is None else f"{number.value}{'%' if number.percent else ''}"
    if "exact" in verifiers:
        return _one_spelling(announced or final_part(text), exact=True)
    if announced is None and "math" in verifiers:  # math-verify takes the last number
        announced = next(reversed(_NUMBERS.findall(text)), None)
    if announced is None and "reasoning-gym" in verifiers:  # its scorers take the whole text
        announced = text.strip() or None
    return None if announced is None else _one_spelling(announced)


def _one_spelling(answer: str, exact: bool = False) -> str | None:
    number = as_number(answer)
    if number is None and not exact and (found := read_quantity(answer)) and not found.percent:
        number = found.value
    if number is not None:
        return str(number)
    plain = plain_text(answer)
    if exact:
        return " ".join(plain.casefold().split()) or None
    plain = squeezed(plain)
    return (plain.casefold() if plain.isalpha() else plain) or None
