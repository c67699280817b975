"""What evaluation and sampling need of a model: where it is, how it is asked, and its engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from srft.data.data_config import DataConfig
from srft.errors import ModelError
from srft.model.model_config import ModelConfig, holds_model
from srft.types import RolloutEngine

TEMPLATE_SETTINGS = (
    *("chat_template", "chat_template_kwargs", "prompt_template", "eos_token", "system_prompt"),
)
"""Settings of ``data`` that decide how a prompt becomes tokens."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to be asked. ``context``: most positions in tokens, None where unknown."""

    engine: RolloutEngine
    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    context: int | None
    description: str


def find_model(path: str) -> str:
    """``path``, or the exported model inside where it is a run directory; for ``lab`` the folder
    of the base model that comes along, so that its weights can be told; hub names stay."""
    folder = Path(path).expanduser()
    if path == "lab" and not folder.exists():
        from srft.lab import base_model_path

        return str(base_model_path())
    if folder.is_dir() and not holds_model(folder):
        for inside in ("model", "best"):
            if holds_model(folder / inside):
                return str(folder / inside)
    return str(folder) if folder.is_dir() else path


def template_of(model_path: str) -> DataConfig:
    """How the model was asked in training, from the recipe beside it (``config.yaml`` of its run
    directory); the defaults where there is none.

    Raises:
        ModelError: the recipe there cannot be read.
    """
    recipe = Path(model_path).expanduser().resolve().parent / "config.yaml"
    if not Path(model_path).expanduser().is_dir() or not recipe.is_file():
        return DataConfig()
    try:
        data = (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("data") or {}
        return DataConfig(**{k: data[k] for k in TEMPLATE_SETTINGS if k in data})
    except (yaml.YAMLError, ValueError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{recipe}: the recipe beside the model cannot be read ({error}); mend it, or move the "
            "model elsewhere to ask it with the defaults"
        ) from error


def weights_digest(path: str, revision: str | None = None) -> str:
    """Sixteen hexadecimal digits that stand for a local model's weights; name and revision for a
    hub model.

    Of each weight file the size and 16 blocks of 64 KiB, evenly spread, are hashed: any training
    step changes all of them, and 15 GB take no longer than a small model.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return f"{path}@{revision or 'main'}"
    digest = hashlib.sha256()
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*config.json")]
    for file in sorted(f for f in files if f.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name}/{size}".encode())
        with file.open("rb") as stream:
            for block in range(16):
                stream.seek(size * block // 16)
                digest.update(stream.read(1 << 16))
    return digest.hexdigest()[:16]


@contextmanager
def load(
    config: ModelConfig, data: DataConfig, rollout: Any = None, device: str | None = None
) -> Iterator[Loaded]:
    """The model, its tokenizer and an engine; memory is given back at the end.

    device: "cpu", "cuda"; None takes a GPU where there is one and vLLM does not generate: it gets
    its weights from here, and the GPU is its own.

    Raises:
        ModelError: model or tokenizer cannot be loaded, or do not belong together.
    """
    import torch

    from srft.data.template import stop_token_ids
    from srft.model.loading import check_vocabulary, compute_context, load_model, load_tokenizer
    from srft.rollout.engine import build_engine
    from srft.rollout.requests import context_length
    from srft.rollout.rollout_config import RolloutConfig

    rollout = rollout or RolloutConfig()
    gpu = torch.cuda.is_available()
    device = device or ("cuda" if gpu and not rollout.engine.startswith("vllm") else "cpu")
    if "dtype" not in config.model_fields_set and gpu:
        # Nothing is trained here: half the memory, at the precision that the weights had anyway.
        config = config.model_copy(update={"dtype": "bfloat16"})
    tokenizer = load_tokenizer(config)
    with ExitStack() as stack:
        model = load_model(config, device).eval()
        check_vocabulary(model, tokenizer)
        stack.enter_context(compute_context(config, device))
        engine = build_engine(model, tokenizer, rollout)
        stack.callback(engine.close)
        stops = stop_token_ids(tokenizer, data, getattr(model, "generation_config", None))
        kind = str(next(model.parameters()).dtype).removeprefix("torch.")
        by = f", {rollout.engine}" if rollout.engine.startswith("vllm") else ""
        yield Loaded(engine, tokenizer, stops, context_length(model), f"{kind} on {device}{by}")
