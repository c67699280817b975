"""What kind of text a token is."""

from __future__ import annotations

import re

CLASSES = ("number", "operator", "connective", "word", "layout", "end")

# Words that steer an argument: going on, turning, concluding, checking, supposing.
_WORDS = """
    so then thus hence therefore because since as but however although though instead
    otherwise alternatively or and also moreover furthermore first second third next finally
    now let lets if when where while suppose assume given wait hmm ok okay actually maybe
    perhaps check verify recall note notice consider similarly meaning means which implies
    conclude answer
"""
CONNECTIVES = frozenset(_WORDS.split())
_OPERATORS = frozenset("+-−–*/×÷·=<>≤≥≠≈^±√∑∫%!|&~→⇒⇔")  # noqa: RUF001 (look-alikes are the point)
_NUMBER = re.compile(r"[\d.,]*\d[\d.,]*")
# LaTeX commands that are operators; a tokenizer may split the backslash off.
_LATEX = re.compile(
    r"\\?(frac|dfrac|times|cdot|div|sqrt|sum|int|pm|leq|geq|neq|le|ge|ne|approx|equiv|to)\b"
)


def token_class(text: str, special: bool = False) -> str:
    """One of ``CLASSES`` for a decoded token.

    number: digits, with points and commas. operator: arithmetic, comparison, the LaTeX commands
    for them. connective: a word of ``CONNECTIVES``. layout: white space, punctuation, brackets.
    end: a special token, such as end of sequence. word: everything else (names, other words, parts
    of words, letters).
    """
    if special:
        return "end"
    core = text.strip()
    if _NUMBER.fullmatch(core):
        return "number"
    if core and all(c in _OPERATORS for c in core):
        return "operator"
    if _LATEX.fullmatch(core):
        return "operator"
    if core.lower().strip("'.,:;!?") in CONNECTIVES:
        return "connective"
    if not any(c.isalnum() for c in core):
        return "layout"
    return "word"
