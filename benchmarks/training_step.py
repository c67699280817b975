"""A GRPO step against TRL's GRPOTrainer: same model, same tokens, alternating pairs.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py             # about 35 minutes
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --quick     # the small model, few pairs
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --dry-run   # a tiny model: that it runs

On a GPU, at 0.6B and 1.7B: benchmarks/training_step_gpu.py.

Random Qwen3 shapes; on the CPU 16 prompts x 8 rollouts (60M: 4 x 8) of uniform and of long-tailed
lengths (benchmarks/common.py), float32, one thread.

train     loss, backward pass, clipping and AdamW on given rollouts. TRL: ``compute_loss`` of a GRPOTrainer
          (loss_type grpo, its fused head) over rows of equal width, cut into the number of micro-batches
          that measured fastest for it in the warm-up. Ours: ``srft.trainer.update``. Before any timing the
          two gradients are compared; the run stops if they differ.
compiled  the same with the layers of both compiled (torch.compile); the seconds of the first call, in
          which they are, stand beside.
step      train with generation in front: ``model.generate`` in its best setting for TRL (which generates
          with it), the embedded sampler for ours. TRL's own bookkeeping around the two is left out, to
          its advantage.

MFU: the operations that the update needs (each prompt once, response tokens alone through the head,
nothing computed twice) over processor time, as a share of the machine's fastest measured rate of
matrix products. Peak memory: one update, in a process of its own, above what was held before.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import common
import numpy as np
import sampler
import torch
import trl
from datasets import Dataset

from srft.model.loading import prepare
from srft.model.model_config import ModelConfig
from srft.model.policy import Policy
from srft.objective.method import Progress
from srft.objective.methods import get_method
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.rollout_config import RolloutConfig
from srft.trainer.optimization import build_optimizer
from srft.trainer.train_config import TrainConfig
from srft.trainer.update import update
from srft.types import TrainingSequence

LEARNING_RATE = 1e-6
CUTS = (1, 4, 16)
MOST_BYTES = 6 * 2**30
WORKLOADS = ("uniform", "long-tailed")
# Model, prompts, lengths, what is measured, pairs, seconds.
CASES = [
    ("1M", 16, "uniform", ("train", "compiled", "step"), 7, 40.0),
    ("1M", 16, "long-tailed", ("train", "compiled", "step"), 5, 60.0),
    ("5M", 16, "uniform", ("train", "compiled", "step"), 5, 60.0),
    ("5M", 16, "long-tailed", ("train", "step"), 2, 60.0),
    ("60M", 4, "uniform", ("train",), 2, 60.0),
    ("60M", 4, "long-tailed", ("train",), 2, 60.0),
]


def make_rollouts(work: common.Workload, vocabulary: int = 200) -> list[TrainingSequence]:
    """Rollouts of the workload's lengths with random tokens and mixed rewards."""
    random = np.random.default_rng(1)
    return [
        TrainingSequence(
            prompt_ids=tuple(prompt),
            response_ids=tuple(random.integers(3, vocabulary, length).tolist()),
            group=group,
            is_demo=False,
            reward=float(i % 2),
            correct=bool(i % 2),
        )
        for group, prompt in enumerate(work.prompts)
        for i, length in enumerate(work.lengths[group])
    ]


def operations(model: Any, rollouts: list[TrainingSequence]) -> float:
    return common.needed_operations(
        model, [(r.group, len(r.prompt_ids), len(r.response_ids)) for r in rollouts]
    )


