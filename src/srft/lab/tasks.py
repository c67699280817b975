"""Procedurally generated reasoning tasks, each with a scripted expert trace.

All arithmetic is on single digits modulo ten, so that the 300 facts of + - * can be known by heart
and what makes a problem hard is its depth: a bare answer to a chain of five steps is a guess, a
worked trace is five easy steps. One word is one token (see `tokenizer.py`).

A response is a trace followed by the answer the way GSM8K writes it, or the answer alone:

    prompt  k = 7 + 5 ; d = k * 3 ; d ?
    expert  k = 7 + 5 = 2 ; d = 2 * 3 = 6 #### 6
    bare    #### 6
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

LETTERS = tuple("abcdefghjkmnpqrstuvwz")
NAMES = ("tom", "ann", "bob", "eve", "sam", "mia", "leo", "zoe", "max", "ida", "ben", "joy")
OPTIONS = ("A", "B", "C", "D")
OPERATORS = ("+", "-", "*")
ANSWER_MARK = "####"


@dataclass(frozen=True)
class Problem:
    """One problem with its expert trace.

    `steps` are the worked steps, `terse` the same steps with only their results (a dialect found in
    the pre-training corpus, never in demonstrations). `depth` is the number of reasoning steps.
    """

    family: str
    prompt: str
    steps: tuple[str, ...]
    terse: tuple[str, ...]
    answer: str
    depth: int

    @property
    def trace(self) -> str:
        """The expert's response: the worked steps, then the answer."""
        return f"{' ; '.join(self.steps)} {ANSWER_MARK} {self.answer}"


def apply(op: str, x: int, y: int) -> int:
    """`x op y` modulo ten."""
    return {"+": x + y, "-": x - y, "*": x * y}[op] % 10


def _operation(rng: random.Random) -> tuple[str, int]:
    """An operator and its literal operand; never one that leaves every value as it was."""
    op = rng.choice(OPERATORS)
    # Multiplying by 3, 7, 9 permutes the digits: answers stay spread out and cannot be guessed
    # from the last factor alone (x * 5 would be 0 or 5, x * 2 even).
    return op, rng.choice((3, 7, 9)) if op == "*" else rng.randint(1, 9)


def _assignments(
    rng: random.Random, labels: list[str], start: int
) -> tuple[list[str], list[str], list[str], int]:
    """Assignments `label = previous op literal` for labels[1:], with their steps and the result."""
    lines, steps, terse, value = [], [], [], start
    for before, label in zip(labels, labels[1:], strict=False):
        op, operand = _operation(rng)
        result = apply(op, value, operand)
        lines.append(f"{label} = {before} {op} {operand}")
        steps.append(f"{label} = {value} {op} {operand} = {result}")
        terse.append(f"{label} = {result}")
        value = result
    return lines, steps, terse, value


def _chain_parts(rng: random.Random, depth: int):
    """A chain of `depth` operations; the first has two literals."""
    labels = rng.sample(LETTERS, depth)
    first = rng.randint(0, 9)
    op, operand = _operation(rng)
    value = apply(op, first, operand)
    lines, steps, terse, result = _assignments(rng, labels, value)
    lines.insert(0, f"{labels[0]} = {first} {op} {operand}")
    steps.insert(0, f"{labels[0]} = {first} {op} {operand} = {value}")
    terse.insert(0, f"{labels[0]} = {value}")
    return labels, lines, steps, terse, result


def chain(rng: random.Random, depth: int) -> Problem:
    """Assignments in order, each using the one before."""
    labels, lines, steps, terse, result = _chain_parts(rng, depth)
    prompt = f"{' ; '.join(lines)} ; {labels[-1]} ?"
    return Problem("chain", prompt, tuple(steps), tuple(terse), str(result), depth)


def program(rng: random.Random, depth: int) -> Problem:
    """The same assignments in any order: the trace has to find each next one."""
    labels, lines, steps, terse, result = _chain_parts(rng, depth)
    rng.shuffle(lines)
    prompt = f"run {' ; '.join(lines)} ; {labels[-1]} ?"
    return Problem("program", prompt, tuple(steps), tuple(terse), str(result), depth)


def _story_parts(rng: random.Random, names: list[str], start: int):
    """Sentences that give each name's holding by the one before, with their steps."""
    lines, steps, terse, value = [], [], [], start
    for before, name in zip(names, names[1:], strict=False):
        op, operand = _operation(rng)
        result = apply(op, value, operand)
        relation = {"+": "more than", "-": "less than", "*": "times"}[op]
        lines.append(f"{name} has {operand} {relation} {before}")
        steps.append(f"{name} {value} {op} {operand} = {result}")
        terse.append(f"{name} {result}")
        value = result
    return lines, steps, terse, value


def story(rng: random.Random, depth: int) -> Problem:
    """People whose holdings are told by comparison; the first holding is given, so depth people
    besides the first have to be worked out."""
    names = rng.sample(NAMES, depth + 1)
    start = rng.randint(0, 9)
    lines, steps, terse, result = _story_parts(rng, names, start)
    lines.insert(0, f"{names[0]} has {start}")
    prompt = f"{' . '.join(lines)} . {names[-1]} has ?"
    return Problem("story", prompt, tuple(steps), tuple(terse), str(result), depth)


