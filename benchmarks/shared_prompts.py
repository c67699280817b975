"""From which prompt length on it pays to compute a prompt once for its whole group.

    OMP_NUM_THREADS=1 python benchmarks/shared_prompts.py            # about five minutes
    OMP_NUM_THREADS=1 python benchmarks/shared_prompts.py --quick    # few pairs
    python benchmarks/shared_prompts.py --gpu                        # the 0.6B shape, bfloat16 products
    OMP_NUM_THREADS=1 python benchmarks/shared_prompts.py --gpu --dry-run

One GRPO update, the prompts of a group computed once (as always with packed attention) against once for
every rollout, in alternating pairs over the same model. 64 rollouts in groups of 2 and of 8, responses of
64 tokens, prompts of a sixteenth to four times that. Tokens: of the passes, apart / shared.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import common
import numpy as np
import torch
import training_step as step

from srft.model.model_config import ModelConfig

RESPONSE, ROLLOUTS = 64, 64
PROMPTS = (4, 16, 32, 64, 128, 256)
GROUPS = (2, 8)


def run_case(size: str, device: str, group: int, prompt: int, response: int, pairs: int) -> Any:
    prompts = ROLLOUTS // group
    work = common.Workload(
        "uniform",
        [[3 + (7 * i + j) % 150 for j in range(prompt)] for i in range(prompts)],
        np.full((prompts, group), response),
    )
    compute = (
        partial(torch.autocast, "cuda", dtype=torch.bfloat16) if device == "cuda" else nullcontext
    )
    model = common.make_model(size, device, positions=prompt + response)
    ours = step.Ours(model, step.make_rollouts(work), ModelConfig(), compute)

    def apart() -> None:
        with patch("srft.trainer.update.packs", lambda _: False):
            ours.train()

    found = common.compare(ours.train, apart, pairs, 30.0)
    tokens = group * (prompt + response) / (prompt + group * response)
    return {"group": group, "prompt": prompt, "response": response, "tokens": tokens, **found}


def markdown(report: dict[str, Any]) -> str:
    lines = ["# Prompts computed once for their group", "", common.about(report["environment"]), ""]
    lines += [f"{report['model']} model, responses of {report['cases'][0]['response']} tokens.", ""]
    lines += ["| group | prompt | tokens, apart / shared | pairs | time, apart / shared |"]
    lines += ["|---|---|---|---|---|"]
    for c in report["cases"]:
        ratio = common.spread(c["ratio_wall" if report["gpu"] else "ratio_cpu"])
        lines.append(
            f"| {c['group']} | {c['prompt']} | {c['tokens']:.2f} | {c['pairs']} | {ratio} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    options = common.arguments(__doc__, "the 0.6B shape, longer texts").parse_args()
    gpu = options.gpu and not options.dry_run
    size, scale = ("0.6B", 16) if gpu else ("tiny" if options.dry_run else "1M", 1)
    pairs = 2 if options.quick or options.dry_run else 7
    cases = [
        run_case(
            size, "cuda" if gpu else "cpu", group, prompt * scale, RESPONSE * scale, pairs
        )
        for group in GROUPS
        for prompt in (PROMPTS[:2] if options.dry_run else PROMPTS)
    ]  # fmt: skip
    report = {"model": size, "gpu": gpu, "cases": cases, "environment": common.environment()}
    name = "shared_prompts" + ("_gpu" if options.gpu else "")
    name += "_dry_run" if options.dry_run else "_quick" if options.quick else ""
    common.write(name, report, markdown(report), options.out)


if __name__ == "__main__":
    main()
