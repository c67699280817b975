"""Multiple choice: the options of a row by letter, and the letter that a short answer names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from srft.rewards.answers import announcements, extract_answer, final_part, same_answer
from srft.rewards.quantities import plain_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLUMNS = ("options", "choices")


def as_list(value: Any) -> list[Any] | None:
    """A list, tuple or array as a list; None for anything else."""
    if isinstance(value, list | tuple):
        return list(value)
    listed = value.tolist() if hasattr(value, "tolist") else None
    return listed if isinstance(listed, list) else None


def options_of(columns: Mapping[str, Any]) -> dict[str, str]:
    """The options by letter, from a column `options` or `choices`: a list or array of texts, a
    mapping from letters to texts, the hub's ``{"label": [...], "text": [...]}``, or a list of
    ``{"label": ..., "text": ...}``. A letter that the text repeats (``B) Paris``) is left out."""
    raw = next((columns[name] for name in COLUMNS if columns.get(name) is not None), None)
    if isinstance(raw, Mapping) and {"text", "label"} <= raw.keys():
        labels, texts = as_list(raw["label"]) or [], as_list(raw["text"]) or []
    elif isinstance(raw, Mapping):
        labels, texts = list(raw), list(raw.values())
    else:
        texts = as_list(raw) or []
        labels = list(LETTERS[: len(texts)])
        if texts and all(isinstance(t, Mapping) and {"text", "label"} <= t.keys() for t in texts):
            labels, texts = [t["label"] for t in texts], [t["text"] for t in texts]
    found = {str(k).strip().upper(): str(v).strip() for k, v in zip(labels, texts, strict=False)}
    dressed = {
        k: re.match(rf"\(?{re.escape(k)}\s?[).:]\s+(?=\S)", v, re.I) for k, v in found.items()
    }
    if all(dressed.values()):
        found = {k: found[k][match.end() :] for k, match in dressed.items() if match}
    return found


_LABEL = r"[A-Za-z1-9]"
_NOUN = r"(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:option|choice|answer|letter)"
_ALONE = re.compile(
    rf"(?:(?:{_NOUN}|correct|selected)\s*(?:is\s*)?[:\u2013\u2014-]?\s*)?[(\[{{]?\s*({_LABEL})\s*[)\]}}]?\s*[.:,;!]?",
    re.IGNORECASE,
)
_GLUED = r"(?![\w'\u2019]|-\w)"  # d-orbital, e-mail, A's
_REASON = (
    r"\s(?:because|since|over|instead|rather|(?:and\s|but\s)?not|"
    r"is\s(?:the\s)?(?:correct|right|best|answer|only))\b"
)
_FIRST = re.compile(
    rf"(?:{_NOUN}\s+[(\[]?({_LABEL}){_GLUED}[)\]]?"
    rf"|\(\s*({_LABEL})\s*\)|\[\s*({_LABEL})\s*\]"
    rf"|({_LABEL})\s*[).:](?!\d)"
    rf"|({_LABEL})(?:\s*[,;]|\s+[-\u2013\u2014]|[\u2013\u2014]|-\s|\s\((?=\w\w)|{_REASON})"
    rf"|([B-HJ-Z])\s(?:is|as)\b|((?-i:A))\sas\b)",
    re.IGNORECASE,
)
_LATER = re.compile(  # letters in a sentence: in a dress, or behind a word that chooses
    r"\b(?:option|choice|answer|letter)\s+[(\[]?([A-Z1-9])(?![\w'\u2019]|-\w)|[(\[]([A-Z1-9])[)\]]"
    r"|\b(?i:is|be|but|leaves|leaving|left\swith|so|thus|hence|therefore|then|choose|chose|pick|select|go\swith)"
    r"[,:]?\s+([A-Z])(?=\s*(?:[.,;:!)]|$|\s(?:is|because|since|as|over|instead|rather|not)\b))"
    r"|(?:^|[\s,])([A-Z])(?=[\s,].{0,60}\b(?:ruled\sout|eliminated|wrong|incorrect|false))"
)
_MORE = re.compile(
    rf"\s*(?:,|/|&|,?\s*and\b|,?\s*or\b)\s*[(\[]?{_LABEL}[)\]]?{_GLUED}", re.IGNORECASE
)
_ADVERB = re.compile(
    r"(?:(?:most|very|clearly|obviously|definitely|likely|probably|certainly|therefore|thus|indeed|simply|"
    r"then|surely)\s+)+",
    re.IGNORECASE,
)
_OUT_AFTER = re.compile(
    r"[)\]]?(?:\s*(?:,|/|&|,?\s*and\b|,?\s*or\b)\s*[(\[]?[A-Z1-9][)\]]?(?!\w))*\s+(?:both\s+)?"
    r"(?:(?:is|are|was|were|can|could|must|has|have|should|be|been|therefore|also|clearly|all)\s+)*"
    r"(?:not\b|cannot\b|\w+n't\b|wrong\b|incorrect\b|false\b|ruled\sout|eliminated|excluded|rejected|"
    r"impossible\b|out\b|an?\s(?:popular\s)?(?:distractor|trap)|too\b|un\w+)",
    re.IGNORECASE,
)
_OUT_BEFORE = re.compile(
    r"(?:\bnot|n't|\bcannot|\bnever|\bnor|\bneither|\bexcept|\brather\sthan|\binstead\sof|\bunlike|"
    r"\brul\w+\sout|\beliminat\w+|\bexclud\w+|\breject\w*|\bdismiss\w*)"
    r"(?:\s+(?:be|is|pick|choose|both|either|the|option|choice|answer|letter|"
    r"[(\[]?[A-Z][)\]]?\s*(?:,|and|or)))*\s*[(\[]?\s*$",
    re.IGNORECASE,
)


def read_choice(answer: str, choices: Mapping[str, str]) -> str | None:
    """The option's letter (upper case) or digit that a short answer names, or None.

    >>> [read_choice(a, {}) for a in ("(B)", "B.", "Option b", "B. Paris", "A and C", "d-orbital")]
    ['B', 'B', 'B', 'B', None, None]
    >>> read_choice("B is ruled out, which leaves D", {}), read_choice("not B", {})
    ('D', None)
    >>> read_choice("Paris", {"A": "Rome", "B": "Paris"})
    'B'
    """
    text = plain_text(answer)
    alone = _ALONE.fullmatch(text)
    if alone and alone[1].upper() in choices:  # blood types: A is the option A, whose text is O
        return alone[1].upper()
    named = [letter for letter, option in choices.items() if _is_option(text, option)]
    if len(named) > 1:  # RR, Rr and rr
        named = [letter for letter in named if same_answer(text, choices[letter], case=True)]
    if len(named) == 1:
        return named[0]
    if adverb := _ADVERB.match(text):
        text = text[adverb.end() :]
    if alone := _ALONE.fullmatch(text):
        return _known(alone[1], choices)
    first = _FIRST.match(text)
    if first and not _ruled_out(text, first, choices):
        more = _MORE.match(text, first.end()) or _MORE.match(text, first.end() - 1)
        several = more and not _OUT_AFTER.match(text, more.end())
        return None if several else _known(first[first.lastindex or 0], choices)
    left = set()
    for match in _LATER.finditer(text):
        place = match.lastindex or 0
        before = text[max(0, match.start(place) - 60) : match.start(place)]
        if not _OUT_BEFORE.search(before) and not _OUT_AFTER.match(text, match.end(place)):
            left.add(match[place])
    return _known(left.pop(), choices) if len(left) == 1 else None


_VERB = re.compile(
    r"\b(?:is|are|was|were|can|could|must|has|have|should|be|cannot)\b|n't", re.IGNORECASE
)


def _ruled_out(text: str, first: re.Match[str], choices: Mapping[str, str]) -> bool:
    """Whether the option that a text begins with is said to be wrong. In `B) False.` and `(C) too small` that
    is the option's text."""
    place = first.lastindex or 0
    out = _OUT_AFTER.match(text, first.end(place))
    if not out:
        return False
    behind = text[first.end(place) :].lstrip(" )].:").casefold()
    option = plain_text(choices.get(first[place].upper(), "")).casefold()
    if option and behind.startswith(option) and not behind[len(option) :][:1].isalnum():
        return False
    return bool(choices) or text[first.end(place)] not in ")]" or bool(_VERB.search(out[0]))


