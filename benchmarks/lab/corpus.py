"""The pre-training corpus of the lab's base model: an endless seeded stream of documents.

The base must be two things at once: a model that *can* work through a trace, and one that rarely
*starts* one, because most answers it has read are bare. The loss keeps the two apart. Only `style`
documents teach which way to begin; in all others the first response token is learned *among
openings of a trace*, with the answer mark taken out of the softmax, which teaches how to open a
trace without raising the probability of doing so.

The corpus also has human failings, so that there is something to refine: some writers note results
only, stop early and guess, or slip.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import IntEnum

from benchmarks.lab.tokenizer import EOS, encode

from srft.lab.tasks import (
    ANSWER_MARK,
    FAMILIES,
    OPERATORS,
    OPTIONS,
    Problem,
    apply,
    is_held_out,
)


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of document, and rates of the writers' failings."""

    fact: float = 0.03  # one arithmetic fact
    style: float = 0.10  # a task whose first response token is learned plainly
    resume: float = 0.40  # a task at any depth with some steps given, a few more learned
    # the rest: a shallow task with its whole trace
    trace_in_style: float = 0.08  # share of style documents that open a trace
    resumed_steps: int = 3  # at most so many steps are learned in a resumed task
    terse: float = 0.2  # traces written with results only
    careless: float = 0.04  # per step: stop here and guess
    slip: float = 0.03  # per step: write a wrong result


class Loss(IntEnum):
    """What a token contributes to the loss."""

    NONE = 0
    PLAIN = 1
    AMONG_OPENINGS = 2  # cross-entropy over all tokens but the answer mark


@dataclass(frozen=True)
class Document:
    """Token ids and, for each, what it contributes to the loss when predicted."""

    ids: list[int]
    loss: list[Loss]


def _document(given: str, learned: str, opening: Loss = Loss.PLAIN) -> Document:
    head, tail = encode(given), encode(learned)
    loss = [Loss.NONE] * len(head) + [opening] + [Loss.PLAIN] * (len(tail) - 1)
    return Document(head + tail, loss)


def _task(rng: random.Random, *, shallow: bool) -> Problem:
    """A random task of the training split: at the depths that the corpus writes whole traces at,
    or at any depth."""
    families = [family for family in FAMILIES.values() if family.corpus_depths or not shallow]
    while True:
        family = rng.choice(families)
        depths = family.corpus_depths if shallow else family.corpus_depths + family.depths
        problem = family.generate(rng, rng.choice(depths))
        if not is_held_out(problem.prompt):
            return problem


def _with_slip(rng: random.Random, step: str) -> str:
    """The step with its last word, a result, replaced by a random one."""
    *words, result = step.split()
    wrong = rng.choice(OPTIONS) if result in OPTIONS else str(rng.randint(0, 9))
    return " ".join([*words, wrong])


def _write(
    rng: random.Random, problem: Problem, steps: tuple[str, ...], mix: Mix, start: int, most: int
) -> str:
    """What a writer puts after the first `start` steps: at most `most` more, then the answer.

    Breaks off after a slip, since what would follow from a wrong result was not worked out.
    """
    end = f"{ANSWER_MARK} {problem.answer} {EOS}"
    written: list[str] = []
    for number in range(start, min(start + most, len(steps))):
        if number and rng.random() < mix.careless:
            return " ".join([*written, end])
        if number:
            written.append(";")
        if rng.random() < mix.slip:
            return " ".join([*written, _with_slip(rng, steps[number])])
        written.append(steps[number])
    return " ".join([*written, end] if start + most >= len(steps) else [*written, ";"])


def terse(step: str) -> str:
    """A worked step with only its result, a dialect that no demonstration is written in: ``k = 7 + 5 = 2``
    is ``k = 2``, ``tom 3 + 5 = 8`` is ``tom 8``, ``3 * 4 = 2`` is ``2``, ``x + 3 : 4 5`` is ``4 5``."""
    words = step.split()
    if "is" in words:
        return step
    if ":" in words:
        return step.partition(" : ")[2]
    if words[0].isdigit():
        return words[-1]
    return " ".join([*words[: 2 if words[1] == "=" else 1], words[-1]])


def _dialect(rng: random.Random, problem: Problem, mix: Mix) -> tuple[str, ...]:
    return tuple(map(terse, problem.steps)) if rng.random() < mix.terse else problem.steps


def _fact(rng: random.Random, mix: Mix) -> Document:
    x, y, op = rng.randint(0, 9), rng.randint(0, 9), rng.choice(OPERATORS)
    return _document(f"{x} {op} {y} =", f"{apply(op, x, y)} {EOS}")


def _style(rng: random.Random, mix: Mix) -> Document:
    """A task at any depth with a bare answer or, rarely, the opening of a trace."""
    problem = _task(rng, shallow=False)
    if rng.random() < mix.trace_in_style:
        opening = _dialect(rng, problem, mix)[0]
        return _document(problem.prompt, opening)
    return _document(problem.prompt, f"{ANSWER_MARK} {problem.answer} {EOS}")


def _resume(rng: random.Random, mix: Mix) -> Document:
    """A task at any depth, some steps given (or none), a few more learned."""
    problem = _task(rng, shallow=False)
    steps = _dialect(rng, problem, mix)
    start, most = rng.randint(0, len(steps)), rng.randint(1, mix.resumed_steps)
    given = " ".join([problem.prompt, " ; ".join(steps[:start])])
    learned = _write(rng, problem, steps, mix, start, most)
    return _document(given, learned, Loss.PLAIN if start else Loss.AMONG_OPENINGS)


def _whole(rng: random.Random, mix: Mix) -> Document:
    """A shallow task with its whole trace."""
    problem = _task(rng, shallow=True)
    steps = _dialect(rng, problem, mix)
    learned = _write(rng, problem, steps, mix, 0, len(steps))
    return _document(problem.prompt, learned, Loss.AMONG_OPENINGS)


def next_document(rng: random.Random, mix: Mix) -> Document:
    """The next document of the stream."""
    shares = (mix.fact, mix.style, mix.resume)
    kind = rng.choices((_fact, _style, _resume, _whole), (*shares, 1 - sum(shares)))[0]
    return kind(rng, mix)
