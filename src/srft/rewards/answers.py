r"""Where the answer is in a text, and when two short answers are the same.

The order of precedence, for every verifier and for the votes of majority@k:

1. a mark: ``\boxed{...}``, ``\fbox{...}``, ``<answer>...</answer>`` or Minerva's "The final answer is
   ... I hope it is correct"; of several the last, and boxes that "and", "or" or a comma joins are one
   answer, ``\boxed{1} and \boxed{2}`` being ``1, 2``;
2. ``#### answer`` (GSM8K), where the line is an answer and no Markdown heading;
3. prose: "answer is", "answer:", "answer =", or a line "Final answer" above it, to the end of the
   sentence; of several the last;
4. what is announced only in form: "the answer is clear", "if the answer is 5", and a last line
   ``#### words``.

What stands behind the last ``</think>`` goes before the thought, where it announces anything by 1 to
3 or is one short line. Everything here is linear in the length of the text, whatever the text is.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Literal, NamedTuple

from srft.rewards.quantities import as_number, plain_text, read_quantity, words

Kind = Literal["mark", "hashes", "prose", "form"]


class Announcement(NamedTuple):
    """An answer as it stands in a text: how it is announced, where, and what it is."""

    kind: Kind
    start: int
    content: str


# --- marks ----------------------------------------------------------------------------------------

_BRACE = re.compile(r"\\{1,4}(?:boxed|fbox)\s{0,8}\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s{1,8}([^\s{}$\\]{1,64})")
_CORRECTIONS = words(
    "rather not no actually wait but so then thus therefore hence finally after instead which gives"
)
_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s?\{|\\q?quad|\\[()\[\],;]")
_FINAL = re.compile(  # Minerva's
    r"final answer is:?\s{0,4}((?:[^\n.]|\.(?=\S)){1,200}?)\.\s{1,2}I hope", re.IGNORECASE
)
_SCALED = re.compile(
    r"[\s$]{0,4}(?:\\text\s?\{\s{0,2})?(million|billion|trillion|thousand|dozen|\\?%|percent\b)"
)
_TAG = re.compile(r"<answer>([^<]*(?:<(?!/?answer>)[^<]*)*)(</answer>|\Z)?", re.IGNORECASE)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every box that is closed and in no other one."""
    opened: list[tuple[int, int, bool]] = []
    places: list[tuple[int, int, int]] = []
    for token in _BRACE.finditer(text) if "boxed" in text or "fbox" in text else ():
        symbol = token.group()
        if symbol.endswith("{") and symbol != "\\{":
            opened.append((token.start(), token.end(), len(symbol) > 1))
        elif symbol == "}" and opened:
            start, inside, is_box = opened.pop()
            if is_box:
                while places and places[-1][0] > start:
                    places.pop()
                places.append((start, inside, token.start()))
    boxes = [(start, end + 1, text[inside:end]) for start, inside, end in places]
    bare = [(m.start(), m.end(), m[1]) for m in _BARE_BOX.finditer(text)]
    return sorted([*boxes, *bare]) if bare else boxes


def last_box(text: str) -> tuple[int, str] | None:
    r"""Start and content of the last ``\boxed{...}`` or ``\fbox{...}``, or of the several that are
    joined there; None where there is none.

    Nested and escaped braces are honoured; a box that is never closed does not count. ``\boxed 5``
    without braces is read as TeX reads it, up to the next space.
    """
    boxes = [box for box in _boxes(text) if box[2].strip()]
    if not boxes:
        return None
    start, end, content = boxes.pop()
    scale = _SCALED.match(text, end)
    contents = [f"{content} {scale[1]}" if scale else content]
    while boxes and _are_joined(text[max(boxes[-1][1], start - 100) : start], start - boxes[-1][1]):
        start, _, content = boxes.pop()
        contents.append(content)
    return start, ", ".join(dict.fromkeys(reversed(contents)))


def _are_joined(between: str, length: int) -> bool:
    """Whether what stands between two boxes makes one answer of them: "and", "or", a comma and at
    most three words more."""
    spoken = re.findall(r"(?<!\\)\b[A-Za-z]{2,}\b", _TEXT.sub(" ", between).lower())
    if length > 80 or re.search(r"[.!?:]\s", between) or not _CORRECTIONS.isdisjoint(spoken):
        return False
    linked = not {"and", "or"}.isdisjoint(spoken) or re.search("[,;]", between)
    return len(spoken) <= 4 if linked else not between.strip(" \t$+&\\")


def _last_mark(text: str) -> Announcement | None:
    found = [box] if (box := last_box(text)) else []
    # A tag that is never closed counts where it is the last thing: a stop string was cut off.
    found += [
        (tag.start(), tag[1])
        for tag in _TAG.finditer(text)
        if tag[1].strip() and tag[2] is not None
    ][-1:]
    found += [(m.start(), m[1]) for m in _FINAL.finditer(text) if not _JUDGED.match(m[1])][-1:]
    return Announcement("mark", *max(found)) if found else None


