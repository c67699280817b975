"""Runs under limits of memory: each trains within what it said, or is refused before its first step.

    OMP_NUM_THREADS=2 python benchmarks/memory_limits.py MODEL [MODEL ...] --data gsm8k/train.jsonl

Every model with full weights and with LoRA under `ulimit -v` of 4, 8 and 16 GB, in processes of their own:
3 steps of SRFT on real GSM8K, 8 prompts x 4 rollouts (--prompts), what concerns memory left to srft.
The table says what was chosen and said, the peak of resident memory, and how the process ended.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GB = 10**9
HEAD = (
    "model",
    "trained",
    "limit, GB",
    "outcome",
    "chosen",
    "said, GiB",
    "peak, GiB",
    "peak / said",
    "s",
)


def recipe(model: str, data: str, lora: bool, run: str, steps: int, prompts: int) -> list[str]:
    settings = {
        "model.path": model,
        "data.train": data,
        "data.limit": 64,
        "data.max_prompt_tokens": 256,
        "data.max_demonstration_tokens": 256,
        "data.chat_template": "auto",
        "reward": "math",
        "rollout.group_size": 4,
        "rollout.max_tokens": 128,
        "train.steps": steps,
        "train.prompts_per_step": prompts,
        "train.learning_rate": 1e-5,
        "run.dir": run,
        "run.live": "never",
        **({"model.lora.rank": 16} if lora else {}),
    }
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def measure(
    model: str, data: str, lora: bool, limit: int, steps: int, prompts: int
) -> tuple[str, ...]:
    """One run in a process of its own; a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "srft",
            "train",
            *recipe(model, data, lora, f"{folder}/run", steps, prompts),
        ]
        start = time.perf_counter()
        child = subprocess.Popen(
            ["/bin/bash", "-c", f'ulimit -v {limit * GB // 1024}; exec "$@"', "-", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert child.stdout is not None
        output = child.stdout.read()
        _, status, usage = _wait(child)
        seconds = time.perf_counter() - start
        steps_done = _lines(Path(folder) / "run/metrics.jsonl")
        warnings = output.count("out of memory: micro-batches")
    peak = usage.ru_maxrss * 1024 / 2**30
    said = re.search(r"memory: at most about ([\d.]+) of", output)
    chosen = re.search(
        r"micro-batches of ([\d,]+) tokens, ([\d,]+) rollouts side by side, (\w+) grad", output
    )
    if status == 0:
        outcome = f"trained {steps_done} steps" + (f", halved {warnings} times" if warnings else "")
    elif "foreseen before the first step" in output:
        outcome = "refused before the first step"
        print(output.strip().splitlines()[-1], file=sys.stderr)
    else:
        outcome = f"FAILED ({status}) after {steps_done} steps"
        print(output[-2000:], file=sys.stderr)
    settings = f"{chosen[1]} tokens, {chosen[2]} rows" if chosen else ""
    settings += ", checkpointing" if chosen and chosen[3] == "with" else ""
    ratio = f"{peak / float(said[1]):.2f}" if said and status == 0 else ""
    return (
        Path(model).name, "LoRA" if lora else "full", str(limit), outcome, settings,
        said[1] if said else "", f"{peak:.2f}", ratio, f"{seconds:.0f}",
    )  # fmt: skip


def _wait(child: subprocess.Popen[str]) -> tuple[int, int, resource.struct_rusage]:
    import os

    pid, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return pid, child.returncode, usage


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limits", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--trained", nargs="+", choices=["full", "LoRA"], default=["full", "LoRA"])
    arguments = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    for model in arguments.models:
        for lora in (name == "LoRA" for name in arguments.trained):
            for limit in arguments.limits:
                row = measure(
                    model, arguments.data, lora, limit, arguments.steps, arguments.prompts
                )
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
