"""Time and peak memory of the output head: hidden states to log-probabilities, entropy, gradients.

    python benchmarks/head.py        # 4k tokens, vocabulary 4k to 65k: about four minutes of one core
    python benchmarks/head.py --sizes 1024x896x151936   # the head of a 0.5B model

What is measured, for T tokens, hidden width D and vocabulary V, in float32 on the CPU: one forward
pass to log-probabilities and entropy (without gradient through the entropy, as in training) and
the backward pass to the gradients of hidden states and weight.

- naive: logits, log-softmax, gather; the entropy from the same log-softmax under no_grad.
- srft: srft.model.head.fused_logprob_entropy.
- trl: TRL's ChunkedLogProbFunction with its own chunk size, as its trainers call it.
- liger: Liger's chunked selective log-prob as its chunked losses call it. It has no entropy.

Memory: a process of its own for each variant and size; the kernel's high-water mark of resident
memory over one pass, less what was resident before it. It includes the gradients, which every
variant must return (column "gradients").
Time: all variants in one process in turn, the order rotating, so that each repetition gives one
paired ratio; medians and ranges over repetitions. Load of other processes hits all variants alike.
Accuracy: largest relative difference from float64 over the first 64 tokens.

Writes benchmarks/results/head.json and head.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
SIZES = "4096x256x4096,4096x256x32768,4096x256x65536"
TRL_CHUNK = 32768  # trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE, whose module is slow to import
Scores = tuple[Tensor, Tensor | None]
Variant = Callable[[Tensor, Tensor, Tensor], Scores]


def naive(hidden: Tensor, weight: Tensor, target: Tensor) -> Scores:
    logp = (hidden @ weight.t()).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, target[:, None])[:, 0], entropy


def srft(hidden: Tensor, weight: Tensor, target: Tensor) -> Scores:
    from srft.model.head import fused_logprob_entropy

    logprob, entropy = fused_logprob_entropy(hidden, weight, target)
    return logprob, entropy.detach()


def trl(hidden: Tensor, weight: Tensor, target: Tensor) -> Scores:
    from trl.kernels import ChunkedLogProbFunction

    out = ChunkedLogProbFunction.apply(
        hidden,
        weight,
        None,
        target,
        1.0,
        TRL_CHUNK,
        None,
        1.0,
        ("log_probs", "entropy"),
    )
    return out[0], out[1].detach()


def liger(hidden: Tensor, weight: Tensor, target: Tensor) -> Scores:
    from liger_kernel.chunked_loss.fused_linear_ppo import (
        _SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE,
        _ChunkedSelectiveLogProbFunction,
    )

    out = _ChunkedSelectiveLogProbFunction.apply(
        hidden, weight, target, None, 1.0, _SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
    )
    return out, None


VARIANTS: dict[str, Variant] = {"naive": naive, "srft": srft, "trl": trl, "liger": liger}


def inputs(T: int, D: int, V: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(T, D).requires_grad_()
    # Logits with a spread of about 3, as a trained model's have.
    weight = (torch.randn(V, D) * 3 / D**0.5).requires_grad_()
    return hidden, weight, torch.randint(V, (T,))


def one_pass(variant: Variant, tensors: tuple[Tensor, Tensor, Tensor]) -> float:
    hidden, weight, target = tensors
    hidden.grad = weight.grad = None
    start = time.perf_counter()
    logprob, _ = variant(hidden, weight, target)
    (-logprob.mean()).backward()
    return time.perf_counter() - start


def resident_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def measure_memory(name: str, T: int, D: int, V: int) -> dict[str, float]:
    """Runs in a process of its own: MiB of the high-water mark above the inputs."""
    # Everything that is loaded once is loaded by a small pass.
    one_pass(VARIANTS[name], inputs(8, 8, 64))
    tensors = inputs(T, D, V)
    before = resident_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    one_pass(VARIANTS[name], tensors)
    return {"peak_mib": (resident_kb("VmHWM") - before) / 1024}


def measure_time(names: list[str], T: int, D: int, V: int, seconds: float) -> dict[str, object]:
    tensors = inputs(T, D, V)
    for name in names:
        one_pass(VARIANTS[name], inputs(8, 8, 64))
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or (time.perf_counter() < end and rounds < 15):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(one_pass(VARIANTS[name], tensors))
        rounds += 1
    return {"seconds": times, "error": {name: relative_error(name, tensors) for name in names}}


def relative_error(name: str, tensors: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    hidden, weight, target = (
        x.detach()[:64] if i != 1 else x.detach() for i, x in enumerate(tensors)
    )
    logprob, entropy = VARIANTS[name](hidden, weight, target)
    expected = naive(hidden.double(), weight.double(), target)
    errors = {"logprob": float(((logprob - expected[0]) / expected[0]).abs().max())}
    if entropy is not None and expected[1] is not None:
        errors["entropy"] = float(((entropy - expected[1]) / expected[1]).abs().max())
    return errors


def in_subprocess(*arguments: str) -> dict | None:
    """The JSON that this file prints when run with ``arguments``; None where it does not finish."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    # Freed memory goes back at once, so that the mark shows what is in use.
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536"} if arguments[0] == "--memory" else {}
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, env=environment
    )
    if done.returncode != 0:
        print(f"{' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(size: str, seconds: float) -> dict:
    peaks = {}
    for name in VARIANTS:
        found = in_subprocess("--memory", name, "--sizes", size)
        if found is not None:
            peaks[name] = found["peak_mib"]
    names = list(peaks)
    timed = in_subprocess("--time", ",".join(names), "--sizes", size, "--seconds", str(seconds))
    assert timed is not None, "timing failed although each variant ran alone"
    T, D, V = parse(size)
    times = timed["seconds"]
    return {
        "size": {"T": T, "D": D, "V": V},
        "peak_mib": peaks,
        "gradients_mib": 4 * D * (T + V) / 2**20,
        "seconds": times,
        "error": timed["error"],
        "time_ratio_to_naive": {
            name: summary([a / b for a, b in zip(times[name], times["naive"], strict=True)])
            for name in names
        },
    }


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def machine() -> dict[str, object]:
    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    versions = {}
    for package in ("torch", "transformers", "trl", "liger-kernel"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
    }


def table(report: dict) -> str:
    about = report["machine"]
    lines = [
        "# Output head: time and memory",
        "",
        f"{report['date']}; {about['cpu']}, {about['threads']} thread(s), load average "
        f"{about['load_average']:.1f}; torch {about['torch']}, trl {about['trl']}, liger-kernel "
        f"{about['liger-kernel']}.",
        f"Command: `{report['command']}`. float32, forward and backward. Peak memory is above the "
        "inputs and includes the gradients returned (given beside the size). Time ratios are to "
        "naive in the same repetition: median (lowest to highest). Errors are the largest relative "
        "differences from float64. Liger's function has no entropy.",
        "",
        "| T x D x V (gradients, MiB) | variant | peak, MiB | peak / naive | seconds, median | "
        "time / naive | repetitions | error log-prob | error entropy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in report["sizes"]:
        size = entry["size"]
        for name, peak in entry["peak_mib"].items():
            ratio, error = entry["time_ratio_to_naive"][name], entry["error"][name]
            entropy = f"{error['entropy']:.0e}" if "entropy" in error else "none"
            lines.append(
                f"| {size['T']} x {size['D']} x {size['V']} ({entry['gradients_mib']:.0f}) | {name} "
                f"| {peak:.0f} | 1/{entry['peak_mib']['naive'] / peak:.1f} "
                f"| {statistics.median(entry['seconds'][name]):.2f} "
                f"| {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) "
                f"| {len(entry['seconds'][name])} | {error['logprob']:.0e} | {entropy} |"
            )
    return "\n".join(lines) + "\n"


def parse(size: str) -> tuple[int, int, int]:
    T, D, V = (int(x) for x in size.split("x"))
    return T, D, V


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=SIZES, help="TxDxV, separated by commas")
    parser.add_argument("--seconds", type=float, default=20.0, help="time measured per size")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for head.json and head.md"
    )
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--time", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.sizes.split(",")
    if options.memory:
        print(json.dumps(measure_memory(options.memory, *parse(sizes[0]))))
        return
    if options.time:
        names = options.time.split(",")
        print(json.dumps(measure_time(names, *parse(sizes[0]), options.seconds)))
        return
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "benchmarks/head.py", *sys.argv[1:]]),
        "machine": machine(),
        "sizes": [],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        report["sizes"].append(measure(size, options.seconds))
        (options.out / "head.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.out / "head.md").write_text(table(report))
        print("\n".join(table(report).splitlines()[-len(VARIANTS) :]), flush=True)


if __name__ == "__main__":
    main()
