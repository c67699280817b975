r"""Can the verifier be trusted with this data? Checks to run before training.

`check_answers`: does every ground truth verify against itself, in a second spelling too?
`check_demonstrations`: does every demonstration earn its reward, by the path the rollouts take?
`audit`: how often does the verifier agree with labels somebody else gave?
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

from srft.data.formats import answer_texts, index_column
from srft.data.row_errors import RowError
from srft.errors import DataError
from srft.rewards.options import gold_choice, options_of
from srft.rewards.quantities import as_number
from srft.rewards.scorer import Score, Scorer
from srft.rewards.verifiers import math_gold_text
from srft.types import Example

Acted = Callable[[Sequence[Example], Sequence[str]], AbstractContextManager[Sequence[Any] | None]]
_TAIL = 200
_CHUNK = 2000
_LABELS = {
    "true": True, "correct": True, "right": True, "yes": True, "1": True, "1.0": True,
    "false": False, "incorrect": False, "wrong": False, "no": False, "0": False, "0.0": False,
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One row that needs a look. `source` is ``file:row``, `text` the end of the text, shortened;
    `reason` says in words what is wrong."""

    source: str
    text: str
    answer: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}; answer {self.answer!r}, text {self.text!r}"


@dataclass(frozen=True)
class AnswerReport:
    """checked: ground truths tried, missing ones too; failed: those that do not verify against themselves.
    text_only: those of which only the same spelling will be right: math-verify finds no meaning in
    them, or they do not verify in a second spelling (`other_spelling`)."""

    checked: int
    failed: tuple[Finding, ...]
    text_only: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class DemoReport:
    """What the demonstrations earned.

    scores: ``scores[i][k]`` belongs to demonstration k of example i. passed: how many are correct.
    failed: the others, among them those of which no answer could be read (`unparsable`, a subset).
    """

    scores: tuple[tuple[Score, ...], ...]
    passed: int
    failed: tuple[Finding, ...]
    unparsable: tuple[Finding, ...]

    @property
    def total(self) -> int:
        """Demonstrations scored."""
        return self.passed + len(self.failed)

    def apply(self, examples: Sequence[Example], policy: Literal["keep", "drop"]) -> list[Example]:
        """The examples with failed demonstrations kept, or dropped. An example stays, for its
        rollouts, when all its demonstrations are dropped."""
        if policy == "keep":
            return list(examples)
        kept = []
        for example, scores in zip(examples, self.scores, strict=True):
            pairs = zip(example.demonstrations, scores, strict=True)
            good = tuple(text for text, score in pairs if score.correct)
            kept.append(replace(example, demonstrations=good))
        return kept


@dataclass(frozen=True)
class AuditReport:
    """The verifier against labels.

    agreement: share of the rows on which the two agree. right: rows labelled right.
    false_negatives: labelled right, scored wrong; false_positives the other way round. unscorable:
    rows to which no reward applies (they count as disagreements).
    """

    rows: int
    right: int
    agreement: float
    false_negatives: tuple[Finding, ...]
    false_positives: tuple[Finding, ...]
    unscorable: tuple[Finding, ...]

    def summary(self) -> str:
        """Agreement and its two sides, in a line."""
        return (
            f"{self.rows:,} rows, agreement {self.agreement:.2%}: of {self.right:,} labelled right "
            f"{len(self.false_negatives):,} scored wrong, of {self.rows - self.right:,} labelled wrong "
            f"{len(self.false_positives):,} scored right"
        )


def _tail(text: str) -> str:
    return text if len(text) <= _TAIL else "..." + text[-_TAIL:]


_REASONS = {
    "text_only": "the ground truth is not a formula, so only the same spelling is correct",
    "no_answer": "no answer can be read in it",
    "bad_gold": "the ground truth cannot be read",
    "timeout": "verification ran into the time limit",
    "memory": "verification ran into the memory limit",
    "crash": "the verifier process died on it twice",
}


def _reason(score: Score) -> str:
    said = [
        f"{label}: {_REASONS[status]}" for label, status in score.status.items() if status != "ok"
    ]
    if not score.scorable:
        return "; ".join(said) or "no reward applies to it"
    return f"reward {score.reward:g}" + "".join(f", {text}" for text in said)


