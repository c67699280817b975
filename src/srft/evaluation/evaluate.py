"""Sample n responses to every problem, have them judged, and lose nothing when interrupted.

``evaluate`` knows an engine and a scorer by their methods only. What each sample is depends on the
seed, its problem's text and its number alone: an interrupted run that is started again, a run on a
part of the problems or with more samples each all agree on the samples they share.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from srft.data.data_config import DataConfig
from srft.errors import DataError
from srft.evaluation.journal import Entry, Journal
from srft.evaluation.results import EvaluationResult, ProblemResult, Sample, problem_id
from srft.evaluation.votes import vote_of
from srft.rewards.registry import REWARDS
from srft.types import (
    Completion,
    Example,
    RolloutEngine,
    RolloutRequest,
    SamplingParams,
    TokenizedExample,
    transcript,
)

if TYPE_CHECKING:
    from srft.environments.tools import Tools

ProgressCallback = Callable[[int, int], None]
"""``(samples judged so far, samples in all)``; called from the thread that judges."""

MOST_AT_ONCE = 256
"""Samples judged in one call of the scorer, at most: what an interruption can cost."""


class ScoreLike(Protocol):
    """One verdict, as ``srft.rewards.scorer.Score`` has it. ``reward`` is NaN and parts are None
    where nothing applies; ``status`` says of each verifier what came of it."""

    @property
    def reward(self) -> float: ...
    @property
    def parts(self) -> Mapping[str, float | None]: ...
    @property
    def correct(self) -> bool: ...
    @property
    def status(self) -> Mapping[str, str]: ...


class ScorerLike(Protocol):
    """Whatever judges texts, as ``srft.rewards.scorer.Scorer`` does."""

    def score(
        self,
        examples: Sequence[Example],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        environments: Sequence[Any] | None = None,
    ) -> Sequence[ScoreLike]: ...


@dataclass(frozen=True)
class _Item:
    """A problem ready to be asked. ``digest`` stands for the prompt's tokens and the row's columns."""

    id: str
    example: Example
    prompt_ids: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class _Drawn:
    item: _Item
    index: int
    completion: Completion


def evaluate(
    engine: RolloutEngine,
    tokenizer: Any,
    problems: Sequence[Example | TokenizedExample],
    scorer: ScorerLike,
    params: SamplingParams,
    n: int = 1,
    seed: int = 0,
    out_path: str | Path | None = None,
    progress: ProgressCallback | None = None,
    *,
    name: str = "evaluation",
    size: int | None = None,
    identity: Mapping[str, Any] | None = None,
    data: DataConfig | None = None,
    share: Sequence[int] | None = None,
) -> EvaluationResult:
    """Evaluate on ``problems`` with ``n`` samples of each.

    out_path: JSONL file of judged samples; what it already holds is not drawn again.
    size: problems of the whole set, where ``problems`` is a part of it.
    identity: what else a sample depends on and this function cannot see (model and its weights,
        verifier): JSON values. A file made under another identity or other sampling settings is
        refused, not mixed.
    data: how problems that are not tokenized yet become tokens (chat template and the like).
    share: numbers of the problems to ask here, where other processes ask the others; none: all.

    A sample that cannot be scored (its ground truth cannot be read) counts as wrong.

    Raises:
        DataError: no problems, or the file at ``out_path`` cannot be read.
        ConfigError: the file at ``out_path`` was made under other settings.
        RewardError, RolloutError: from the scorer and the engine; samples judged until then are
            in the file.
    """
    if not problems:
        raise DataError(f"{name}: no problems to evaluate on.")
    started = time.monotonic()
    settings = {**asdict(params), "seed": seed, **(identity or {})}
    items = _number(_tokenized(problems, tokenizer, data), getattr(scorer, "reads", None))
    if share is not None:
        items = [items[number] for number in share]
    total = len(items) * n
    with Journal(out_path, settings) as journal:
        requests, where = _missing(items, n, seed, journal)
        wanted = sum(request.n for request in requests)
        if progress is not None:
            progress(total - wanted, total)
        if requests:
            judge = _Judge(scorer, journal, progress, total - wanted, total)
            _draw(engine, requests, where, params, judge)
        found = tuple(_collect(item, n, journal) for item in items)
    return EvaluationResult(
        name, found, n, size or len(found), settings, time.monotonic() - started
    )


def _tokenized(
    problems: Sequence[Example | TokenizedExample], tokenizer: Any, data: DataConfig | None
) -> list[TokenizedExample]:
    plain = [p for p in problems if isinstance(p, Example)]
    if not plain:
        return [p for p in problems if isinstance(p, TokenizedExample)]
    tokens = iter(tokenize_problems(plain, tokenizer, data))
    return [next(tokens) if isinstance(p, Example) else p for p in problems]


def tokenize_problems(
    examples: Sequence[Example],
    tokenizer: Any,
    data: DataConfig | None = None,
    tools: Tools | None = None,
) -> list[TokenizedExample]:
    """Examples in tokens under the template that ``data`` names; none is dropped for its length. tools: what
    the prompts offer.

    Raises:
        DataError: an example cannot be written with this template and tokenizer.
    """
    from srft.environments.tools import tokenizing

    keep_all = {"max_prompt_tokens": None, "invalid_rows": "error"}
    data = (data or DataConfig()).model_copy(update=keep_all)
    tokenized, _ = tokenizing(tools)(examples, tokenizer, data)
    assert len(tokenized) == len(examples), "no prompt is dropped without a limit"
    return tokenized


def _number(
    problems: Sequence[TokenizedExample], reads: Callable[[Example], Any] | None
) -> list[_Item]:
    """Give each problem its id; a repeated problem gets ``-2`` and so on. reads: the columns of a row that
    its score depends on."""
    seen: Counter[str] = Counter()
    items = []
    for problem in problems:
        name = problem_id(problem.example)
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name}-{seen[name]}"
        told = repr(problem.prompt_ids)
        if columns := reads(problem.example) if reads else None:
            told += repr(sorted(columns.items()))
        digest = hashlib.sha256(told.encode()).hexdigest()[:12]
        items.append(_Item(name, problem.example, tuple(problem.prompt_ids), digest))
    return items


def problem_seed(seed: int, problem: str) -> int:
    """Seed of a problem's sample 0: 31 bits of a hash, so that problems do not share streams."""
    digest = hashlib.sha256(f"{seed}/{problem}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _missing(
    items: Sequence[_Item], n: int, seed: int, journal: Journal
) -> tuple[list[RolloutRequest], list[tuple[_Item, int]]]:
    """Requests for the samples that are not in the journal, one per run of consecutive numbers,
    and for each the item and the number of its first sample."""
    requests, where = [], []
    for item in items:
        absent = [i for i in range(n) if journal.get(item.id, item.digest, i) is None]
        first = problem_seed(seed, item.id)
        start = 0
        for j, index in enumerate(absent):
            if j + 1 == len(absent) or absent[j + 1] != index + 1:
                begin = absent[start]
                count = index - begin + 1
                requests.append(
                    RolloutRequest(item.prompt_ids, count, first + begin, example=item.example)
                )
                where.append((item, begin))
                start = j + 1
    return requests, where


