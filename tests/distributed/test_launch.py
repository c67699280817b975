"""The command under torchrun: one run, one voice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from srft.runs.files import read_jsonl
from srft.trainer.checkpoint import list_checkpoints


def launch(*arguments: str) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*torchrun, "--standalone", "-m", "srft", "train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen, log: Path, step: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_bytes().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_is_stopped_resumed_and_exported_and_errors_are_said_once(recipe, tmp_path):
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(recipe(train={"steps": 400}).to_yaml())

    process = launch(str(path))
    wait_for_step(process, run / "metrics.jsonl", 3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert out.count("stopped by SIGTERM") == 1, err
    done = len(read_jsonl(run / "metrics.jsonl"))
    assert list_checkpoints(run / "checkpoints")[-1].name == f"step_{done:06d}"

    process = launch(str(path), "--resume", f"train.steps={done + 2}")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count(f"resumed after step {done} from") == out.count("exported model") == 1
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == list(range(1, done + 3))
    assert (run / "report.html").exists()
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.config.architectures == ["Qwen3ForCausalLM"]

    process = launch(str(path), "run.dir=" + str(tmp_path / "other"), "parallel.replicate=3")
    out, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert err.count("error: parallel: replicate=3 x shard=1 is 3 processes, but 2") == 1
    assert "srft/cli.py" not in err  # torchrun shows a traceback of its own, of ours there is none