def _scored(
    scorer: Scorer,
    examples: Sequence[Example],
    texts: Sequence[str],
    token_ids: Sequence[Sequence[int]] | None,
    acted: Acted | None = None,
) -> list[Score]:
    """`Scorer.score` in chunks, so that long datasets do not wait in the queue all at once."""
    scores: list[Score] = []
    for start in range(0, len(texts), _CHUNK):
        part = slice(start, start + _CHUNK)
        ids = None if token_ids is None else token_ids[part]
        with acted(examples[part], texts[part]) if acted else nullcontext() as environments:
            scores += scorer.score(examples[part], texts[part], ids, environments)
    return scores


def check_answers(examples: Sequence[Example], scorer: Scorer) -> AnswerReport:
    """Verify each ground truth against itself, as if the model had boxed it, and against a second
    spelling of it.

    Covers the verifiers that compare with an answer; rewards that do not (functions, format,
    countdown) have nothing to check here. A row without an answer is a finding.
    """
    if not scorer.needs_answer:
        return AnswerReport(0, ())
    failed = [
        Finding(example.source, "", None, "the row has no answer")
        for example in examples
        if example.answer is None
    ]
    rows = [
        replace(example, answer=answer, other_answers=())
        for example in examples
        if example.answer is not None
        for answer in (example.answer, *example.other_answers)
    ]
    text_only: list[Finding] = []
    compared = False
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        texts = [_own_spelling(example, scorer.labels) for example in part]
        for example, text, verdicts in zip(part, texts, scorer.verdicts(part, texts), strict=True):
            compared = compared or bool(verdicts)
            for label, verdict in verdicts.items():
                if verdict.score != 1.0:
                    why = _REASONS.get(verdict.status, "it does not verify against itself")
                    failed.append(Finding(example.source, text, example.answer, f"{label}: {why}"))
                elif verdict.status == "text_only":
                    why = f"{label}: {_REASONS['text_only']}"
                    text_only.append(Finding(example.source, text, example.answer, why))
        text_only += _second_spellings(part, scorer)
    if rows and not compared:
        return AnswerReport(0, ())
    known = {finding.source for finding in failed}
    text_only = [finding for finding in text_only if finding.source not in known]
    without = sum(example.answer is None for example in examples)
    return AnswerReport(len(rows) + without, tuple(failed), tuple(text_only))


def _own_spelling(example: Example, labels: Sequence[str]) -> str:
    answer = str(example.answer)
    if "choice" in labels and answer.strip().isdigit():  # it may be an index, which nobody answers
        choices = options_of(example.columns)
        answer = gold_choice(answer, choices, example.columns.get("answer_index")) or answer
    return math_gold_text(answer)


def _second_spellings(rows: Sequence[Example], scorer: Scorer) -> list[Finding]:
    findings = []
    for label in scorer.labels:
        spelled = [
            (row, f"\\boxed{{{other}}}") for row in rows if (other := other_spelling(row, label))
        ]
        verdicts = scorer.verdicts([row for row, _ in spelled], [text for _, text in spelled])
        findings += [
            Finding(
                row.source, text, row.answer, f"{label}: in another spelling it is not recognised"
            )
            for (row, text), verdict in zip(spelled, verdicts, strict=True)
            if label in verdict and verdict[label].score != 1.0
        ]
    return findings


def other_spelling(example: Example, verifier: str) -> str | None:
    r"""Another spelling of an example's ground truth that a model may well write: decimals for a power
    of ten and the other way round, ``\dfrac`` for ``\frac``, an option's text for its letter; None
    where there is none that the verifier promises to know."""
    answer = math_gold_text(str(example.answer)).removeprefix("\\boxed{")[:-1].strip()
    if verifier == "choice":
        choices = options_of(example.columns)
        letter = gold_choice(str(example.answer), choices, example.columns.get("answer_index"))
        alone = letter in choices and list(choices.values()).count(choices[letter]) == 1
        return choices[letter] if alone and letter else f"({letter})"
    number = as_number(answer)
    if verifier in ("math", "exact", "numeric") and number is not None:
        return _other_number(answer, number)
    if verifier in ("exact", "numeric"):
        return f"  {answer} "
    return _other_formula(answer) if verifier == "math" and answer else None


def _other_number(answer: str, number: Fraction) -> str | None:
    digits = next((n for n in range(400) if (number * 10**n).denominator == 1), None)
    if digits is None:  # 3^{-2}
        return None
    whole = int(number * 10**digits)
    if "^" in answer:
        return format(Decimal(f"{whole}e-{digits}"), "f")
    if digits == 0 and abs(number) < 1000:
        return f"{whole}.0"
    power = len(str(abs(whole))) - 1
    mantissa = format(Decimal(f"{whole}e-{power}"), "f").rstrip("0").rstrip(".")
    return rf"{mantissa} \times 10^{{{power - digits}}}"