class Ours:
    """``srft``: packed rows, one forward pass over all tokens."""

    def __init__(
        self,
        model: Any,
        rollouts: list[TrainingSequence],
        options: ModelConfig | None = None,
        budget: int = 8192,
    ) -> None:
        self.model = model
        self.policy = Policy(model, common.make_tokenizer(), options or ModelConfig())
        prepare(model, self.policy.config)
        self.method = get_method("grpo", {"advantage_epsilon": 1e-4})
        self.config = TrainConfig(learning_rate=LEARNING_RATE, tokens_per_micro_batch=budget)
        self.optimizer = build_optimizer(model, self.config)
        self.rollouts = rollouts

    def train(self) -> None:
        result = update(
            self.policy,
            self.optimizer,
            self.method,
            self.rollouts,
            config=self.config,
            progress=Progress(0, 1),
            step=0,
        )
        assert result.refused is None


class Theirs:
    """TRL: rows padded to the longest, in ``cuts`` micro-batches."""

    def __init__(
        self,
        model: Any,
        rollouts: list[TrainingSequence],
        cuts: int,
        compute: Callable[[], Any] = nullcontext,
    ) -> None:
        self.device = next(model.parameters()).device
        arguments = trl.GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=len(rollouts) // cuts,
            gradient_accumulation_steps=cuts,
            num_generations=common.GROUP,
            max_completion_length=max(len(r.response_ids) for r in rollouts),
            loss_type="grpo",
            beta=0.0,
            learning_rate=LEARNING_RATE,
            use_cpu=self.device.type == "cpu",
            bf16=False,  # ``compute`` does it
            gradient_checkpointing=False,
            report_to=[],
        )
        self.trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "w1"}] * len(rollouts)),
            processing_class=common.make_tokenizer(),
        )
        self.trainer.current_gradient_accumulation_steps = cuts
        self.model = self.trainer.model
        self.compute = compute
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.batches = [
            self._inputs([rollouts[i] for i in part])
            for part in np.array_split(np.arange(len(rollouts)), cuts)
        ]

    def _inputs(self, rollouts: list[TrainingSequence]) -> dict[str, Any]:
        prompts = [list(r.prompt_ids) for r in rollouts]
        responses = [list(r.response_ids) for r in rollouts]
        left, right = max(map(len, prompts)), max(map(len, responses))
        rewards = torch.tensor([r.reward for r in rollouts])
        groups = rewards.view(-1, common.GROUP)
        centred = groups - groups.mean(1, keepdim=True)
        advantages = (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()
        batch = {
            "prompt_ids": [[0] * (left - len(p)) + p for p in prompts],
            "prompt_mask": [[0] * (left - len(p)) + [1] * len(p) for p in prompts],
            "completion_ids": [r + [0] * (right - len(r)) for r in responses],
            "completion_mask": [[1] * len(r) + [0] * (right - len(r)) for r in responses],
            "advantages": advantages,
            "num_items_in_batch": sum(map(len, responses)),
        }
        return {name: torch.as_tensor(value).to(self.device) for name, value in batch.items()}

    def backward(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self.batches:
            with self.compute():
                loss = self.trainer.compute_loss(self.model, batch)
            loss.backward()

    def train(self) -> None:
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def check_same_gradient(ours: Ours, theirs: Theirs, tolerance: float = 1e-3) -> float:
    """Largest difference between the two gradients, relative to the largest entry.

    The clipped gradient of ours is read off before its optimizer step.
    """
    kept: dict[str, torch.Tensor] = {}

    def keep(*_: Any, **__: Any) -> None:
        kept.update({n: p.grad.clone() for n, p in ours.model.named_parameters()})

    handle = ours.optimizer.register_step_pre_hook(keep)
    ours.train()
    handle.remove()
    theirs.backward()
    torch.nn.utils.clip_grad_norm_(theirs.model.parameters(), 1.0)
    pairs = [(p.grad, kept[n]) for n, p in theirs.model.named_parameters()]
    scale = max(float(a.abs().max()) for a, _ in pairs)
    worst = max(float((a - b).abs().max()) for a, b in pairs) / scale
    assert worst < tolerance, f"the two gradients differ by {worst:.2g} of the largest entry"
    return worst


def possible_cuts(size: str, rollouts: list[TrainingSequence]) -> list[int]:
    """Numbers of micro-batches of whole groups whose padded rows leave about 6 GiB of activations."""
    hidden, inner, layers = common.SHAPES[size]["sizes"]
    width = max(len(r.prompt_ids) for r in rollouts) + max(len(r.response_ids) for r in rollouts)
    numbers = len(rollouts) * width * layers * (14 * hidden + 4 * inner)
    whole = [cuts for cuts in CUTS if cuts <= len(rollouts) // common.GROUP]
    return [cuts for cuts in whole if 4 * numbers / cuts < MOST_BYTES] or whole[-1:]


def fastest_cut(build: Callable[[int], Theirs], possible: list[int]) -> tuple[Theirs, int]:
    """TRL in the number of micro-batches that is fastest, each tried twice (once where it is slow)."""
    tried: list[tuple[float, int, Theirs]] = []
    for cuts in possible:
        theirs = build(cuts)
        best = common.timed(theirs.train).wall
        if best < 30:
            best = min(best, common.timed(theirs.train).wall)
        tried.append((best, cuts, theirs))
    _, cuts, theirs = min(tried, key=lambda item: item[0])
    return theirs, cuts


def peak_memory(side: str, size: str, prompts: int, name: str, cuts: int) -> float:
    """MiB of one update, in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--memory", f"{side},{size},{prompts},{name},{cuts}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def measure_memory(side: str, size: str, prompts: str, name: str, cuts: str) -> float:
    work = next(w for w in common.make_workloads(int(prompts)) if w.name == name)
    rollouts = make_rollouts(work)
    model = common.make_model(size)
    one = Ours(model, rollouts) if side == "ours" else Theirs(model, rollouts, int(cuts))
    for parameter in one.model.parameters():  # the optimizer's state is no part of the comparison
        parameter.grad = torch.zeros_like(parameter)
    one.optimizer.step()
    with common.PeakMemory("cpu") as peak:
        one.train()
    return peak.mib


def run_case(
    size: str,
    prompts: int,
    name: str,
    what: tuple[str, ...],
    pairs: int,
    seconds: float,
    rate: float,
) -> list[dict[str, Any]]:
    work = next(w for w in common.make_workloads(prompts) if w.name == name)
    model = common.make_model(size)
    rollouts = make_rollouts(work)
    needed = operations(model, rollouts)
    theirs, cuts = fastest_cut(
        lambda cuts: Theirs(copy.deepcopy(model), rollouts, cuts), possible_cuts(size, rollouts)
    )
    ours = Ours(copy.deepcopy(model), rollouts)
    label = {"model": size, "workload": name, "prompts": prompts, "trl_micro_batches": cuts}
    label["gradient_difference"] = check_same_gradient(
        ours, Theirs(copy.deepcopy(model), rollouts, cuts)
    )
    label["tokens"] = sum(len(r.response_ids) for r in rollouts)
    engine = EmbeddedEngine(ours.model, common.make_tokenizer(), RolloutConfig())

    def our_step() -> None:
        sampler.run_embedded(engine, work)
        ours.train()

    def their_step() -> None:
        theirs.model.eval()
        sampler.run_generate(theirs.model, work)
        theirs.train()

    results = []
    for kind in what:
        a, b, first = ours.train, theirs.train, None
        if kind == "step":
            a, b = our_step, their_step
        if kind == "compiled":
            quick = Ours(copy.deepcopy(model), rollouts, ModelConfig(compile=True))
            other = Theirs(copy.deepcopy(model), rollouts, cuts)
            for layer in other.model.model.layers:
                layer.compile()
            a, b = quick.train, other.train
            first = [common.timed(a).wall, common.timed(b).wall]
        figures = common.compare(a, b, pairs, seconds, warm_up=kind == "train")
        entry = {**label, "what": kind, "first_call_s": first, **figures}
        if kind != "step":
            for side in ("ours", "theirs"):
                entry[f"mfu_{side}"] = needed / entry[f"{side}_cpu_s"]["median"] / rate / 1e9
        if kind == "train":
            for side in ("ours", "theirs"):
                entry[f"peak_mib_{side}"] = peak_memory(side, size, prompts, name, cuts)
        results.append(entry)
        print(json.dumps({**label, "what": kind, **figures["ratio_cpu"]}), flush=True)
    return results


def profile(size: str, name: str) -> list[str]:
    """The operators in which one update spends most of its own time."""
    work = next(w for w in common.make_workloads() if w.name == name)
    ours = Ours(common.make_model(size), make_rollouts(work))
    ours.train()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        ours.train()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return [f"`{row.key}` {row.self_cpu_time_total / total:.0%}" for row in rows[:8]]


def markdown(report: dict[str, Any]) -> str:
    rate = report["matrix_rate"]
    lines = [
        "# A GRPO step against TRL",
        "",
        common.about(report["environment"]),
        "",
        "Ratios are TRL / srft within a pair (above 1: srft is faster): median (range). Seconds of processor "
        f"time: median. Matrix products on this machine, one thread, float32: {rate['torch']:.0f} billion "
        f"operations a second as PyTorch calls them, {rate['best']:.0f} in the fastest form; MFU is a share "
        "of the second. compiled: the layers of both; seconds of the first call in brackets.",
        "",
        "| model | lengths | rollouts | what | pairs | srft s | TRL s | ratio, cpu | ratio, wall "
        "| MFU srft, TRL | peak MiB srft, TRL | gradients differ |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report["results"]:
        first = r["first_call_s"]
        mfu = f"{r['mfu_ours']:.0%}, {r['mfu_theirs']:.0%}" if "mfu_ours" in r else ""
        peak = (
            f"{r['peak_mib_ours']:.0f}, {r['peak_mib_theirs']:.0f}" if "peak_mib_ours" in r else ""
        )
        what = r["what"] + (f" ({first[0]:.0f}, {first[1]:.0f})" if first else "")
        lines.append(
            f"| {r['model']} | {r['workload']} | {r['prompts']} x {common.GROUP} | {what} | {r['pairs']} "
            f"| {r['ours_cpu_s']['median']:.2f} | {r['theirs_cpu_s']['median']:.2f} "
            f"| {common.spread(r['ratio_cpu'])} | {common.spread(r['ratio_wall'])} | {mfu} | {peak} "
            f"| {r['gradient_difference']:.0e} |"
        )
    lines += [
        "",
        "## What limits the update",
        "",
        "Own time of operators, share of one update:",
        "",
    ]
    lines += [f"- {name}: {', '.join(rows)}" for name, rows in report["profiles"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--memory", help="used by the benchmark itself")
    parser.add_argument("--only", help="model sizes to run, separated by commas")
    options = parser.parse_args()
    if options.memory:
        print(measure_memory(*options.memory.split(",")))
        return
    rate = common.matrix_rate()
    cases = [c for c in CASES if not options.only or c[0] in options.only.split(",")]
    if options.quick:
        cases = [(*c[:4], 2, 10.0) for c in cases if c[0] == "1M"]
    if options.dry_run:
        cases = [("tiny", 2, name, ("train", "compiled", "step"), 2, 0.0) for name in WORKLOADS]
    results = [entry for case in cases for entry in run_case(*case, rate=rate["best"])]
    sizes = dict.fromkeys((c[0], c[2]) for c in cases)
    report = {
        "environment": common.environment(),
        "matrix_rate": rate,
        "results": results,
        "profiles": {f"{s} {n}": profile(s, n) for s, n in sizes if s != "60M"},
    }
    name = "training_step" + ("_quick" if options.quick else "")
    name += "_dry_run" if options.dry_run else ""
    common.write(name, report, markdown(report), options.out)


if __name__ == "__main__":
    main()
