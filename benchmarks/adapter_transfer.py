"""Adapters alone against whole weights on their way to vLLM: bytes and seconds of an update.

    python benchmarks/adapter_transfer.py MODEL [--rank 16] [--served] [--updates 5]

In this process (``rollout.engine: vllm``), or by a server that this starts (``vllm-server``); one engine
that applies adapters itself and one that gets merged weights, one after the other. Needs vLLM.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tests.rollout.serving import ServerProcess

from srft.model.adapters import add_lora
from srft.model.loading import load_model, load_tokenizer
from srft.model.model_config import LoraConfig, ModelConfig
from srft.rollout.engine import build_engine
from srft.rollout.rollout_config import RolloutConfig
from srft.rollout.vllm_weights import named_weights
from srft.types import RolloutRequest, SamplingParams


def measure(model: Any, tokenizer: Any, config: RolloutConfig, updates: int) -> list[float]:
    """Seconds of each update after the first; the start-up check has compared the log-probabilities."""
    engine = build_engine(model, tokenizer, config)
    seconds = []
    try:
        for _ in range(updates):
            with torch.no_grad():
                for parameter in (p for p in model.parameters() if p.requires_grad):
                    parameter.add_(torch.randn_like(parameter) * 1e-3)
            start = time.perf_counter()
            engine.update_weights()
            seconds.append(time.perf_counter() - start)
            engine.generate([RolloutRequest((1, 2, 3), n=1, seed=0)], SamplingParams(max_tokens=2))
    finally:
        engine.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--served", action="store_true")
    parser.add_argument("--updates", type=int, default=5)
    options = parser.parse_args()
    settings = ModelConfig(path=options.model, dtype="float32")
    model, tokenizer = load_model(settings), load_tokenizer(settings)
    add_lora(model, LoraConfig(rank=options.rank))
    whole = sum(t.numel() * t.element_size() for _, t in named_weights(model))
    alone = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    print(f"bytes: whole {whole:,}, adapters {alone:,} ({100 * alone / whole:.2f} %)")
    for name, lora in (("adapters", True), ("whole weights", False)):
        vllm = {
            "kv_cache_gb": 0.5,
            "max_model_len": 256,
            "options": {} if lora else {"enable_lora": False},
        }
        server = None
        config: dict[str, Any] = {"engine": "vllm", "vllm": vllm}
        if options.served:
            folder = Path(tempfile.mkdtemp())
            served = {"path": options.model, "dtype": "float32"}
            server = ServerProcess(
                folder, vllm, **served, lora={"rank": options.rank} if lora else None
            )
            config = {"engine": "vllm-server", "servers": [server.url], "vllm": vllm}
        try:
            found = measure(model, tokenizer, RolloutConfig(**config), options.updates)
        finally:
            if server is not None:
                server.kill()
        where = "served" if options.served else "in process"
        print(
            f"{where}, {name}: median {statistics.median(found):.3f} s of {[round(s, 3) for s in found]}"
        )


if __name__ == "__main__":
    main()
