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

import itertools
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

LETTERS = tuple("abcdefghjkmnpqrstuvwz")
NAMES = ("tom", "ann", "bob", "eve", "sam", "mia", "leo", "zoe", "max", "ida", "ben", "joy")
OPTIONS = ("A", "B", "C", "D")
OPERATORS = ("+", "-", "*")
ANSWER_MARK = "####"


@dataclass(frozen=True)
class Problem:
    """One problem with its expert trace.

    `steps` are the worked steps. `depth` is what the generator was asked for: how many things have to
    be worked out.
    """

    family: str
    prompt: str
    steps: tuple[str, ...]
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


@dataclass
class _Worked:
    """A problem under construction: prompt lines, their steps, the last value."""

    value: int
    lines: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)

    def assign(self, label: str, before: str, op: str, operand: int) -> None:
        """`label = before op operand`, where `before` has the last value."""
        result = apply(op, self.value, operand)
        self.lines.append(f"{label} = {before} {op} {operand}")
        self.steps.append(f"{label} = {self.value} {op} {operand} = {result}")
        self.value = result

    def compare(self, name: str, before: str, op: str, operand: int) -> None:
        """What `name` has, told by comparison with `before`, who has the last value."""
        result = apply(op, self.value, operand)
        relation = {"+": "more than", "-": "less than", "*": "times"}[op]
        self.lines.append(f"{name} has {operand} {relation} {before}")
        self.steps.append(f"{name} {self.value} {op} {operand} = {result}")
        self.value = result

    def problem(self, family: str, prompt: str, answer: str | None = None) -> Problem:
        """The finished problem; the answer is the last value unless told otherwise."""
        answer = str(self.value) if answer is None else answer
        return Problem(family, prompt, tuple(self.steps), answer, len(self.steps))


def _chain(rng: random.Random, depth: int) -> tuple[_Worked, str]:
    """A chain of `depth` assignments, the first with two literals, and its last label."""
    labels = rng.sample(LETTERS, depth)
    work = _Worked(value=rng.randint(0, 9))
    for before, label in itertools.pairwise([str(work.value), *labels]):
        work.assign(label, before, *_operation(rng))
    return work, labels[-1]


def chain(rng: random.Random, depth: int) -> Problem:
    """Assignments in order, each using the one before."""
    work, last = _chain(rng, depth)
    return work.problem("chain", f"{' ; '.join(work.lines)} ; {last} ?")


def story(rng: random.Random, depth: int) -> Problem:
    """What one person has is given, `depth` more are told by comparison."""
    names = rng.sample(NAMES, depth + 1)
    work = _Worked(value=rng.randint(0, 9))
    work.lines.append(f"{names[0]} has {work.value}")
    for before, name in itertools.pairwise(names):
        work.compare(name, before, *_operation(rng))
    return work.problem("story", f"{' . '.join(work.lines)} . {names[-1]} has ?")


def dot(rng: random.Random, depth: int) -> Problem:
    """Dot product of two vectors with depth + 1 components, summed from left to right."""
    xs, ys = ([rng.randint(1, 9) for _ in range(depth + 1)] for _ in range(2))
    products = [apply("*", x, y) for x, y in zip(xs, ys, strict=True)]
    steps, total = [], 0
    for i, (x, y, product) in enumerate(zip(xs, ys, products, strict=True)):
        steps.append(f"{x} * {y} = {product}")
        if i:
            steps.append(f"{total} + {product} = {apply('+', total, product)}")
        total = apply("+", total, product)
    prompt = f"dot ( {' '.join(map(str, xs))} ) ( {' '.join(map(str, ys))} ) ?"
    return Problem("dot", prompt, tuple(steps), str(total), depth)


def poly(rng: random.Random, depth: int) -> Problem:
    """A polynomial of degree `depth` at a digit, by Horner's scheme: two steps per degree."""
    coefficients = [rng.randint(1, 9), *(rng.randint(0, 9) for _ in range(depth))]
    x, value = rng.randint(2, 9), coefficients[0]
    steps = []
    for coefficient in coefficients[1:]:
        product = apply("*", value, x)
        total = apply("+", product, coefficient)
        steps += [f"{value} * {x} = {product}", f"{product} + {coefficient} = {total}"]
        value = total
    prompt = f"poly {' '.join(map(str, coefficients))} at {x} ?"
    return Problem("poly", prompt, tuple(steps), str(value), depth)


def total(rng: random.Random, depth: int) -> Problem:
    """A sum of depth + 1 digits, from left to right."""
    digits = [rng.randint(0, 9) for _ in range(depth + 1)]
    running = [sum(digits[: i + 1]) % 10 for i in range(depth + 1)]
    steps = [f"{running[i]} + {digits[i + 1]} = {running[i + 1]}" for i in range(depth)]
    prompt = f"sum {' '.join(map(str, digits))} ?"
    return Problem("total", prompt, tuple(steps), str(running[-1]), depth)


