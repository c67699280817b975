"""What is asked, sampled or analysed: where a model is, how it is asked, and its engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from srft import lab
from srft.data.data_config import DataConfig
from srft.environments.environment_config import EnvironmentConfig
from srft.errors import CheckpointError, ConfigError, ModelError
from srft.model.gguf import is_gguf
from srft.model.model_config import ModelConfig, holds_model, is_lab
from srft.paths import local_path
from srft.runs.run_dir import RunDir, step_of
from srft.types import RolloutEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from srft.environments.toolbox import Toolbox
    from srft.environments.tools import Tools
    from srft.rollout.rollout_config import RolloutConfig

TEMPLATE_SETTINGS = (
    *("chat_template", "chat_template_kwargs", "prompt_template", "eos_token", "system_prompt"),
)
"""Settings of ``data`` that decide how a prompt becomes tokens."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to be asked. ``context``: most positions in tokens, None where unknown. ``tools`` are
    called in what ``engine`` samples, and ``stop`` are strings that end it."""

    engine: RolloutEngine
    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    context: int | None
    description: str
    tools: Tools | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where a model is. ``weights``: a checkpoint's tensors that replace those of ``config.path``;
    ``run``: the run directory it is from, where that was given."""

    name: str
    config: ModelConfig
    weights: Path | None = None
    run: Path | None = None

    @property
    def place(self) -> str:
        """The folder or hub name that the weights are read from."""
        return str(self.weights or self.config.path)


def find_model(reference: str | Path, settings: ModelConfig | None = None) -> Source:
    """What ``reference`` stands for; nothing is loaded.

    A folder with config.json, a GGUF file or a hub name is a model, ``lab`` the base model that comes
    along. A run directory stands for its exported model, else its best one, else its newest checkpoint;
    ``checkpoints/step_000100`` of a run is that checkpoint. ``settings``: its path is left aside.

    Raises:
        ModelError: a run directory with neither a model nor a checkpoint.
        CheckpointError: a checkpoint whose run has no readable config.yaml.
    """
    given = settings.model_dump(exclude_unset=True, exclude={"path"}) if settings else {}
    path = local_path(reference)
    run = RunDir(path)
    if is_lab(reference) and not run.is_run:
        return Source("lab", ModelConfig(path=str(lab.base_model_path()), **given))
    if is_gguf(path):
        return Source(path.stem, ModelConfig(path=str(path), **given))
    if not path.is_dir() and (path.is_absolute() or str(reference).startswith((".", "~"))):
        raise ModelError(
            f"{path}: no such folder; name a model, a GGUF file, a run directory or a hub id"
        )
    if not path.is_dir():
        return Source(str(reference), ModelConfig(path=str(reference), **given))
    for folder in (path, run.model, run.best):
        if holds_model(folder):
            config = ModelConfig(path=str(folder), **given)
            return Source(path.resolve().name, config, run=None if folder == path else path)
    if (path / "weights").is_dir():
        return _checkpoint(path, given)
    if not run.is_run:
        raise ModelError(
            f"{path}: holds no model (no config.json) and is no run directory; name a folder with a "
            "model, a run directory or a hub id"
        )
    checkpoints = checkpoints_of(path)
    if not checkpoints:
        raise ModelError(
            f"{path}: the run has neither an exported model (model/) nor a checkpoint yet; wait "
            "for one, or set run.checkpoint_every lower"
        )
    return _checkpoint(checkpoints[-1][1], given)


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every finished checkpoint of a run, by step."""
    folders = [p for p in RunDir(run).checkpoints.glob("step_*") if (p / "weights").is_dir()]
    return sorted((step, p) for p in folders if (step := step_of(p.name)) is not None)


_CHECKPOINT_SETTINGS = (
    *("path", "revision", "tokenizer", "trust_remote_code"),
    *("rope_theta", "rope_length", "max_position_embeddings", "lora"),
)


def _checkpoint(folder: Path, given: dict[str, Any]) -> Source:
    # ``checkpoints`` may be a link to a disk with room: the run is where it is named, else where it lies.
    named, lies = folder.absolute().parent.parent, folder.resolve().parent.parent
    run = named if RunDir(named).config.is_file() else lies
    recipe = RunDir(run).config
    try:
        section = dict(yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: {recipe} says which model the checkpoint belongs to, and cannot be read; give "
            "the exported model (<run>/model) instead"
        ) from error
    kept = {k: section[k] for k in _CHECKPOINT_SETTINGS if section.get(k) is not None}
    step = step_of(folder.name)
    name = f"{run.name}@{folder.name.removeprefix('step_') if step is None else step}"
    return Source(name, ModelConfig(**{**kept, **given}), folder / "weights", run)


def open_weights(source: Source, device: str = "cpu") -> PreTrainedModel:
    """The model in evaluation mode.

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
        raise CheckpointError(f"{error}; give the exported model (<run>/model) instead") from error


