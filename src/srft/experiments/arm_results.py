"""From run directories to figures: accuracy, differences to the reference, and what each arm cost.

Two kinds of uncertainty, kept apart because they answer different questions:

over seeds      Student's t over the seeds' means, problems fixed: would training again say the same?
over problems   bootstrap over problems, each problem's score averaged over seeds
                (``evaluation.statistics``): would other problems say the same?

An arm is called ahead or behind only where both intervals of the difference leave out zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srft.evaluation.accuracy_statistics import Interval, interval_over_problems, paired_difference
from srft.experiments.experiment import Experiment
from srft.experiments.process import FINISHED, GREEDY, Job, Ledger
from srft.lab import OUT_OF_DISTRIBUTION, TASK_SETS
from srft.runs.files import read_jsonl

PARTS = ("in", "out")
"""In and out of distribution: by family on the lab's problems; elsewhere the first evaluation set is in, and
others are out."""

Scores = Mapping[str, Mapping[str, Sequence[float]]]
"""Part -> family, or evaluation set -> share of right samples of each problem."""

Place = Callable[[str, str], tuple[str, str]]
"""Evaluation set and family -> part, and the name that the scores stand under."""


@dataclass(frozen=True)
class RunFigures:
    """One finished run. ``scores``: share of right samples of each problem at the last step;
    ``greedy``: the same where each token is the likeliest. FLOPs: 6 N a trained token, 2 N a sampled
    one and one that a teacher scored, N ``parameters`` (all but the input embedding); attention over the
    context, other passes without gradient and evaluation are left out. ``last``: means over the last
    tenth of the steps. ``curve``: step, costs and accuracy by part, at each evaluation on the way.
    ``refused``: steps whose loss or gradient was not finite."""

    arm: str
    seed: int
    folder: str
    scores: Scores = field(repr=False)
    greedy: Scores = field(repr=False)
    steps: int
    refused: int
    parameters: int
    sampled_tokens: float
    trained_tokens: float
    flops: float
    seconds: float
    last: Mapping[str, float | None]
    curve: Sequence[Mapping[str, float]] = field(default=(), repr=False)

    @property
    def accuracy(self) -> float:
        """Share of right samples over all problems."""
        return float(np.mean([s for families in self.scores.values() for s in _flat(families)]))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and problems with its intervals; None where there are too few seeds."""

    mean: float
    seeds: tuple[float, float] | None
    problems: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """Arm minus reference on the same seeds and problems. ``p_value``: two-sided sign-flip test over
    problems; ``p_seeds``: two-sided paired t-test over seeds, where there are three; ``p_holm``: the larger
    of the two, corrected by Holm's method for all the comparisons of the experiment. ``ahead``: of ``of``
    seeds, in how many the arm has the higher accuracy."""

    estimate: Estimate
    p_value: float
    wins: int
    losses: int
    ahead: int
    of: int
    p_seeds: float | None = None
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """``ahead``, ``behind`` or ``open``."""
        intervals = [i for i in (self.estimate.seeds, self.estimate.problems) if i is not None]
        if len(intervals) == 2 and all(low > 0 for low, _ in intervals):
            return "ahead"
        if len(intervals) == 2 and all(high < 0 for _, high in intervals):
            return "behind"
        return "open"


@dataclass(frozen=True)
class ArmFigures:
    """All seeds of one arm. Costs are means over its runs. accuracy, difference to the reference and
    families (means) are by part; greedy and greedy_difference are those of greedy decoding."""

    name: str
    seeds: int
    accuracy: Mapping[str, Estimate]
    difference: Mapping[str, Difference]
    families: Mapping[str, Mapping[str, float]]
    greedy: Mapping[str, Estimate]
    greedy_difference: Mapping[str, Difference]
    sampled_tokens: float
    trained_tokens: float
    flops: float
    seconds: float
    refused: int
    last: Mapping[str, float | None]