def _draw(
    engine: RolloutEngine,
    requests: Sequence[RolloutRequest],
    where: Sequence[tuple[_Item, int]],
    params: SamplingParams,
    judge: _Judge,
) -> None:
    """Generate, handing each completion to the judge as it ends. Whatever happens, what has been
    drawn is judged and written before this returns or raises; where nothing is written, a failure does not
    wait for the judge."""

    def on_completion(r: int, i: int, completion: Completion) -> None:
        item, begin = where[r]
        judge.put(_Drawn(item, begin + i, completion))

    try:
        engine.generate(requests, params, on_completion)
    except BaseException:
        judge.finish(wait=judge.writes)
        raise
    judge.finish()
    judge.check()


class _Judge:
    """A thread that judges completions while others are still being generated."""

    def __init__(
        self,
        scorer: ScorerLike,
        journal: Journal,
        progress: ProgressCallback | None,
        done: int,
        total: int,
    ) -> None:
        self._scorer, self._journal, self._progress = scorer, journal, progress
        self._done, self._total = done, total
        self._queue: queue.SimpleQueue[_Drawn | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="srft-judge", daemon=True)
        self._thread.start()

    def put(self, drawn: _Drawn) -> None:
        """Hand over one completion; raises what judging has failed with, which ends generation."""
        self.check()
        self._queue.put(drawn)

    @property
    def writes(self) -> bool:
        """Whether what is judged outlives this evaluation."""
        return self._journal.path is not None

    def finish(self, wait: bool = True) -> None:
        """Wait until everything handed over is judged and written, or end after what is being judged."""
        if not wait:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
        self._queue.put(None)
        if wait:
            self._thread.join()

    def check(self) -> None:
        """Raise what judging has failed with, if it has."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                self._judge(batch)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._error = error

    def _next_batch(self) -> list[_Drawn]:
        """All that waits, at least one; empty at the end."""
        batch: list[_Drawn] = []
        while len(batch) < MOST_AT_ONCE and (not batch or not self._queue.empty()):
            drawn = self._queue.get()
            if drawn is None:
                self._queue.put(None)  # the end stays in sight for the next call
                break
            batch.append(drawn)
        return batch

    def _vote(self, text: str, example: Example, correct: bool) -> str | None:
        if correct and example.answer is None:  # of many right answers, as to Countdown
            return "right"
        labels = getattr(self._scorer, "labels", ())
        verifiers = [name for name in labels if name in REWARDS and REWARDS[name].needs_answer]
        return vote_of(text, example.columns, verifiers, example.answer if correct else None)

    def _judge(self, batch: list[_Drawn]) -> None:
        episodes = [d.completion.episode for d in batch]
        acted = [e and e.environment for e in episodes]
        scores = self._scorer.score(
            [
                replace(d.item.example, prompt=e.prompt) if e else d.item.example
                for d, e in zip(batch, episodes, strict=True)
            ],
            [d.completion.text for d in batch],
            [d.completion.token_ids for d in batch],
            acted if any(one is not None for one in acted) else None,
        )
        assert len(scores) == len(batch), "a scorer returns one score for each text"
        entries = []
        for drawn, score in zip(batch, scores, strict=True):
            c = drawn.completion
            sample = Sample(
                drawn.index,
                transcript(c.text),
                sum(c.loss_mask or (True,) * len(c.token_ids)),
                c.finish_reason,
                None if math.isnan(score.reward) else float(score.reward),
                bool(score.correct),
                self._vote(c.text, drawn.item.example, bool(score.correct)),
                dict(score.parts),
                dict(score.status),
                getattr(c.text, "messages", None) if c.episode and c.episode.calls else None,
            )
            entries.append(Entry(drawn.item.id, drawn.item.digest, sample))
        self._journal.add(entries)
        self._done += len(batch)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _collect(item: _Item, n: int, journal: Journal) -> ProblemResult:
    samples = []
    for i in range(n):
        sample = journal.get(item.id, item.digest, i)
        assert sample is not None, f"the engine did not report sample {i} of problem {item.id}"
        samples.append(sample)
    family = item.example.columns.get("family")
    return ProblemResult(
        item.id,
        tuple(samples),
        item.example.answer,
        item.example.source,
        str(family) if family not in (None, "") else None,
    )
