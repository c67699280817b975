r"""Where the answer is in a text, and when two short answers are the same.

The rule shared by the verifiers `exact`, `choice`, `numeric` and `countdown`: an answer is
announced by ``\boxed{...}``, by ``####`` (GSM8K) or by "answer is" / "answer:" / "answer =", and
the announcement that stands last in the text counts. Everything here is linear in the length of the
text, whatever the text is.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation

_BRACE = re.compile(r"\\boxed\s{0,8}\{|\\fbox\s{0,8}\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s{1,8}([^\s{}$\\]{1,64})")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_ANNOUNCED = re.compile(
    r"\banswer(?:\*\*)?(?:\s{0,4}:|\s{0,4}=|\s{1,4}is\b)[\s:=*]{0,8}", re.IGNORECASE
)
# Ends a sentence: a full stop with space after it, unless it follows a single letter ("B. Paris").
_SENTENCE_END = re.compile(r"(?<!^[A-Za-z])(?<!\s[A-Za-z])\.(?=\s|$)")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname|mbox)\s?\{([^{}]*)\}")
_PLAIN_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[+-]?\.\d+")
_MAX_NUMBER = 200


def last_box(text: str) -> tuple[int, str] | None:
    r"""Start and content of the ``\boxed{...}`` that closes last, or None.

    Nested and escaped braces are honoured; a box that is never closed does not count. ``\boxed 5``
    without braces is read as TeX reads it, up to the next space.
    """
    opened: list[tuple[int, int, bool]] = []
    best: tuple[int, str] | None = None
    for token in _BRACE.finditer(text) if "boxed" in text or "fbox" in text else ():
        symbol = token.group()
        if symbol.endswith("{") and symbol != "\\{":
            opened.append((token.start(), token.end(), len(symbol) > 1))
        elif symbol == "}" and opened:
            start, inside, is_box = opened.pop()
            if is_box:
                best = (start, text[inside : token.start()])
    for bare in _BARE_BOX.finditer(text):
        if best is None or bare.start() > best[0] + len(best[1]):
            best = (bare.start(), bare.group(1))
    return best


def after_hashes(text: str) -> tuple[int, str] | None:
    """Start and content of the last ``#### answer`` line, or None where there is none."""
    for match in reversed(list(_HASHES.finditer(text))):
        if match.group(1).strip():
            return match.start(), match.group(1).strip()
    return None


def _line_at(text: str, start: int) -> str:
    end = text.find("\n", start)
    return text[start:] if end < 0 else text[start:end]


def _announced(text: str) -> tuple[int, str] | None:
    for match in reversed(list(_ANNOUNCED.finditer(text))):
        line = _line_at(text, match.end())
        sentence = _SENTENCE_END.split(line.strip(), maxsplit=1)[0].strip(" *_`")
        if sentence:
            return match.start(), sentence
    return None


def extract_answer(text: str) -> str | None:
    r"""The announced answer that stands last in `text`, or None where nothing is announced.

    >>> extract_answer("so x = \\boxed{\\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract_answer("3 + 4 = 7\n#### 7")
    '7'
    >>> extract_answer("The answer is 12. I hope it is correct.")
    '12'
    """
    found = [place for place in (last_box(text), after_hashes(text), _announced(text)) if place]
    if not found:
        return None
    content = max(found)[1]
    # "The answer is \boxed{5}": the box inside the announcement is the answer.
    inner = last_box(content)
    return (inner[1] if inner else content).strip() or None


def plain_text(answer: str) -> str:
    r"""`answer` without its dress: dollar signs, ``\text{}``, markdown stars, a final full stop."""
    text = unicodedata.normalize("NFKC", answer).replace("\u2212", "-")
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\,", "").replace("\\!", "")
    text = _TEXT_COMMAND.sub(r"\1", text)
    text = text.strip().strip("$*`").strip()
    text = text.removeprefix("\\(").removesuffix("\\)").strip()
    return text.rstrip(".").strip() if len(text) > 1 else text


def as_decimal(text: str) -> Decimal | None:
    """The number written in `text` (thousands commas allowed), or None where it is not just one."""
    text = text.strip()
    if len(text) > _MAX_NUMBER or not _PLAIN_NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def same_answer(answer: str, gold: str) -> bool:
    """Equal after white space, case and dress are normalised; numbers compare by value.

    "1,234.50" equals "1234.5", "Paris." equals "paris", "x  + 1" equals "x + 1" but not "x+1".
    """
    left, right = plain_text(answer), plain_text(gold)
    number, target = as_decimal(left), as_decimal(right)
    if number is not None and target is not None:
        return number == target
    return " ".join(left.casefold().split()) == " ".join(right.casefold().split())
