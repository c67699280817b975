"""The trained model as a folder that transformers and vLLM load, with a card that says what it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srft.config import SRFTConfig
from srft.data.template import Template
from srft.memory.free import release
from srft.model.adapters import adapter_weights, merged_weights
from srft.model.loading import processor_files
from srft.model.policy import Policy
from srft.model.saving import save_model
from srft.parallel.world import ALONE, World
from srft.runs.files import read_jsonl
from srft.runs.run_dir import RunDir
from srft.secrets import redact_values
from srft.version import __version__

_CARD = "README.md"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_model(
    policy: Policy,
    folder: Path,
    config: SRFTConfig,
    run: RunDir,
    step: int,
    world: World = ALONE,
) -> Path:
    """Writes weights (or the adapters alone, where the recipe says so), config, tokenizer and
    README.md to ``folder``, whole or not at all. All processes of ``world`` gather a sharded model's
    weights; the main one writes."""
    release()
    model = policy.model
    adapters_only = config.model.lora is not None and config.model.lora.export == "adapter"
    tensors = _gathered(model, adapters_only, world) if world.size > 1 else None
    if not world.main:
        return folder
    ends = Template(policy.tokenizer, config.data).stop_token_ids(model.generation_config)
    files = {} if adapters_only else processor_files(config.model, model)
    return save_model(
        model,
        policy.tokenizer,
        folder,
        dtype=_export_dtype(policy, config),
        files={**files, _CARD: model_card(config, run, step)},
        adapters_only=adapters_only,
        tensors=tensors,
        end_token_ids=tuple(dict.fromkeys((*ends, *config.rollout.stop_token_ids))),
    )


def _gathered(model: PreTrainedModel, adapters_only: bool, world: World) -> dict[str, Tensor]:
    """What is to be written, whole, in the main process's memory; nothing in the others."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    again = every - {
        name for name, _ in model.named_parameters()
    }  # tied: one of their names will do
    tensors = {}
    for name, tensor in adapter_weights(model) if adapters_only else merged_weights(model):
        if world.main and name not in again:
            tensors[name] = tensor.cpu()
    return tensors


def _export_dtype(policy: Policy, config: SRFTConfig) -> torch.dtype:
    """``run.export_dtype``; auto is the precision that the source model was saved in."""
    name = config.run.export_dtype
    return (policy.source_dtype or policy.model.dtype) if name == "auto" else _DTYPES[name]


def exported_step(folder: Path) -> int | None:
    """After how many steps the model in ``folder`` was exported: its card says so. None: there is none."""
    path = folder / _CARD
    found = (
        re.search(r", (\d+) steps in all, ", path.read_text("utf-8")) if path.is_file() else None
    )
    return None if found is None else int(found[1])


def is_exported(folder: Path, config: SRFTConfig, run: RunDir, step: int) -> bool:
    """Whether ``folder`` holds the model after ``step`` steps of this very recipe: its card says so."""
    path = folder / _CARD
    return path.is_file() and path.read_text(encoding="utf-8") == model_card(config, run, step)


def model_card(config: SRFTConfig, run: RunDir, step: int) -> str:
    """README.md of an exported model."""
    stages = ", then ".join(f"{s.method} ({s.steps} steps)" for s in config.resolved_stages)
    base = config.model.path or "a model passed from Python"
    evaluations = read_jsonl(run.evaluation)
    lines = [
        "---",
        "library_name: transformers",
        "tags: [srft, reinforcement-learning]",
        *([f"base_model: {base}"] if config.model.path and not Path(base).exists() else []),
        "---",
        f"# {run.path.name}",
        "",
        f"Trained from {Path(base).name} by {stages}, {step} steps in all, with srft {__version__}, an "
        "implementation of [SRFT](https://arxiv.org/abs/2506.19767).",
        "",
    ]
    if evaluations:
        lines += ["| step | set | problems | accuracy | interval |", "|---|---|---|---|---|"]
        lines += [_row(record) for record in evaluations]
        lines += [""]
    recipe = json.dumps(redact_values(config.model_dump(mode="json")), indent=1)
    return "\n".join([*lines, "## Recipe", "", "```json", recipe, "```", ""])


def _row(record: dict[str, Any]) -> str:
    low, high = record["interval"]
    return (
        f"| {record['step']} | {record['name']} | {record['n_problems']} | {record['accuracy']:.3f} | "
        f"{low:.3f} to {high:.3f} |"
    )