def template_of(source: Source) -> DataConfig:
    """How the model was asked in training, from the recipe of its run or beside its folder
    (``config.yaml``); the defaults where there is none.

    Raises:
        ModelError: the recipe there cannot be read.
    """
    data = _section(source, "data")
    with _reading(source):
        return DataConfig(**{k: data[k] for k in TEMPLATE_SETTINGS if k in data})


def environment_of(source: Source) -> EnvironmentConfig:
    """The tools that the model could call in training, from the recipe of its run or beside its folder; none
    where there is no recipe.

    Raises:
        ConfigError: they were given in Python, so that no recipe names them.
        ModelError: the recipe there cannot be read.
    """
    recipe = _section(source, "environment")
    with _reading(source):
        found = EnvironmentConfig(**recipe)
    run = _run_of(source)
    if run is None or found.tools or found.factory:
        return found
    try:
        given = json.loads(run.environment.read_text(encoding="utf-8"))["given"]
    except (OSError, ValueError, KeyError, TypeError):
        return found
    called = [name for kind in ("tools", "environments") for name in given.get(kind, ())]
    if called:
        names = ", ".join(called)
        raise ConfigError(
            f"{source.name}: trained with tools or environments that were given in Python ({names}). Say "
            "where they are, environment.tools=FILE.py:NAME or environment.factory=FILE.py:CLASS; or "
            "environment.tools=[] to ask the model without them"
        )
    return found


def _run_of(source: Source) -> RunDir | None:
    """The run that a model is from, if its folder lies within one."""
    folder = local_path(source.config.path)
    run = RunDir(source.run or folder.resolve().parent)
    return run if _is_ours(run) and (source.run or folder.is_dir()) else None


def _is_ours(run: RunDir) -> bool:
    """Whether the folder is a run's; a config.yaml alone may be another program's."""
    if run.begun:
        return run.config.is_file()
    try:
        recipe = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(recipe, dict) and {"data", "model", "rollout"} <= recipe.keys()


def _section(source: Source, name: str) -> Mapping[str, Any]:
    """A section of the recipe beside a model. Raises ModelError."""
    run = _run_of(source)
    if run is None:
        return {}
    with _reading(source):
        return (yaml.safe_load(run.config.read_text(encoding="utf-8")) or {}).get(name) or {}


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    try:
        yield
    except (yaml.YAMLError, ValueError, AttributeError, TypeError) as error:
        run = _run_of(source)
        assert run is not None, "without a recipe there is nothing that cannot be read"
        raise ModelError(
            f"{run.config}: the recipe beside the model cannot be read ({error}); fix it, or move the "
            "model elsewhere to use it with the defaults"
        ) from error


