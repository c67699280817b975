"""Evaluation problems that stand in the training data, found by the words they share.

A problem has leaked where ``WORDS`` words in a row of it stand in a training prompt, as in the GPT-3 and
Llama reports. A shorter problem has leaked where the whole of it does, or, below ``SHORTEST`` words,
where the training prompt says nothing else. Case and punctuation around words do not count. Words that
many problems share are a common instruction and not a problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from srft.data.reading import Splits
from srft.data.reasoning_gym import PREFIX
from srft.errors import DataError
from srft.types import Example

WORDS = 13
SHORTEST = 6
COMMON_SHARE, COMMON_LEAST = 0.05, 5
"""Words shared by more than this share of the problems, and more than so many, are an instruction."""

_AROUND = ".,;:!?\"'`()[]{}$*"
Gram = tuple[str, ...]


@dataclass(frozen=True)
class Overlap:
    """A training row and an evaluation row, as ``file:row``, and the words they share."""

    train: str
    held_out: str
    words: str


@dataclass(frozen=True)
class LeakageReport:
    """rows: training rows that hold an evaluation problem; problems: evaluation problems held by a
    training row, of `checked`. overlaps: one for each such training row."""

    rows: int
    problems: int
    checked: int
    overlaps: tuple[Overlap, ...]


def leakage(train: Sequence[Example], held_out: Sequence[Example]) -> LeakageReport:
    """Which problems of ``held_out`` stand in the prompts of ``train``. Reads what users say, not
    system messages; the demonstrations are not searched."""
    owners = _owners(held_out)
    lengths = sorted({len(gram) for gram in owners})
    overlaps: list[Overlap] = []
    leaked = set[int]()
    for example in train:
        words = _words(prompt_text(example))
        hits = [gram for gram in _grams(words, lengths) if gram in owners]
        if hits:
            found = sorted({problem for gram in hits for problem in owners[gram]})
            leaked.update(found)
            overlaps.append(Overlap(example.source, held_out[found[0]].source, " ".join(hits[-1])))
    return LeakageReport(len(overlaps), len(leaked), len(held_out), tuple(overlaps))


def apart(splits: Splits, drawn: bool = False) -> Splits:
    """``splits`` without training rows that are evaluation problems, prompt and answer alike, where this
    package draws the problems: all of them (drawn, as data.eval_fraction does), and those of reasoning-gym,
    where problem i + 1 of one seed is problem i of the next. Of rows that users bring it is only noted.

    Raises:
        DataError: no training row is left.
    """
    train, notes = splits.train, list(splits.notes)
    for name, held_out in splits.eval.items():
        asked = {_problem(example) for example in held_out}
        twice = [example for example in train if _problem(example) in asked]
        if not twice:
            continue
        left_out = {id(e) for e in twice if drawn or e.source.startswith(PREFIX)}
        train = [example for example in train if id(example) not in left_out]
        found = len({_problem(example) for example in twice})
        note = f"evaluation data {name}: {found:,} of {len(asked):,} problems are training rows too"
        if left_out:
            notes.append(
                f"{note}; {len(left_out):,} training rows left out, {len(train):,} are kept"
            )
        if len(left_out) < len(twice):
            first = next(e.source for e in twice if id(e) not in left_out)
            notes.append(
                f"{note} (the first: {first}), so its accuracy will not be of unseen problems"
            )
    if not train:
        raise DataError(
            "every training row is an evaluation problem too: use other problems for one of them"
        )
    return replace(splits, train=train, notes=tuple(notes))


def _problem(example: Example) -> tuple[str, str | None]:
    return " ".join(prompt_text(example).casefold().split()), example.answer


def repeats(examples: Sequence[Example]) -> list[tuple[Example, ...]]:
    """Groups of rows with the same prompt, white space and case aside; first come first."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(_problem(example)[0], []).append(example)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def prompt_text(example: Example) -> str:
    """What is asked; system messages, which all rows share, are left out."""
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n".join(str(m["content"]) for m in example.prompt if m["role"] != "system")


def _words(text: str) -> Gram:
    return tuple(word.strip(_AROUND) or word for word in text.casefold().split())


def _owners(held_out: Sequence[Example]) -> Mapping[Gram, list[int]]:
    """For each run of words that gives a problem away, the numbers of the problems it is from."""
    owners: dict[Gram, list[int]] = {}
    for number, example in enumerate(held_out):
        words = _words(prompt_text(example))
        for gram in set(_grams(words, [min(WORDS, len(words))])):
            owners.setdefault(gram, []).append(number)
    common = max(COMMON_LEAST, COMMON_SHARE * len(held_out))
    return {gram: numbers for gram, numbers in owners.items() if len(numbers) <= common}


def _grams(words: Gram, lengths: Sequence[int]) -> Iterator[Gram]:
    for length in lengths:
        if length < SHORTEST:
            if length == len(words):
                yield words
            continue
        for start in range(len(words) - length + 1):
            yield words[start : start + length]
