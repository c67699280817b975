"""How time and memory grow with response length, group size and model size; the exponents printed.

    OMP_NUM_THREADS=1 python benchmarks/growth.py            # about ten minutes
    OMP_NUM_THREADS=1 python benchmarks/growth.py --quick    # small ends only
    python benchmarks/growth.py --gpu                        # the 0.6B shape to 64k tokens
    OMP_NUM_THREADS=1 python benchmarks/growth.py --gpu --dry-run

update    processor seconds (wall seconds on a GPU) of one GRPO update, and its peak memory above what was
          held before, weights, gradients and moments being there already.
generate  seconds of sampling the same rollouts with the embedded sampler.

Each point is a process of its own. An exponent is the slope of a straight line through the logarithms
of the last half of the points, where the growth has settled: 1 is linear, 2 quadratic.

length    one prompt of 32 tokens, 2 rollouts, the 1M model; 128 to 16k response tokens each.
group     2 prompts of 32 tokens, rollouts of 64 tokens, the 1M model; 4 to 128 rollouts a prompt.
model     2 prompts x 8 rollouts of 64 tokens; 1M to 60M parameters (growth in parameters).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import common
import numpy as np
import sampler
import torch
import training_step as step

from srft.model.model_config import ModelConfig
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.rollout_config import RolloutConfig

# A point: model, prompts, rollouts a prompt, response tokens.
Point = tuple[str, int, int, int]
LENGTHS = [128, 256, 512, 1024, 2048, 4096, 8192, 16_384]
AXES: dict[str, list[Point]] = {
    "length": [("1M", 1, 2, n) for n in LENGTHS],
    "group": [("1M", 2, n, 64) for n in (4, 8, 16, 32, 64, 128)],
    "model": [(size, 2, 8, 64) for size in ("1M", "5M", "15M", "60M")],
}
QUICK = {name: points[:3] for name, points in AXES.items()}
GPU = {
    "length": [("0.6B", 1, 2, n) for n in (1024, 2048, 4096, 8192, 16_384, 32_768)],
    "group": [("0.6B", 2, n, 256) for n in (4, 8, 16, 32, 64)],
    "model": [(size, 2, 8, 256) for size in ("60M", "0.6B", "1.7B")],
}
DRY = {
    "length": [("tiny", 1, 2, n) for n in (32, 64)],
    "group": [("tiny", 2, n, 16) for n in (2, 4)],
}
# Beyond this many response tokens sampling is left out: minutes on a CPU, and linear long before.
LONGEST_SAMPLED = 2048


def measure(device: str, point: Point) -> dict[str, float]:
    size, prompts, group, length = point
    work = common.Workload(
        "uniform",
        [[3 + (i + j) % 150 for j in range(32)] for i in range(prompts)],
        np.full((prompts, group), length),
    )
    model = common.make_model(size, device, positions=length + 64)
    rollouts = step.make_rollouts(work)
    ours = step.Ours(model, rollouts, ModelConfig(), budget=32_768)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ours.optimizer.step()
    with common.PeakMemory(device) as peak:
        ours.train()
    found = {"parameters": float(sum(p.numel() for p in model.parameters())), "peak_mib": peak.mib}
    repeats = 3 if work.tokens < 4096 else 1
    clock = "wall" if device == "cuda" else "cpu"
    found["update_s"] = min(getattr(common.timed(ours.train), clock) for _ in range(repeats))
    if length <= LONGEST_SAMPLED:
        gc.collect()
        with ours.policy.compute():
            engine = EmbeddedEngine(model, common.make_tokenizer(), RolloutConfig())
            run = partial(sampler.run_embedded, engine, work)
            found["generate_s"] = min(getattr(common.timed(run), clock) for _ in range(repeats))
    return found


def exponent(xs: list[float], ys: list[float]) -> float:
    half = slice(len(xs) // 2 - 1 if len(xs) > 2 else 0, None)
    return float(np.polyfit(np.log(xs[half]), np.log(ys[half]), 1)[0])


def run(device: str, axes: dict[str, list[Point]]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for axis, points in axes.items():
        rows = []
        for point in points:
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            command = [sys.executable, __file__, "--point", json.dumps([device, *point])]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                print(f"{axis} {point}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
                continue
            found = json.loads(done.stdout.strip().splitlines()[-1])
            value = {"length": point[3], "group": point[2], "model": found["parameters"]}[axis]
            rows.append({"x": value, "point": point, **found})
            print(axis, json.dumps(rows[-1]), flush=True)
        exponents = {}
        for what in ("update_s", "peak_mib", "generate_s"):
            known = [(r["x"], r[what]) for r in rows if what in r]
            if len(known) > 1:
                exponents[what] = exponent([x for x, _ in known], [y for _, y in known])
        results[axis] = {"points": rows, "exponents": exponents}
        print(axis, "exponents", exponents, flush=True)
    return results


def markdown(report: dict[str, Any]) -> str:
    lines = ["# Growth", "", common.about(report["environment"]), ""]
    for axis, found in report["axes"].items():
        names = {"update_s": "update", "peak_mib": "memory", "generate_s": "sampling"}
        exponents = ", ".join(f"{names[k]} {v:.2f}" for k, v in found["exponents"].items())
        lines += [f"**{axis}**: exponents {exponents}", ""]
        lines += [
            "| model | prompts x rollouts | response tokens | update, s | memory, MiB | sampling, s |"
        ]
        lines += ["|---|---|---|---|---|---|"]
        for r in found["points"]:
            size, prompts, group, length = r["point"]
            sampled = f"{r['generate_s']:.2f}" if "generate_s" in r else ""
            lines.append(
                f"| {size} | {prompts} x {group} | {length} | {r['update_s']:.2f} | {r['peak_mib']:.0f} "
                f"| {sampled} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = common.arguments(__doc__, "the 0.6B shape, bfloat16 products, up to 64k tokens")
    parser.add_argument("--point", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.point:
        device, *point = json.loads(options.point)
        print(json.dumps(measure(device, tuple(point))))
        return
    device = "cuda" if options.gpu and not options.dry_run else "cpu"
    axes = QUICK if options.quick else AXES
    if options.gpu:
        axes = GPU
    if options.dry_run:
        axes = DRY
    report = {"axes": run(device, axes), "environment": common.environment()}
    name = "growth" + ("_gpu" if options.gpu else "") + ("_dry_run" if options.dry_run else "")
    name += "_quick" if options.quick else ""
    common.write(name, report, markdown(report), options.out)


if __name__ == "__main__":
    main()
