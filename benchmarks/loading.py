"""Host memory of each process while a run's model is loaded, and how long that takes.

    OMP_NUM_THREADS=1 python benchmarks/loading.py

Random weights, in processes that gloo joins on this machine; ``--float32``: files in float32 instead of
bfloat16. Peak of a process: its memory that is no
file's (RssAnon), looked at every two milliseconds, above what it was before; pages of the weights' files
are the system's, which gives them back as it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SIZE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "head_dim": 64,
        "num_key_value_heads": 4, "intermediate_size": 2048, "vocab_size": 24000,
        "tie_word_embeddings": False}  # fmt: skip
ENGINES = ("vllm", "embedded")


def make_model(folder: str, float32: bool) -> int:
    """A random model in bfloat16, as published ones are, or in float32; its number of parameters."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    dtype = torch.float32 if float32 else torch.bfloat16
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SIZE), dtype=dtype)
    model.save_pretrained(folder)
    return int(model.num_parameters())


class Peak(threading.Thread):
    """The highest anonymous memory of this process until it is stopped, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.highest = self.now()
        self.stopped = threading.Event()

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def run(self) -> None:
        while not self.stopped.wait(0.002):
            self.highest = max(self.highest, self.now())


def load(folder: str, engine: str) -> None:
    """One process of several; what it took, as JSON on the last line."""
    import torch

    from srft.config import parse_config
    from srft.model.loading import load_tokenizer
    from srft.parallel.world import join_world
    from srft.trainer.models import build_policy

    config = parse_config({"model": {"path": folder}, "rollout": {"engine": engine}})
    device = torch.device("cpu")
    world = join_world(config.parallel, device)
    import peft  # noqa: F401  # what loading imports is not what it needs

    peak = Peak()
    peak.start()
    start = time.perf_counter()
    policy, _ = build_policy(config, None, load_tokenizer(config.model), device, world, False)
    seconds = time.perf_counter() - start
    peak.stopped.set()
    took = {"peak": peak.highest - peak.first, "kept": peak.now() - peak.first, "seconds": seconds}
    assert policy.model is not None
    print(json.dumps(took), flush=True)


def measured(folder: str, processes: int, engine: str) -> dict[str, Any]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    if processes == 1:
        launch = []
    child = subprocess.run(
        [sys.executable, *launch, __file__, "--load", folder, engine],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]
    assert len(found) == processes, child.stderr
    return {key: [took[key] for took in found] for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        load(*options.load)
        return
    with tempfile.TemporaryDirectory() as folder:
        numbers = make_model(folder, options.float32)
        print(f"{numbers:,} parameters, {4 * numbers / 2**20:,.0f} MiB in float32\n")
        print("| rollouts by | processes | peak MiB of each | kept MiB of each | seconds |")
        print("|---|---|---|---|---|")
        for engine in ENGINES:
            for processes in (1, 2, 4):
                found = measured(folder, processes, engine)
                peak, kept = (
                    f"{min(v) / 2**20:,.0f} to {max(v) / 2**20:,.0f}"
                    for v in (found["peak"], found["kept"])
                )
                seconds = f"{max(found['seconds']):.1f}"
                print(f"| {engine} | {processes} | {peak} | {kept} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
