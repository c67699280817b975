"""From completions to rewards: one path for rollouts and demonstrations.

A `Scorer` holds the rewards of a run. Verifiers that a hostile answer could hold up run in the
worker pool and start as soon as a completion is added to a session, while generation goes on; user
functions see the whole batch when the session's results are asked for, as they do in TRL.

The reward is the weighted sum of the parts that apply (are not None). Where none applies the sample
is *unscorable*, as in TRL 1.16: its reward is NaN, it is not correct, and the trainer leaves it out
of its group, rather than have a 0 distort the group's mean.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from srft.errors import ConfigError, DataError, RewardError
from srft.rewards.functions import (
    AsyncRunner,
    Batch,
    RewardFunction,
    columns_of,
    function_name,
    load_function,
    prepare,
    run_functions,
)
from srft.rewards.pool import VerifierPool
from srft.rewards.registry import REWARDS, Verifier
from srft.rewards.reward_config import RewardConfig, RewardSpec
from srft.rewards.verifiers import ASKED, OTHER_ANSWERS, PROMPT_END, Verdict
from srft.types import Example


@dataclass(frozen=True)
class Score:
    """What one completion earned.

    reward: weighted sum of the parts that apply; NaN if none does. parts: each reward before its
    weight, None where it does not apply. correct: reward > the scorer's threshold. status: for each
    verifier of this package what came of it ("ok", "text_only", "no_answer", "bad_gold", "timeout",
    "memory", "crash"; see `srft.rewards.verifiers.Verdict`). extras: what functions noted about it
    with ``log_extra``.
    """

    reward: float
    parts: Mapping[str, float | None]
    correct: bool
    status: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scorable(self) -> bool:
        """False where no reward applies (every part is None)."""
        return not math.isnan(self.reward)


@dataclass(frozen=True)
class _Part:
    """One reward: a verifier with options, or a function."""

    label: str
    weight: float
    verifier: Verifier | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    function: RewardFunction | None = None


def mean_metrics(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Means over the logged values of several scorers (one in each process) together."""
    names = dict.fromkeys(name for part in parts for name in part)
    values = {name: [v for part in parts for v in part.get(name, ())] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


RewardLike = str | RewardFunction | RewardSpec


class Scorer:
    """Scores completions with one or several rewards.

    rewards: a RewardConfig, or one or a list of: verifier names, `path.py:name` strings,
        RewardSpec, functions with TRL's signature. weights: one per reward if they are not in the
        specs. correct_threshold: reward above which a completion is correct (0.5).
    trainer_state: handed to functions that ask for it, as TRL does; the trainer assigns it, and
        without one they get transformers' ``TrainerState`` at step 0.

    Raises: ConfigError where a reward does not exist; RewardError, naming the function and
    ``file:row``, where one fails or returns what is not a reward.
    """

    def __init__(
        self,
        rewards: RewardConfig | RewardLike | Sequence[RewardLike] = "math",
        correct_threshold: float | None = None,
        *,
        weights: Sequence[float] | None = None,
        timeout_s: float = 5.0,
        memory_mb: int = 512,
        workers: int | None = None,
        function_timeout_s: float | None = None,
    ) -> None:
        if isinstance(rewards, RewardConfig):
            timeout_s, memory_mb, workers = rewards.timeout_s, rewards.memory_mb, rewards.workers
            function_timeout_s = rewards.function_timeout_s
            if correct_threshold is None:
                correct_threshold = rewards.correct_threshold
            items: Sequence[RewardLike] = rewards.rewards
        else:
            items = rewards if isinstance(rewards, list | tuple) else [rewards]  # type: ignore[list-item]
        self.correct_threshold = 0.5 if correct_threshold is None else correct_threshold
        self.trainer_state: Any = None
        self._function_timeout_s = function_timeout_s
        self._columns: tuple[str, ...] = ()
        self._parts = _parts(items, weights)
        self._checks = {
            part.label: _resolve(part.verifier.check) for part in self._parts if part.verifier
        }
        packages = [p for part in self._parts if part.verifier for p in part.verifier.packages]
        self._new_pool = partial(
            VerifierPool, workers, timeout_s, memory_mb, packages=tuple(packages)
        )
        self._pool = self._new_pool()
        self._async = AsyncRunner()
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {part.label: Counter() for part in self._parts}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the rewards, as in `Score.parts`."""
        return tuple(part.label for part in self._parts)

    @property
    def needs_answer(self) -> bool:
        """Whether some reward compares with the row's answer."""
        return any(part.verifier.needs_answer for part in self._parts if part.verifier)

    @property
    def calls_functions(self) -> bool:
        """Whether some reward is a function of the user's."""
        return any(part.function is not None for part in self._parts)

    def reads(self, example: Example) -> dict[str, Any]:
        """The columns of a row that its score may depend on: all of them where functions are called; and its
        other answers."""
        names = {n for part in self._parts if part.verifier for n in part.verifier.columns}
        every = self.calls_functions
        more = {OTHER_ANSWERS: example.other_answers} if example.other_answers else {}
        return {k: v for k, v in example.columns.items() if every or k in names} | more

    def expect(self, examples: Sequence[Example], what: str) -> None:
        """Before anything is scored: from now on functions are given every column that any of ``examples``
        has, None where a row has none. ``what`` these are, in messages.

        Raises: RewardError where a function asks for a column that no row has; DataError where a row has no
        answer and a reward compares with it.
        """
        without = [e.source for e in examples if e.answer is None] if self.needs_answer else []
        if without:
            raise DataError(
                f"{what}: {len(without):,} of {len(examples):,} rows have no answer, {without[0]} the first, "
                "and the reward compares with it. Give them one, leave them out, or use another reward"
            )
        if not examples:
            return
        names = columns_of(examples)
        extras = dict.fromkeys(("trainer_state", "log_extra", "log_metric"))
        batch = Batch(examples[:1], [""], [()], extras, [None], tuple(names))
        for part in self._parts:
            if part.function is not None:
                try:
                    prepare(part.function, batch)
                except RewardError as error:
                    raise RewardError(f"{what}: {error}") from None
        self._columns = tuple(dict.fromkeys((*self._columns, *names)))

    def score(
        self,
        examples: Sequence[Example],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        environments: Sequence[Any] | None = None,
    ) -> list[Score]:
        """One Score for each completion, in order; ``completions[i]`` answers ``examples[i]``, in
        ``environments[i]`` where there are such."""
        if len(examples) != len(completions):
            raise RewardError(f"{len(completions)} completions for {len(examples)} examples")
        session = self.session()
        nothing = [None] * len(completions)
        ids = nothing if completion_ids is None else completion_ids
        acted = nothing if environments is None else environments
        for i, row in enumerate(zip(examples, completions, ids, acted, strict=True)):
            session.add(i, *row)
        return list(session.results().values())

    def verdicts(
        self, examples: Sequence[Example], completions: Sequence[str]
    ) -> list[dict[str, Verdict]]:
        """The verdict of each verifier that compares with an answer, for each completion; functions
        and verifiers that need no answer take no part."""
        parts = [part for part in self._parts if part.verifier and part.verifier.needs_answer]
        started = [
            {part.label: self._verify(part, example, text) for part in parts}
            for example, text in zip(examples, completions, strict=True)
        ]
        return [
            {label: _result(future, label, example) for label, future in row.items()}
            for example, row in zip(examples, started, strict=True)
        ]

    def session(self) -> ScoringSession:
        """A batch that is scored while it is being generated."""
        return ScoringSession(self)

    def stats(self) -> dict[str, dict[str, int]]:
        """Outcomes so far by reward: samples ``scored`` and ``not_applicable`` (None); for
        verifiers also by `Verdict.status`. ``pool`` holds the workers' outcomes."""
        with self._lock:
            counts = {label: dict(counter) for label, counter in self._counts.items()}
        return counts | {"pool": self._pool.stats()}

    def close(self) -> None:
        """End the worker processes; what is scored after that starts others. Idempotent; also happens when
        the interpreter ends."""
        self._pool.close()
        self._pool = self._new_pool()
        self._async.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _verify(self, part: _Part, example: Example, text: str) -> Future[Verdict]:
        """Start one verification; verifiers outside the pool are done when this returns."""
        verifier = part.verifier
        assert verifier is not None
        if verifier.needs_answer and example.answer is None:
            raise RewardError(
                f"{example.source}: the row has no answer, and the reward {part.label!r} compares "
                "with it. Give it one, leave the row out, or use another reward"
            )
        present = [name for name in verifier.columns if name in example.columns]
        columns = {name: example.columns[name] for name in present}
        if example.other_answers:
            columns[OTHER_ANSWERS] = list(example.other_answers)
        if verifier.asked:
            columns[ASKED] = example.asked
        if verifier.prompt_end:
            columns[PROMPT_END] = example.prompt_end
        if verifier.isolated:
            # Plain text: the process that reads it knows no messages.
            return self._pool.submit(
                verifier.check, str(text), example.answer, columns, part.options
            )
        future: Future[Verdict] = Future()
        future.set_result(self._checks[part.label](text, example.answer, columns, part.options))
        return future

    def _run_functions(self, batch: Batch) -> dict[str, list[float | None]]:
        functions = {part.label: part.function for part in self._parts if part.function is not None}
        return run_functions(functions, batch, self._async, self._function_timeout_s)

    def _state(self) -> Any:
        """What functions are given as ``trainer_state``."""
        if self.trainer_state is None and any(part.function for part in self._parts):
            from transformers import TrainerState  # heavy, and of use to functions alone

            self.trainer_state = TrainerState()
        return self.trainer_state

    def _combine(
        self, parts: dict[str, float | None], status: dict[str, str], extras: dict[str, Any]
    ) -> Score:
        applicable = [
            part.weight * value for part in self._parts if (value := parts[part.label]) is not None
        ]
        reward = math.fsum(applicable) if applicable else math.nan
        with self._lock:
            for label, value in parts.items():
                self._counts[label]["scored" if value is not None else "not_applicable"] += 1
            for label, outcome in status.items():
                self._counts[label][outcome] += 1
        return Score(reward, parts, reward > self.correct_threshold, status, extras)


class ScoringSession:
    """One batch: `add` completions as they arrive, from any thread, then ask for `results`.

    ``metrics`` are the values that functions logged with ``log_metric``, filled by `results`.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._lock = threading.Lock()
        self._rows: dict[Hashable, tuple[Example, str, Sequence[int] | None, Any]] = {}
        self._verdicts: dict[Hashable, dict[str, Future[Verdict]]] = {}
        self._extras: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def add(
        self,
        key: Hashable,
        example: Example,
        text: str,
        token_ids: Sequence[int] | None = None,
        environment: Any = None,
    ) -> None:
        """Take one completion; verifiers in the pool start on it at once. Blocks while the pool's
        queue is full. Raises: RewardError where the key was used or the example has no answer."""
        with self._lock:
            if key in self._rows:
                raise RewardError(f"{example.source}: completion {key!r} was added twice")
            self._rows[key] = (example, text, token_ids, environment)
        try:
            verdicts = {
                part.label: self._scorer._verify(part, example, text)
                for part in self._scorer._parts
                if part.verifier
            }
        except RewardError:
            with self._lock:
                del self._rows[key]
            raise
        with self._lock:
            self._verdicts[key] = verdicts

    def results(self) -> dict[Hashable, Score]:
        """The Score of every completion added, by key, in the order they were added. Waits for the
        verifiers; runs the functions on the whole batch."""
        keys = list(self._rows)
        rows = [self._rows[key] for key in keys]
        ids = [row[2] for row in rows]
        batch = Batch(
            examples=[row[0] for row in rows],
            completions=[row[1] for row in rows],
            token_ids=None if any(i is None for i in ids) else ids,  # type: ignore[arg-type]
            extras={
                "trainer_state": self._scorer._state(),
                "log_extra": self._log_extra,
                "log_metric": self._log_metric,
            },
            environments=None if all(r[3] is None for r in rows) else [r[3] for r in rows],
            known=self._scorer._columns,
        )
        columns = self._scorer._run_functions(batch)
        for column, noted in self._extras.items():
            if len(noted) != len(keys):
                raise RewardError(
                    f"log_extra({column!r}) was given {len(noted)} values for {len(keys)} completions"
                )
        scores: dict[Hashable, Score] = {}
        for i, key in enumerate(keys):
            verdicts = {
                label: _result(future, label, rows[i][0])
                for label, future in self._verdicts[key].items()
            }
            values = {label: verdict.score for label, verdict in verdicts.items()}
            values |= {label: column[i] for label, column in columns.items()}
            parts = {label: values[label] for label in self._scorer.labels}
            status = {label: str(verdict.status) for label, verdict in verdicts.items()}
            extras = {column: noted[i] for column, noted in self._extras.items()}
            scores[key] = self._scorer._combine(parts, status, extras)
        return scores

    def _log_metric(self, name: str, value: float) -> None:
        with self._lock:
            self.metrics.setdefault(name, []).append(float(value))

    def _log_extra(self, column: str, values: Sequence[Any]) -> None:
        with self._lock:
            self._extras[column] = list(values)  # two functions may note the same column


def _result(future: Future[Verdict], label: str, example: Example) -> Verdict:
    try:
        return future.result()
    except CancelledError as error:
        raise RewardError("the scorer was closed before the results were in") from error
    except RewardError as error:
        raise RewardError(f"{example.source}: reward {label!r}: {error}") from error


def _resolve(check: str) -> Any:
    module, _, name = check.partition(":")
    return getattr(importlib.import_module(module), name)


def _parts(items: Sequence[RewardLike], weights: Sequence[float] | None) -> tuple[_Part, ...]:
    if not items:
        raise ConfigError("no reward is given")
    if weights is not None and len(weights) != len(items):
        raise ConfigError(f"{len(weights)} weights for {len(items)} rewards")
    parts: list[_Part] = []
    for i, item in enumerate(items):
        if isinstance(item, str):
            try:
                item = RewardConfig.model_validate(item).rewards[0]
            except ValueError as error:
                raise ConfigError(_first_message(error)) from error
        part = _part(item, {other.label for other in parts})
        parts.append(part if weights is None else _reweighted(part, weights[i]))
    return tuple(parts)


def _part(item: RewardSpec | RewardFunction, taken: set[str]) -> _Part:
    if isinstance(item, RewardSpec):
        if item.name is not None:
            return _Part(item.name, item.weight, REWARDS[item.name], item.options())
        function = load_function(str(item.function), item.arguments)
        weight = item.weight
    elif callable(item):
        function, weight = item, 1.0
    else:
        raise ConfigError(f"{item!r} is neither the name of a reward nor a function")
    label, n = function_name(function), 2
    while label in taken or label in REWARDS:
        label, n = f"{function_name(function)}_{n}", n + 1
    return _Part(label, weight, function=function)


def _reweighted(part: _Part, weight: float) -> _Part:
    return _Part(part.label, float(weight), part.verifier, part.options, part.function)


def _first_message(error: ValueError) -> str:
    details = getattr(error, "errors", None)
    message = str(details()[0]["msg"]) if details else str(error)
    return message.removeprefix("Value error, ")
