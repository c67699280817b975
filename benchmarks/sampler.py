"""The embedded sampler against transformers: tokens per second, in alternating pairs.

    OMP_NUM_THREADS=1 python benchmarks/sampler.py            # full run, about six minutes
    OMP_NUM_THREADS=1 python benchmarks/sampler.py --quick    # the small model, few pairs

Models: random Qwen3-shape models of about 1M and 5M parameters, float32, on the CPU, one thread.
Workloads: (uniform) 16 prompts x 8 rollouts, prompts of about 25 tokens, 75 new tokens each;
(long-tailed) the same prompts, response lengths drawn once from a log-normal of mean 75 tokens
(sigma 0.8; the longest of the 128 is about eight times the mean).
Lengths are forced alike on every contestant: end-of-sequence is disabled, and each rollout has its
own limit (a row limit in ours, a stopping criterion in ``generate``, ``max_new_tokens`` of each
request in continuous batching). So every contestant yields exactly the same numbers of tokens.

Contestants: ``EmbeddedEngine``; ``model.generate`` in what measured as its best setting (one left-
padded batch, ``num_return_sequences``, dynamic cache, sdpa, inference mode, no processors that
change nothing); transformers' continuous batching. Each model is run once unmeasured. Then the order
alternates from pair to pair, and the ratio is taken within each pair, so that a slow spell of the
machine falls on both. Wall time and processor time of the process are both reported; on a machine
shared with others the second is the fairer one.
"""

from __future__ import annotations

import argparse
import cProfile
import datetime
import json
import os
import platform
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

import srft.rollout.embedded as embedded
from srft.rollout.config import RolloutConfig
from srft.rollout.rows import Rows, Ticket
from srft.types import RolloutRequest, SamplingParams

PROMPTS, GROUP, MEAN, SIGMA = 16, 8, 75, 0.8
VOCABULARY = 200
SHAPES = {
    "1M": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "heads": (4, 2)},
    "5M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "heads": (8, 4)},
}


@dataclass(frozen=True)
class Workload:
    """Prompts (token ids) and how many tokens each of their GROUP rollouts has, [prompts, GROUP]."""

    name: str
    prompts: list[list[int]]
    lengths: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


@dataclass(frozen=True)
class Timing:
    wall: float
    cpu: float


def make_workloads() -> list[Workload]:
    random = np.random.default_rng(0)
    prompts = [random.integers(3, VOCABULARY, n).tolist() for n in random.integers(20, 31, PROMPTS)]
    uniform = np.full((PROMPTS, GROUP), MEAN)
    tailed = random.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, (PROMPTS, GROUP))
    return [
        Workload("uniform", prompts, uniform),
        Workload("long-tailed", prompts, np.clip(tailed.round().astype(int), 2, 900)),
    ]


def make_model(size: str) -> Any:
    shape = dict(SHAPES[size])
    heads, kv_heads = shape.pop("heads")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
        **shape,
    )
    model = Qwen3ForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    core = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0")


def run_embedded(engine: embedded.EmbeddedEngine, work: Workload) -> int:
    class LimitedRows(Rows):
        def add(self, tickets: list[Ticket], requests: list[RolloutRequest]) -> slice:
            new = super().add(tickets, requests)
            self.limit[new] = [work.lengths[t.request, t.sample] for t in tickets]
            return new

    requests = [RolloutRequest(tuple(p), GROUP, 100 * i) for i, p in enumerate(work.prompts)]
    params = SamplingParams(max_tokens=int(work.lengths.max()))
    original = embedded.Rows
    embedded.Rows = LimitedRows
    try:
        groups = engine.generate(requests, params)
    finally:
        embedded.Rows = original
    return sum(len(c.token_ids) for group in groups for c in group)


class _Limits(StoppingCriteria):
    def __init__(self, limits: np.ndarray, width: int) -> None:
        self.ends = torch.from_numpy(limits.ravel()) + width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self.ends <= input_ids.shape[1]


def run_generate(model: Any, work: Workload) -> int:
    width = max(map(len, work.prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in work.prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in work.prompts])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=GROUP,
            max_new_tokens=int(work.lengths.max()),
            stopping_criteria=StoppingCriteriaList([_Limits(work.lengths, width)]),
        )
    assert out.shape == (PROMPTS * GROUP, width + work.lengths.max())
    return work.tokens


def run_continuous(model: Any, work: Workload) -> int:
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=int(work.lengths.max()),
        eos_token_id=-1,
        pad_token_id=0,
    )
    total = 0
    with model.continuous_batching_context_manager(generation_config=config) as manager:
        for prompt, lengths in zip(work.prompts, work.lengths, strict=True):
            for length in lengths:
                manager.add_request(prompt, max_new_tokens=int(length))
        for _ in range(work.lengths.size):
            result = None
            while result is None:
                if not manager.is_running():
                    raise RuntimeError("continuous batching stopped before it was done")
                result = manager.get_result(timeout=5)
            total += len(result.generated_tokens)
    return total


def timed(run: Callable[[], int], tokens: int) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    produced = run()
    timing = Timing(time.perf_counter() - wall, time.process_time() - cpu)
    assert produced == tokens, (produced, tokens)
    return timing


