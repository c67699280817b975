"""Opens what is to be analysed: a model folder or hub name, a run directory, or one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from srft.errors import CheckpointError, ModelError
from srft.model.model_config import ModelConfig, holds_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """Where a model is. ``weights``: a checkpoint's tensors that replace those of ``config.path``."""

    name: str
    config: ModelConfig
    weights: Path | None = None
    run: Path | None = None


def find_model(reference: str | Path, options: Mapping[str, Any] | None = None) -> Source:
    """What ``reference`` stands for; nothing is loaded.

    A folder with config.json or a hub name is a model. A run directory stands for its exported
    model, or its newest checkpoint where it has none. ``checkpoints/step_000100`` of a run is that
    checkpoint. ``options`` are fields of ``ModelConfig``.

    Raises:
        ModelError: a run directory with neither an exported model nor a checkpoint.
        CheckpointError: a checkpoint whose run has no readable config.yaml.
    """
    options = dict(options or {})
    path = Path(reference).expanduser()
    if (path / "weights").is_dir():
        return _checkpoint(path, options)
    if (path / "config.yaml").is_file() or (path / "metrics.jsonl").is_file():
        if holds_model(path / "model"):
            config = ModelConfig(path=str(path / "model"), **options)
            return Source(path.resolve().name, config, run=path)
        checkpoints = checkpoints_of(path)
        if not checkpoints:
            raise ModelError(
                f"{path}: the run has neither an exported model (model/) nor a checkpoint yet; wait "
                "for one, or set run.checkpoint_every lower"
            )
        return _checkpoint(checkpoints[-1][1], options)
    name = path.resolve().name if path.is_dir() else str(reference)
    return Source(name, ModelConfig(path=str(reference), **options))


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every finished checkpoint of a run, by step."""
    folders = [p for p in (run / "checkpoints").glob("step_*") if (p / "weights").is_dir()]
    return sorted((int(p.name.removeprefix("step_")), p) for p in folders)


def _checkpoint(folder: Path, options: dict[str, Any]) -> Source:
    run = folder.resolve().parent.parent
    try:
        recipe = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        section = dict(recipe["model"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: {run / 'config.yaml'} says which model the checkpoint belongs to, and cannot be "
            "read; give the exported model (<run>/model) in its place"
        ) from error
    kept = (
        "path",
        "revision",
        "tokenizer",
        "trust_remote_code",
        "rope_theta",
        "max_position_embeddings",
        "lora",
    )
    settings = {key: section[key] for key in kept if section.get(key) is not None}
    config = ModelConfig(**{**settings, **options})
    return Source(
        f"{run.name}@{int(folder.name.removeprefix('step_'))}",
        config,
        folder / "weights",
        run,
    )


def load(source: Source, device: str = "cpu") -> PreTrainedModel:
    """The model in evaluation mode, float32 unless its options say otherwise.

    Raises:
        ModelError: it cannot be loaded, or its scores differ from its own logits.
        CheckpointError: the checkpoint's tensors are not this model's.
    """
    from srft.model.loading import load_model

    model = load_model(source.config, device)
    if source.weights is not None:
        restore(model, source.weights)
    model.eval()
    return model


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model. Raises ModelError."""
    from srft.model.loading import load_tokenizer as load_it

    return load_it(source.config)


def restore(model: PreTrainedModel, weights: Path) -> None:
    """Puts a checkpoint's tensors into a model of the same shape.

    Raises:
        CheckpointError: names or shapes are not this model's.
    """
    from srft.parallel.sharding import own_tensors
    from srft.parallel.tensors import read_tensors

    try:
        read_tensors(weights, own_tensors(model))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; analyse the exported model (<run>/model) in its place"
        ) from error
