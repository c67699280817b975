"""The update on a GPU: Qwen3 0.6B and 1.7B shapes at 8k, 16k and 64k tokens.

    python benchmarks/training_step_gpu.py
    OMP_NUM_THREADS=1 python benchmarks/training_step_gpu.py --dry-run  # tiny shapes on the CPU

Weights, AdamW's moments and gradients are float32, products bfloat16. Rows of one sequence are those of
which others have published figures; groups of eight are measured against TRL in alternating pairs.
"""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from functools import partial
from typing import Any

import common
import numpy as np
import torch
import training_step as step

from srft.model.model_config import ModelConfig

# Shape, tokens, sequences, checkpointing; tokens a second and GiB that prime-rl publishes (H100).
CASES = [
    ("0.6B", 16_384, 1, False, 11_896, 12.5),
    ("0.6B", 65_536, 1, True, 10_147, 19.6),
    ("1.7B", 8_192, 1, False, None, None),
    ("1.7B", 8_192, 8, False, None, None),
    ("0.6B", 16_384, 8, False, None, None),
]
DRY = [("tiny", 96, 1, False, 1, 1.0), ("tiny", 192, 8, True, None, None)]


def rollouts(size: str, tokens: int, count: int) -> list[Any]:
    """``count`` sequences of one prompt that have ``tokens`` together; one has a group of its own."""
    prompt = max(4, tokens // count // 16)
    length = tokens // count - prompt
    work = common.Workload("uniform", [list(range(3, 3 + prompt))], np.full((1, count), length))
    return step.make_rollouts(work, common.SHAPES[size]["vocabulary"])


def single(ours: step.Ours) -> None:
    """A group of one has no advantage: its sequence is a demonstration of plain fine-tuning."""
    ours.method = step.get_method("sft")
    ours.rollouts = [replace(r, is_demo=True) for r in ours.rollouts]


def run_case(
    device: str, size: str, tokens: int, count: int, checkpointing: bool, others: Any, gib: Any
) -> dict[str, Any]:
    bf16 = partial(torch.autocast, device, dtype=torch.bfloat16)
    sequences = rollouts(size, tokens, count)
    model = common.make_model(size, device, positions=tokens + 8)
    other = copy.deepcopy(model) if count > 1 else None
    options = ModelConfig(
        gradient_checkpointing=checkpointing, compile=device == "cuda", autocast="bfloat16"
    )
    ours = step.Ours(model, sequences, options, budget=tokens)
    if count == 1:
        single(ours)
    for _ in range(3):
        common.timed(ours.train)
    with common.PeakMemory(device) as peak:
        ours.train()
    held = sum(p.numel() for p in model.parameters()) * 12 / 2**30  # weights and two moments
    walls = [common.timed(ours.train).wall for _ in range(5)]
    result = {
        "model": size,
        "tokens": tokens,
        "sequences": count,
        "checkpointing": checkpointing,
        "seconds": common.summary(walls),
        "operations": step.operations(model, sequences),
        "peak_gib": peak.mib / 1024 + held,
        "prime_rl_tokens_per_s": others,
        "prime_rl_gib": gib,
    }
    if other is not None:
        theirs = step.Theirs(other, sequences, 1, bf16)
        result["against_trl"] = common.compare(ours.train, theirs.train, 5, 120.0)
    return result


def markdown(report: dict[str, Any]) -> str:
    rate = report["matrix_rate"]["best"]
    lines = [
        "# The update on a GPU",
        "",
        common.about(report["environment"]),
        "",
        f"bfloat16 products at {rate / 1000:.0f} trillion operations a second measured; MFU is a share "
        "of it. Peak memory includes weights and moments. prime-rl: its published figures.",
        "",
        "| shape | tokens | sequences | tokens/s | prime-rl | MFU | peak GiB | prime-rl | TRL / srft, wall |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report["results"]:
        seconds = r["seconds"]["median"]
        trl = common.spread(r["against_trl"]["ratio_wall"]) if "against_trl" in r else ""
        lines.append(
            f"| {r['model']} | {r['tokens']} | {r['sequences']} | {r['tokens'] / seconds:.0f} "
            f"| {r['prime_rl_tokens_per_s'] or ''} | {r['operations'] / seconds / rate / 1e9:.1%} "
            f"| {r['peak_gib']:.1f} | {r['prime_rl_gib'] or ''} | {trl} |"
        )
    return "\n".join(lines)


def main() -> None:
    options = common.arguments(__doc__).parse_args()
    device = "cpu" if options.dry_run else "cuda"
    results = []
    for case in DRY if options.dry_run else CASES:
        results.append(run_case(device, *case))
        gc.collect()
    report = {
        "environment": common.environment(),
        "matrix_rate": common.matrix_rate(device),
        "results": results,
    }
    name = "training_step_gpu_dry_run" if options.dry_run else "training_step_gpu"
    common.write(name, report, markdown(report), options.out)


if __name__ == "__main__":
    main()
