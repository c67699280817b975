"""A tiny Qwen3 with random weights over the lab's tokenizer, and a recipe that runs in seconds."""

from __future__ import annotations

import json
import os

import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter. It must know before anything imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.toys import real_data_dir, save_lab_model, save_tool_model

from srft.config import SRFTConfig, parse_config
from srft.lab import lab_train

with suppress(ImportError):  # absent where vLLM's tests run
    from hypothesis import HealthCheck, settings

    # No test decides by the clock, and machines are shared.
    settings.register_profile("srft", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("srft")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model of some 20,000 parameters."""
    return save_lab_model(tmp_path_factory.mktemp("tiny"), initializer_range=0.02)


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Forty lab problems as plain rows."""
    return [dict(row) for row in lab_train(40)]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data; tests that need it are skipped where it is absent."""
    return real_data_dir()


TEACHER = {"path": "the tiny model itself"}
# Small runs that between them write every metric: name -> what differs from REAL.
REAL: dict[str, Any] = {
    "data": {"train": "lab", "limit": 30, "eval_fraction": 0.2},
    "reward": {"failed_demonstrations": "keep"},
    "rollout": {"group_size": 3, "max_tokens": 12},
    "train": {"prompts_per_step": 3, "steps": 3, "gradient_analysis_every": 2},
    "evaluation": {"n": 2, "max_tokens": 8, "at_start": True, "every_steps": 2},
    "run": {"live": "never", "checkpoint_every": 0, "samples_every": 1, "export": False},
}
KINDS: dict[str, dict[str, Any]] = {
    "srft": {
        "objective": {"importance_cap": 2.0},
        "train": {**REAL["train"], "demonstrations_per_step": 2},
    },
    "srft in words": {
        "method": "srft",
        "objective": {"rollout_term": "literal", "literal_means": "separate"},
    },
    "reference and adapters": {
        "method": "grpo",
        "objective": {"kl_coefficient": 0.1, "entropy_coefficient": 0.01},
        "model": {"lora": {"rank": 2}},
    },
    "relift": {"train": {**REAL["train"], "interleave_prompts": 2}},
    "sft then grpo": {
        "stages": [{"method": "sft", "steps": 2}, {"method": "grpo", "steps": 1}],
        "train": {"prompts_per_step": 3},
    },
    "tools": {
        "method": "grpo",
        "environment": {"tools": [f"{Path(__file__).parent}/environments/conftest.py:add"]},
    },
    **{name: {"teacher": TEACHER} for name in ("opd", "gkd")},
    **{
        name: {}
        for name in (
            "eaft",
            "asft",
            "sdft",
            "ghpo",
            "sft",
            "dft",
            "grpo",
            "chord-phi",
            "luffy",
            "uft",
            "prefix-rft",
            "hpt",
        )
    },
}


def mixed(prompts, completions, log_metric, log_extra, **columns):
    """Right for about a third of completions; the first prompt of a batch is never solved."""
    log_metric("words", sum(map(len, completions)) / len(completions))
    log_extra("length", [len(text) for text in completions])
    solved = [prompt != prompts[0] for prompt in prompts]
    return [float(s and len(t) % 3 == 0) for s, t in zip(solved, completions, strict=True)]


@pytest.fixture(scope="session")
def real_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``real_run(kind)``: the directory of a finished run of KINDS, made once; not to be written to.
    What went to its tracker stands in tracked.json: a list of (step, metrics)."""
    from srft.trainer import api, trackers

    made: dict[str, Path] = {}

    class Tracker:
        def __init__(self) -> None:
            self.told: list[Any] = []

        def log(self, metrics: Any, step: int) -> None:
            self.told.append((step, dict(metrics)))

        def close(self) -> None:
            pass

    def run(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("real") / kind.replace(" ", "-")
            own = KINDS[kind]
            named = {} if "stages" in own or "method" in own else {"method": kind}
            values = {**REAL, **named, **own}
            values["model"] = {"path": str(tiny_model), **own.get("model", {})}
            if "environment" in own:
                values["model"]["path"] = str(save_tool_model(folder.parent / "tools"))
            if "teacher" in own:
                values["teacher"] = {"path": str(tiny_model)}
            values["run"] = {**REAL["run"], "dir": str(folder), "trackers": ["wandb"]}
            tracker = Tracker()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trackers, "open_tracker", lambda *_, **__: tracker)
                api.SRFTTrainer(args=parse_config(values), reward_funcs=mixed).train()
            (folder / "tracked.json").write_text(json.dumps(tracker.told))
            made[kind] = folder
        return made[kind]

    return run


@pytest.fixture
def srft(tmp_path, monkeypatch, capsys):
    """``srft(*arguments)`` in an empty folder: the command's exit code, and what it said."""
    from srft.cli import main

    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str]:
        code = 0
        try:
            main(list(arguments))
        except SystemExit as error:
            code = int(error.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return command


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Callable[..., SRFTConfig]:
    """``recipe(**sections)``: a config of six quick steps; sections replace or add settings."""

    def build(**sections: Any) -> SRFTConfig:
        values: dict[str, Any] = {
            "model": {"path": str(tiny_model)},
            "data": {"train": "lab", "limit": 40},
            "reward": "exact",
            "rollout": {"group_size": 3, "max_tokens": 12},
            "train": {"prompts_per_step": 4, "learning_rate": 1e-3},
            "run": {"dir": str(tmp_path / "run"), "live": "never", "checkpoint_every": 2},
        }
        if "stages" not in sections:
            values["train"]["steps"] = 6
        for name, section in sections.items():
            if isinstance(section, dict) and isinstance(values.get(name), dict):
                values[name] = {**values[name], **section}
            else:
                values[name] = section
        return parse_config(values)

    return build
