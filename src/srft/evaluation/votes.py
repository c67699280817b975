"""The vote a response casts in majority@k. It decides nothing about right or wrong: that is the
verifier's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from srft.evaluation.choices import LETTERS
from srft.rewards.answers import as_decimal, extract_answer, plain_text
from srft.rewards.verifiers import read_choice

_SPACING = re.compile(r"\\[,;!: ]|\\(?:left|right|displaystyle|quad)(?![A-Za-z])|\s+")


def vote_of(text: str, columns: Mapping[str, Any]) -> str | None:
    r"""The announced answer (``\boxed``, ``####``, "answer is") in one spelling; None where nothing
    is announced.

    ``5``, ``5.0`` and ``$5$`` are one vote; where the row lists ``options`` and one of them is
    named, the vote is its letter.
    Answers that are equal for deeper reasons (1/2 and 0.5) remain two votes.
    """
    announced = extract_answer(text)
    if announced is None:
        return None
    options = columns.get("options")
    if isinstance(options, list | tuple):
        letter = read_choice(announced, {LETTERS[i]: str(o) for i, o in enumerate(options[:26])})
        if letter is not None:
            return letter
    plain = plain_text(announced)
    number = as_decimal(plain)
    if number is not None:
        return f"{number.normalize():f}"
    return _SPACING.sub("", plain).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac") or None
