"""Evaluation during training: the recipe's evaluation sets, and the best model so far."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from srft.config import SRFTConfig
from srft.errors import ConfigError, did_you_mean
from srft.evaluation.evaluate import evaluate
from srft.evaluation.results import EvaluationResult
from srft.runs.files import read_jsonl
from srft.runs.logs import JsonlLog
from srft.runs.run_dir import RunDir
from srft.trainer.clean_stop import Interrupted, StopRequest
from srft.trainer.setup import EvaluationData, Setup
from srft.trainer.state import trl_state
from srft.types import Example, SamplingParams, TokenizedExample

Progress = Callable[[str, int, int], None]


class Evaluator:
    """Evaluates the policy on every evaluation set with the run's verifier. ``log`` is
    evaluation.jsonl, opened by the trainer.

    Raises:
        ConfigError: evaluation is asked for and there is nothing to evaluate on, or the figure by
            which the best model is kept will not be measured.
    """

    def __init__(self, setup: Setup, config: SRFTConfig, run: RunDir) -> None:
        settings = config.evaluation
        if (settings.every_steps or settings.at_start) and not setup.evaluation:
            raise ConfigError(
                "evaluation.every_steps or at_start is set but there is no evaluation data; set data.eval, "
                "data.eval_fraction or evaluation.dataset"
            )
        self._setup = setup
        self._settings = settings
        self._samples_prompts = config.run.samples_prompts if config.run.samples_every else 0
        if setup.evaluation and settings.best_metric is not None:
            self._check_metric(settings.best_metric)
        self._params = SamplingParams(
            temperature=0.6 if settings.temperature is None else settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens or config.rollout.max_tokens,
            stop=setup.sampling.stop,
            stop_token_ids=setup.sampling.stop_token_ids,
        )
        self._run = run
        self.log: JsonlLog

    def _check_metric(self, name: str) -> None:
        known = ["accuracy"]
        for set_name, data in self._setup.evaluation.items():
            problems = [item.example for item in data.problems]
            known += measured(set_name, problems, self._settings.n or 1)
        if name not in known:
            hint = did_you_mean(name, known, ".")
            raise ConfigError(
                f"evaluation.best_metric: {name!r} is not measured{hint} Measured are "
                f"{', '.join(known)}"
            )

    def records(self) -> list[dict[str, Any]]:
        """All evaluations of the run so far."""
        return read_jsonl(self._run.evaluation)

    def evaluate(self, step: int, progress: Progress, stop: StopRequest) -> dict[str, float] | None:
        """Figures of the recipe's sets (``figures``); a line for each set goes to evaluation.jsonl, with
        the answers to ``run.samples_prompts`` of its problems. None, and no line, where a stop was asked for
        meanwhile."""
        try:
            results = self.results(self._setup.evaluation, step, progress, stop)
        except Interrupted:
            return None
        for result in results:
            line = record(result, step, self._settings.confidence)
            problems = self._setup.evaluation[result.name].problems
            self.log.write({**line, "samples": kept(result, problems, self._samples_prompts)})
        return figures(results)

    def results(
        self,
        sets: Mapping[str, EvaluationData],
        step: int,
        progress: Progress | None = None,
        stop: StopRequest | None = None,
        greedy: bool = False,
    ) -> list[EvaluationResult]:
        """The policy's samples on ``sets``; with ``greedy`` one of each problem, each token the likeliest.
        ``progress(set, done, total)`` counts them. Problems are shared out over processes; where one of
        these is asked to stop, all raise Interrupted."""
        world, stop = self._setup.world, stop or StopRequest()
        params = replace(self._params, temperature=0.0) if greedy else self._params
        results: list[EvaluationResult] = []
        for name, data in sets.items():
            data.scorer.trainer_state = trl_state(self._setup, step)
            sample = partial(
                evaluate,
                self._setup.engine,
                self._setup.policy.tokenizer,
                data.problems,
                data.scorer,
                params,
                n=1 if greedy else self._settings.n or 1,
                seed=self._settings.seed,
                progress=None if progress is None else partial(progress, name),
                name=name,
                share=world.share(len(data.problems)),
            )
            result, occasion = stop.unless_asked(sample), f"evaluation on {name}"
            if world.first(stop.requested, occasion) or result is None:
                raise Interrupted
            problems = tuple(world.merge(list(result.problems), occasion))
            results.append(replace(result, problems=problems, size=len(problems)))
        return results

    @property
    def measure(self) -> str | None:
        """What a best figure is one of: the metric, its mode and the problems; None where none is watched."""
        settings, text = self._settings, hashlib.sha256()
        if settings.best_metric is None:
            return None
        for name, data in self._setup.evaluation.items():
            asked = [(p.example.prompt, p.example.answer) for p in data.problems]
            text.update(repr((name, asked)).encode(errors="surrogatepass"))
        return f"{settings.best_mode} {settings.best_metric} {text.hexdigest()[:16]}"

    def better_than(self, metrics: Mapping[str, float], best: float | None) -> float | None:
        """The watched figure where it beats ``best``; None where it does not, is none (the mean of rewards
        of which one does not apply) or is not watched."""
        name = self._settings.best_metric
        if name is None or not metrics or not math.isfinite(value := metrics[f"eval/{name}"]):
            return None
        if best is None or not math.isfinite(best):
            return value
        improved = value > best if self._settings.best_mode == "max" else value < best
        return value if improved else None


def figures(results: Sequence[EvaluationResult]) -> dict[str, float]:
    """Figures of each set as ``eval/<set>/...`` and over all sets together as ``eval/accuracy``."""
    metrics = {
        f"eval/{result.name}/{key}": value
        for result in results
        for key, value in result.metrics().items()
    }
    scores = [problem.score for result in results for problem in result.problems]
    if scores:
        metrics["eval/accuracy"] = sum(scores) / len(scores)
    return metrics


def predictions(
    result: EvaluationResult, problems: Sequence[TokenizedExample]
) -> list[dict[str, Any]]:
    """Every sample with its reward, problem by problem."""
    return [
        {
            "prompt": problem.example.prompt,
            "completion": sample.text,
            "reward": sample.reward,
            "rewards": dict(sample.parts),
            "correct": sample.correct,
            "truncated": sample.finish_reason == "length",
            "tokens": sample.tokens,
        }
        for problem, judged in zip(problems, result.problems, strict=True)
        for sample in judged.samples
    ]


def kept(
    result: EvaluationResult, problems: Sequence[TokenizedExample], number: int
) -> list[dict[str, Any]]:
    """The first sample of ``number`` problems, the same ones at every evaluation and evenly over the set,
    for a reader who compares them."""
    pairs = list(zip(problems, result.problems, strict=True))
    number = min(number, len(pairs))
    return [
        {
            "asked": problem.example.asked,
            "answer": problem.example.answer,
            "source": problem.example.source,
            "text": judged.samples[0].text,
            "reward": judged.samples[0].reward,
            "correct": judged.samples[0].correct,
            "truncated": judged.samples[0].finish_reason == "length",
            "tokens": judged.samples[0].tokens,
        }
        for problem, judged in (pairs[i * len(pairs) // number] for i in range(number))
    ]


def measured(name: str, problems: Sequence[Example], n: int) -> list[str]:
    """Names of the figures that an evaluation of one set yields, ``eval/`` left out."""
    figures = ["accuracy", "reward", "mean_tokens", "truncated_share"]
    figures += [f"pass@{n}"] if n > 1 else []
    families = dict.fromkeys(
        str(f) for p in problems if (f := p.columns.get("family")) not in (None, "")
    )
    return [f"{name}/{figure}" for figure in (*figures, *(f"accuracy/{f}" for f in families))]


def record(result: EvaluationResult, step: int, confidence: float) -> dict[str, Any]:
    """One line of evaluation.jsonl."""
    interval = result.interval(confidence)
    return {
        "step": step,
        "name": result.name,
        "accuracy": result.accuracy,
        "interval": [interval.low, interval.high],
        "n": result.n,
        "n_problems": len(result.problems),
        "length_mean": result.mean_tokens,
        "truncated": result.truncated_share,
        "by_family": {name: part.accuracy for name, part in result.by_family().items()},
        "correct": _correct(result),
        "seconds": result.seconds,
    }


def _correct(result: EvaluationResult) -> dict[str, list[int]]:
    """Right samples of each problem, in the order of the data, by family ("" where there is none):
    what it takes to compare two runs problem by problem."""
    found: dict[str, list[int]] = {}
    for problem in result.problems:
        found.setdefault(problem.family or "", []).append(problem.c)
    return found