# --- GSM8K's mark ---------------------------------------------------------------------------------

_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]{0,16}([^\n#]*)")
_ANSWER_WORD = re.compile(
    r"[*_]*(?:the\s+)?(?:final\s+)?answer\b[*_]*\s*(?:is\b|[:=])?[\s*_]*", re.I
)
_NUMBERED = re.compile(r"\d+\s*[.):]\s+\D|\(?[a-z]\)\s", re.IGNORECASE)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_SAID = words("yes no true false none")
_HEADS = re.compile(
    r"\b(?:facts?|steps?|cases?|ways?|things?|methods?|notes?|points?|parts?|reasons?|options?|"
    r"examples?|checks?|remarks?|approach(?:es)?|tips?)\b"
)


def _hashes(text: str) -> Iterator[Announcement]:
    end = len(text.rstrip())
    for match in _HASHES.finditer(text):
        content = _ANSWER_WORD.sub("", match[1].strip(), count=1).strip()
        if not content:
            continue
        last = match.end() >= end
        if _is_answer(content, last):
            yield Announcement("hashes", match.start(), content)
        elif last:
            yield Announcement("form", match.start(), content)


def _is_answer(content: str, last: bool) -> bool:
    """Whether the rest of a line of hashes is an answer, not a heading. last: nothing follows it."""
    if _NUMBERED.match(content):
        return False
    spoken = _WORD.findall(plain_text(content))
    if not spoken or content.strip(" *.").lower() in _SAID:
        return True
    if read_quantity(content) is None:
        return False
    return last or (len(spoken) <= 2 and not _HEADS.search(content))


# --- prose ----------------------------------------------------------------------------------------

_ANNOUNCED = re.compile(
    r"\banswers?(?:\s(?:to|for)\s[^.:=\n]{1,80}?)?(?:\*\*)?"
    r"(?:\s{0,4}[:=\uff1a]|\s{1,4}(?:is|are|equals|(?:would|must|should)\sbe)\b)[\s:=*]{0,8}(?:(?<=\n)-\s)?"
    r"|\u7b54\u6848(?:\u662f|\u4e3a|\s?[:\uff1a])[\s*]{0,8}"
    r"|^[\s#*]{0,8}(?:the\s)?(?:final\s|correct\s)?answer[ \t*]{0,4}\n\s{0,8}",
    re.IGNORECASE | re.MULTILINE,
)
_JSON = re.compile(
    r"[\"']answer[\"']\s?:\s?(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,}\[\"]+))", re.IGNORECASE
)
_DISPLAYED = re.compile(r"(?:\$\$|\\\[)\s{0,8}([^$]{1,400}?)\s{0,8}(?:\$\$|\\\])")
_SAYS = re.compile(r"[ *_`]{0,16}[^\s*_`]")
_UNSURE = re.compile(
    r"\b(?:if|whether|hope|unless|suppose|assume|assuming|check|verify|ensure|sure)\s+(?:that\s+)?"
    r"(?:(?:the|this|that|my|your|our|an)\s+)?(?:final\s+|correct\s+)?$",
    re.IGNORECASE,
)
_JUDGED = re.compile(
    r"not\s|(?:(?:not|also|indeed|thus|therefore|now|very|quite|still|clearly|likely|definitely)\s+)*"
    r"(?:in)?(?:correct|right|clear|wrong|consistent|reasonable|valid|verified|confirmed|certain|"
    r"helpful|useful|good|fine|plausible|sensible|complete|accurate|checked|unclear|ok|okay)"
    r"(?:\.?\s*$|\.\s|[,;:!?]|\s+(?:with|by|for|as|in|because|since|and|to|at|here|now|enough|above)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_STOP = re.compile(
    r"\.(?=\s|$)|\u3002|\?(?=\s|$)|(?<=[A-Za-z]{2})!(?=\s|$)|,?\s(?:because|since)\b"
)
_SHORT = 80  # characters of a line that is an answer without announcing it
_INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
_ABBREVIATIONS = words(
    "dr mr mrs ms prof st mt ft sr jr vs approx inc ltd co corp gen col sgt capt lt gov sen rep "
    "rev hon ave blvd fig eq"
)
_BEFORE_NUMBERS = words("no nos rs jan feb mar apr jun jul aug sep sept oct nov dec art vol p pp")
_STARTERS = words(
    "i the this that these those we let so hence thus therefore note remember it since because if "
    "however hope here there please you my our and but then now he she they to in as for"
)


def _prose(text: str) -> list[Announcement]:
    """The last announcement in prose and the last one in form, where there are such."""
    found: dict[Kind, int] = {}
    starts: dict[Kind, int] = {}
    for match in _ANNOUNCED.finditer(text):
        if _SAYS.match(text, match.end()):
            before = text[max(0, match.start() - 60) : match.start()]
            formal = _UNSURE.search(before) or _JUDGED.match(text, match.end())
            kind: Kind = "form" if formal else "prose"
            found[kind], starts[kind] = match.end(), match.start()
    said = [Announcement(kind, starts[kind], _content(text, at)) for kind, at in found.items()]
    written = [
        Announcement("prose", m.start(), _decoded(m[1]) if m[1] else m[2] or "")
        for m in _JSON.finditer(text)
    ]
    return sorted([*said, *written], key=lambda one: one.start)


def _decoded(written: str) -> str:
    r"""A JSON string as the text that it means; as it stands where it is LaTeX with single backslashes, for
    which ``\frac`` would begin with a form feed."""
    try:
        meant = str(json.loads(f'"{written}"'))
    except ValueError:
        return written
    return written if any(unicodedata.category(c) in ("Cc", "Cs") for c in meant) else meant


def _content(text: str, start: int) -> str:
    if shown := _DISPLAYED.match(text, start):
        return shown[1]
    end = text.find("\n", start)
    return _sentence(text[start : end if end >= 0 else len(text)].strip())


def _sentence(text: str) -> str:
    """The first sentence of a line, up to a reason that is given for it."""
    for stop in _STOP.finditer(text):
        if stop.start() and not (stop[0] == "." and _abbreviates(text, stop.start())):
            text = text[: stop.start()]
            break
    return text.strip(" *_`")


def _abbreviates(text: str, dot: int) -> bool:
    """Whether the full stop at `dot` belongs to an abbreviation, initials or an option's letter."""
    word = text[max(0, dot - 24) : dot].split()[-1:] or [""]
    after = text[dot + 1 : dot + 40].split()[:1] or [""]
    initials = word[0].strip("(*\"'\u201c\u2018")
    name = initials.lower()
    if not after[0] or name in _ABBREVIATIONS:
        return bool(after[0])
    if name in _BEFORE_NUMBERS and after[0][0].isdigit():
        return True
    if not _INITIALS.fullmatch(initials) or after[0].lower().strip(",'") in _STARTERS:
        return False
    alone = len(word[0]) == dot
    return alone or "." in initials or (initials.isupper() and after[0][0].isupper())


# --- all of them ----------------------------------------------------------------------------------


def announcements(text: str) -> list[Announcement]:
    """What is announced in `text`, the one that counts first (see the head of this module)."""
    thought, closed, said = text.rpartition("</think>")
    best: list[Announcement] = []
    if closed and said.strip():
        found = announcements(said)
        if strong := [one for one in found if one.kind != "form"]:
            start = len(text) - len(said)
            return [one._replace(start=start + one.start) for one in strong]
        if not found and len(bare := said.strip()) <= _SHORT and "\n" not in bare:
            number = read_quantity(bare) or not _WORD.search(bare)
            best.append(Announcement("prose" if number else "form", len(thought + closed), bare))
    found = [*_hashes(text), *_prose(text)]
    best += [mark] if (mark := _last_mark(text)) else []
    for kind in ("hashes", "prose", "form"):
        best += [one for one in found if one.kind == kind][-1:]
    return [Announcement(kind, start, _inner(content)) for kind, start, content in best]


def _inner(content: str) -> str:
    """ "The answer is ``\\boxed{5}``": the box inside the announcement is the answer."""
    inner = last_box(content)
    if inner is None:
        inner = next(((a.start, a.content) for a in _prose(content) if a.kind == "prose"), None)
    return (inner[1] if inner else content).strip()


def extract_answer(text: str) -> str | None:
    r"""The announced answer that counts, or None where nothing is announced.

    >>> extract_answer("so x = \\boxed{\\frac{1}{2}}. Let me know if the answer is clear.")
    '\\frac{1}{2}'
    >>> extract_answer("3 + 4 = 7\n#### 7")
    '7'
    >>> extract_answer("The answer is 12. I hope it is correct.")
    '12'
    """
    return next((one.content for one in announcements(text) if one.content), None)


def final_part(text: str) -> str:
    """What is said after the thought, or the whole where there is no thought or nothing after it."""
    said = text.rpartition("</think>")[2].strip()
    return said or text.strip()


_LOUD = re.compile(r"(?<=[^\W\d_])[!?]+$")


def same_answer(answer: str, gold: str, case: bool = False) -> bool:
    """Equal after white space, dress and (unless `case`) case are normalised; numbers by value.

    "1,234.50" equals "1234.5" and "1.2345e3", "Paris." equals "paris", "x  + 1" equals "x + 1" but
    not "x+1".
    """
    number, target = as_number(answer), as_number(gold)
    if number is not None and target is not None:
        return number == target
    left, right = (_LOUD.sub("", " ".join(plain_text(text).split())) for text in (answer, gold))
    return left == right if case else left.casefold() == right.casefold()
