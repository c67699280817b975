"""The embedded sampler against what else generates: seconds for the same tokens, in alternating pairs.

    OMP_NUM_THREADS=1 python benchmarks/sampler.py            # full run, about fifteen minutes
    OMP_NUM_THREADS=1 python benchmarks/sampler.py --quick    # the small model, few pairs
    OMP_NUM_THREADS=1 python benchmarks/sampler.py --dry-run  # a tiny model: that it runs
    python benchmarks/sampler.py --gpu                        # 0.6B shape, batch of 64, bfloat16
    OMP_NUM_THREADS=1 python benchmarks/sampler.py --gpu --dry-run

Random Qwen3 shapes of about 1M and 5M parameters, float32, on the CPU, one thread; 16 prompts x 8
rollouts of uniform and of long-tailed lengths (benchmarks/common.py). Lengths are forced alike on every
contestant: end-of-sequence is disabled, and each rollout has its own limit (a row limit in ours, a
stopping criterion in ``generate``, ``max_tokens`` of each request elsewhere). So every contestant yields
exactly the same numbers of tokens. The third workload, lab, is the base model that ships with the
package on its own tasks, ending as it likes: there a ratio is of seconds per token.

Contestants: ``EmbeddedEngine``; ``model.generate`` in what measured as its best setting (one left-
padded batch, ``num_return_sequences``, dynamic cache, sdpa, inference mode, no processors that change
nothing); transformers' continuous batching; vLLM's engine for CPUs, in a process of its own with its own
Python (``--vllm``, by default .venv-vllm beside the benchmarks, where it is there), timed in that process.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import GROUP, Timing, Workload, make_model, make_tokenizer
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

import srft.rollout.embedded as embedded
from srft.rollout.rollout_config import RolloutConfig
from srft.rollout.rows import Rows, Ticket
from srft.types import RolloutRequest, SamplingParams

VLLM = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"


def run_embedded(engine: embedded.EmbeddedEngine, work: Workload) -> int:
    class LimitedRows(Rows):
        def add(self, tickets: list[Ticket], requests: list[RolloutRequest]) -> slice:
            new = super().add(tickets, requests)
            self.limit[new] = [work.lengths[t.request, t.sample] for t in tickets]
            return new

    requests = [
        RolloutRequest(tuple(p), work.lengths.shape[1], 100 * i) for i, p in enumerate(work.prompts)
    ]
    params = SamplingParams(max_tokens=int(work.lengths.max()))
    original = embedded.Rows
    embedded.Rows = LimitedRows
    try:
        groups = engine.generate(requests, params)
    finally:
        embedded.Rows = original
    return sum(len(c.token_ids) for group in groups for c in group)


class _Limits(StoppingCriteria):
    def __init__(self, limits: np.ndarray, width: int, device: torch.device) -> None:
        self.ends = (torch.from_numpy(limits.ravel()) + width).to(device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self.ends <= input_ids.shape[1]


def run_generate(model: Any, work: Workload) -> int:
    width = max(map(len, work.prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in work.prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in work.prompts])
    device = model.device
    with torch.inference_mode():
        out = model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=work.lengths.shape[1],
            max_new_tokens=int(work.lengths.max()),
            stopping_criteria=StoppingCriteriaList([_Limits(work.lengths, width, device)]),
        )
    assert out.shape == (work.lengths.size, width + work.lengths.max())
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


class Lab:
    """The base model that ships, on its own tasks, until it ends or has 96 tokens; seconds per thousand
    tokens, because every contestant draws its own responses."""

    LONGEST = 96

    def __init__(self) -> None:
        from srft.lab import lab_train
        from srft.model.loading import load_model, load_tokenizer
        from srft.model.model_config import ModelConfig

        config = ModelConfig(path="lab")
        self.model = load_model(config).eval()
        self.tokenizer = load_tokenizer(config)
        self.engine = embedded.EmbeddedEngine(self.model, self.tokenizer, RolloutConfig())
        texts = [str(row["prompt"]) for row in lab_train(common.PROMPTS)]
        self.prompts = [self.tokenizer(text)["input_ids"] for text in texts]
        self.seed = 0

    def ours(self) -> Timing:
        self.seed += 1
        requests = [
            RolloutRequest(tuple(p), GROUP, self.seed * 10_000 + 100 * i)
            for i, p in enumerate(self.prompts)
        ]
        params = SamplingParams(max_tokens=self.LONGEST)
        wall, cpu = time.perf_counter(), time.process_time()
        groups = self.engine.generate(requests, params)
        tokens = sum(len(c.token_ids) for group in groups for c in group)
        return _per_thousand(wall, cpu, tokens)

    def generate(self) -> Timing:
        width = max(map(len, self.prompts))
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in self.prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in self.prompts])
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=GROUP,
                max_new_tokens=self.LONGEST,
                eos_token_id=end,
                pad_token_id=pad,
            )[:, width:]
        ended = (out == end).int()
        tokens = int(((ended.cumsum(1) - ended) == 0).sum())
        return _per_thousand(wall, cpu, tokens)


def _per_thousand(wall: float, cpu: float, tokens: int) -> Timing:
    factor = 1000 / tokens
    return Timing((time.perf_counter() - wall) * factor, (time.process_time() - cpu) * factor)


class Vllm:
    """vLLM in its own process: each call generates the workload and is timed there."""

    def __init__(self, python: Path, model: Any, tokenizer: Any, dtype: str = "float32") -> None:
        self.folder = tempfile.TemporaryDirectory()
        model.save_pretrained(self.folder.name)
        tokenizer.save_pretrained(self.folder.name)
        worker = Path(__file__).parent / "vllm_worker.py"
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
        self.log = Path(self.folder.name, "log").open("w")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [str(python), str(worker), self.folder.name, dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def run(self, work: Workload) -> Timing:
        assert self.process.stdin and self.process.stdout
        job = {"prompts": work.prompts, "lengths": work.lengths.tolist()}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                found = json.loads(line.removeprefix("RESULT "))
                assert found["tokens"] == work.tokens, found
                return Timing(found["wall"], found["cpu"])
        tail = Path(self.log.name).read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"vLLM ended: {tail}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()


def checked(run: Callable[[], int], tokens: int) -> Callable[[], None]:
    def call() -> None:
        produced = run()
        assert produced == tokens, (produced, tokens)

    return call


def run_all(quick: bool, dry: bool, vllm: Path) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    profiles: dict[str, Any] = {}
    pairs, seconds = (2, 10.0) if quick or dry else (7, 40.0)

    def measure(label: dict[str, Any], ours: Callable, theirs: Callable, most: int = pairs) -> None:
        print(label, flush=True)
        # The long-tailed runs follow the uniform ones of the same model, and are long.
        warm_up = label["workload"] != "long-tailed"
        try:
            figures = common.compare(ours, theirs, most, seconds, warm_up)
        except RuntimeError as error:
            figures = {"failed": str(error)[:300]}
        print(json.dumps(figures.get("ratio_cpu", figures)), flush=True)
        results.append({**label, **figures})

    lab = Lab()
    measure({"model": "lab", "workload": "lab", "other": "generate"}, lab.ours, lab.generate)
    for size in ("tiny",) if dry else ("1M",) if quick else ("1M", "5M"):
        model = make_model(size)
        engine = embedded.EmbeddedEngine(model, make_tokenizer(), RolloutConfig())
        server = Vllm(vllm, model, make_tokenizer(size)) if vllm.exists() else None
        for work in common.make_workloads(*((2, 8, 10, 40) if dry else ())):
            label = {"model": size, "workload": work.name, "tokens": work.tokens}
            ours = checked(partial(run_embedded, engine, work), work.tokens)
            theirs = checked(partial(run_generate, model, work), work.tokens)
            measure(
                {**label, "other": "generate"}, ours, theirs, pairs if work.name == "uniform" else 2
            )
            if server is not None:
                measure({**label, "other": "vLLM"}, ours, partial(server.run, work), 4)
            if not quick and size == "1M" and work.name == "uniform":
                other = checked(partial(run_continuous, model, work), work.tokens)
                measure({**label, "other": "continuous batching"}, ours, other, 2)
            profiles[f"{size} {work.name}"] = profile(partial(run_embedded, engine, work))
        if server is not None:
            server.close()
    return {"results": results, "profiles": profiles}


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Embedded sampler against what else generates",
        "",
        common.about(report["environment"]),
        "",
        f"{common.PROMPTS} prompts x {GROUP} rollouts, float32. Ratios are theirs / ours within a pair "
        "(above 1: the embedded sampler is faster): median (range). Seconds of processor time: median; "
        "on the lab's tasks per thousand tokens.",
        "",
        "| model | workload | against | pairs | tokens | ours, s | theirs, s | ratio, cpu | ratio, wall |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report["results"]:
        head = f"| {r['model']} | {r['workload']} | {r['other']} "
        if "failed" in r:
            lines.append(head + f"| did not run: {r['failed'].splitlines()[0]} | | | | | |")
            continue
        figures = common.seconds_and_ratios(r, 3)
        lines.append(head + f"| {r['pairs']} | {r.get('tokens', '')} {figures}")
    lines += ["", "## What limits the embedded sampler", "", "Own time, share of a call:", ""]
    for name, rows in report["profiles"].items():
        parts = ", ".join(f"`{r['function']}` {r['share']:.0%}" for r in rows[:8])
        lines.append(f"- {name}: {parts}")
    return "\n".join(lines)


def run_gpu(dry: bool) -> dict[str, Any]:
    """64 rollouts of 512 tokens (dry: 8 of 12) under bfloat16 autocast; weights are float32."""
    device, size = ("cpu", "tiny") if dry else ("cuda", "0.6B")
    prompts, mean = (1, 12) if dry else (8, 512)
    model = make_model(size, device, positions=4096)
    results = []
    with torch.autocast(device, dtype=torch.bfloat16):
        engine = embedded.EmbeddedEngine(model, make_tokenizer(size), RolloutConfig())
        for work in common.make_workloads(prompts, 8, mean, 8 * mean):
            ours = checked(partial(run_embedded, engine, work), work.tokens)
            theirs = checked(partial(run_generate, model, work), work.tokens)
            figures = common.compare(ours, theirs, 3, 120.0)
            label = {
                "model": size,
                "workload": work.name,
                "other": "generate",
                "tokens": work.tokens,
            }
            results.append({**label, **figures})
    return {"results": results, "profiles": {}}


def main() -> None:
    parser = common.arguments(__doc__, "0.6B shape, 64 rollouts side by side, bfloat16")
    parser.add_argument("--vllm", type=Path, default=VLLM, help="a Python that has vLLM")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.gpu:
        report = run_gpu(options.dry_run)
    else:
        report = run_all(options.quick, options.dry_run, options.vllm)
    report["environment"] = common.environment()
    name = "sampler" + ("_gpu" if options.gpu else "") + ("_dry_run" if options.dry_run else "")
    name += "_quick" if options.quick else ""
    common.write(name, report, markdown(report), options.out)


if __name__ == "__main__":
    main()
