"""A made-up engine and scorer: what they return depends on the request alone, as the real ones do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from srft.types import Completion, Example, SamplingParams, TokenizedExample


@dataclass(frozen=True)
class FakeScore:
    reward: float
    parts: dict[str, float | None]
    correct: bool
    status: dict[str, str] = field(default_factory=dict)


class FakeScorer:
    """Right where the text ends with ``#### answer``; counts what it was asked."""

    def __init__(self) -> None:
        self.judged = 0

    def score(self, examples: Sequence[Example], texts: Sequence[str], ids=None, environments=None):
        self.judged += len(texts)
        verdicts = [t.endswith(f"#### {e.answer}") for e, t in zip(examples, texts, strict=True)]
        return [FakeScore(float(v), {"exact": float(v)}, v, {"exact": "ok"}) for v in verdicts]


@dataclass
class FakeEngine:
    """Answers 0, 1 or 2, drawn from ``seed + i``. Stops with an error after ``fail_after``
    completions, to be interrupted on purpose."""

    fail_after: int | None = None
    made: int = 0
    seeds: list[int] = field(default_factory=list)

    def generate(self, requests, params, on_completion=None):
        result = []
        for r, request in enumerate(requests):
            row = []
            for i in range(request.n):
                if self.made == self.fail_after:
                    raise KeyboardInterrupt
                self.made += 1
                self.seeds.append(request.seed + i)
                completion = self._one(request, request.seed + i, params)
                row.append(completion)
                if on_completion is not None:
                    on_completion(r, i, completion)
            result.append(row)
        return result

    def _one(self, request, seed: int, params: SamplingParams) -> Completion:
        rng = random.Random(f"{request.prompt_ids}/{seed}")
        length = rng.randint(1, 12)
        cut = length > params.max_tokens
        ids = tuple(range(min(length, params.max_tokens)))
        text = "thinking" if cut else f"thinking #### {rng.randint(0, 2)}"
        return Completion(ids, (0.0,) * len(ids), text, "length" if cut else "stop")

    def update_weights(self) -> None: ...

    def close(self) -> None: ...


def make_problems(count: int, families: Sequence[str] = ()) -> list[TokenizedExample]:
    problems = []
    for i in range(count):
        columns = {"family": families[i % len(families)]} if families else {}
        example = Example(f"problem {i}", (), str(i % 3), columns, f"made.jsonl:{i + 1}")
        problems.append(TokenizedExample(example, i, (1, 2, i), ()))
    return problems


@pytest.fixture
def problems() -> list[TokenizedExample]:
    return make_problems(20, ("odd", "even"))


@pytest.fixture
def scorer() -> FakeScorer:
    return FakeScorer()