def compare(
    ours: Callable[[], int],
    theirs: Callable[[], int],
    tokens: int,
    pairs: int,
    seconds: float,
    warm_up: bool,
) -> dict[str, Any]:
    """Alternating pairs, at least two, until ``pairs`` are done or ``seconds`` have passed."""
    if warm_up:
        timed(ours, tokens)
        timed(theirs, tokens)
    done: list[tuple[Timing, Timing]] = []
    begin = time.perf_counter()
    while len(done) < pairs and (len(done) < 2 or time.perf_counter() - begin < seconds):
        if len(done) % 2 == 0:
            a = timed(ours, tokens)
            b = timed(theirs, tokens)
        else:
            b = timed(theirs, tokens)
            a = timed(ours, tokens)
        done.append((a, b))
    return {
        "pairs": len(done),
        "tokens": tokens,
        "embedded_tokens_per_s": summary([tokens / a.wall for a, _ in done]),
        "other_tokens_per_s": summary([tokens / b.wall for _, b in done]),
        "embedded_tokens_per_cpu_s": summary([tokens / a.cpu for a, _ in done]),
        "other_tokens_per_cpu_s": summary([tokens / b.cpu for _, b in done]),
        "ratio_wall": summary([b.wall / a.wall for a, b in done]),
        "ratio_cpu": summary([b.cpu / a.cpu for a, b in done]),
    }


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def profile(run: Callable[[], int]) -> list[dict[str, Any]]:
    """Where a call spends its own time: the ten costliest functions, in seconds."""
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    run()
    profiler.disable()
    stats: Any = pstats.Stats(profiler)
    total = stats.total_tt
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:10]
    return [
        {
            "function": f"{Path(file).name}:{name}" if line else name,
            "calls": calls,
            "share": own / total,
        }
        for (file, line, name), (_, calls, own, _, _) in rows
    ]


def run_all(quick: bool) -> dict[str, Any]:
    tokenizer = make_tokenizer()
    results: list[dict[str, Any]] = []
    profiles: dict[str, Any] = {}
    for size in ("1M",) if quick else ("1M", "5M"):
        model = make_model(size)
        engine = embedded.EmbeddedEngine(model, tokenizer, RolloutConfig())
        others = {"generate": run_generate, "continuous batching": run_continuous}
        for work in make_workloads():
            ours = partial(run_embedded, engine, work)
            for name, other in others.items():
                if name != "generate" and (quick or size != "1M" or work.name != "uniform"):
                    continue
                pairs, seconds = (3, 20.0) if quick else (7, 45.0)
                label = {"model": size, "workload": work.name, "other": name}
                print(label, flush=True)
                theirs = partial(other, model, work)
                try:
                    figures = compare(
                        ours,
                        theirs,
                        work.tokens,
                        pairs if name == "generate" else 2,
                        seconds,
                        # The long-tailed runs follow the uniform ones of the same model.
                        warm_up=work.name == "uniform",
                    )
                except RuntimeError as error:
                    figures = {"failed": str(error)[:300]}
                print(json.dumps(figures.get("ratio_cpu", figures)), flush=True)
                results.append({**label, **figures})
            profiles[f"{size} {work.name}"] = profile(ours)
    return {"results": results, "profiles": profiles}


def environment() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    load = os.getloadavg()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "OMP_NUM_THREADS=1 python " + " ".join(sys.argv),
        "processor": processor,
        "cores": os.cpu_count(),
        "load_average_at_end": [round(x, 1) for x in load],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


def markdown(report: dict[str, Any]) -> str:
    e = report["environment"]
    lines = [
        "# Embedded sampler against transformers",
        "",
        f"`{e['command']}`, {e['date']}; {e['processor']}, {e['cores']} cores, "
        f"load average {e['load_average_at_end']}; Python {e['python']}, torch {e['torch']}, "
        f"transformers {e['transformers']}, {e['threads']} thread, float32.",
        "",
        f"{PROMPTS} prompts x {GROUP} rollouts. Ratios are theirs / ours within a pair (above 1: the "
        "embedded sampler is faster): median (range). Tokens per second of processor time: median.",
        "",
        "| model | workload | against | pairs | tokens | ours /s | theirs /s | ratio, cpu | ratio, wall |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report["results"]:
        head = f"| {r['model']} | {r['workload']} | {r['other']} "
        if "failed" in r:
            lines.append(head + f"| did not run: {r['failed'].splitlines()[0]} | | | | | |")
            continue
        ratio = {
            k: f"{r[k]['median']:.2f} ({r[k]['min']:.2f} to {r[k]['max']:.2f})"
            for k in ("ratio_cpu", "ratio_wall")
        }
        lines.append(
            head + f"| {r['pairs']} | {r['tokens']} "
            f"| {r['embedded_tokens_per_cpu_s']['median']:.0f} "
            f"| {r['other_tokens_per_cpu_s']['median']:.0f} "
            f"| {ratio['ratio_cpu']} | {ratio['ratio_wall']} |"
        )
    lines += ["", "## What limits the embedded sampler", "", "Own time, share of a call:", ""]
    for name, rows in report["profiles"].items():
        parts = ", ".join(f"`{r['function']}` {r['share']:.0%}" for r in rows[:8])
        lines.append(f"- {name}: {parts}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small model only, three pairs")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for the report"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = run_all(args.quick)
    report["environment"] = environment()
    args.out.mkdir(parents=True, exist_ok=True)
    name = "sampler-quick" if args.quick else "sampler"
    (args.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / f"{name}.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