@dataclass(frozen=True)
class ExperimentResult:
    """What came out. ``failed``: run -> reason; ``missing``: runs that have not been made yet."""

    experiment: Experiment
    arms: Sequence[ArmFigures]
    runs: Sequence[RunFigures]
    failed: Mapping[str, str]
    missing: Sequence[str]
    setting: Mapping[str, Any]
    stopped_by: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything but the scores of single problems, which are in the runs' evaluation.jsonl."""
        return {
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "reference": self.experiment.reference,
            "setting": dict(self.setting),
            "arms": [asdict(arm) for arm in self.arms],
            "runs": [_without_scores(r) for r in self.runs],
            "failed": dict(self.failed),
            "missing": list(self.missing),
        }


def _without_scores(run: RunFigures) -> dict[str, Any]:
    values = {k: v for k, v in asdict(run).items() if k not in ("scores", "greedy")}
    for name, scores in (("accuracy", run.scores), ("greedy", run.greedy)):
        values[name] = {part: float(np.mean(_flat(scores[part]))) for part in scores}
    return values


def gather(
    experiment: Experiment,
    plan: Sequence[Job],
    ledger: Ledger,
    figures_of: Callable[[Job], RunFigures] | None = None,
) -> ExperimentResult:
    """Computes everything from the figures of the finished runs, by default read from their folders."""
    figures_of = figures_of or read_figures
    runs = [figures_of(job) for job in plan if ledger.outcomes[job.name].status == "finished"]
    by_arm = {arm.name: [run for run in runs if run.arm == arm.name] for arm in experiment.arms}
    reference = by_arm[experiment.reference]
    arms = [
        summarize(found, [] if name == experiment.reference else reference)
        for name, found in by_arm.items()
        if found
    ]
    outcomes = ledger.outcomes
    return ExperimentResult(
        experiment,
        correct(arms),
        runs,
        {n: o.error or "" for n, o in outcomes.items() if o.status == "failed"},
        [n for n, o in outcomes.items() if o.status == "stopped"],
        _setting(plan, experiment.reference),
        ledger.stopped_by,
    )


def _setting(plan: Sequence[Job], reference: str) -> dict[str, Any]:
    """The reference's settings, which all arms share but for what they say, for the line above the
    table; of steps and of learning rates the least and the most that an arm takes."""
    config = next(job.config for job in plan if job.arm == reference)
    trained = [job.config for job in plan if not job.untrained] or [config]
    rates = [
        stage.learning_rate or one.train.learning_rate
        for one in trained
        for stage in one.resolved_stages
    ]
    return {
        "seeds": 1 + max(job.seed for job in plan),
        "steps": _span([one.total_steps for one in trained]),
        "prompts_per_step": config.train.prompts_per_step,
        "group_size": config.rollout.group_size,
        "learning_rate": _span(rates),
        "max_tokens": config.rollout.max_tokens,
        "temperature": config.evaluation.temperature,
        "samples_per_problem": config.evaluation.n or 1,
        "base": Path(config.model.path or "").name,
    }


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):g}", f"{max(values):g}"
    return low if low == high else f"{low} to {high}"


