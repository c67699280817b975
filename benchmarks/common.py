"""What the speed benchmarks share: random models, workloads, alternating pairs, the machine.

Qwen3 shapes with random weights. Every comparison is made of alternating pairs, and the ratio is taken
within each pair, so that a slow spell of the machine falls on both. Wall time and processor time of
the process are both kept: on a machine shared with others the second is the fairer one.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from srft.model.cpu.products import onednn_is_faster, product

RESULTS = Path(__file__).parent / "results"
PROMPTS, GROUP, MEAN, SIGMA, LONGEST = 16, 8, 75, 0.8, 900
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"sizes": (64, 128, 2), "heads": (4, 2, 16), "vocabulary": 200},
    "1M": {"sizes": (128, 384, 4), "heads": (4, 2, 32), "vocabulary": 200},
    "5M": {"sizes": (256, 768, 6), "heads": (8, 4, 32), "vocabulary": 200},
    "15M": {"sizes": (384, 1152, 8), "heads": (6, 3, 64), "vocabulary": 200},
    "60M": {"sizes": (512, 1536, 12), "heads": (8, 4, 64), "vocabulary": 32_000},
    "0.6B": {"sizes": (1024, 3072, 28), "heads": (16, 8, 128), "vocabulary": 151_936},
    "1.7B": {"sizes": (2048, 6144, 28), "heads": (16, 8, 128), "vocabulary": 151_936},
}


@dataclass(frozen=True)
class Workload:
    """Prompts (token ids) and how many tokens each of their rollouts has, [prompts, group]."""

    name: str
    prompts: list[list[int]]
    lengths: np.ndarray

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())


def make_workloads(
    prompts: int = PROMPTS, group: int = GROUP, mean: int = MEAN, longest: int = LONGEST
) -> list[Workload]:
    """Uniform: every response ``mean`` tokens. Long-tailed: drawn once from a log-normal of that mean
    (sigma 0.8). Prompts are about a third of the mean response."""
    random = np.random.default_rng(0)
    low, high = max(2, round(mean * 0.27)), max(4, round(mean * 0.41))
    texts = [random.integers(3, 200, n).tolist() for n in random.integers(low, high, prompts)]
    tailed = random.lognormal(np.log(mean) - SIGMA**2 / 2, SIGMA, (prompts, group))
    return [
        Workload("uniform", texts, np.full((prompts, group), mean)),
        Workload("long-tailed", texts, np.clip(tailed.round().astype(int), 2, longest)),
    ]


def make_model(size: str, device: str = "cpu", positions: int = 1024) -> Any:
    shape = SHAPES[size]
    hidden, inner, layers = shape["sizes"]
    heads, kv_heads, head_size = shape["heads"]
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape["vocabulary"],
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_size,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return model


def make_tokenizer(size: str = "1M") -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(min(SHAPES[size]["vocabulary"], 1000))}
    core = Tokenizer(WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0")


# -- timing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    wall: float
    cpu: float


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], Any]) -> Timing:
    """Seconds of one call. A call that returns a Timing was timed elsewhere, in its own process."""
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    synchronize()
    if isinstance(result, Timing):
        return result
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def compare(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    pairs: int,
    seconds: float,
    warm_up: bool = True,
) -> dict[str, Any]:
    """Alternating pairs, at least two, until ``pairs`` are done or ``seconds`` have passed. Ratios are
    theirs / ours."""
    if warm_up:
        timed(ours)
        timed(theirs)
    done: list[tuple[Timing, Timing]] = []
    begin = time.perf_counter()
    while len(done) < pairs and (len(done) < 2 or time.perf_counter() - begin < seconds):
        if len(done) % 2 == 0:
            a, b = timed(ours), timed(theirs)
        else:
            b, a = timed(theirs), timed(ours)
        done.append((a, b))
    return paired(done)


def paired(done: list[tuple[Timing, Timing]]) -> dict[str, Any]:
    """Medians and ranges of pairs (ours, theirs)."""
    return {
        "pairs": len(done),
        "ours_cpu_s": summary([a.cpu for a, _ in done]),
        "theirs_cpu_s": summary([b.cpu for _, b in done]),
        "ours_wall_s": summary([a.wall for a, _ in done]),
        "theirs_wall_s": summary([b.wall for _, b in done]),
        "ratio_cpu": summary([b.cpu / a.cpu for a, b in done]),
        "ratio_wall": summary([b.wall / a.wall for a, b in done]),
    }


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def seconds_and_ratios(row: dict[str, Any], digits: int) -> str:
    """Cells of a table: processor seconds of both sides, ratios of processor and of wall time."""
    ours, theirs = row["ours_cpu_s"]["median"], row["theirs_cpu_s"]["median"]
    return (
        f"| {ours:.{digits}f} | {theirs:.{digits}f} | {spread(row['ratio_cpu'])} "
        f"| {spread(row['ratio_wall'])} |"
    )


# -- memory --------------------------------------------------------------------------------------


class PeakMemory:
    """MiB above what was held before: of the device, or of this process's resident memory (Linux).

    For resident memory run in a process of its own, with MALLOC_MMAP_THRESHOLD_=65536, so that freed
    memory goes back at once and the mark shows what is in use.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.mib = 0.0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            self.before = resident_mib("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        return self

    def __exit__(self, *_: object) -> None:
        mark = torch.cuda.max_memory_allocated() / 2**20 if self.cuda else resident_mib("VmHWM")
        self.mib = mark - self.before


def resident_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}: this benchmark needs Linux")


