"""Names and places inside a run directory."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
import yaml

from srft import __version__
from srft.config import SRFTConfig
from srft.errors import ConfigError
from srft.secrets import redact

_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "math-verify", "numpy", "pydantic")


@dataclass(frozen=True)
class RunDir:
    """One training run on the disk."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def refused(self) -> Path:
        return self.path / "refused"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def best(self) -> Path:
        return self.path / "best"


def choose_run_dir(config: SRFTConfig) -> RunDir:
    """``run.dir``, or ``runs/<methods>-<date>``; nothing is created yet."""
    if config.run.dir:
        return RunDir(Path(config.run.dir))
    methods = "-".join(stage.method for stage in config.resolved_stages)
    return RunDir(Path("runs") / f"{methods}-{datetime.now():%Y%m%d-%H%M%S}")


def create_run_dir(run: RunDir, config: SRFTConfig) -> None:
    """Makes the folder and writes config.yaml and environment.json.

    Raises:
        ConfigError: it holds another run, or cannot be written.
    """
    if run.metrics.exists() and run.metrics.stat().st_size:
        raise ConfigError(
            f"{run.path}: already holds a run. Continue it with --resume, or set run.dir to another folder."
        )
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_whole(run.config, config.to_yaml(redacted=True))
        write_whole(run.path / "environment.json", json.dumps(environment(), indent=1))
    except OSError as error:
        raise ConfigError(f"run.dir: {run.path} cannot be written ({error.strerror})") from error


def write_whole(path: Path, text: str) -> None:
    """Writes a file that a process killed meanwhile leaves as it was, or absent."""
    temporary = path.with_name(f".writing-{path.name}")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    temporary.replace(path)


def check_same_recipe(run: RunDir, config: SRFTConfig) -> list[str]:
    """Settings that differ from those the run was started with, as ``key: old -> new``."""
    try:
        old = _flat(yaml.safe_load(run.config.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return [f"{run.config} cannot be read: whether the recipe is the same is not known"]
    new = _flat(yaml.safe_load(config.to_yaml(redacted=True)))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, object] = {}
    for key, value in values.items():
        found.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return found


def environment() -> dict[str, object]:
    """Versions, machine and command of this process. No environment variables: they hold secrets."""
    versions = {"srft": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        versions[name] = importlib.metadata.version(name)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": gpus,
        },
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": redact(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }
