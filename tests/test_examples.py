"""Every file of examples/ runs, shortened; the script that teaches learns and stays short."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tests.toys import save_tool_model

from srft.runs.files import read_jsonl

FOLDER = Path(__file__).parents[1] / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_each_is_run_here():
    text = Path(__file__).read_text()
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names and all(f'example("{name}")' in text for name in names)


def test_srft_from_scratch_learns(capsys):
    lines = (FOLDER / "srft_from_scratch.py").read_text().count("\n")
    assert lines <= 150
    module = example("srft_from_scratch")
    module.PROMPTS, module.GROUP = 8, 4
    _, after = module.main(steps=3)
    said = capsys.readouterr().out
    assert said.count("reward ") == 3 and "nan" not in said and 0 < after <= 1


def test_a_script_for_trl(tiny_model, tmp_path):
    pytest.importorskip("trl")
    out = str(tmp_path / "out")
    result = example("trl_migration").main(str(tiny_model), out, max_steps=2, report_to="none")
    assert result.step == 2 and (tmp_path / "out/final/model.safetensors").is_file()


def test_a_custom_reward(tmp_path):
    result = example("custom_reward").main(steps=2, run_dir=str(tmp_path / "run"))
    rows = read_jsonl(result.run_dir / "metrics.jsonl")
    assert len(rows) == 2 and all(0 < row["user/length"] <= 64 for row in rows)


def test_lora(tiny_model, tmp_path):
    rows = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(8)]
    result = example("lora").main(str(tiny_model), rows, steps=1, run_dir=str(tmp_path / "run"))
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in result.model_dir.iterdir()
    }
    with safe_open(result.model_dir / "adapter_model.safetensors", "pt") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118


def test_a_calculator(tmp_path):
    model = save_tool_model(tmp_path / "model")
    result = example("calculator_tool").main(
        str(model), steps=(1, 1), held_out=2, run={"dir": str(tmp_path / "run")}
    )
    _, row = read_jsonl(result.run_dir / "metrics.jsonl")
    assert row["demo/reward_mean"] == 1.0 and "tools/calls" in row


def test_an_environment_of_one_s_own(tmp_path):
    model = save_tool_model(tmp_path / "model")
    result = example("custom_environment").main(str(model), steps=1, run_dir=str(tmp_path / "run"))
    (row,) = read_jsonl(result.run_dir / "metrics.jsonl")
    assert 0 <= row["reward/mean"] <= 1 and "tools/calls" in row
