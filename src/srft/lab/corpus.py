"""The pre-training corpus of the lab's base model: an endless seeded stream of documents.

What the base must be is two things at once: a model that *can* follow a worked trace, and one that
rarely *starts* one, because most answers it has read are bare. The two are decoupled by the loss
mask: where a document exists to teach the skill, its first response token carries no loss, so the
share of traces after a plain prompt is set by the `STYLE` documents alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from srft.lab.tasks import ANSWER_MARK, FAMILIES, OPERATORS, Problem, apply
from srft.lab.tokenizer import EOS, encode


@dataclass(frozen=True)
class Mix:
    """Shares and rates of the corpus."""

    fact: float = 0.04  # documents that are one arithmetic fact
    style: float = 0.16  # task documents whose first response token is learned
    trace_in_style: float = 0.08  # of those, answered with a trace (the style prior)
    resume: float = 0.25  # deep tasks with some steps given, of which only the next is learned
    terse: float = 0.25  # traces written with results only
    careless: float = 0.04  # per step: the writer stops early and guesses
    # the rest: whole traces, first response token without loss


Document = tuple[list[int], list[bool]]  # token ids, which of them are predicted with loss


def _document(prompt: str, given: str, learned: str) -> Document:
    head, tail = encode(f"{prompt} {given}"), encode(f"{learned} {EOS}")
    return head + tail, [False] * len(head) + [True] * len(tail)


def _fact(rng: random.Random) -> Document:
    x, y, op = rng.randint(0, 9), rng.randint(0, 9), rng.choice(OPERATORS)
    return _document(f"{x} {op} {y} =", "", str(apply(op, x, y)))


def _steps(rng: random.Random, problem: Problem, mix: Mix) -> list[str]:
    """The problem's steps in one of the corpus's dialects, sometimes cut short."""
    steps = list(problem.terse if rng.random() < mix.terse else problem.steps)
    for taken in range(1, len(steps)):
        if rng.random() < mix.careless:
            return steps[:taken]
    return steps


def _trace(rng: random.Random, problem: Problem, mix: Mix) -> str:
    return f"{' ; '.join(_steps(rng, problem, mix))} {ANSWER_MARK} {problem.answer}"


def _task(rng: random.Random, whole: bool) -> Problem:
    """A random task: at depths the corpus writes whole traces at, or at any depth."""
    names = [n for n, f in FAMILIES.items() if f.corpus_depths or not whole]
    family = FAMILIES[rng.choice(names)]
    depths = family.corpus_depths if whole else family.corpus_depths + family.depths
    return family.generate(rng, rng.choice(depths))


def _style(rng: random.Random, mix: Mix) -> Document:
    if rng.random() < mix.trace_in_style:
        problem = _task(rng, whole=False)
        # Deep tasks: only the opening is learned here, or the style documents would be a course
        # in deep traces.
        steps = _steps(rng, problem, mix)
        ids, learn = _document(problem.prompt, "", f"{steps[0]} ;")
        return ids[:-1], learn[:-1]
    problem = _task(rng, whole=False)
    return _document(problem.prompt, "", f"{ANSWER_MARK} {problem.answer}")


def _resume(rng: random.Random, mix: Mix) -> Document:
    """Some steps given, the next one learned (or, after the last, the answer)."""
    problem = _task(rng, whole=False)
    steps = problem.terse if rng.random() < mix.terse else problem.steps
    given = rng.randint(1, len(steps))
    head = f"{problem.prompt} {' ; '.join(steps[:given])}"
    if given == len(steps):
        return _document(head, "", f"{ANSWER_MARK} {problem.answer}")
    ids, learn = _document(head, "", f"; {steps[given]}")
    return ids[:-1], learn[:-1]


def document(rng: random.Random, mix: Mix) -> Document:
    """The next document of the stream."""
    draw = rng.random()
    if draw < mix.fact:
        return _fact(rng)
    if draw < mix.fact + mix.style:
        return _style(rng, mix)
    if draw < mix.fact + mix.style + mix.resume:
        return _resume(rng, mix)
    problem = _task(rng, whole=True)
    prompt_tokens = len(problem.prompt.split())
    ids, learn = _document(problem.prompt, "", _trace(rng, problem, mix))
    learn[prompt_tokens] = False  # the skill, not the habit
    return ids, learn