def machine(rng: random.Random, depth: int) -> Problem:
    """A machine with registers x and y; `x + 3` adds 3 to x. A step writes both registers."""
    state = {"x": rng.randint(0, 9), "y": rng.randint(0, 9)}
    start = f"x {state['x']} y {state['y']}"
    code: list[str] = []
    steps = []
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
    asked = code[-1].split()[0]
    prompt = f"{start} : {' ; '.join(code)} ; {asked} ?"
    return Problem("machine", prompt, tuple(steps), str(state[asked]), depth)


def long(rng: random.Random, depth: int) -> Problem:
    """A chain longer than any that is trained on."""
    return replace(chain(rng, depth), family="long")


def blend(rng: random.Random, depth: int) -> Problem:
    """A story whose last person's holding starts a chain of assignments."""
    told = rng.randint(1, depth - 1)
    names = rng.sample(NAMES, told + 1)
    work = _Worked(value=rng.randint(0, 9))
    opening = f"{names[0]} has {work.value}"
    for before, name in itertools.pairwise(names):
        work.compare(name, before, *_operation(rng))
    labels = rng.sample(LETTERS, depth - told)
    for before, label in itertools.pairwise([names[-1], *labels]):
        work.assign(label, before, *_operation(rng))
    sentences = " . ".join([opening, *work.lines[:told]])
    return work.problem("blend", f"{sentences} . {' ; '.join(work.lines[told:])} ; {labels[-1]} ?")


def choice(rng: random.Random, depth: int) -> Problem:
    """A chain with four options; the answer is the letter of the right one."""
    work, last = _chain(rng, depth - 1)
    values = [work.value, *rng.sample([d for d in range(10) if d != work.value], 3)]
    rng.shuffle(values)
    letter = OPTIONS[values.index(work.value)]
    listed = " ".join(f"{o} {v}" for o, v in zip(OPTIONS, values, strict=True))
    work.steps.append(f"{work.value} is {letter}")
    return work.problem("choice", f"{' ; '.join(work.lines)} ; {last} in {listed} ?", letter)


@dataclass(frozen=True)
class Family:
    """A generator `(rng, depth) -> Problem`, the depths tasks are drawn from, the depths the
    pre-training corpus writes whole traces at."""

    generate: Callable[[random.Random, int], Problem]
    depths: tuple[int, ...]
    corpus_depths: tuple[int, ...]


FAMILIES: dict[str, Family] = {
    "chain": Family(chain, (4, 5, 6), (1, 2, 3, 4)),
    "story": Family(story, (3, 4), (1, 2, 3)),
    "dot": Family(dot, (2, 3), (1, 2)),
    "poly": Family(poly, (2, 3), (1, 2)),
    "total": Family(total, (4, 5, 6), (1, 2, 3)),
    "machine": Family(machine, (3, 4, 5), (1, 2, 3)),
    "long": Family(long, (7, 8), ()),
    "blend": Family(blend, (4, 5), (2,)),
    "choice": Family(choice, (4, 5), (2, 3)),
}
IN_DISTRIBUTION = ("chain", "story", "dot", "poly", "total", "machine")
OUT_OF_DISTRIBUTION = ("long", "blend", "choice")


@dataclass(frozen=True)
class TaskSet:
    """What is trained on, and what is asked besides to see how far that carries: family -> depths."""

    inside: Mapping[str, tuple[int, ...]]
    outside: Mapping[str, tuple[int, ...]]

    @property
    def families(self) -> dict[str, tuple[int, ...]]:
        """Those trained on first."""
        return {**self.inside, **self.outside}


def _usual(families: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    return {family: FAMILIES[family].depths for family in families}


TASK_SETS: dict[str, TaskSet] = {
    "lab": TaskSet(_usual(IN_DISTRIBUTION), _usual(OUT_OF_DISTRIBUTION)),
    # What the base model can do ends sharply at the depths of its corpus. Here half of the problems of
    # four families are one deeper, so there is something to learn beside how to begin; and one
    # family (dot) that the base can work out is never shown.
    "lab-hard": TaskSet(
        {
            "chain": (4, 5, 6),
            "story": (4, 5),
            "poly": (3, 4),
            "machine": (5, 6),
            "total": (6, 7),
        },
        {"dot": (2, 3), **_usual(("blend", "long"))},
    ),
}


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the evaluation split: a fifth of all prompts, by checksum.

    A property of the text alone, so training and evaluation sets of any size and seed, and the
    pre-training corpus, are disjoint from each other without knowing of each other.
    """
    return zlib.crc32(prompt.encode()) % 5 == 0


def make_problem(
    family: str,
    seed: int,
    index: int,
    *,
    held_out: bool = False,
    depths: tuple[int, ...] | None = None,
) -> Problem:
    """Problem `index` of `family` under `seed`, from the training or the held-out split, of its usual
    depths unless others are given: the same on every machine and Python."""
    rng = random.Random(f"{family}/{seed}/{index}")  # a str seed is hashed with SHA-512
    spec = FAMILIES[family]
    while True:
        problem = spec.generate(rng, rng.choice(depths or spec.depths))
        if is_held_out(problem.prompt) == held_out:
            return problem
