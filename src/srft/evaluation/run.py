"""``srft eval``: a model on benchmarks, from its folder to results.json and the tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from srft.data.data_config import DataConfig
from srft.environments.environment_config import EnvironmentConfig
from srft.environments.toolbox import Toolbox, build_scorer, build_toolbox
from srft.errors import ConfigError, DataError
from srft.evaluation import result_tables
from srft.evaluation.accuracy_statistics import interval_of_average
from srft.evaluation.benchmarks import BENCHMARKS, SUITES, Benchmark, resolve
from srft.evaluation.evaluate import ProgressCallback, ScorerLike, evaluate, tokenize_problems
from srft.evaluation.evaluation_config import EvaluationConfig
from srft.evaluation.open_model import (
    Loaded,
    environment_of,
    find_model,
    load,
    model_digest,
    template_of,
)
from srft.evaluation.problems import load_benchmark, select, source_of, with_system
from srft.evaluation.results import EvaluationResult
from srft.model.model_config import ModelConfig
from srft.paths import local_path
from srft.rewards.functions import source_digest
from srft.rewards.registry import REWARDS
from srft.rewards.reward_config import RewardConfig
from srft.rewards.scorer import Scorer
from srft.runs.environment import environment as machine
from srft.runs.files import to_json, write_whole
from srft.runs.lock import hold
from srft.runs.run_dir import RunDir
from srft.terminal import Terminal
from srft.types import Example, SamplingParams

FORMAT = 1
MADE_WITH = ("limit", "n", "temperature", "seed", "system_prompt", "confidence")
"""Settings that may differ from one benchmark of a results.json to the next."""


@dataclass(frozen=True)
class ModelEvaluation:
    """What ``evaluate_model`` found and where it was written. ``results`` by benchmark name;
    ``summary`` is the content of results.json."""

    folder: Path
    results: Mapping[str, EvaluationResult]
    summary: Mapping[str, Any]

    @property
    def markdown(self) -> str:
        """The tables as Markdown."""
        return result_tables.markdown([self.summary])


@dataclass(frozen=True)
class EvaluationSet:
    """One set of problems to evaluate: ``benchmark.size`` is that of ``whole``, the set as it was read,
    ``problems`` what is asked of it, ``reward`` its verifier, ``source`` where it was read. On data that is
    no benchmark environments give rewards too."""

    benchmark: Benchmark
    whole: list[Example]
    problems: list[Example]
    reward: RewardConfig
    source: str

    def scorer(self, toolbox: Toolbox | None) -> Scorer:
        """Its verifier, started."""
        return build_scorer(self.reward, None if self.benchmark.name in BENCHMARKS else toolbox)


def evaluate_model(
    model_path: str | Path,
    config: EvaluationConfig | None = None,
    out_dir: str | Path | None = None,
    *,
    label: str | None = None,
    model: ModelConfig | None = None,
    data: DataConfig | None = None,
    reward: RewardConfig | None = None,
    rollout: Any = None,
    environment: EnvironmentConfig | None = None,
    device: str | None = None,
    progress: bool = True,
) -> ModelEvaluation:
    """Evaluate a model on suites or on a dataset, and write what was found.

    model_path: folder, run directory, checkpoint or hub name (``find_model``). config: what to evaluate on
    and how to sample; ``config.suites`` or ``config.dataset`` is needed. out_dir: the folder written to,
    ``evaluations/<model>``, or ``evaluations/<run>-model`` (``-step_000100``) of what lies in a run; started
    again on the same folder, it goes on where it stopped.
    label: name in the tables. data, environment: template settings and tools; None takes the recipe's beside
    the model. reward: verifier of ``config.dataset`` (default math, or the environment's own reward);
    benchmarks have their own. rollout: a RolloutConfig that names the engine, its settings and what ends a
    response; the rest of it is not read. progress: show bars in the terminal (stderr).

    Writes results.json (everything but texts), tables.md, tables.html and samples/NAME.jsonl.

    Raises:
        ConfigError, DataError: before the model is loaded where that can be known.
        ModelError, RewardError, RolloutError: what was judged until then is kept.
    """
    config = config or EvaluationConfig(suites=["math5"])
    source = find_model(model_path, model)
    label = label or str(model_path)
    folder = local_path(out_dir) if out_dir else Path("evaluations") / _called(model_path)
    environment = environment or environment_of(source)
    toolbox = build_toolbox(environment)
    sets = evaluation_sets(config, reward, toolbox)
    data = data or template_of(source)
    results: dict[str, EvaluationResult] = {}
    summary: dict[str, Any] = {}
    weights = model_digest(source)
    sources = {one_set.benchmark.name: one_set.source for one_set in sets}
    earlier = _earlier(folder, weights, sources)
    writing = hold(folder, "evaluating")
    opened = load(source, data, rollout, device, toolbox)
    with writing, opened as loaded, _bars(progress) as bar:
        about: dict[str, Any] = {
            "format": FORMAT,
            "model": label,
            "path": source.place,
            "weights": weights,
            "device": loaded.description,
            "date": datetime.now().astimezone().strftime("%Y-%m-%d"),
            "settings": config.model_dump(mode="json"),
            "environment": machine(),
            "sources": {**earlier.get("sources", {}), **sources},
        }
        if toolbox is not None:
            about["tools"] = environment.model_dump(mode="json", exclude_defaults=True)
        for one_set in sets:
            results[one_set.benchmark.name] = _run(
                one_set, config, loaded, data, folder, about, bar
            )
            pending = [s.benchmark.title for s in sets if s.benchmark.name not in results]
            summary = _summary(about, earlier, results, sets, config, pending)
            _write(folder, summary)
    return ModelEvaluation(folder, results, summary)


def _called(model: str | Path) -> str:
    """What an evaluation's folder is called: ``one-model`` and ``one-step_2`` of ``runs/one/model`` and
    ``runs/one/checkpoints/step_2``, since every run has such."""
    path = local_path(model)
    path = path.resolve() if path.exists() else path
    parent = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return f"{parent.name}-{path.name}" if RunDir(parent).is_run else path.name


def load_results(path: str | Path) -> dict[str, Any]:
    """What a results.json (or the folder it is in) holds, for ``compare`` and ``tables``.

    Raises:
        DataError: there is no such file, or it is something else.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read as evaluation results ({why}).") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or "benchmarks" not in found:
        raise DataError(f"{path}: not a results.json of `srft eval` (format {FORMAT}).")
    return found


def write_tables(results: Sequence[Mapping[str, Any]], folder: str | Path) -> Path:
    """tables.md and tables.html of one or several models' results; returns the HTML file."""
    folder = Path(folder)
    write_whole(folder / "tables.md", result_tables.markdown(results))
    write_whole(folder / "tables.html", result_tables.html_page(results))
    return folder / "tables.html"


def evaluation_sets(
    config: EvaluationConfig, reward: RewardConfig | None = None, toolbox: Toolbox | None = None
) -> list[EvaluationSet]:
    """The problems that ``config`` asks for, set by set; needs no model. Training takes its
    evaluation sets from here where the config names suites or a dataset.

    Raises:
        ConfigError: neither suites nor a dataset are named.
        DataError: one of them cannot be read.
    """
    if config.dataset:
        return [_dataset_set(config, reward or RewardConfig(), toolbox)]
    if not config.suites:
        raise ConfigError(
            "nothing to evaluate on: name suites or benchmarks (suites: "
            f"{', '.join(SUITES)}), or a dataset."
        )
    sets = []
    for benchmark in resolve(config.suites):
        problems = load_benchmark(benchmark, config.data_dir, config.seed)
        whole = [with_system(e, config.system_prompt) for e in problems]
        chosen = select(whole, config.limit, config.seed)
        verifier = RewardConfig.model_validate(benchmark.verifier)
        source = source_of(benchmark, config.data_dir)
        sized = replace(benchmark, size=len(whole))
        sets.append(EvaluationSet(sized, whole, chosen, verifier, source))
    return sets


def _dataset_set(
    config: EvaluationConfig, reward: RewardConfig, toolbox: Toolbox | None
) -> EvaluationSet:
    from srft.data.reading import load_examples

    assert config.dataset is not None
    local = local_path(config.dataset).is_file()
    columns = {str(role): name for role, name in config.columns.items()}
    split = None if local else config.split
    try:
        examples = load_examples(
            config.dataset, split=split, columns=columns, invalid_rows="refuse"
        )
    except DataError as error:  # which names the settings of training data
        text = re.sub(r"\bdata\.(?:eval_)?(columns|split)\b", r"evaluation.\1", str(error))
        text = text.replace(", and as you have them `demonstration` and `answer`", " and `answer`")
        if not re.search(r"\{.*\banswer: ", text):  # of a solution alone the answer is read
            text = re.sub(r"(\{.*)\bdemonstration: ", r"\1answer: ", text)
        raise DataError(text) from error
    acted_alone = toolbox and toolbox.rewards() and "rewards" not in reward.model_fields_set
    named = [] if acted_alone else reward.rewards
    if any(spec.name and REWARDS[spec.name].needs_answer for spec in named):
        for example in examples:
            if example.answer is None:
                raise DataError(
                    f"{example.source}: has no answer, which the reward compares with; give it one "
                    "or leave the row out."
                )
    whole = [replace(with_system(e, config.system_prompt), demonstrations=()) for e in examples]
    name = Path(config.dataset).stem or config.dataset
    name = f"{name}-data" if name in BENCHMARKS or name in SUITES else name
    benchmark = Benchmark(name, name, len(examples))
    chosen = select(whole, config.limit, config.seed)
    return EvaluationSet(benchmark, whole, chosen, reward, config.dataset)


def _run(
    one_set: EvaluationSet,
    config: EvaluationConfig,
    loaded: Loaded,
    data: DataConfig,
    folder: Path,
    about: Mapping[str, Any],
    bar: Callable[[str], ProgressCallback | None],
) -> EvaluationResult:
    benchmark, tools = one_set.benchmark, loaded.tools
    whole = tokenize_problems(one_set.whole, loaded.tokenizer, data, tools)
    asked = set(map(id, one_set.problems))
    problems = [p for e, p in zip(one_set.whole, whole, strict=True) if id(e) in asked]
    # The longest of the whole set, so that a smaller ``limit`` asks the same as a larger one.
    params = _params(benchmark, config, loaded, max(len(p.prompt_ids) for p in whole))
    identity = {
        "weights": about["weights"],
        "device": loaded.description,
        # Without defaults, so that a version with a new setting goes on with an old one's samples.
        "reward": one_set.reward.model_dump(
            mode="json", exclude={"workers", "failed_demonstrations"}, exclude_defaults=True
        ),
        **functions_of(one_set.reward),
        **({"tools": about["tools"]} if tools else {}),
    }
    with one_set.scorer(None if tools is None else tools.toolbox) as scorer:
        judged: ScorerLike = scorer
        return evaluate(
            loaded.engine,
            loaded.tokenizer,
            problems,
            judged,
            params,
            config.n or benchmark.n,
            config.seed,
            folder / "samples" / f"{benchmark.name}.jsonl",
            bar(benchmark.title),
            name=benchmark.name,
            size=benchmark.size,
            identity=identity,
        )


def functions_of(reward: RewardConfig) -> dict[str, Any]:
    """The functions among the rewards, with what stands in their files."""
    paths = [spec.function for spec in reward.rewards if spec.function]
    return {"functions": {path: source_digest(path) for path in paths}} if paths else {}


def _params(
    benchmark: Benchmark,
    config: EvaluationConfig,
    loaded: Loaded,
    longest: int,
) -> SamplingParams:
    """The protocol with the config's changes; max_tokens at most what the model's context leaves
    beside the longest prompt (``longest``, in tokens)."""
    max_tokens = config.max_tokens or benchmark.max_tokens
    if loaded.context is not None:
        max_tokens = min(max_tokens, loaded.context - longest)
        if max_tokens < 1:
            raise DataError(
                f"{benchmark.name}: the longest prompt has {longest} tokens and leaves no room in "
                f"the model's context of {loaded.context}."
            )
    temperature = benchmark.temperature if config.temperature is None else config.temperature
    cut = config.top_p, config.top_k
    return SamplingParams(temperature, *cut, max_tokens, loaded.stop, loaded.stop_token_ids)


def departures(
    result: EvaluationResult, benchmark: Benchmark, system_prompt: str | None
) -> list[str]:
    """In what a result differs from the benchmark's declared protocol, in words; empty if in
    nothing. system_prompt: what took the place of the problems' own."""
    s, found = result.settings, []
    if len(result.problems) < result.size:
        found.append(f"{len(result.problems)} of {result.size} problems")
    if system_prompt is not None:
        found.append(f"every system message {'replaced' if system_prompt else 'removed'}")
    declared = BENCHMARKS.get(benchmark.name)
    if declared is None:
        return found
    if result.size != declared.size:
        found.append(f"the set read has {result.size} problems, not {declared.size}")
    if result.n != declared.n:
        found.append(f"{result.n} samples of each problem instead of {declared.n}")
    if s["temperature"] != declared.temperature:
        found.append(f"temperature {s['temperature']:g} instead of {declared.temperature:g}")
    if s["max_tokens"] != declared.max_tokens:
        found.append(f"max_tokens {s['max_tokens']} instead of {declared.max_tokens}")
    if s["top_p"] != 1.0 or s["top_k"]:
        found.append(f"top_p {s['top_p']:g}, top_k {s['top_k']}")
    if s["stop"]:
        found.append(f"responses end at {' or '.join(map(repr, s['stop']))}")
    return found


def _earlier(folder: Path, weights: str, sources: Mapping[str, str]) -> dict[str, Any]:
    """What earlier calls left in the folder's results.json.

    Raises:
        ConfigError: they are of another model, or of another dataset of a name.
    """
    if not (folder / "results.json").is_file():
        return {}
    found = load_results(folder)
    there = found.get("sources", {})
    moved = [
        name
        for name, source in sources.items()
        if name not in BENCHMARKS  # these are the same wherever they were read
        and Path(there.get(name, source)).resolve() != Path(source).resolve()
    ]
    if found.get("weights") == weights and not moved:
        return found
    what = (
        f"{moved[0]!r} from {there[moved[0]]}"
        if moved
        else f"another model, {found.get('model')} (weights {found.get('weights')}, now {weights})"
    )
    raise ConfigError(
        f"{folder}: holds results of {what}; choose another output folder (--out), or remove that one"
    )


def _summary(
    about: Mapping[str, Any],
    earlier: Mapping[str, Any],
    results: Mapping[str, EvaluationResult],
    sets: Sequence[EvaluationSet],
    config: EvaluationConfig,
    pending: Sequence[str],
) -> dict[str, Any]:
    benchmarks = {one_set.benchmark.name: one_set.benchmark for one_set in sets}
    found: dict[str, Any] = dict(earlier.get("benchmarks", {}))
    # By benchmark, since the next call may ask others otherwise.
    made = config.model_dump(mode="json", include={*MADE_WITH}) | {
        key: about[key] for key in ("device", "date")
    }
    for name, result in results.items():
        one = result.summary(config.confidence)
        one["pass_at_n"] = result.pass_at(result.n)
        one["departures"] = departures(result, benchmarks[name], config.system_prompt)
        found[name] = one | {"made": made}
    notes = [f"not finished when this was written: {', '.join(pending)}"] if pending else []
    averages = _averages(found, config.confidence)
    return {**about, "notes": notes, "benchmarks": found, "averages": averages}


def _averages(found: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """Averages over the suites of which every member is there."""
    averages = {}
    for suite in ("math5", "ood3", "lab"):
        members = SUITES[suite]
        if all(member in found for member in members):
            problems = [found[member]["problems"].values() for member in members]
            scores = [[p["correct"] / p["n"] for p in group] for group in problems]
            mean = interval_of_average(scores, confidence=confidence)
            averages[suite] = {
                "accuracy": mean.estimate,
                "interval": [mean.low, mean.high],
                "made": {"confidence": confidence},
                "departures": [d for m in members for d in found[m]["departures"]],
            }
    return averages


def _write(folder: Path, summary: Mapping[str, Any]) -> None:
    write_whole(folder / "results.json", to_json(summary, indent=1) + "\n")
    write_tables([summary], folder)


@contextmanager
def _bars(show: bool) -> Iterator[Callable[[str], ProgressCallback | None]]:
    """A factory of progress callbacks, one bar with the time left for each benchmark."""
    if not show:
        yield lambda title: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Terminal(stderr=True)) as bars:

        def start(title: str) -> ProgressCallback:
            task = bars.add_task(title, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield start