_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\S)", re.IGNORECASE)


def _is_option(text: str, option: str) -> bool:
    """Whether an answer is an option's text, or that text and then an apposition or a remark."""
    if same_answer(text, option) or same_answer(_ARTICLE.sub("", text), option):
        return True
    plain, start = plain_text(option).casefold(), text[: len(option) + 8].casefold()
    rest = text[len(plain) : len(plain) + 1]
    return len(plain) > 2 and start.startswith(plain) and rest in (",", ";", ":", "(", "\u2014")


def _known(letter: str, choices: Mapping[str, str]) -> str | None:
    return letter.upper() if not choices or letter.upper() in choices else None


_FORMULA = re.compile(r"\\(?!text|mathrm|mathbf)[A-Za-z]+|[=<>^+]")


def choice_in(text: str, choices: Mapping[str, str]) -> str | None:
    """The option that a completion chooses: by the first announcement, formulas in boxes passed
    over, that is no form of words; by the last line where there is none; None where it is unclear."""
    for one in announcements(text):
        letter = read_choice(one.content, choices)
        if letter is not None or one.kind == "prose":
            return letter
        if one.kind != "form" and not _FORMULA.search(one.content):
            return None
    lines = [line for line in final_part(text).splitlines() if line.strip()]
    return read_choice(lines[-1].strip(" \t#>"), choices) if lines else None


def gold_choice(answer: str, choices: Mapping[str, str], index: Any = None) -> str | None:
    """The letter of the ground truth: a letter or label, an option's text, or a place that counts
    from 0. A number that is both a place and some option's text is the place where the row held it
    as a number (`index`), else the text."""
    plain = answer.strip()
    if choices and plain.upper() not in choices and re.fullmatch(r"\d{1,2}(?:\.0)?", plain):
        place, letters = int(float(plain)), list(choices)
        as_text = [letter for letter, option in choices.items() if same_answer(plain, option)]
        if index != place and len(as_text) == 1:
            return as_text[0]
        return letters[place] if place < len(letters) else None
    return read_choice(extract_answer(answer) or answer, choices)
