"""Time and peak memory of the output head: hidden states to log-probabilities, entropy, gradients.

    OMP_NUM_THREADS=1 python benchmarks/head.py     # to 4k x 256 x 64k and 1k x 1024 x 152k: twelve minutes
    OMP_NUM_THREADS=1 python benchmarks/head.py --sizes 2048x2048x151936   # the head of a 1.7B model
    python benchmarks/head.py --gpu                 # to 32k x 2048 x 152k, bfloat16
    OMP_NUM_THREADS=1 python benchmarks/head.py --gpu --dry-run

What is measured, for T tokens, hidden width D and vocabulary V, in float32 on the CPU: one forward
pass to log-probabilities and entropy (without gradient through the entropy, as in training) and
the backward pass to the gradients of hidden states and weight.

- naive: logits, log-softmax, gather; the entropy from the same log-softmax under no_grad.
- srft: srft.model.head.fused_logprob_entropy; on a GPU its Triton kernels.
- srft-torch: the same without oneDNN's products and without Triton (model.kernels=torch).
- trl: TRL's ChunkedLogProbFunction with its own chunk size, as its trainers call it.
- liger: Liger's chunked selective log-prob as its chunked losses call it. It has no entropy. (Its fused
  linear cross-entropy is a Triton kernel, which does not run on a CPU, and gives no log-probabilities.)
- products: the three matrix products alone, in the form and the tiles that srft uses: the floor.

Memory: a process of its own for each variant and size; the kernel's high-water mark of resident
memory over one pass, less what was resident before it (on a GPU the allocator's). It includes the
gradients, which every variant must return (column "gradients").
Time: all variants in one process in turn, the order rotating, so that each repetition gives one
paired ratio; medians and ranges over repetitions. Processor time on the CPU, wall time on a GPU.
Accuracy: largest relative difference from float64 over the first 64 tokens.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import common
import torch
from torch import Tensor

from srft.model.cpu.products import outer, product

SIZES = "4096x256x4096,4096x256x32768,4096x256x65536,1024x1024x151936"
GPU_SIZES = "4096x256x4096,8192x1024x151936,16384x1024x151936,8192x2048x151936,32768x2048x151936"
DRY_SIZES = "64x32x500"
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


def srft_torch(hidden: Tensor, weight: Tensor, target: Tensor) -> Scores:
    from srft.model.head import fused_logprob_entropy

    logprob, entropy = fused_logprob_entropy(hidden, weight, target, kernels="torch")
    return logprob, entropy.detach()


class _Products(torch.autograd.Function):
    """Not a head: its three products, with the logits themselves for their gradient."""

    TILE = (256, 4096)

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        last = None
        for h in hidden.split(_Products.TILE[0]):
            for w in weight.split(_Products.TILE[1]):
                last = product(h, w)
        assert last is not None
        return last.new_zeros(len(hidden))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        to_hidden, to_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        tokens, columns = _Products.TILE
        z = hidden.new_ones(tokens, columns)
        for v in range(0, len(weight), columns):
            w = weight[v : v + columns]
            for t in range(0, len(hidden), tokens):
                h = hidden[t : t + tokens]
                dz = z[: len(h), : len(w)]
                to_hidden[t : t + tokens] += product(dz, w.t())
                to_weight[v : v + columns] += outer(dz, h)
        return to_hidden, to_weight


def products(hidden: Tensor, weight: Tensor, target: Tensor) -> Scores:
    return _Products.apply(hidden, weight), None


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


VARIANTS: dict[str, Variant] = {
    "naive": naive,
    "srft": srft,
    "srft-torch": srft_torch,
    "trl": trl,
    "liger": liger,
    "products": products,
}


def inputs(T: int, D: int, V: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hidden = torch.randn(T, D, device=device).to(dtype).requires_grad_()
    # Logits with a spread of about 3, as a trained model's have.
    weight = (torch.randn(V, D, device=device) * 3 / D**0.5).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (T,), device=device)


def one_pass(variant: Variant, tensors: tuple[Tensor, Tensor, Tensor]) -> float:
    hidden, weight, target = tensors
    hidden.grad = weight.grad = None

    def both() -> None:
        logprob, _ = variant(hidden, weight, target)
        (-logprob.mean()).backward()

    timing = common.timed(both)
    return timing.wall if hidden.is_cuda else timing.cpu


def measure_memory(name: str, device: str, T: int, D: int, V: int) -> dict[str, float]:
    """Runs in a process of its own: MiB of the high-water mark above the inputs."""
    # Everything that is loaded once is loaded by a small pass.
    one_pass(VARIANTS[name], inputs(8, 32, 64, device))
    tensors = inputs(T, D, V, device)
    with common.PeakMemory(device) as peak:
        one_pass(VARIANTS[name], tensors)
    return {"peak_mib": peak.mib}


def measure_time(
    names: list[str], device: str, T: int, D: int, V: int, seconds: float
) -> dict[str, object]:
    if device == "cuda":
        _Products.TILE = (8192, 8192)
    tensors = inputs(T, D, V, device)
    for name in names:
        one_pass(VARIANTS[name], inputs(8, 32, 64, device))
    times: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or (time.perf_counter() < end and rounds < 15):
        turn = rounds % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(one_pass(VARIANTS[name], tensors))
        rounds += 1
    errors = {name: relative_error(name, tensors) for name in names if name != "products"}
    return {"seconds": times, "error": errors}


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


def measure(size: str, seconds: float, device: str) -> dict:
    peaks = {}
    T, D, V = parse(size)
    for name in VARIANTS:
        found = in_subprocess("--memory", name, "--sizes", size, "--device", device)
        if found is not None:
            peaks[name] = found["peak_mib"]
    names = list(peaks)
    joined = ",".join(names)
    timed = in_subprocess(
        *("--time", joined, "--sizes", size, "--seconds", str(seconds), "--device", device)
    )
    assert timed is not None, "timing failed although each variant ran alone"
    times = timed["seconds"]

    def ratios(other: str) -> dict[str, dict[str, float]]:
        if other not in times:
            return {}
        pairs = {n: zip(times[n], times[other], strict=True) for n in names}
        return {n: common.summary([a / b for a, b in pair]) for n, pair in pairs.items()}

    return {
        "size": {"T": T, "D": D, "V": V},
        "peak_mib": peaks,
        "gradients_mib": (2 if device == "cuda" else 4) * D * (T + V) / 2**20,
        "seconds": times,
        "error": timed["error"],
        "time_ratio_to_naive": ratios("naive"),
        "time_ratio_to_products": ratios("products"),
    }


def table(report: dict) -> str:
    lines = [
        "# Output head: time and memory",
        "",
        common.about(report["environment"]),
        "",
        f"liger-kernel {report['environment']['liger-kernel']}. Forward and backward. Peak memory is above "
        "the inputs and includes the gradients returned (given beside the size). Time ratios are within a "
        "repetition: median (lowest to highest). Errors are the largest relative differences from float64. "
        "Liger's function has no entropy; products are the three matrix products alone.",
        "",
        "| T x D x V (gradients, MiB) | variant | peak, MiB | naive / peak | seconds, median | time / naive "
        "| time / products | repetitions | error log-prob | error entropy |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in report["sizes"]:
        size, naive_peak = entry["size"], entry["peak_mib"].get("naive")
        for name, peak in entry["peak_mib"].items():
            to_naive = entry["time_ratio_to_naive"].get(name)
            error = entry["error"].get(name, {})
            shown = [f"{error[k]:.0e}" if k in error else "" for k in ("logprob", "entropy")]
            lines.append(
                f"| {size['T']} x {size['D']} x {size['V']} ({entry['gradients_mib']:.0f}) | {name} "
                f"| {peak:.0f} | {f'{naive_peak / max(peak, 0.1):.1f}' if naive_peak else ''} "
                f"| {statistics.median(entry['seconds'][name]):.3f} "
                f"| {common.spread(to_naive) if to_naive else ''} "
                f"| {common.spread(entry['time_ratio_to_products'][name])} "
                f"| {len(entry['seconds'][name])} | {shown[0]} | {shown[1]} |"
            )
    return "\n".join(lines)


def parse(size: str) -> tuple[int, int, int]:
    T, D, V = (int(x) for x in size.split("x"))
    return T, D, V


def main() -> None:
    parser = common.arguments(__doc__, "up to 32k x 2048 x 152k, bfloat16")
    parser.add_argument("--sizes", help="TxDxV, separated by commas")
    parser.add_argument("--seconds", type=float, default=30.0, help="time measured per size")
    parser.add_argument("--device", default="cpu", help="used by the benchmark itself")
    parser.add_argument("--memory", help="used by the benchmark itself")
    parser.add_argument("--time", help="used by the benchmark itself")
    options = parser.parse_args()
    chosen = DRY_SIZES if options.dry_run else GPU_SIZES if options.gpu else SIZES
    sizes = (options.sizes or chosen).split(",")
    if options.memory:
        print(json.dumps(measure_memory(options.memory, options.device, *parse(sizes[0]))))
        return
    if options.time:
        names = options.time.split(",")
        size = parse(sizes[0])
        print(json.dumps(measure_time(names, options.device, *size, options.seconds)))
        return
    device = "cuda" if options.gpu and not options.dry_run else "cpu"
    if options.quick:
        sizes, options.seconds = sizes[:1], 5.0
    report: dict = {"environment": common.environment(), "sizes": []}
    name = "head" + ("_gpu" if options.gpu else "") + ("_dry_run" if options.dry_run else "")
    name += "_quick" if options.quick else ""
    for size in sizes:
        report["sizes"].append(measure(size, options.seconds, device))
        report["environment"] = common.environment()
        common.write(name, report, table(report), options.out)


if __name__ == "__main__":
    main()
