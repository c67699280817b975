"""A GRPO step against TRL's GRPOTrainer: same model, same tokens, alternating pairs.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py           # about six minutes
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --quick   # the small model, few pairs

Models, prompts and response lengths are those of benchmarks/sampler.py: random Qwen3 shapes, 16
prompts x 8 rollouts, uniform and (the small model) long-tailed lengths, float32 on the CPU, one thread.

train   loss, backward pass, clipping and AdamW on 128 given rollouts. TRL: ``compute_loss`` of a
        GRPOTrainer (loss_type grpo, its fused head) over rows of equal width, cut into the number
        of micro-batches that measured fastest for it in the warm-up. Ours: ``srft.trainer.update``.
        Before any timing the two gradients are compared; the run stops if they differ.
step    the same with generation in front: ``model.generate`` in its best setting for TRL (which
        generates with it), the embedded sampler for ours. TRL's own bookkeeping around the two is
        left out, to its advantage.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sampler
import torch
import trl
from datasets import Dataset

from srft.model.attention import use_packed_attention
from srft.model.products import use_fast_products
from srft.objective.method import Progress
from srft.objective.methods import get_method
from srft.rollout.config import RolloutConfig
from srft.rollout.embedded import EmbeddedEngine
from srft.trainer.config import TrainConfig
from srft.trainer.optimization import build_optimizer
from srft.trainer.update import update
from srft.types import TrainingSequence

LEARNING_RATE = 1e-6
CUTS = (1, 8, 16)


def make_rollouts(work: sampler.Workload) -> list[TrainingSequence]:
    """128 rollouts of the workload's lengths with random tokens and mixed rewards."""
    random = np.random.default_rng(1)
    return [
        TrainingSequence(
            prompt_ids=tuple(prompt),
            response_ids=tuple(random.integers(3, sampler.VOCABULARY, length).tolist()),
            group=group,
            is_demo=False,
            reward=float(i % 2),
            correct=bool(i % 2),
        )
        for group, prompt in enumerate(work.prompts)
        for i, length in enumerate(work.lengths[group])
    ]