def _other_formula(answer: str) -> str:
    if answer.isalpha() and len(answer) > 1:
        return rf"\text{{{answer}}}"
    other = answer.replace("\\dfrac", "\\frac").replace("\\left", "").replace("\\right", "")
    other = re.sub(r"(?<![A-Za-z]) +(?! )", "", other.replace("\\frac", "\\dfrac"))
    if other == answer:
        other = re.sub(r"(?<=[^\s\\{^_(])([-+=,])(?=[^\s])", r"\1 ", answer)
    return other if other != answer else rf"\displaystyle {answer}"


def check_demonstrations(
    examples: Sequence[Example],
    scorer: Scorer,
    token_ids: Sequence[Sequence[Sequence[int]]] | None = None,
    acted: Acted | None = None,
) -> DemoReport:
    """Score every demonstration as if the model had written it.

    token_ids: ``token_ids[i][k]`` of demonstration k of example i, for rewards that read lengths.
    acted: gives the environments that some examples' demonstrations have acted in, for as long as
        they are scored.
    """
    pairs = [(example, text) for example in examples for text in example.demonstrations]
    ids = None if token_ids is None else [ids for row in token_ids for ids in row]
    flat = _scored(scorer, [p[0] for p in pairs], [p[1] for p in pairs], ids, acted)
    failed, unparsable = [], []
    for (example, text), score in zip(pairs, flat, strict=True):
        if not score.correct:
            failed.append(Finding(example.source, _tail(text), example.answer, _reason(score)))
            if "no_answer" in score.status.values():
                unparsable.append(failed[-1])
    rest = iter(flat)
    scores = tuple(tuple(next(rest) for _ in example.demonstrations) for example in examples)
    return DemoReport(scores, len(flat) - len(failed), tuple(failed), tuple(unparsable))


def audit(
    rows: Iterable[Mapping[str, Any]], scorer: Scorer, source: str = "<memory>"
) -> AuditReport:
    """Score labelled outputs and compare.

    rows: mappings with ``completion`` (text), ``answer``, ``label`` (true/false, 1/0,
    "correct"/"incorrect"), optionally ``prompt``; other columns go to the rewards. source: the
    file's name; rows count from 1.

    Raises: DataError naming ``file:row`` where a column is missing or a label is unknown.
    """
    examples: list[Example] = []
    texts: list[str] = []
    labels: list[bool] = []
    for number, row in enumerate(rows, start=1):
        where = f"{source}:{number}"
        examples.append(_example(row, where))
        texts.append(str(row["completion"]))
        labels.append(_label(row["label"], where))
    scores = _scored(scorer, examples, texts, None)
    negatives: list[Finding] = []
    positives: list[Finding] = []
    unscorable: list[Finding] = []
    for example, text, label, score in zip(examples, texts, labels, scores, strict=True):
        if score.scorable and score.correct == label:
            continue
        finding = Finding(example.source, _tail(text), example.answer, _reason(score))
        if not score.scorable:
            unscorable.append(finding)
        else:
            (negatives if label else positives).append(finding)
    wrong = len(negatives) + len(positives) + len(unscorable)
    agreement = 1.0 - wrong / len(labels) if labels else 1.0
    return AuditReport(
        len(labels), sum(labels), agreement, tuple(negatives), tuple(positives), tuple(unscorable)
    )


def _example(row: Mapping[str, Any], where: str) -> Example:
    missing = [name for name in ("completion", "label") if row.get(name) is None]
    if missing:
        raise DataError(
            f"{where}: no {' and no '.join(missing)}; an audit needs the columns completion, "
            f"answer and label (the row has {', '.join(row) or 'none'})"
        )
    try:
        answers = answer_texts(row.get("answer"), "`answer`")
    except RowError as error:
        raise DataError(f"{where}: {error}") from None
    own = ("prompt", "completion", "answer", "label")
    columns = {name: value for name, value in row.items() if name not in own}
    prompt = row.get("prompt", "")
    return Example(
        prompt=prompt if isinstance(prompt, str) else tuple(prompt or ()),
        answer=answers[0] if answers else None,
        columns=columns | index_column(row.get("answer"), columns),
        source=where,
        other_answers=answers[1:],
    )


def _label(value: Any, where: str) -> bool:
    label = _LABELS.get(str(value).strip().lower())
    if label is None:
        raise DataError(f"{where}: label {value!r} is not one of true, false, 1, 0, correct, wrong")
    return label
