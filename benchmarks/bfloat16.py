"""A real model on a CPU in float32 and in bfloat16: scoring with gradients, and sampling.

    OMP_NUM_THREADS=1 python benchmarks/bfloat16.py FOLDER        # a Llama or Qwen model; about five minutes

Scoring: two groups of eight responses of 90 random tokens to prompts of 80, each prompt computed once.
Sampling: four groups of eight of 40 tokens. Processor time of one thread, the least of three rounds that
alternate: on a machine that is busy with something else it counts the work, not the waiting.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from srft.data.packing import pack
from srft.model.cpu.products import bfloat16_gain
from srft.model.loading import compute_context, load_model, load_tokenizer
from srft.model.model_config import ModelConfig
from srft.model.policy import Policy
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams, TrainingSequence

PROMPT, RESPONSE, GROUP, NEW, ROUNDS = 80, 90, 8, 40, 3


def main(folder: str) -> None:
    torch.set_num_threads(1)
    draw = random.Random(0)
    tokenizer = load_tokenizer(ModelConfig(path=folder))

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1000, 40_000) for _ in range(count))

    prompts = [tokens(PROMPT) for _ in range(4)]
    sequences = [
        TrainingSequence(prompts[group], tokens(RESPONSE), group, False, 0.0, False)
        for group in range(2)
        for _ in range(GROUP)
    ]
    requests = [RolloutRequest(prompt, GROUP, 100 * i) for i, prompt in enumerate(prompts)]
    spent: dict[tuple[str, str], float] = {}
    gradients: dict[str, torch.Tensor] = {}
    for _ in range(ROUNDS):
        for autocast in ("float32", "bfloat16"):
            config = ModelConfig(path=folder, autocast=autocast)
            policy = Policy(load_model(config), tokenizer, config)
            (packed,) = pack(sequences, None, 10**6, share_prompts=policy.shares_prompts)

            def note(what: str, call: Callable[[], object], kind: str = autocast) -> object:
                start = time.thread_time()
                result = call()
                least = spent.get((what, kind), float("inf"))
                spent[what, kind] = min(least, time.thread_time() - start)
                return result

            loss = note("forward", lambda p=policy, b=packed: p.score(b).logprob_T.mean())
            note("backward", loss.backward)  # type: ignore[attr-defined]
            gradients[autocast] = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
            engine = EmbeddedEngine(policy.model, tokenizer, RolloutConfig())
            with compute_context(config, "cpu"):
                params = SamplingParams(max_tokens=NEW)
                note("sampling", lambda e=engine, s=params: e.generate(requests, s))
    names = Path("/proc/cpuinfo").read_text().splitlines()
    print(next((line.split(":")[1].strip() for line in names if line.startswith("model name")), ""))
    print(f"products of 256 x 1024 x 1024: {bfloat16_gain():.1f} times as fast in bfloat16")
    for what in ("forward", "backward", "sampling"):
        wide, half = (spent[what, kind] for kind in ("float32", "bfloat16"))
        print(f"{what:9} float32 {wide:6.2f} s   bfloat16 {half:6.2f} s   {wide / half:.2f} times")
    exact, rounded = gradients["float32"], gradients["bfloat16"]
    print(f"gradients differ by {float((rounded - exact).norm() / exact.norm()):.3%} of their norm")


if __name__ == "__main__":
    main(sys.argv[1])
