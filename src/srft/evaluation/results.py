"""What an evaluation found: samples, problems, and everything that is computed from them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from srft.evaluation import accuracy_statistics
from srft.evaluation.accuracy_statistics import Interval
from srft.types import Example, FinishReason, Message


@dataclass(frozen=True)
class Sample:
    """One judged completion. ``tokens`` counts the stop token; ``reward`` is None where no reward
    applies; ``answer`` is what could be extracted from the text (the vote of majority@k), None
    where nothing could; ``parts`` and ``status`` as in ``srft.rewards.scorer.Score``; ``messages`` are the
    turns of one that called tools."""

    index: int
    text: str
    tokens: int
    finish_reason: FinishReason
    reward: float | None
    correct: bool
    answer: str | None = None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    status: Mapping[str, str] = field(default_factory=dict)
    messages: Sequence[Message] | None = None


@dataclass(frozen=True)
class ProblemResult:
    """One problem with its n samples. ``truth`` is the right answer."""

    id: str
    samples: tuple[Sample, ...]
    truth: str | None = None
    source: str = ""
    family: str | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @property
    def c(self) -> int:
        """Number of correct samples."""
        return sum(sample.correct for sample in self.samples)

    @property
    def score(self) -> float:
        """Fraction correct."""
        return self.c / self.n


@dataclass(frozen=True)
class EvaluationResult:
    """One benchmark, evaluated.

    n: samples of each problem. size: problems of the whole set, of which ``problems`` may be a
    part. settings: what was in force (sampling, seed, model). seconds: time spent in this call.
    """

    name: str
    problems: tuple[ProblemResult, ...]
    n: int
    size: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """avg@n over the problems; with n = 1 the same as pass@1."""
        return sum(p.score for p in self.problems) / len(self.problems)

    @property
    def complete(self) -> bool:
        """Whether every problem of the set was evaluated."""
        return len(self.problems) >= self.size

    @property
    def scores(self) -> list[float]:
        """Fraction correct of each problem."""
        return [p.score for p in self.problems]

    @property
    def truncated_share(self) -> float:
        """Share of the samples that ran into the token limit."""
        return self._mean_of_samples(lambda s: s.finish_reason == "length")

    @property
    def mean_tokens(self) -> float:
        """Mean response length in tokens."""
        return self._mean_of_samples(lambda s: s.tokens)

    @property
    def mean_reward(self) -> float:
        """Mean reward of the samples that have one; NaN where none has."""
        rewards = [s.reward for p in self.problems for s in p.samples if s.reward is not None]
        return sum(rewards) / len(rewards) if rewards else float("nan")

    @property
    def unscorable_share(self) -> float:
        """Share of the samples to which no reward applies; they count as wrong."""
        return self._mean_of_samples(lambda s: s.reward is None)

    def statuses(self) -> dict[str, int]:
        """How many samples each outcome of verification had: ok, no_answer, timeout and so on."""
        return dict(Counter(o for p in self.problems for s in p.samples for o in s.status.values()))

    def _mean_of_samples(self, value: Callable[[Sample], float]) -> float:
        values = [float(value(s)) for p in self.problems for s in p.samples]
        return sum(values) / len(values)

    def pass_at(self, k: int) -> float:
        """Unbiased pass@k, mean over problems. ValueError where k > n."""
        return sum(accuracy_statistics.pass_at_k(p.n, p.c, k) for p in self.problems) / len(
            self.problems
        )

    def majority_at(self, k: int, seed: int = 0) -> float:
        """majority@k, mean over problems. ValueError where k > n."""
        votes = [
            accuracy_statistics.majority_at_k(
                [s.answer for s in p.samples], [s.correct for s in p.samples], k, seed
            )
            for p in self.problems
        ]
        return sum(votes) / len(votes)

    def interval(self, confidence: float = 0.95, seed: int = 0) -> Interval:
        """Interval of the accuracy over problems of this kind (see ``accuracy_statistics``)."""
        return accuracy_statistics.interval_over_problems(self.scores, seed, confidence)

    def sampling_interval(self, confidence: float = 0.95) -> Interval | None:
        """Interval of the accuracy on these very problems, over seeds; None for n = 1."""
        if any(p.n < 2 for p in self.problems):
            return None
        counts = [p.n for p in self.problems], [p.c for p in self.problems]
        return accuracy_statistics.interval_over_samples(*counts, confidence)

    @property
    def standard_error(self) -> float | None:
        """Of the accuracy, over problems: s / sqrt(P), s with P - 1; None for a single problem."""
        return accuracy_statistics.standard_error(self.scores)

    def by_family(self) -> dict[str, EvaluationResult]:
        """The same for each family of problems, in order; empty where problems have none."""
        families: dict[str, list[ProblemResult]] = {}
        for problem in self.problems:
            if problem.family is not None:
                families.setdefault(problem.family, []).append(problem)
        return {
            name: EvaluationResult(name, tuple(members), self.n, len(members), self.settings)
            for name, members in families.items()
        }

    def metrics(self) -> dict[str, float]:
        """Flat numbers for a training log: accuracy, reward, lengths, and each family's accuracy
        as ``accuracy/FAMILY``; with n > 1 also ``pass@n``."""
        found = {
            "accuracy": self.accuracy,
            "reward": self.mean_reward,
            "mean_tokens": self.mean_tokens,
            "truncated_share": self.truncated_share,
        }
        if self.n > 1:
            found[f"pass@{self.n}"] = self.pass_at(self.n)
        for family, part in self.by_family().items():
            found[f"accuracy/{family}"] = part.accuracy
        return found

    def summary(self, confidence: float = 0.95) -> dict[str, Any]:
        """Everything but the texts, as it stands in results.json."""
        interval = self.interval(confidence)
        sampling = self.sampling_interval(confidence)
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k <= self.n]
        return {
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "interval": [interval.low, interval.high],
            "sampling_interval": None if sampling is None else [sampling.low, sampling.high],
            "n": self.n,
            "problems_evaluated": len(self.problems),
            "problems_in_set": self.size,
            "pass_at_k": {str(k): self.pass_at(k) for k in ks},
            "majority_at_n": self.majority_at(self.n),
            "mean_reward": None if self.unscorable_share == 1 else self.mean_reward,
            "unscorable_share": self.unscorable_share,
            "statuses": self.statuses(),
            "mean_tokens": self.mean_tokens,
            "truncated_share": self.truncated_share,
            "seconds": self.seconds,
            "families": {
                name: {
                    "accuracy": part.accuracy,
                    "interval": [part.interval(confidence).low, part.interval(confidence).high],
                    "problems": len(part.problems),
                }
                for name, part in self.by_family().items()
            },
            "settings": dict(self.settings),
            "problems": {
                p.id: {"n": p.n, "correct": p.c, "source": p.source} for p in self.problems
            },
        }


def problem_id(example: Example) -> str:
    """Twelve hexadecimal digits that stand for a problem's text and answer.

    The same for every model and tokenizer, and independent of where the row stands, so that runs
    on a part and on the whole, or of two models, speak of the same problems.
    """
    prompt: Any = example.prompt
    if not isinstance(prompt, str):
        prompt = [[m["role"], m["content"]] for m in prompt]
    content = json.dumps([prompt, example.answer], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
