"""First half of a step: prompts -> rollouts -> rewards -> groups of training sequences."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from srft.errors import NotFinite, RolloutNotFinite
from srft.objective.method import Method, Progress
from srft.parallel.world import ALONE, World
from srft.rewards.scorer import Score
from srft.rollout.requests import request_seed
from srft.trainer.setup import Setup
from srft.types import (
    Completion,
    RolloutRequest,
    TokenizedExample,
    TrainingSequence,
    transcript,
)


@dataclass(frozen=True)
class Rollout:
    """One rollout of a prompt: its tokens (a given prefix included), its text, its score. With tools:
    how many ``calls`` were made, and how many of them failed."""

    sequence: TrainingSequence
    text: str
    score: Score
    calls: tuple[int, int] | None = None


@dataclass
class Collected:
    """The groups of one step. ``rows[g]`` of the data, ``examples[g]``, ``rollouts[g]`` and ``demos[g]``
    belong together. ``logged`` are the values that reward functions logged in each process and round.
    ``dropped`` are the rollouts of groups that a refill replaced. ``rescued`` groups were sampled again,
    ``failed_tokens`` in rollouts that were thrown away for it.
    ``refused`` says why they cannot be trained on: a reward or log-probability is not finite."""

    rows: list[int] = field(default_factory=list)
    examples: list[TokenizedExample] = field(default_factory=list)
    rollouts: list[list[Rollout]] = field(default_factory=list)
    demos: list[list[TrainingSequence]] = field(default_factory=list)
    dropped: list[list[Rollout]] = field(default_factory=list)
    generate_seconds: float = 0.0
    score_seconds: float = 0.0
    ahead_seconds: float = 0.0
    sampled_groups: int = 0
    logged: list[dict[str, list[float]]] = field(default_factory=list)
    rescued: int = 0
    failed_tokens: int = 0
    refused: str | None = None

    def take(self, other: Collected, only_mixed: bool) -> None:
        """Adds the groups of ``other``; with ``only_mixed`` those whose rollouts differ in reward."""
        self.generate_seconds += other.generate_seconds
        self.score_seconds += other.score_seconds
        self.sampled_groups += other.sampled_groups
        self.logged += other.logged
        for g, rollouts in enumerate(other.rollouts):
            if only_mixed and len({r.sequence.reward for r in rollouts}) < 2:
                self.dropped.append(rollouts)
                continue
            self.rows.append(other.rows[g])
            self.examples.append(other.examples[g])
            self.rollouts.append(rollouts)
            self.demos.append(other.demos[g])

    def replace_groups(self, places: Sequence[int], other: Collected) -> None:
        """The groups at ``places`` become those of ``other``, which were sampled in their stead."""
        for place, rollouts in zip(places, other.rollouts, strict=True):
            self.failed_tokens += sum(_sampled_tokens(r) for r in self.rollouts[place])
            self.rollouts[place] = rollouts
        self.generate_seconds += other.generate_seconds
        self.score_seconds += other.score_seconds
        self.logged += other.logged
        self.rescued += len(places)

    @property
    def unsolved(self) -> list[int]:
        """The groups of prompts that have a demonstration and no right rollout."""
        return [
            g
            for g, (example, rollouts) in enumerate(zip(self.examples, self.rollouts, strict=True))
            if example.demonstration_ids and not any(r.sequence.correct for r in rollouts)
        ]

    @property
    def sequences(self) -> list[TrainingSequence]:
        """Every sequence, group by group, rollouts before demonstrations."""
        return [
            sequence
            for rollouts, demos in zip(self.rollouts, self.demos, strict=True)
            for sequence in [*(r.sequence for r in rollouts), *demos]
        ]


def collect(
    setup: Setup,
    rows: Sequence[int],
    method: Method,
    progress: Progress,
    step: int,
    *,
    round_: int = 0,
    groups: Sequence[int] | None = None,
    rescue: int | None = None,
    world: World = ALONE,
) -> Collected:
    """Samples ``rollout.group_size`` rollouts for the prompt of each of ``rows`` of the data and scores
    them while generation goes on.

    Each process of ``world`` samples and scores those of its share of the prompts; all get them all.
    What is sampled does not depend on which process does it.

    ``step``, ``round_`` and the recipe's seed decide what is sampled. ``groups`` numbers the groups when
    a step is collected in several rounds; None: from 0. ``rescue``: the number of the attempt to sample
    prompts once more behind the start of a demonstration (``Method.rescue``). Rollouts to which no
    reward applies are left out of their group.

    Raises:
        RewardError: a reward function failed.
        RolloutError: the engine failed.
        NotFinite: a reward or a log-probability is not finite; the error holds the sequences.
    """
    examples = [setup.train[row] for row in rows]
    groups = range(len(examples)) if groups is None else groups
    demos: list[list[TrainingSequence]] = [[] for _ in examples]
    if method.demonstrations:
        scores = [setup.demo_scores[row] for row in rows]
        demos = list(map(_demo_sequences, examples, groups, scores))
    collected = Collected(
        list(rows),
        examples,
        [[] for _ in examples],
        demos,
        sampled_groups=len(examples) * method.rollouts,
    )
    if not method.rollouts:
        return collected

    share = world.share(len(examples))
    seed = request_seed(setup.config.train.seed, round_)
    size = setup.config.rollout.group_size
    plans = [
        _plan(examples[g], method, progress, size, request_seed(seed, step, groups[g]), rescue)
        for g in share
    ]
    start = time.perf_counter()
    mine = _Share([examples[g] for g in share], [groups[g] for g in share], plans)
    problem: NotFinite | None = None
    try:
        mine.sample(setup)
    except NotFinite as error:
        problem = error
    # What one process refuses, all do.
    problem = world.first(problem, f"rollouts of step {step + 1}")
    if problem is not None:
        raise problem
    collected.rollouts = world.merge(mine.rollouts, f"rollouts of step {step + 1}")
    collected.logged = world.gather(mine.logged, "metrics of rewards")
    collected.generate_seconds = mine.generate_seconds
    # What was left to wait for: verifiers, and other processes.
    collected.score_seconds = time.perf_counter() - start - mine.generate_seconds
    return collected


@dataclass
class _Share:
    """The prompts of one process: their numbers in the step, and the plan of each."""

    examples: Sequence[TokenizedExample]
    groups: Sequence[int]
    plans: Sequence[list[tuple[RolloutRequest, tuple[int, ...]]]]
    rollouts: list[list[Rollout]] = field(default_factory=list)
    logged: dict[str, list[float]] = field(default_factory=dict)
    generate_seconds: float = 0.0

    def sample(self, setup: Setup) -> None:
        """Fills ``rollouts``, prompt by prompt."""
        requests = [request for plan in self.plans for request, _ in plan]
        owners = [(g, prefix) for g, plan in enumerate(self.plans) for _, prefix in plan]
        session = setup.scorer.session()
        texts: dict[tuple[int, int], str] = {}

        def score_now(r: int, i: int, completion: Completion) -> None:
            g, prefix = owners[r]
            ids = (*prefix, *completion.token_ids)
            texts[(r, i)] = _whole_text(prefix, completion, setup.decode)
            example, episode = self.examples[g].example, completion.episode
            if episode is None:
                session.add((r, i), example, texts[(r, i)], ids)
            else:
                asked = replace(example, prompt=episode.prompt)
                session.add((r, i), asked, texts[(r, i)], ids, episode.environment)

        start = time.perf_counter()
        completions = setup.engine.generate(requests, setup.sampling, on_completion=score_now)
        self.generate_seconds = time.perf_counter() - start
        drawn = [
            (r, i, _sequence(self.examples[g], self.groups[g], prefix, completion))
            for r, (g, prefix) in enumerate(owners)
            for i, completion in enumerate(completions[r])
        ]
        _check_logprobs([sequence for _, _, sequence in drawn])
        try:
            scores: dict[Any, Score] = session.results()
        except NotFinite as error:
            error.sequences = [sequence for _, _, sequence in drawn]
            raise
        self.logged = session.metrics
        self.rollouts = [[] for _ in self.examples]
        for r, i, sequence in drawn:
            score = scores[(r, i)]
            if score.scorable:
                scored = replace(sequence, reward=score.reward, correct=score.correct)
                episode = completions[r][i].episode
                calls = None if episode is None else (episode.calls, episode.failures)
                rollout = Rollout(scored, transcript(texts[(r, i)]), score, calls)
                self.rollouts[owners[r][0]].append(rollout)


def _sequence(
    example: TokenizedExample, group: int, prefix: tuple[int, ...], completion: Completion
) -> TrainingSequence:
    """A rollout that has no reward yet."""
    episode = completion.episode
    return TrainingSequence(
        prompt_ids=example.prompt_ids if episode is None else episode.prompt_ids,
        response_ids=(*prefix, *completion.token_ids),
        group=group,
        is_demo=False,
        reward=math.nan,
        correct=False,
        truncated=completion.finish_reason == "length",
        prefix_length=len(prefix),
        # A given prefix was not sampled: log-prob 0, and the objective masks it.
        sampler_logprobs=(*(0.0 for _ in prefix), *completion.logprobs),
        loss_mask=completion.loss_mask,
    )


def _check_logprobs(sequences: Sequence[TrainingSequence]) -> None:
    """Raises RolloutNotFinite, whichever engine it was that returned such a log-probability."""
    for number, sequence in enumerate(sequences):
        if not all(map(math.isfinite, sequence.sampler_logprobs or ())):
            error = RolloutNotFinite(
                f"rollout {number} of the step has a non-finite log-probability: the engine's "
                "weights have diverged, or its precision is too low"
            )
            error.sequences = sequences
            raise error


def _plan(
    example: TokenizedExample,
    method: Method,
    progress: Progress,
    group_size: int,
    seed: int,
    rescue: int | None,
) -> list[tuple[RolloutRequest, tuple[int, ...]]]:
    """The requests of one prompt, each with the start of a demonstration that it continues: one
    request for all rollouts, or one for each run of rollouts with the same prefix."""
    if not example.demonstration_ids or (method.prefix is None and rescue is None):
        request = RolloutRequest(example.prompt_ids, group_size, seed, example=example.example)
        return [(request, ())]
    which = seed % len(example.demonstration_ids)
    demo = example.demonstration_ids[which]
    # One draw for the prompt: its rollouts share what they are given.
    uniform = (request_seed(seed) >> 9) / 2**53

    def given(rollout: int) -> int:
        if rescue is not None:
            assert method.rescue is not None
            return method.rescue(len(demo), rescue, progress) or 0
        assert method.prefix is not None
        return method.prefix(len(demo), rollout, progress, uniform)

    # At least the end-of-sequence token is left to the policy.
    lengths = [max(0, min(given(i), len(demo) - 1)) for i in range(group_size)]
    plan = []
    for length, run in itertools.groupby(range(group_size), key=lambda i: lengths[i]):
        rows = list(run)
        prefix = demo[:length]
        prompt_ids = (*example.prompt_ids, *prefix)
        plan.append((RolloutRequest(prompt_ids, len(rows), seed + rows[0]), prefix))
    return plan


def _whole_text(
    prefix: tuple[int, ...], completion: Completion, decode: Callable[[Sequence[int]], str]
) -> str:
    """The response as one text. Prefix and continuation are decoded together: apart, tokenizers
    that mark spaces on the following token would lose the one between them. What the completion's own
    text leaves out at its end, a stop token or all from a stop string on, is left out here too."""
    if not prefix:
        return completion.text
    whole = decode((*prefix, *completion.token_ids))
    return whole[: len(whole) - (len(decode(completion.token_ids)) - len(completion.text))]


def _demo_sequences(
    example: TokenizedExample, group: int, scores: Sequence[Score]
) -> list[TrainingSequence]:
    masks = example.demonstration_masks or (None,) * len(scores)
    return [
        TrainingSequence(
            prompt_ids=example.prompt_ids,
            response_ids=ids,
            group=group,
            is_demo=True,
            reward=score.reward,
            correct=score.correct,
            loss_mask=mask,
        )
        for ids, mask, score in zip(example.demonstration_ids, masks, scores, strict=True)
    ]


def _sampled_tokens(rollout: Rollout) -> int:
    sequence = rollout.sequence
    return sum(_counted(sequence)[sequence.prefix_length :])


def _counted(sequence: TrainingSequence) -> Sequence[bool]:
    """Which response tokens the policy is answerable for: not those that a tool wrote."""
    return sequence.loss_mask or (True,) * len(sequence.response_ids)


def group_metrics(collected: Collected) -> dict[str, float]:
    """Figures of a step that are known before any training on it (docs/metrics.md), of all that was
    sampled for it: what a refill keeps is never all wrong, whatever the policy is."""
    # A group of which no reward applied to a single rollout says nothing.
    groups = [group for group in (*collected.rollouts, *collected.dropped) if group]
    rollouts = [rollout for group in groups for rollout in group]
    if not collected.sampled_groups:
        return {}
    if not rollouts:
        return {
            "groups/sampled": float(collected.sampled_groups),
            "rollout/tokens": float(collected.failed_tokens),
        }
    rewards = [[r.sequence.reward for r in group] for group in groups]
    correct = [[r.sequence.correct for r in group] for group in groups]
    flat = [reward for group in rewards for reward in group]
    lengths = [sum(_counted(r.sequence)) for r in rollouts]
    logprobs = [
        value
        for s in (r.sequence for r in rollouts)
        for value in itertools.compress(
            (s.sampler_logprobs or ())[s.prefix_length :], _counted(s)[s.prefix_length :]
        )
    ]
    demos = [demo for group in collected.demos for demo in group]
    metrics = {
        "reward/mean": statistics.fmean(flat),
        "reward/std": statistics.pstdev(flat),
        "reward/accuracy": statistics.fmean(r.sequence.correct for r in rollouts),
        "groups/all_right": statistics.fmean(all(group) for group in correct),
        "groups/all_wrong": statistics.fmean(not any(group) for group in correct),
        "groups/sampled": float(collected.sampled_groups),
        "groups/equal_reward": statistics.fmean(max(group) == min(group) for group in rewards),
        "rollout/length_mean": statistics.fmean(lengths),
        "rollout/length_max": float(max(lengths)),
        "rollout/truncated": statistics.fmean(r.sequence.truncated for r in rollouts),
        "rollout/entropy": -statistics.fmean(logprobs) if logprobs else 0.0,
        # What was sampled and thrown away was paid for too.
        "rollout/tokens": float(len(logprobs) + collected.failed_tokens),
    }
    if collected.rescued:
        metrics["groups/rescued"] = float(collected.rescued)
    if demos:
        # Of one that was kept although no reward applies to it there is none.
        rewarded = [demo.reward for demo in demos if not math.isnan(demo.reward)]
        if rewarded:
            metrics["demo/reward_mean"] = statistics.fmean(rewarded)
        metrics["demo/length_mean"] = statistics.fmean(sum(_counted(demo)) for demo in demos)
    called = [rollout.calls for rollout in rollouts if rollout.calls is not None]
    if called:
        made, failed = (sum(counts) for counts in zip(*called, strict=True))
        metrics["tools/calls"] = made / len(called)
        metrics["tools/failures"] = failed / max(made, 1)
    return metrics
