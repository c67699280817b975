"""Opens what is to be analysed: a model folder or hub name, a run directory, or one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from srft.errors import CheckpointError, ModelError
from srft.model.config import ModelConfig, holds_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """Where a model is. ``weights``: a checkpoint's file that replaces those of ``config.path``."""

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
    if (path / "weights.safetensors").is_file():
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
    folders = [
        p for p in (run / "checkpoints").glob("step_*") if (p / "weights.safetensors").is_file()
    ]
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
        folder / "weights.safetensors",
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
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from srft.model.adapters import trained_names

    try:
        tensors = load_file(weights)
        outcome = model.load_state_dict(tensors, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{weights}: cannot be read into {type(model).__name__}: {error}"
        ) from error
    # Tied tensors are saved once, under one of their names.
    tied = _tied_names(model)
    trained = trained_names(model)
    missing = [
        name
        for name in outcome.missing_keys
        if name not in tied and (trained is None or name in trained)
    ]
    odd = [*outcome.unexpected_keys, *missing]
    if odd:
        raise CheckpointError(
            f"{weights}: {len(odd)} tensors do not fit {type(model).__name__}, such as {odd[0]}; "
            "analyse the exported model (<run>/model) in its place"
        )


def _tied_names(model: PreTrainedModel) -> set[str]:
    """Names of parameters that share their storage with one of another name."""
    first: dict[int, str] = {}
    tied: set[str] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied |= {name, first[id(parameter)]}
        first.setdefault(id(parameter), name)
    return tied


def parameter_count(run: Path) -> int | None:
    """Parameters of a run's model, read from the headers of its safetensors files; tied ones once.
    None where there are none, or the adapters alone."""
    import json
    import math

    files = sorted((run / "model").glob("*.safetensors"))
    if not files:
        checkpoints = checkpoints_of(run)
        files = [checkpoints[-1][1] / "weights.safetensors"] if checkpoints else []
    total = 0
    for path in files:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        if any(".lora_" in name for name in header):
            return None
        total += sum(math.prod(v["shape"]) for k, v in header.items() if k != "__metadata__")
    return total or None