def weights_digest(source: Source) -> str:
    """Sixteen hexadecimal digits that stand for a local model's weights; name and revision for a
    hub model.

    Of each weight file the size and 16 blocks of 64 KiB, evenly spread, are hashed: any training
    step changes all of them, and 15 GB take no longer than a small model.
    """
    folder = local_path(source.place)
    if not folder.is_dir() and not is_gguf(folder):
        return f"{source.place}@{source.config.revision or 'main'}"
    digest = hashlib.sha256()
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*config.json")]
    files = [folder] if folder.is_file() else files
    for file in sorted(f for f in files if f.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name}/{size}".encode())
        with file.open("rb") as stream:
            for block in range(16):
                stream.seek(size * block // 16)
                digest.update(stream.read(1 << 16))
    return digest.hexdigest()[:16]


_SCORED_BY = {
    *("tokenizer", "autocast", "rope_theta", "rope_length", "max_position_embeddings", "lora"),
}


def model_digest(source: Source) -> str:
    """What stands for everything that a model is asked with: its ``weights_digest`` and, where they are
    set, the settings under which the same weights answer otherwise (its dtype aside)."""
    told = source.config.model_dump(
        mode="json",
        include=_SCORED_BY,
        exclude={"lora": {"dropout", "export"}},
        exclude_defaults=True,
    )
    return ", ".join([weights_digest(source), *(f"{key}={told[key]}" for key in sorted(told))])


def _ending(source: Source, rollout: RolloutConfig) -> RolloutConfig:
    """What ends a response: what ``rollout`` sets, else the recipe beside the model. Raises ModelError."""
    recipe = _section(source, "rollout")
    with _reading(source):
        own = {key: recipe[key] for key in ("stop", "stop_token_ids") if key in recipe}
        set_ = rollout.model_dump(include={"stop", "stop_token_ids"}, exclude_unset=True)
        return type(rollout)(**{**own, **set_})


@contextmanager
def load(
    source: Source,
    data: DataConfig,
    rollout: Any = None,
    device: str | None = None,
    toolbox: Toolbox | None = None,
) -> Iterator[Loaded]:
    """The model, its tokenizer and an engine; memory is given back at the end. toolbox: what the model
    may call. What ends a response besides the template's end is what ``rollout`` says, else the recipe beside
    the model.

    device: "cpu", "cuda"; None takes a GPU where there is one and vLLM does not generate: it gets
    its weights from here, and the GPU is its own.

    Raises:
        ModelError: model or tokenizer cannot be loaded, or do not match.
        ConfigError: its template knows no tools, and there are some.
    """
    import torch

    from srft.data.template import Template
    from srft.environments.tools import build_tools
    from srft.model.loading import check_vocabulary, compute_context, load_tokenizer
    from srft.model.positions import context_length
    from srft.rollout.engine import build_engine
    from srft.rollout.rollout_config import RolloutConfig

    rollout, config = rollout or RolloutConfig(), source.config
    ending = _ending(source, rollout)
    gpu = torch.cuda.is_available()
    device = device or ("cuda" if gpu and not rollout.engine.startswith("vllm") else "cpu")
    if "dtype" not in config.model_fields_set and gpu:
        # Nothing is trained here: half the memory, at the precision that the weights had anyway.
        config = config.model_copy(update={"dtype": "bfloat16"})
    tokenizer = load_tokenizer(config)
    tools = build_tools(toolbox, tokenizer, data)
    with ExitStack() as stack:
        model = open_weights(replace(source, config=config), device)
        check_vocabulary(model, tokenizer)
        stack.enter_context(compute_context(config, device))
        engine = build_engine(model, tokenizer, rollout)
        stops = Template(tokenizer, data).stop_token_ids(getattr(model, "generation_config", None))
        if tools is not None:
            stops = tools.ends(stops)
        stops = tuple(dict.fromkeys((*stops, *ending.stop_token_ids)))
        if tools is not None:
            engine = tools.over(engine, stops)
        stack.callback(engine.close)
        kind = str(next(model.parameters()).dtype).removeprefix("torch.")
        by = f", {rollout.engine}" if rollout.engine.startswith("vllm") else ""
        context = context_length(model.config)
        said = f"{kind} on {device}{by}"
        yield Loaded(engine, tokenizer, stops, context, said, tools, ending.stop)
