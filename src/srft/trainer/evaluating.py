"""Evaluation during training: the recipe's evaluation sets, and the best model so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from srft.config import SRFTConfig
from srft.errors import ConfigError
from srft.evaluation.evaluate import evaluate
from srft.evaluation.results import EvaluationResult
from srft.trainer.logs import JsonlLog, read_jsonl
from srft.trainer.run_dir import RunDir
from srft.trainer.setup import Setup
from srft.types import SamplingParams


class Evaluator:
    """Evaluates the policy on every evaluation set with the run's verifier. ``log`` is
    evaluation.jsonl, opened by the trainer.

    Raises:
        ConfigError: evaluation is asked for and there is nothing to evaluate on.
    """

    def __init__(self, setup: Setup, config: SRFTConfig, run: RunDir) -> None:
        settings = config.evaluation
        if (settings.every_steps or settings.at_start) and not setup.evaluation:
            raise ConfigError(
                "evaluation.every_steps or at_start is set but there is no evaluation data; set data.eval, "
                "data.eval_fraction or evaluation.dataset"
            )
        _check_best_metric(settings.best_metric, list(setup.evaluation), settings.n or 1)
        self._setup = setup
        self._settings = settings
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

    def records(self) -> list[dict[str, Any]]:
        """All evaluations of the run so far."""
        return read_jsonl(self._run.evaluation) if self._run.evaluation.exists() else []

    def evaluate(
        self, step: int, progress: Callable[[str, int, int], None] | None = None
    ) -> dict[str, float]:
        """Figures of each set as ``eval/<set>/...`` and over all sets together as ``eval/accuracy``;
        a line for each set goes to evaluation.jsonl. ``progress(set, done, total)`` counts samples.
        Problems are shared out over processes."""
        world = self._setup.world
        metrics: dict[str, float] = {}
        results: list[EvaluationResult] = []
        for name, data in self._setup.evaluation.items():
            result = evaluate(
                self._setup.engine,
                self._setup.tokenizer,
                data.problems,
                data.scorer,
                self._params,
                n=self._settings.n or 1,
                seed=self._settings.seed,
                progress=None if progress is None else lambda d, t, n=name: progress(n, d, t),  # type: ignore[misc]
                name=name,
                share=world.share(len(data.problems)),
            )
            problems = tuple(world.merge(list(result.problems), f"evaluation on {name}"))
            result = replace(result, problems=problems, size=len(problems))
            results.append(result)
            metrics.update({f"eval/{name}/{key}": value for key, value in result.metrics().items()})
            self.log.write(record(result, step, self._settings.confidence))
        if results:
            problems_of = [p for result in results for p in result.problems]
            metrics["eval/accuracy"] = sum(p.score for p in problems_of) / len(problems_of)
        return metrics

    def better_than(self, metrics: Mapping[str, float], best: float | None) -> float | None:
        """The watched figure where it beats ``best``; None where it does not or is not watched.

        Raises:
            ConfigError: the watched figure does not exist.
        """
        name = self._settings.best_metric
        if name is None or not metrics:
            return None
        key = f"eval/{name}"
        if key not in metrics:
            known = ", ".join(sorted(k.removeprefix("eval/") for k in metrics))
            raise ConfigError(
                f"evaluation.best_metric: {name!r} is not measured; measured are {known}"
            )
        value = metrics[key]
        if best is None:
            return value
        improved = value > best if self._settings.best_mode == "max" else value < best
        return value if improved else None


def _check_best_metric(name: str | None, sets: list[str], n: int) -> None:
    """Raises ConfigError before any training where no evaluation could give the figure ``name``;
    whether a family exists shows with the first one."""
    if name is None or not sets:
        return
    figures = ["accuracy", "reward", "mean_tokens", "truncated_share"]
    figures += [f"pass@{n}"] if n > 1 else []
    known = ["accuracy", *(f"{one}/{figure}" for one in sets for figure in figures)]
    if name not in known and not any(name.startswith(f"{one}/accuracy/") for one in sets):
        raise ConfigError(
            f"evaluation.best_metric: {name!r} is not measured; measured are {', '.join(known)} and the "
            "accuracy of each family, such as SET/accuracy/FAMILY"
        )


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
