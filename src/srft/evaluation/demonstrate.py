"""``srft data demonstrate``: demonstrations sampled from a model and kept where they are right."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srft.config import SRFTConfig
from srft.data.reading import load_splits
from srft.environments.toolbox import build_scorer, build_toolbox
from srft.environments.tools import tokenizing
from srft.errors import ConfigError, DataError
from srft.evaluation.evaluate import ProgressCallback, evaluate
from srft.evaluation.open_model import Source, find_model, load, model_digest
from srft.evaluation.results import ProblemResult, Sample
from srft.evaluation.run import functions_of
from srft.runs.files import write_whole
from srft.runs.lock import hold
from srft.types import Example, Message, SamplingParams

_OWN = ("prompt", "demonstration", "demonstrations", "answer", "system", "system_prompt")


@dataclass(frozen=True)
class Demonstrated:
    """What ``demonstrate`` wrote: ``file``, with a row for ``solved`` of ``prompts`` prompts (and for the
    others, where all rows were asked for), ``kept`` demonstrations of ``samples`` samples. ``rows`` says
    what of the data was asked (``data.max_prompt_tokens``)."""

    file: Path
    prompts: int
    solved: int
    samples: int
    kept: int
    rows: str = ""


def demonstrate(
    config: SRFTConfig,
    folder: str | Path,
    *,
    model: str | Path | None = None,
    n: int = 4,
    keep: int = 1,
    temperature: float = 0.6,
    all_rows: bool = False,
    progress: ProgressCallback | None = None,
) -> Demonstrated:
    """Samples ``n`` responses to each prompt of the recipe's training data, with the tools that it names, has
    them judged by its verifier, and writes ``folder``/demonstrations.parquet: prompt, answer and all other
    columns, and up to ``keep`` different right responses that ended by themselves. Judged samples stand in
    ``folder``/samples.jsonl: started again, also with a larger ``n``, it goes on.

    model: whom to ask; none: the recipe's. all_rows: prompts without a right response stay, without a
    demonstration.

    Raises:
        ConfigError: no model, or the folder holds samples made under other settings.
        DataError: the data cannot be read, or nothing was right.
        ModelError, RewardError, RolloutError: what was judged until then is kept.
    """
    reference = model or config.model.path
    if not reference:
        raise ConfigError("model.path: not set; name whom to ask, as model.path=... or by --model")
    folder = Path(folder)
    toolbox = build_toolbox(config.environment)
    examples = load_splits(config.data, seed=config.data.seed).train
    asked = [replace(example, demonstrations=()) for example in examples]
    source = find_model(reference, config.model)
    with hold(folder, "sampling demonstrations"):
        with (
            load(source, config.data, config.rollout, toolbox=toolbox) as loaded,
            build_scorer(config.reward, toolbox) as scorer,
        ):
            params = SamplingParams(
                temperature=temperature,
                max_tokens=config.rollout.max_tokens,
                stop=loaded.stop,
                stop_token_ids=loaded.stop_token_ids,
            )
            problems, report = tokenizing(loaded.tools)(asked, loaded.tokenizer, config.data)
            result = evaluate(
                loaded.engine,
                loaded.tokenizer,
                problems,
                scorer,
                params,
                n,
                config.train.seed,
                folder / "samples.jsonl",
                progress,
                name="demonstrations",
                identity=_identity(config, source),
            )
        right = [_right(problem, keep) for problem in result.problems]
        told = [
            (example, [_turns(s) if toolbox else s.text for s in samples])
            for example, samples in zip((p.example for p in problems), right, strict=True)
            if samples or all_rows
        ]
        lists = any(example.other_answers for example, _ in told)
        rows = [_row(example, made, config.data.columns, lists) for example, made in told]
        found = Demonstrated(
            file=folder / "demonstrations.parquet",
            prompts=len(problems),
            solved=sum(map(bool, right)),
            samples=n * len(problems),
            kept=sum(map(len, right)),
            rows=report.summary(),
        )
        if not found.kept:
            raise DataError(
                f"none of {found.samples:,} samples is right: `srft sample` shows what a model answers, and "
                f"{folder / 'samples.jsonl'} how each was judged"
            )
        write_whole(found.file, _parquet(rows))
        return found


def _identity(config: SRFTConfig, source: Source) -> dict[str, Any]:
    """What samples must have been made with to be gone on with."""
    asked = config.environment
    return {
        "weights": model_digest(source),
        "reward": config.reward.model_dump(mode="json", exclude={"workers"}),
        **functions_of(config.reward),
        **({"tools": asked.model_dump(mode="json")} if asked.tools or asked.factory else {}),
    }


def _right(problem: ProblemResult, keep: int) -> list[Sample]:
    """The first ``keep`` different responses that are right and whole."""
    found: dict[str, Sample] = {}
    for sample in problem.samples:
        if sample.correct and sample.finish_reason == "stop":
            found.setdefault(sample.text, sample)
    return list(found.values())[:keep]


def _turns(sample: Sample) -> list[dict[str, Any]]:
    """A response as messages whose parts have the same types in all rows: arguments are JSON."""
    plain: Message = {"role": "assistant", "content": sample.text}
    return [
        {
            "role": message["role"],
            "content": message["content"],
            "name": message.get("name"),
            "tool_calls": [
                {"type": "function", "function": {**f, "arguments": json.dumps(f["arguments"])}}
                for f in (call["function"] for call in message.get("tool_calls") or ())
            ],
        }
        for message in sample.messages or (plain,)
    ]


def _row(
    example: Example, demonstrations: Sequence[Any], columns: Mapping[Any, str], lists: bool
) -> dict[str, Any]:
    """A row that the recipe reads: what it names by ``columns`` stands there. lists: the answer is one."""
    prompt, answers = example.prompt, [example.answer, *example.other_answers]
    first = None if isinstance(prompt, str) else prompt[0]
    more = {name: value for name, value in example.columns.items() if name not in _OWN}
    own = {
        "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
        "demonstration": list(demonstrations),
        "answer": [one for one in answers if one is not None] if lists else example.answer,
    }
    if "system" in columns:
        own["system"] = first["content"] if first and first["role"] == "system" else None
    named = {role: columns.get(role, role).split(".") for role in own}
    named["demonstration"] = columns.get("demonstration", "demonstrations").split(".")
    row = {path[0]: more.get(path[0]) for path in named.values()} | more
    for role, path in named.items():
        row = _with(row, path, own[role])
    return row


def _with(row: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    name, *inside = path
    if not inside:
        return {**row, name: value}
    held = row.get(name)
    return {**row, name: _with(held if isinstance(held, Mapping) else {}, inside, value)}


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import datasets
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    try:
        made = datasets.Dataset.from_list([dict(row) for row in rows])
        parquet.write_table(made.data.table, buffer)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"the rows cannot be written as Parquet ({error}): a column holds values of several kinds; leave "
            "it out of the data"
        ) from error
    return buffer.getvalue()