def read_figures(job: Job) -> RunFigures:
    """The figures of a finished run; those of the base model have no costs."""
    marks = json.loads((job.folder / FINISHED).read_text())
    metrics = read_jsonl(job.folder / "metrics.jsonl")
    evaluations = read_jsonl(job.folder / "evaluation.jsonl")
    step = max(e["step"] for e in evaluations)
    # A run stopped after its last evaluation evaluates again when it goes on: the later one counts.
    at_step = {record["name"]: record for record in evaluations if record["step"] == step}
    place = _places(job)
    costs = [] if job.untrained else _costs(metrics, marks["parameters"])
    greedy = read_jsonl(job.folder / GREEDY)
    end = costs[-1] if costs else dict.fromkeys(SPENT, 0.0)
    tail = metrics[-max(1, len(metrics) // 10) :]
    return RunFigures(
        arm=job.arm,
        seed=job.seed,
        folder=str(job.folder),
        scores=_by_part(at_step.values(), place),
        greedy=_by_part(greedy, place),
        steps=0 if job.untrained else len(metrics),
        refused=0 if job.untrained else marks["refused"],
        parameters=marks["parameters"],
        **end,
        last={key: None if job.untrained else _mean(tail, name) for key, name in _LAST.items()},
        curve=_curve(evaluations, costs, place),
    )


SPENT = ("sampled_tokens", "trained_tokens", "flops", "seconds")


def _costs(metrics: Sequence[Mapping[str, Any]], parameters: int) -> list[dict[str, float]]:
    """What had been spent after each step."""
    found, taught = [], 0.0
    for row in metrics:
        taught += row.get("train/teacher_tokens", 0.0)
        sampled = float(row.get("total/rollout_tokens", 0.0))
        trained = float(row.get("total/trained_tokens", 0.0))
        flops = parameters * (6 * trained + 2 * (sampled + taught))
        found.append(
            dict(zip(SPENT, (sampled, trained, flops, row.get("total/seconds", 0.0)), strict=True))
        )
    return found


def _curve(
    evaluations: Sequence[Mapping[str, Any]],
    costs: Sequence[Mapping[str, float]],
    place: Place,
) -> list[dict[str, float]]:
    """What had been reached, and spent, at each evaluation."""
    by_step: dict[int, dict[str, Mapping[str, Any]]] = {}
    for record in evaluations:
        by_step.setdefault(record["step"], {})[record["name"]] = record
    points = []
    for step in sorted(by_step):
        scores = _by_part(by_step[step].values(), place)
        spent = costs[min(step, len(costs)) - 1] if step and costs else dict.fromkeys(SPENT, 0.0)
        reached = {part: float(np.mean(_flat(found))) for part, found in scores.items()}
        points.append({"step": step, **spent, **reached})
    return points


def _places(job: Job) -> Place:
    """Where the scores of the run's problems stand."""
    sources = job.config.data.eval
    if isinstance(sources, Mapping) and len(sources) > 1:
        first = next(iter(sources))
        return lambda name, family: (PARTS[name != first], name)
    source = sources or job.config.data.train
    known = TASK_SETS.get(source) if isinstance(source, str) else None
    outside = known.outside if known else OUT_OF_DISTRIBUTION
    return lambda name, family: (PARTS[family in outside], family)


def _by_part(records: Iterable[Mapping[str, Any]], place: Place) -> Scores:
    scores: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for family, counts in record["correct"].items():
            part, title = place(record["name"], family)
            found = scores.setdefault(part, {}).setdefault(title, [])
            found.extend(c / record["n"] for c in counts)
    return {part: scores[part] for part in PARTS if part in scores}


_LAST = {
    "reward": "reward/accuracy",
    "entropy": "rollout/entropy",
    "length": "rollout/length_mean",
}


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return sum(values) / len(values) if values else None


def summarize(runs: Sequence[RunFigures], reference: Sequence[RunFigures]) -> ArmFigures:
    """Means, intervals and the paired difference to the reference's runs, where there are any."""
    accuracy, difference = _judge(runs, reference, "scores")
    greedy, greedy_difference = _judge(runs, reference, "greedy")
    families = {
        part: {f: float(np.mean([run.scores[part][f] for run in runs])) for f in found}
        for part, found in runs[0].scores.items()
    }
    return ArmFigures(
        name=runs[0].arm,
        seeds=len(runs),
        accuracy=accuracy,
        difference=difference,
        families=families,
        greedy=greedy,
        greedy_difference=greedy_difference,
        **{cost: float(np.mean([getattr(run, cost) for run in runs])) for cost in SPENT},
        refused=sum(run.refused for run in runs),
        last={key: _mean([dict(run.last) for run in runs], key) for key in runs[0].last},
    )


def _judge(
    runs: Sequence[RunFigures], reference: Sequence[RunFigures], kind: Literal["scores", "greedy"]
) -> tuple[dict[str, Estimate], dict[str, Difference]]:
    """By part: what the runs reached, and how that differs from the reference, where there is one."""
    accuracy, difference = {}, {}
    for part in PARTS:
        if any(part not in getattr(run, kind) for run in runs):
            continue
        accuracy[part] = estimate(_stack(runs, kind, part))
        if reference and all(part in getattr(run, kind) for run in reference):
            ours, theirs = _pair(runs, reference)
            difference[part] = compare(_stack(ours, kind, part), _stack(theirs, kind, part))
    return accuracy, difference


def _flat(families: Mapping[str, Sequence[float]]) -> list[float]:
    return [score for scores in families.values() for score in scores]


def _stack(runs: Sequence[RunFigures], kind: str, part: str) -> np.ndarray:
    return np.array([_flat(getattr(run, kind)[part]) for run in runs], dtype=np.float64)


def _pair(
    runs: Sequence[RunFigures], reference: Sequence[RunFigures]
) -> tuple[Sequence[RunFigures], Sequence[RunFigures]]:
    """The runs of the seeds that both have; the base model, which has no seed, stands for each, on
    either side."""
    if all(run.steps == 0 for run in runs):
        return [runs[0]] * len(reference), reference
    if all(run.steps == 0 for run in reference):
        return runs, [reference[0]] * len(runs)
    by_seed = {run.seed: run for run in reference}
    both = [run for run in runs if run.seed in by_seed]
    return both, [by_seed[run.seed] for run in both]


def estimate(scores_SP: np.ndarray) -> Estimate:
    """Mean of scores_SP with both intervals."""
    over = interval_over_problems(scores_SP.mean(axis=0))
    return Estimate(float(scores_SP.mean()), t_interval(scores_SP.mean(axis=1)), _ends(over))


def compare(ours_SP: np.ndarray, theirs_SP: np.ndarray) -> Difference:
    """Paired by seed and problem."""
    if ours_SP.size == 0:
        return Difference(Estimate(math.nan, None, None), math.nan, 0, 0, 0, 0)
    seeds_S = ours_SP.mean(axis=1) - theirs_SP.mean(axis=1)
    paired = paired_difference(ours_SP.mean(axis=0), theirs_SP.mean(axis=0))
    return Difference(
        Estimate(float(seeds_S.mean()), t_interval(seeds_S), _ends(paired.interval)),
        paired.p_value,
        paired.wins,
        paired.losses,
        int((seeds_S > 0).sum()),
        len(seeds_S),
        p_of_mean(seeds_S),
    )


def correct(arms: Sequence[ArmFigures]) -> list[ArmFigures]:
    """The arms with ``p_holm`` of every difference: sampled and greedy, in and out of distribution are
    four families of comparisons, each over all arms."""
    corrected = list(arms)
    for kind in ("difference", "greedy_difference"):
        for part in PARTS:
            found = [(i, getattr(arm, kind).get(part)) for i, arm in enumerate(corrected)]
            tested = [(i, d) for i, d in found if d is not None and d.p_seeds is not None]
            values = holm([max(d.p_value, d.p_seeds) for _, d in tested])
            for (i, difference), value in zip(tested, values, strict=True):
                parts = {**getattr(corrected[i], kind), part: replace(difference, p_holm=value)}
                change: dict[str, Any] = {kind: parts}
                corrected[i] = replace(corrected[i], **change)
    return corrected


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): where it is below a level, the chance of any false finding
    among all of them is at most that level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def p_of_mean(values_S: np.ndarray) -> float | None:
    """Two-sided p of a mean of zero by Student's t; None below three values, as `t_interval`."""
    from scipy.stats import t

    count, deviation = len(values_S), values_S.std(ddof=1) if len(values_S) > 1 else 0.0
    if count < 3:
        return None
    if deviation == 0:
        return float(values_S[0] == 0)
    return float(2 * t.sf(abs(values_S.mean()) * math.sqrt(count) / deviation, count - 1))


def t_interval(values_S: np.ndarray, confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of at least three values, None below that: two accuracies on few
    problems easily coincide, and their interval would then have no width."""
    from scipy.stats import t

    count = len(values_S)
    if count < 3:
        return None
    half = float(t.ppf((1 + confidence) / 2, count - 1) * values_S.std(ddof=1) / math.sqrt(count))
    return float(values_S.mean()) - half, float(values_S.mean()) + half


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high
