"""Multiple-choice questions: read their options, shuffle them, write them out again."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from srft.errors import DataError
from srft.evaluation.benchmarks import Layout
from srft.types import Example

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LISTED = re.compile(r"\A(.*?)\n+((?:(?:[A-Z]|\d)\) [^\n]*\n*){2,})\s*\Z", re.DOTALL)
_OPTION = re.compile(r"^([A-Z]|\d)\) (.*)$", re.MULTILINE)


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
    columns = {k: v for k, v in example.columns.items() if k not in ("choices", "options")}
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
    found = _LISTED.match(text)
    if found is None:
        raise _bad(example, "the question does not end with options as lines `A) ...`")
    labels, options = zip(*_OPTION.findall(found[2]), strict=True)
    return _with_label(example, found[1].strip(), options, labels)


def _from_gpqa(example: Example) -> Question:
    keys = [f"Incorrect Answer {i}" for i in (1, 2, 3)]
    wrong = [example.columns.get(key) for key in keys]
    if example.answer is None or not all(isinstance(w, str) for w in wrong):
        raise _bad(example, f"needs the columns `Correct Answer` and `{keys[0]}` to `... 3`")
    options = (example.answer.strip(), *(str(w).strip() for w in wrong))
    return Question(_text(example), options, 0)


def _from_mmlu_pro(example: Example) -> Question:
    options = example.columns.get("options")
    if not isinstance(options, list | tuple) or len(options) < 2:
        raise _bad(example, "needs the column `options`, a list of texts")
    options = [o for o in options if o != "N/A"]  # how some copies fill up to ten
    return _with_label(example, _text(example), options, LETTERS[: len(options)])


def _from_arc(example: Example) -> Question:
    choices = example.columns.get("choices")
    if not isinstance(choices, Mapping) or not {"text", "label"} <= choices.keys():
        raise _bad(example, "needs the column `choices` with `text` and `label`")
    return _with_label(example, _text(example), choices["text"], choices["label"])


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
        raise _bad(example, f"its answer {answer!r} is none of its options {', '.join(labels)}")
    return Question(text, tuple(str(o).strip() for o in options), labels.index(answer))


def _bad(example: Example, what: str) -> DataError:
    return DataError(f"{example.source}: {what}.")