# -- arithmetic ----------------------------------------------------------------------------------


def matrix_rate(device: str = "cpu") -> dict[str, float]:
    """Measured rate of matrix products in 1e9 operations a second of processor time (of wall time on a
    GPU): PyTorch's own, and the fastest form known here. Factors are float32 on a CPU, bfloat16 on a
    GPU."""
    if device == "cuda":
        a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        best = min(timed(lambda: a @ a).wall for _ in range(20))
        return {"torch": 2 * 8192**3 / best / 1e9, "best": 2 * 8192**3 / best / 1e9}
    x, weight = torch.randn(4096, 1024), torch.randn(1024, 1024)
    work = 2 * 4096 * 1024 * 1024
    rates = {}
    for name, form in (("torch", lambda: x @ weight.t()), ("best", lambda: product(x, weight))):
        form()
        rates[name] = work / min(timed(form).cpu for _ in range(7)) / 1e9
    rates["best"] = max(rates.values())
    return rates


def needed_operations(model: Any, sequences: list[tuple[int, int, int]]) -> float:
    """Operations of a forward and backward pass over (prompt id, prompt length, response length): each
    prompt once, response tokens alone through the head, causal attention, nothing computed twice."""
    config = model.config
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in n
    )
    if not config.tie_word_embeddings:
        matrices -= config.vocab_size * config.hidden_size
    prompts = {key: length for key, length, _ in sequences}
    responses = sum(length for _, _, length in sequences)
    attended = sum(n * n / 2 for n in prompts.values())
    attended += sum(length * (prompt + length / 2) for _, prompt, length in sequences)
    width = config.num_attention_heads * config.head_dim
    forward = 2 * matrices * (sum(prompts.values()) + responses)
    forward += 2 * responses * config.hidden_size * config.vocab_size
    forward += 4 * attended * width * config.num_hidden_layers
    return 3 * forward


# -- reports -------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    packages = ("torch", "transformers", "trl", "liger-kernel", "triton", "vllm")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python " + " ".join(sys.argv),
        "processor": processor,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "load_average_at_end": [round(x, 1) for x in os.getloadavg()],
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "onednn_products": onednn_is_faster(),
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def about(e: dict[str, Any]) -> str:
    """The line under a report's title."""
    where = e["gpu"] or f"{e['processor']}, {e['cores']} cores, {e['threads']} thread(s)"
    return (
        f"`{e['command']}`, {e['date']}; {where}, load average at the end {e['load_average_at_end']}; "
        f"Python {e['python']}, torch {e['torch']}, transformers {e['transformers']}, TRL {e['trl']}."
    )


def write(name: str, report: dict[str, Any], text: str, folder: Path = RESULTS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text.rstrip() + "\n")
    print(text)


def arguments(doc: str | None, gpu: str | None = None) -> argparse.ArgumentParser:
    """Options that the speed benchmarks share; ``gpu`` says what --gpu runs, where there is one."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small model, few pairs")
    if gpu is not None:
        parser.add_argument("--gpu", action="store_true", help=gpu)
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny shapes on the CPU: that the code runs"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the report")
    return parser