def dot(rng: random.Random, depth: int) -> Problem:
    """Dot product of two vectors with depth + 1 components, summed from left to right."""
    xs, ys = ([rng.randint(1, 9) for _ in range(depth + 1)] for _ in range(2))
    steps, terse, total = [], [], None
    for x, y in zip(xs, ys, strict=True):
        product = apply("*", x, y)
        steps.append(f"{x} * {y} = {product}")
        terse.append(str(product))
        if total is not None:
            summed = apply("+", total, product)
            steps.append(f"{total} + {product} = {summed}")
            terse.append(str(summed))
        total = product if total is None else summed
    prompt = f"dot ( {' '.join(map(str, xs))} ) ( {' '.join(map(str, ys))} ) ?"
    return Problem("dot", prompt, tuple(steps), tuple(terse), str(total), depth)


def pointer(rng: random.Random, depth: int) -> Problem:
    """Follow `depth` arrows around a ring whose arrows are listed in any order.

    A step writes the arrow taken and how many are left, so that counting is a copy minus one.
    """
    ring = rng.sample(LETTERS, max(6, depth + 1))
    arrows = [f"{x} > {y}" for x, y in zip(ring, ring[1:] + ring[:1], strict=True)]
    rng.shuffle(arrows)
    steps = [f"{ring[i]} > {ring[i + 1]} {depth - i - 1}" for i in range(depth)]
    terse = [f"{ring[i + 1]} {depth - i - 1}" for i in range(depth)]
    prompt = f"{' , '.join(arrows)} . {ring[0]} hop {depth} ?"
    return Problem("pointer", prompt, tuple(steps), tuple(terse), ring[depth], depth)


def machine(rng: random.Random, depth: int) -> Problem:
    """A machine with registers x and y; `x + 3` adds 3 to x. A step writes both registers."""
    state = {"x": rng.randint(0, 9), "y": rng.randint(0, 9)}
    start = f"x {state['x']} y {state['y']}"
    code, steps, terse = [], [], []
    while len(code) < depth:
        target, other = rng.sample(("x", "y"), 2)
        op, literal = _operation(rng)
        source = other if op != "*" and rng.random() < 0.5 else str(literal)
        instruction = f"{target} {op} {source}"
        if instruction in code:  # a repeated line would leave "which line am I at" ambiguous
            continue
        state[target] = apply(op, state[target], state.get(source, literal))
        code.append(instruction)
        steps.append(f"{instruction} : {state['x']} {state['y']}")
        terse.append(f"{state['x']} {state['y']}")
    asked = code[-1].split()[0]
    prompt = f"{start} : {' ; '.join(code)} ; {asked} ?"
    return Problem("machine", prompt, tuple(steps), tuple(terse), str(state[asked]), depth)


def long(rng: random.Random, depth: int) -> Problem:
    """A chain longer than any that is trained on."""
    p = chain(rng, depth)
    return Problem("long", p.prompt, p.steps, p.terse, p.answer, depth)


def blend(rng: random.Random, depth: int) -> Problem:
    """A story whose last person's holding starts a chain of assignments."""
    told = rng.randint(1, depth - 1)
    names = rng.sample(NAMES, told + 1)
    start = rng.randint(0, 9)
    lines, steps, terse, value = _story_parts(rng, names, start)
    labels = [names[-1], *rng.sample(LETTERS, depth - told)]
    more, more_steps, more_terse, result = _assignments(rng, labels, value)
    sentences = " . ".join([f"{names[0]} has {start}", *lines])
    prompt = f"{sentences} . {' ; '.join(more)} ; {labels[-1]} ?"
    steps, terse = steps + more_steps, terse + more_terse
    return Problem("blend", prompt, tuple(steps), tuple(terse), str(result), depth)


def choice(rng: random.Random, depth: int) -> Problem:
    """A chain with four options; the answer is the letter of the right one."""
    labels, lines, steps, terse, result = _chain_parts(rng, depth - 1)
    values = [result, *rng.sample([d for d in range(10) if d != result], 3)]
    rng.shuffle(values)
    letter = OPTIONS[values.index(result)]
    listed = " ".join(f"{o} {v}" for o, v in zip(OPTIONS, values, strict=True))
    prompt = f"{' ; '.join(lines)} ; {labels[-1]} in {listed} ?"
    steps.append(f"{result} is {letter}")
    terse.append(f"{result} is {letter}")
    return Problem("choice", prompt, tuple(steps), tuple(terse), letter, depth)


@dataclass(frozen=True)
class Family:
    """A generator `(rng, depth) -> Problem`, the depths tasks are drawn from, and the depths the
    pre-training corpus writes whole traces at."""

    generate: Callable[[random.Random, int], Problem]
    depths: tuple[int, ...]
    corpus_depths: tuple[int, ...]


FAMILIES: dict[str, Family] = {
    "chain": Family(chain, (4, 5, 6), (1, 2, 3, 4)),
    "program": Family(program, (3, 4, 5), (1, 2, 3)),
    "story": Family(story, (3, 4), (1, 2, 3)),
    "dot": Family(dot, (2, 3), (1, 2)),
    "pointer": Family(pointer, (3, 4, 5), (1, 2, 3)),
    "machine": Family(machine, (3, 4, 5), (1, 2, 3)),
    "long": Family(long, (7, 8), ()),
    "blend": Family(blend, (4, 5), (2,)),
    "choice": Family(choice, (4, 5), (2, 3)),
}
IN_DISTRIBUTION = ("chain", "program", "story", "dot", "pointer", "machine")
OUT_OF_DISTRIBUTION = ("long", "blend", "choice")


def make_problem(family: str, seed: int, index: int) -> Problem:
    """Problem `index` of `family` under `seed`: the same on every machine and Python."""
    rng = random.Random(f"{family}/{seed}/{index}")  # a str seed is hashed with SHA-512
    spec = FAMILIES[family]
    return spec.generate(rng, rng.choice(spec.depths))
