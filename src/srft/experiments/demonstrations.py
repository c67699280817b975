"""Demonstrations that the base model made itself: its own rollouts, verified, generated offline.

With them in place of an expert's, whatever a method gains cannot come from the expert.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from srft.config import SRFTConfig
from srft.data.reading import load_splits
from srft.errors import ConfigError
from srft.evaluation.evaluate import evaluate
from srft.evaluation.open_model import Source, find_model, load, model_digest
from srft.rewards.scorer import Scorer
from srft.runs.files import to_json, write_whole
from srft.types import Example, SamplingParams

SAMPLES = 8
"""Rollouts of each training prompt; the first right one that is whole becomes its demonstration."""

FILES = {"self-made": "self_made.jsonl", "expert-same": "expert_same.jsonl"}


def make_demonstrations(
    base: SRFTConfig, folder: Path, console: Console, samples: int = SAMPLES
) -> Mapping[str, str]:
    """Writes both training files, where they are not there yet, and returns kind -> path.

    ``self-made``: every training prompt; its demonstration is the base model's first verified rollout,
    and prompts that have none train without. ``expert-same``: the same rows with the expert's
    demonstration on exactly the prompts that have a self-made one.

    Raises:
        ConfigError: ``folder`` was made from another base model, or no rollout was right.
    """
    paths = {kind: folder / name for kind, name in FILES.items()}
    source = find_model(base.model.path or "", base.model)
    origin = {"weights": model_digest(source), "data": base.data.model_dump(mode="json")}
    about = folder / "about.json"
    if about.is_file():
        if json.loads(about.read_text())["origin"] != origin:
            raise ConfigError(
                f"{folder}: made from another base model or other data; remove it, or choose another --out"
            )
        return {kind: str(p) for kind, p in paths.items()}
    examples = load_splits(base.data, seed=base.data.seed).train
    console.print(f"{samples} rollouts of each of {len(examples)} prompts by the base model")
    right = _right_rollouts(base, examples, source, folder, samples)
    if not any(right):
        raise ConfigError(
            f"{source.place}: none of its rollouts on the training prompts was correct"
        )
    both = list(zip(examples, right, strict=True))
    _write(paths["self-made"], both)
    expert = [(e, next(iter(e.demonstrations), None) if text else None) for e, text in both]
    _write(paths["expert-same"], expert)
    count = sum(text is not None for text in right)
    about.write_text(json.dumps({"origin": origin, "prompts": len(right), "covered": count}))
    console.print(f"{count} of {len(right)} prompts have a self-made demonstration")
    return {kind: str(p) for kind, p in paths.items()}


def _right_rollouts(
    base: SRFTConfig, examples: list[Example], source: Source, folder: Path, samples: int
) -> list[str | None]:
    """The first right rollout of each prompt, sampled as in training; resumable."""
    folder.mkdir(parents=True, exist_ok=True)
    with load(source, base.data, base.rollout, "cpu") as loaded, Scorer(base.reward) as scorer:
        result = evaluate(
            loaded.engine,
            loaded.tokenizer,
            examples,
            scorer,
            SamplingParams(
                temperature=base.rollout.temperature,
                max_tokens=base.rollout.max_tokens,
                stop=loaded.stop,
                stop_token_ids=loaded.stop_token_ids,
            ),
            n=samples,
            out_path=folder / "rollouts.jsonl",
            identity={"weights": model_digest(source)},
            data=base.data,
        )
    return [
        next((s.text for s in problem.samples if s.correct and s.finish_reason == "stop"), None)
        for problem in result.problems
    ]


def _write(path: Path, rows: Sequence[tuple[Example, str | None]]) -> None:
    lines = (
        {**e.columns, "prompt": e.prompt, "demonstration": text, "answer": e.answer}
        for e, text in rows
    )
    write_whole(path, "".join(to_json(line) + "\n" for line in lines))
