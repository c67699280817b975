r"""The verifiers: is the answer in a completion the right one?

Each is a function of one completion ``(text, answer, columns, options) -> Verdict`` without state,
so that it can run here or in a worker process. This module is imported by the workers: it imports
neither torch nor anything of the package that does.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from srft.rewards.answers import announcements, extract_answer, final_part, same_answer
from srft.rewards.options import choice_in, gold_choice, options_of
from srft.rewards.quantities import (
    LOOKS,
    Quantity,
    as_number,
    plain_text,
    read_quantity,
    with_powers,
    without_e_notation,
)
from srft.rewards.undone import left_undone

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
# What the scorer puts beside the row's columns.
OTHER_ANSWERS = "other_answers"
PROMPT_END = "prompt_end"
ASKED = "asked"

Check = Callable[[str, str, Mapping[str, Any], Mapping[str, Any]], Verdict]


def _any_of(check: Check) -> Check:
    """`check` for rows with several right answers, the others in the column `other_answers`: right
    by any of them is right."""

    @functools.wraps(check)
    def checked(
        text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Verdict:
        verdict = check(text, answer, columns, options)
        for other in columns.get(OTHER_ANSWERS, ()):
            if verdict.score == 1.0:
                break
            found = check(text, other, columns, options)
            # Nothing that could be read says less than what was read and is wrong.
            if verdict.score is None or (found.score is not None and found.score >= verdict.score):
                verdict = found
        return verdict

    return checked


def _worked_out(check: Check) -> Check:
    """`check`, to which an answer that leaves the arithmetic of the question (the column `asked`) undone
    is wrong."""

    @functools.wraps(check)
    def checked(
        text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Verdict:
        verdict = check(text, answer, columns, options)
        undone = verdict.score == 1.0 and left_undone(text, answer, columns.get(ASKED, ""))
        return WRONG if undone else verdict

    return checked


# --- math -----------------------------------------------------------------------------------------

_POINT = re.compile(r"(?<=\d)\.(?![\d.])(?=\s*[/*+\-^)}\\])")  # "-1./3"
_MODULE = re.compile(r"\b(?:np|numpy|math|sympy|sp)\.(?=[a-z])")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(arc(?:sin|cos|tan)|sin|cos|tan|sqrt|log|ln|exp)(?=\()")
_LIMIT = re.compile(r"\{\s*\\(max|min)\s*\}")  # an index, not the function
_UPRIGHT = re.compile(
    r"\\math(?:rm|it)\s?\{\s*([A-Za-z])\s*\}"
    r"|\\(?:mathbf|bm|boldsymbol|underline)\s?\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_SYMBOLS = (
    *((sign, f" {command} ") for sign, command in zip("\u222a\u2229\u221e\u2264\u2265\u00d7\u00b7\u2205",
      ("\\cup", "\\cap", "\\infty", "\\le", "\\ge", "\\times", "\\cdot", "\\emptyset"), strict=True)),
    ("\\varnothing", "\\emptyset"), ("\u2212", "-"), ("{/}", "/"), ("{.}", "."), ("\\slash", "/"),
)  # fmt: skip
_ROOT = re.compile("\u221a\\s?(?:\\(([^()]*)\\)|(\\d+|[A-Za-z]))")
_TURNED = re.compile(
    r"(?<![\w)}\]])([\[\]])([^\[\]{}]{1,80},[^\[\]{}]{1,80})([\[\]])(?![\w(])"
)  # ]0, 1[
_IN_BASE = re.compile(r"([0-9A-Z]+)_\{?(\d+)\}?")
_NEGATED = re.compile(r"(?<=\bnot|n't)(?:\sbe|\sequal(?:\sto)?)?\s+[$\\(]{0,3}-?\d[\d.,/]*(?<!\.)")
_OPEN = re.compile(r"\b(?:between|or|either|neither)\b", re.IGNORECASE)
_FIGURE = re.compile(r"[\d$\\]")
_APART = re.compile(
    r"[-+$\s]*\d+(?:(?:\s*[A-Za-z]+\.?)?(?:\s|\\[,;: ]|~)+\d+)+(?:\s*[A-Za-z]+)?[$\s.]*"
)
_LONGEST_FORMULA = 1000
"""Characters of an announced answer that may be worth a number. Of longer ones math-verify takes seconds, and
where its parser has given up, any number that stands within."""
_RELATION = re.compile(
    r"[\s${(]*(?:[\u2264\u2265\u2260\u2a7d\u2a7e]|[<>!]=|\\(?:leq?|geq?|neq?|[lg]eqslant|not)(?![A-Za-z]))"
)
_SCALED = re.compile(
    r"\d[\s$]{0,3}(?:\\text\{\s?)?(?:hundred|thousand|million|billion|trillion|dozen)s?\b",
    re.IGNORECASE,
)
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}|\$|\\[(\[]")
_MADE_OF_LETTERS = re.compile(r"[A-Za-z]{2,}")
_SHAPE = re.compile(r"\s+|\\[,;!: ]|\\(?:left|right|displaystyle|q?quad)(?![A-Za-z])|\$")
_FRACTION = re.compile(r"\\[dt]frac(?![A-Za-z])")
_ONE_IN_BRACES = re.compile(r"\{(\w)\}")


# A response that is one formula, or a pair or set, without marks: math-verify would read one number of it.
_ALONE = re.compile(
    r"(?=.{0,200}[\\^(\[{])(?!.{0,200}\\(?:boxed|fbox|[(\[]))"
    r"(?:[^\\$A-Za-z\n#:]|\\[A-Za-z]+|\\[,;:! %{}]|(?<![A-Za-z])[A-Za-z](?![A-Za-z])){1,200}"
)


def math_gold_text(answer: str) -> str:
    r"""The text math-verify reads the ground truth from: ``\boxed{answer}``.

    Ground truths come bare (``\frac{1}{2}``), between dollars, in one or several boxes, or at the
    end of a solution (``... #### 7``); without a box math-verify looks for prose around numbers and
    misreads bare LaTeX (``\text{east}``, ``x^2 + 1``).
    """
    answer = next((a.content for a in announcements(answer) if a.kind != "form"), answer).strip()
    if len(answer) > 1 and answer[0] == answer[-1] == "$" and answer.strip("$").count("$") == 0:
        answer = answer.strip("$")
    return f"\\boxed{{{answer}}}"


def math_completion_text(text: str) -> str:
    r"""The text math-verify reads the model's answer from: ``\boxed{...}`` with what a mark or
    ``####`` announces, else what is said after the thought, where math-verify looks for itself."""
    first = next((one for one in announcements(text) if one.kind != "form"), None)
    if first is None:
        return _NEGATED.sub("", text)
    formula = not _WORDS.search(first.content) or not _FIGURE.search(text, first.start)
    if first.kind != "prose" or formula or _OPEN.search(first.content):
        return f"\\boxed{{{first.content}}}"
    thought = text.rfind("</think>", 0, first.start)
    return _NEGATED.sub("", text[thought + len("</think>") :] if thought >= 0 else text)


def _readable(text: str) -> str:
    """Spellings that math-verify does not know, in ones that it does."""
    text = _POINT.sub("", _MODULE.sub("", without_e_notation(text)))
    text = _UPRIGHT.sub(r"{\1\2}", _LIMIT.sub(r"{\1}", LOOKS.sub("", text)))
    for sign, meant in _SYMBOLS:
        text = text.replace(sign, meant)
    text = with_powers(_ROOT.sub(r"\\sqrt{\1\2}", text))
    if "\\boxed" in text:
        text = _TURNED.sub(_rounded, text)
    return _FUNCTION.sub(r"\\\1", text) if "\\boxed" in text else text


def _rounded(interval: re.Match[str]) -> str:
    left, right = "[" if interval[1] == "[" else "(", "]" if interval[3] == "]" else ")"
    return f"{left}{interval[2]}{right}"


@functools.lru_cache(maxsize=512)
def _parsed_gold(gold: str) -> list[Any]:
    from math_verify import parse

    # math-verify's own limits are signals, which exist in the main thread only; the pool has its
    # own clock, so they are switched off.
    parsed: list[Any] = parse(_readable(gold), parsing_timeout=None)
    return parsed


def _parsed(text: str, said: str | None, announced_only: bool) -> list[Any]:
    from math_verify import parse

    found: list[Any] = []
    if not announced_only:
        found = parse(_readable(math_completion_text(text)), parsing_timeout=None)
    if not found and said:
        found = parse(_readable(f"\\boxed{{{said}}}"), parsing_timeout=None)
    return found


@_any_of
@_worked_out
def check_math(
    text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """math-verify's verdict, but numbers by value and words letter by letter. Runs without a time
    limit of its own: call it through the pool."""
    boxed = math_gold_text(answer)
    gold_text = boxed.removeprefix("\\boxed{")[:-1]
    alone = text.strip().rstrip(".")
    short = len(alone) <= 500 and not options.get("announced_only")
    if short and (_ALONE.fullmatch(alone) or _alike(alone, gold_text)):
        text = f"\\boxed{{{alone}}}"
    said = next((one.content for one in announcements(text) if one.kind != "form"), None)
    number, value = read_quantity(gold_text), None if said is None else read_quantity(said)
    if said is None and not options.get("announced_only") and _SCALED.search(text):
        value = read_quantity(_led_to(final_part(text)))  # to math-verify "It is 3 million." is 3
    if number and value and not (number.percent or value.percent):
        return RIGHT if _same_value(value, number) else WRONG
    if number and (len(said or "") > _LONGEST_FORMULA or _RELATION.match(said or alone)):
        return WRONG  # to math-verify `\ge 5` is 5
    gold = _parsed_gold(boxed)
    if not gold:
        return BAD_GOLD
    if said is None and options.get("announced_only"):
        return NO_ANSWER
    found = _parsed(text, said, bool(options.get("announced_only")))
    if not found:
        return NO_ANSWER
    last = str(found[-1]) if said is None else said
    if number and _APART.fullmatch(last) and read_quantity(last) is None:
        return WRONG  # to math-verify `1 2` is 12, and `1 h 2 min` is 1
    based, target = _IN_BASE.fullmatch(squeezed(last)), _IN_BASE.fullmatch(squeezed(gold_text))
    if based and target:
        return RIGHT if based.groups() == target.groups() else WRONG
    right = _alike(last, gold_text)
    if not right and not _other_word(last, gold_text):
        right = _equal(gold, found)
    if not right and number and "%" not in text and "percent" not in text:
        value = read_quantity(last)  # math-verify compares no whole number with 6.02 * 10^23
        right = value is not None and _same_value(value, number)
    return Verdict(float(right), "text_only" if all(isinstance(g, str) for g in gold) else "ok")


def _alike(one: str, other: str) -> bool:
    """Whether both are spelled alike, but for spaces and for how formulas are set."""
    return any(squeezed(say(one)) == squeezed(say(other)) for say in (str, plain_text))


def _same_value(value: Quantity, gold: Quantity) -> bool:
    """Equal as math-verify has it: exactly, or to six decimals where one is written in decimals; but
    to three digits at least, where six decimals hold fewer (0 is not 1e-8)."""
    a, b = value.value, gold.value
    if a == b or not (value.rounded or gold.rounded):
        return a == b
    return round(a, 6) == round(b, 6) and abs(a - b) <= abs(b) / 1000


def _equal(gold: list[Any], found: list[Any]) -> bool:
    """math-verify's verdict, to so many decimals that small numbers are compared at all."""
    from math_verify import verify

    if not verify(gold, found, timeout_seconds=None):
        return False
    least = min((size for part in (gold[0], found[0]) for size in _sizes(part)), default=1.0)
    if least >= 1e-3:
        return True
    decimals = 3 - math.floor(math.log10(least))
    return bool(verify(gold, found, float_rounding=decimals, timeout_seconds=None))


def _sizes(parsed: Any) -> Iterator[float]:
    """The magnitudes of the numbers in what math-verify parsed, zeros left out."""
    if getattr(parsed, "is_number", False):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            size = abs(complex(parsed))
            if 0 < size < math.inf:
                yield size
    elif not getattr(parsed, "free_symbols", True):
        for part in getattr(parsed, "args", ()):
            yield from _sizes(part)


def _other_word(answer: str, gold: str) -> bool:
    """Whether both are words, and different ones: to math-verify ``lube`` and ``blue`` are the same
    product of letters. Up to three letters without e, i, o, u (xyz, ab) are a product."""
    left, right = plain_text(answer).casefold(), plain_text(gold).casefold()
    if not (_MADE_OF_LETTERS.fullmatch(left) and _MADE_OF_LETTERS.fullmatch(right)):
        return False
    product = len(right) <= 3 and not set(right) & set("eiou") and "\\text" not in gold
    return left != right and not product


def squeezed(text: str) -> str:
    """A formula without white space, dollars and braces around single characters."""
    text = _ROOT.sub(r"\\sqrt{\1\2}", text)
    return _ONE_IN_BRACES.sub(r"\1", _FRACTION.sub(r"\\frac", _SHAPE.sub("", text)))


# --- exact, choice --------------------------------------------------------------------------------


@_any_of
@_worked_out
def check_exact(
    text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The announced answer (all that is said after the thought where nothing is announced) equals the
    ground truth after normalisation (`srft.rewards.answers.same_answer`)."""
    gold = extract_answer(answer) or answer
    if not plain_text(gold):
        return BAD_GOLD
    announced = extract_answer(text)
    found = announced or final_part(text)
    if not found:
        return NO_ANSWER
    if announced is None and as_number(gold) is not None:
        found = _led_to(found)
    return RIGHT if same_answer(found, gold, bool(options.get("case_sensitive"))) else WRONG


@_any_of
def check_choice(
    text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The announced option, by letter or by its text, is the right one."""
    choices = options_of(columns)
    gold = gold_choice(answer, choices, columns.get("answer_index"))
    if gold is None:
        return BAD_GOLD
    found = choice_in(text, choices)
    if found is None:
        return NO_ANSWER
    return RIGHT if found == gold else WRONG


# --- numeric --------------------------------------------------------------------------------------

_LEADS_TO = re.compile(  # "It costs", "Total:"
    r"(?:[A-Za-z\u2019',()\s]|(?<=[A-Za-z])-(?=[A-Za-z]))*"
    r"(?::|\b(?:is|are|was|were|be|costs?|equals?|makes?|has|have|gets?|totals?|needs?|pays?|paid|spen[dt]s?|"
    r"earns?|gives?|takes?|leaves?|sells?|sold|weighs?|saves?|obtain|find|about|so|thus|hence|therefore|then),?)"
    r"\s+",
    re.IGNORECASE,
)
_BOUNDS = re.compile(
    r"\b(?:not?|least|most|more|less|fewer|than|if|unless|minus|times)\b|n't", re.I
)


def number_in(text: str) -> Quantity | None:
    """The number that a completion answers: the announced one, or else all that is said after the
    thought, or its last line where words lead to one number ("It costs $29.00")."""
    for one in announcements(text):
        found = read_quantity(one.content)
        if found or one.kind != "form":
            return found
    said = final_part(text)
    return read_quantity(said) or read_quantity(_led_to(said))


def _led_to(said: str) -> str:
    """The last line without the words that lead to a number."""
    line = said.rpartition("\n")[2].strip()
    words = _LEADS_TO.match(line)
    return line[words.end() :] if words and not _BOUNDS.search(words[0]) else line


@_any_of
@_worked_out
def check_numeric(
    text: str, answer: str, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The announced number is within ``tolerance`` (absolute; where none is given 1e-6, or a
    ten-thousandth of the ground truth if that is less) or ``relative_tolerance`` times the ground
    truth. A percent sign on one side only may mean either reading: 50% matches 50 and 0.5.
    """
    gold = read_quantity(extract_answer(answer) or answer)
    if gold is None:
        return BAD_GOLD
    found = number_in(text)
    if found is None:
        return NO_ANSWER
    readings = [(found.value, gold.value)]
    if found.percent != gold.percent:
        a, b = found.value, gold.value
        readings.append((a / 100, b) if found.percent else (a, b / 100))
    relative = Fraction(str(options.get("relative_tolerance", 0)))
    tolerance = options.get("tolerance")
    for value, target in readings:
        default = min(Fraction(1, 10**6), abs(target) / 10**4)
        allowed = default if tolerance is None else Fraction(str(tolerance))
        if abs(value - target) <= max(allowed, relative * abs(target)):
            return RIGHT
    return WRONG


# --- format ---------------------------------------------------------------------------------------


def check_format(
    text: str, answer: str | None, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The completion is ``<think>`` reasoning ``</think>`` and then an answer, each tag once. Where
    the prompt has opened the thought (`PROMPT_END`), the completion goes on with it."""
    opened_before = str(columns.get(PROMPT_END, "")).rstrip().endswith("<think>")
    if opened_before and not text.lstrip().startswith("<think>"):
        text = f"<think>{text}"
    head, opened, rest = text.partition("<think>")
    thought, closed, said = rest.partition("</think>")
    tags = text.count("<think>") == text.count("</think>") == 1
    good = opened and closed and tags and not head.strip() and thought.strip() and said.strip()
    return RIGHT if good else WRONG
