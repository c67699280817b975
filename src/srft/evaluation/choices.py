"""Multiple-choice questions: read their options, shuffle them, write them out again."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from srft.errors import DataError
from srft.evaluation.benchmarks import Layout
from srft.rewards.options import COLUMNS, LETTERS, as_list
from srft.types import Example

_OPTION = re.compile(r"^[ \t]*(\(?)([A-Z]|[1-9])([).:])[ \t]+(?=\S)", re.MULTILINE)


@dataclass(frozen=True)
class Question:
    """A question with its options; ``right`` indexes them."""

    text: str
    options: tuple[str, ...]
    right: int

    def shuffled(self, seed: int) -> Question:
        """The same question with its options in an order that depends on seed and question."""
        order = list(range(len(self.options)))
        random.Random(f"{seed}/{self.text}").shuffle(order)
        options = tuple(self.options[i] for i in order)
        return Question(self.text, options, order.index(self.right))

    @property
    def letter(self) -> str:
        """The right option's letter."""
        return LETTERS[self.right]

    def written(self) -> str:
        """The question, an empty line, and the options as ``A) ...`` lines."""
        lines = [f"{LETTERS[i]}) {option}" for i, option in enumerate(self.options)]
        return "\n".join([self.text, "", *lines])


def shuffle_options(example: Example, layout: Layout, seed: int) -> Example:
    """``example`` with its options shuffled: prompt, answer (a letter) and the column ``options``
    (texts in the new order) agree with each other.

    A prompt that is a chat stays one, the options being in its last message.

    Raises:
        DataError: the row has no options, or its answer is none of them; names the row.
    """
    question = _READERS[layout](example).shuffled(seed)
    columns = {k: v for k, v in example.columns.items() if k not in (*COLUMNS, "answer_index")}
    columns["options"] = list(question.options)
    prompt = example.prompt
    if isinstance(prompt, str):
        prompt = question.written()
    else:
        prompt = (*prompt[:-1], {**prompt[-1], "content": question.written()})
    return replace(example, prompt=prompt, answer=question.letter, columns=columns)


def _from_letters(example: Example) -> Question:
    prompt = example.prompt
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    marks = list(_OPTION.finditer(text))
    runs = [_run(marks[i:]) for i, mark in enumerate(marks) if mark[2] in "A1"]
    answer = (example.answer or "").strip()
    # Lists inside the question or an option are shorter, or do not hold the answer's label.
    found = max(
        (run for run in runs if len(run) > 1),
        key=lambda run: (
            any(m[2] == answer for m in run),
            run[0][2] == "A",
            len(run),
            run[0].start(),
        ),
        default=None,
    )
    if found is None:
        raise _bad(example, "the question does not end with options as lines `A) ...`")
    ends = [*(mark.start() for mark in found[1:]), len(text)]
    options = [text[mark.end() : end] for mark, end in zip(found, ends, strict=True)]
    return _with_label(example, text[: found[0].start()].strip(), options, [m[2] for m in found])


def _run(marks: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """From the first of `marks` on: those that carry the next label each, in the same dress."""
    run = [marks[0]]
    for mark in marks[1:]:
        if (mark[1], ord(mark[2]), mark[3]) == (run[-1][1], ord(run[-1][2]) + 1, run[-1][3]):
            run.append(mark)
    return run


def _from_gpqa(example: Example) -> Question:
    keys = [f"Incorrect Answer {i}" for i in (1, 2, 3)]
    wrong = [example.columns.get(key) for key in keys]
    if example.answer is None or not all(isinstance(w, str) for w in wrong):
        raise _bad(example, f"needs the columns `Correct Answer` and `{keys[0]}` to `... 3`")
    options = (example.answer.strip(), *(str(w).strip() for w in wrong))
    return Question(_text(example), options, 0)


def _from_mmlu_pro(example: Example) -> Question:
    options = as_list(example.columns.get("options"))
    if options is None or len(options) < 2:
        raise _bad(example, "needs the column `options`, a list of texts")
    # Some copies fill up to ten with "N/A"; each option's letter is that of its place before.
    kept = [(text, label) for text, label in zip(options, LETTERS, strict=False) if text != "N/A"]
    return _with_label(example, _text(example), *zip(*kept, strict=True))


def _from_arc(example: Example) -> Question:
    choices = example.columns.get("choices")
    if not isinstance(choices, Mapping) or not {"text", "label"} <= choices.keys():
        raise _bad(example, "needs the column `choices` with `text` and `label`")
    texts, labels = as_list(choices["text"]) or [], as_list(choices["label"]) or []
    return _with_label(example, _text(example), texts, labels)


_READERS: dict[str, Callable[[Example], Question]] = {
    "letters": _from_letters,
    "gpqa": _from_gpqa,
    "mmlu_pro": _from_mmlu_pro,
    "arc": _from_arc,
}


def _text(example: Example) -> str:
    assert isinstance(example.prompt, str), "hub rows of this layout hold the question as text"
    return example.prompt.strip()


def _with_label(
    example: Example, text: str, options: Iterable[Any], labels: Iterable[Any]
) -> Question:
    labels = [str(label) for label in labels]
    answer = (example.answer or "").strip()
    if answer not in labels:
        raise _bad(example, f"its answer {answer!r} is not one of its options {', '.join(labels)}")
    return Question(text, tuple(str(o).strip() for o in options), labels.index(answer))


def _bad(example: Example, what: str) -> DataError:
    return DataError(f"{example.source}: {what}.")