class Ours:
    """``srft``: packed rows, one forward pass over all tokens."""

    def __init__(self, model: Any, rollouts: list[TrainingSequence]) -> None:
        self.model = model
        use_packed_attention(model)
        use_fast_products(model)
        self.method = get_method("grpo", {"advantage_epsilon": 1e-4})
        self.config = TrainConfig(learning_rate=LEARNING_RATE, tokens_per_micro_batch=8192)
        self.optimizer = build_optimizer(model, self.config)
        self.rollouts = rollouts

    def train(self) -> None:
        result = update(
            self.model,
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

    def __init__(self, model: Any, rollouts: list[TrainingSequence], cuts: int) -> None:
        arguments = trl.GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=len(rollouts) // cuts,
            gradient_accumulation_steps=cuts,
            num_generations=sampler.GROUP,
            max_completion_length=max(len(r.response_ids) for r in rollouts),
            loss_type="grpo",
            beta=0.0,
            learning_rate=LEARNING_RATE,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
        )
        self.trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "w1"}] * len(rollouts)),
            processing_class=sampler.make_tokenizer(),
        )
        self.trainer.current_gradient_accumulation_steps = cuts
        self.model = self.trainer.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.batches = [
            self._inputs(part)
            for part in np.array_split(np.array(range(len(rollouts))), cuts)
            for part in [[rollouts[i] for i in part]]
        ]

    def _inputs(self, rollouts: list[TrainingSequence]) -> dict[str, Any]:
        prompts = [list(r.prompt_ids) for r in rollouts]
        responses = [list(r.response_ids) for r in rollouts]
        left, right = max(map(len, prompts)), max(map(len, responses))
        rewards = torch.tensor([r.reward for r in rollouts])
        groups = rewards.view(-1, sampler.GROUP)
        centred = groups - groups.mean(1, keepdim=True)
        advantages = (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()
        return {
            "prompt_ids": torch.tensor([[0] * (left - len(p)) + p for p in prompts]),
            "prompt_mask": torch.tensor([[0] * (left - len(p)) + [1] * len(p) for p in prompts]),
            "completion_ids": torch.tensor([r + [0] * (right - len(r)) for r in responses]),
            "completion_mask": torch.tensor(
                [[1] * len(r) + [0] * (right - len(r)) for r in responses]
            ),
            "advantages": advantages,
            "num_items_in_batch": torch.tensor(sum(map(len, responses))),
        }

    def backward(self) -> None:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for batch in self.batches:
            self.trainer.compute_loss(self.model, batch).backward()

    def train(self) -> None:
        self.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def check_same_gradient(ours: Ours, theirs: Theirs) -> float:
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
    assert worst < 1e-3, f"the two gradients differ by {worst:.2g} of the largest entry"
    return worst


def fastest_cut(model: Any, rollouts: list[TrainingSequence]) -> tuple[Theirs, int]:
    """TRL in the number of micro-batches that is fastest, each tried twice."""
    contestants = [(Theirs(copy.deepcopy(model), rollouts, cuts), cuts) for cuts in CUTS]
    times = []
    for theirs, cuts in contestants:
        best = min(sampler.timed(as_run(theirs.train), 1).cpu for _ in range(2))
        times.append((best, cuts, theirs))
    _, cuts, theirs = min(times, key=lambda item: item[0])
    return theirs, cuts


def as_run(function: Callable[[], Any]) -> Callable[[], int]:
    def run() -> int:
        function()
        return 1

    return run


def run_all(quick: bool) -> list[dict[str, Any]]:
    results = []
    for size in ("1M",) if quick else ("1M", "5M"):
        for work in sampler.make_workloads():
            if size == "5M" and work.name == "long-tailed":
                continue  # minutes a step for TRL, and the small model shows the effect
            model = sampler.make_model(size)
            rollouts = make_rollouts(work)
            theirs, cuts = fastest_cut(model, rollouts)
            ours = Ours(copy.deepcopy(model), rollouts)
            worst = check_same_gradient(ours, Theirs(copy.deepcopy(model), rollouts, 1))
            engine = EmbeddedEngine(ours.model, sampler.make_tokenizer(), RolloutConfig())

            def our_step(ours: Ours = ours, engine: Any = engine, work: Any = work) -> None:
                sampler.run_embedded(engine, work)
                ours.train()

            def their_step(theirs: Theirs = theirs, work: Any = work) -> None:
                theirs.model.eval()
                sampler.run_generate(theirs.model, work)
                theirs.train()

            pairs, seconds = (3, 20.0) if quick else (7, 40.0)
            for what, a, b in (
                ("train", ours.train, theirs.train),
                ("step", our_step, their_step),
            ):
                figures = sampler.compare(as_run(a), as_run(b), 1, pairs, seconds, warm_up=False)
                label = {"model": size, "workload": work.name, "what": what}
                results.append(
                    {**label, "trl_micro_batches": cuts, "gradient_difference": worst, **figures}
                )
                print(json.dumps({**label, **figures["ratio_cpu"]}), flush=True)
    return results


def markdown(report: dict[str, Any]) -> str:
    e = report["environment"]
    lines = [
        "# A GRPO step against TRL",
        "",
        f"`{e['command']}`, {e['date']}; {e['processor']}, {e['cores']} cores, "
        f"load average {e['load_average_at_end']}; torch {e['torch']}, "
        f"transformers {e['transformers']}, TRL {e['trl']}, {e['threads']} thread, float32.",
        "",
        "128 rollouts (16 prompts x 8). Ratios are TRL / srft within a pair (above 1: srft is faster): "
        "median (range). Seconds of processor time: median.",
        "",
        "| model | workload | what | pairs | srft s | TRL s | ratio, cpu | ratio, wall | gradients differ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in report["results"]:
        ratios = [
            f"{r[k]['median']:.2f} ({r[k]['min']:.2f} to {r[k]['max']:.2f})"
            for k in ("ratio_cpu", "ratio_wall")
        ]
        lines.append(
            f"| {r['model']} | {r['workload']} | {r['what']} | {r['pairs']} "
            f"| {1 / r['embedded_tokens_per_cpu_s']['median']:.2f} "
            f"| {1 / r['other_tokens_per_cpu_s']['median']:.2f} | {ratios[0]} | {ratios[1]} "
            f"| {r['gradient_difference']:.1e} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small model, few pairs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    results = run_all(options.quick)
    environment = {**sampler.environment(), "trl": trl.__version__}
    report = {"environment": environment, "results": results}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "training_step.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / "training_step.md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
