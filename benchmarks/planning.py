"""Predicted against measured: memory of training steps on this machine's CPU.

    OMP_NUM_THREADS=1 python benchmarks/planning.py            # about twenty minutes
    OMP_NUM_THREADS=1 python benchmarks/planning.py --only 25M # cases whose name holds this

Each case is a recipe for a random model over the lab's problems: ``srft train`` runs it for two
steps in a process of its own, and ``srft plan --gpus cpu`` predicts it. Memory is the process's
resident memory above what a run of a toy model left (libraries, threads, workers), the highest in
each phase as Linux records it (VmHWM, set back between phases through /proc/self/clear_refs, with
freed memory given back first). The plan's longest lengths are replaced by the lengths that were seen
(a random model never ends a response); all assumptions stand at their defaults.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

TOKENS = {"qwen3": "Qwen3Config", "llama": "LlamaConfig"}


@dataclass(frozen=True)
class Case:
    """family None: the lab's base model. size: (width, layers, heads, key/value heads, inner,
    vocabulary, tied)."""

    name: str
    family: str | None
    size: tuple[int, int, int, int, int, int, bool] | None
    prompts: int
    response: int
    budget: int
    overrides: dict[str, Any] = field(default_factory=dict)


SMALL = (256, 6, 8, 4, 768, 8000, True)
MEDIUM = (384, 8, 6, 2, 1152, 24000, True)
LARGE = (768, 12, 12, 4, 2304, 16000, False)
LARGEST = (1024, 24, 16, 8, 3072, 16000, False)
TOY = Case("toy", "qwen3", (32, 2, 2, 1, 64, 80, True), 4, 16, 512)
CASES = (
    Case("0.9M, the lab's", None, None, 24, 64, 16384),
    Case("7M", "qwen3", SMALL, 4, 160, 8192),
    Case("25M", "qwen3", MEDIUM, 4, 96, 8192),
    Case("25M, small micro-batches", "qwen3", MEDIUM, 4, 96, 1024),
    Case("25M, checkpointing", "qwen3", MEDIUM, 4, 96, 8192, {"model.gradient_checkpointing": True}),
    Case("25M, KL to a reference", "qwen3", MEDIUM, 4, 96, 2048, {"objective.kl_coefficient": 0.01}),
    Case("25M, LoRA", "qwen3", MEDIUM, 4, 96, 4096, {"model.lora.rank": 16}),
    Case("25M, LoRA on queries and values", "qwen3", MEDIUM, 4, 96, 4096,
         {"model.lora.rank": 16, "model.lora.target_modules": ["q_proj", "v_proj"]}),
    Case("25M, LoRA and checkpointing", "qwen3", MEDIUM, 4, 96, 4096,
         {"model.lora.rank": 16, "model.gradient_checkpointing": True}),
    Case("7M, LoRA", "qwen3", SMALL, 4, 160, 8192, {"model.lora.rank": 16}),
    Case("109M, untied", "llama", LARGE, 1, 96, 512),
    Case("109M, LoRA and checkpointing", "llama", LARGE, 1, 96, 2048,
         {"model.lora.rank": 16, "model.gradient_checkpointing": True}),
    Case("333M", "qwen3", LARGEST, 1, 48, 256, {"rollout.group_size": 4}),
)  # fmt: skip


def make_model(case: Case, folder: Path) -> str:
    """A random model of the case's shape with the lab's tokenizer; its path."""
    if case.size is None or case.family is None:
        return "lab"
    import torch
    import transformers

    from srft.lab import base_model_path

    width, layers, heads, kv, inner, vocabulary, tied = case.size
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_model_path())
    torch.manual_seed(0)
    config = getattr(transformers, TOKENS[case.family])(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=width // heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe(case: Case, model: str, run: str) -> list[str]:
    settings = {
        "model.path": model,
        "data.train": "lab",
        "data.limit": 64,
        "data.max_prompt_tokens": 48,
        "data.max_demonstration_tokens": 64,
        "reward": "exact",
        "rollout.group_size": 8,
        "rollout.max_tokens": case.response,
        "train.steps": 2,
        "train.prompts_per_step": case.prompts,
        "train.tokens_per_micro_batch": case.budget,
        "run.dir": run,
        "run.live": "never",
        "run.checkpoint_every": 0,
        **case.overrides,
    }
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


# -- the process that is measured -------------------------------------------------------------


def resident(which: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {which}")


class PhasePeaks:
    """The highest resident memory of each phase of a run, above the baseline."""

    def __init__(self, trainer: type, collector: type) -> None:
        self.baseline = resident("VmRSS")
        self.peaks: dict[str, int] = {}
        for phase, owner, method in (
            ("generate", collector, "step"),
            ("train", trainer, "_update"),
            ("export", trainer, "_checkpoint"),
            ("export", trainer, "_export"),
        ):
            setattr(owner, method, self._watched(phase, getattr(owner, method)))

    def _watched(self, phase: str, function: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what the phase before has freed goes back
            Path("/proc/self/clear_refs").write_text("5")
            result = function(*args, **kwargs)
            high = resident("VmHWM") - self.baseline
            self.peaks[phase] = max(high, self.peaks.get(phase, 0))
            return result

        return watched


def measure(overrides: list[str]) -> None:
    """Run a recipe and print what it took, as JSON on the last line. A run of a toy model comes
    first: what it leaves is what libraries, threads and workers take, the baseline."""
    from srft.config import load_config
    from srft.trainer.api import SRFTTrainer
    from srft.trainer.collector import Collector

    with tempfile.TemporaryDirectory() as folder:
        path = make_model(TOY, Path(folder) / "model")
        toy = {key.partition("=")[0]: key for key in recipe(TOY, path, f"{folder}/run")}
        kept = ("model.lora", "model.gradient", "objective")  # what imports more
        mine = [item for item in overrides if item.startswith(kept)]
        SRFTTrainer(args=load_config(None, [*toy.values(), *mine, "train.steps=2"])).train()
    gc.collect()
    peaks = PhasePeaks(SRFTTrainer, Collector)
    result = SRFTTrainer(args=load_config(None, overrides)).train()
    metrics = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").open()]
    last = metrics[-1]
    print(
        json.dumps(
            {
                "baseline": peaks.baseline,
                "peaks": peaks.peaks,
                "metrics": last,
            }
        )
    )


# -- comparison ---------------------------------------------------------------------------------


def measured(case: Case) -> dict[str, Any]:
    """Runs the case in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = recipe(case, make_model(case, Path(folder) / "model"), f"{folder}/run")
        child = subprocess.run(
            [sys.executable, __file__, "--measure", *overrides], capture_output=True, text=True
        )
    if child.returncode:
        raise SystemExit(f"{case.name}: {child.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def compare(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """What was measured beside what is predicted."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = recipe(case, make_model(case, Path(folder) / "model"), f"{folder}/run")
        guessed = predict(overrides, found["metrics"])
    memory = {
        phase: _pair(high, guessed["memory"][phase]) for phase, high in found["peaks"].items()
    }
    memory["peak"] = _pair(max(found["peaks"].values()), max(guessed["memory"].values()))
    return {
        "case": case.name,
        "parameters": guessed["parameters"],
        "memory": memory,
        "predicted_items": guessed["items"],
        "measured": found,
    }


def _pair(seen: float, guess: float) -> dict[str, float]:
    return {"measured": seen, "predicted": guess, "error": guess / seen - 1}


def predict(overrides: list[str], metrics: dict[str, Any]) -> dict[str, Any]:
    """The plan, with the lengths that were seen in place of the longest possible ones."""
    from srft.config import load_config
    from srft.lab import lab_train
    from srft.memory.phases import plan_memory
    from srft.planning.plan import make_plan

    config = load_config(None, overrides)
    rows = [dict(row) for row in lab_train(64)]
    prompts = [len(row["prompt"]) + 1 for row in rows]
    rollouts = config.train.prompts_per_step * config.rollout.group_size
    plan = make_plan(config, "cpu")
    work, count = plan.case.work, int(metrics["train/micro_batches"])
    seen = replace(
        work.step,
        prompt=max(prompts),
        response=metrics["rollout/tokens"] / rollouts,
        demonstration=statistics.mean(len(row["demonstration"]) + 1 for row in rows),
    )
    work = replace(
        work, step=seen, micro_batch=metrics["train/tokens"] / count, micro_batches=count
    )
    memory = plan_memory(replace(plan.case, work=work))
    items = {p.name: {i.name: i.bytes for i in p.items} for p in memory.phases}
    return {
        "memory": {name: sum(i.values()) - i["runtime"] for name, i in items.items()},
        "items": items,
        "parameters": plan.shape.parameters,
    }


def markdown(report: dict[str, Any]) -> str:
    e = report["environment"]
    worst = max(abs(r["memory"]["peak"]["error"]) for r in report["results"])
    lines = [
        "# Plans against measurements",
        "",
        f"`{e['command']}`, {e['date']}; {e['processor']}, {e['cores']} cores shared with other work, "
        f"torch {e['torch']}, transformers {e['transformers']}, float32, one thread.",
        "",
        f"Peak memory is predicted within {worst:.0%} in all {len(report['results'])} cases. MiB above "
        "what a run of a toy model left; error is predicted / measured - 1.",
        "",
        "| case | parameters | measured | predicted | error | generate | train | export |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in report["results"]:
        m = r["memory"]
        phases = " | ".join(f"{m[p]['error']:+.0%}" for p in ("generate", "train", "export"))
        lines.append(
            f"| {r['case']} | {r['parameters']:,} | {m['peak']['measured'] / 2**20:,.0f} "
            f"| {m['peak']['predicted'] / 2**20:,.0f} | {m['peak']['error']:+.1%} | {phases} |"
        )
    return "\n".join([*lines, ""])


def environment() -> dict[str, Any]:
    import torch
    import transformers

    info = Path("/proc/cpuinfo").read_text()
    models = [
        line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")
    ]
    return {
        "command": "OMP_NUM_THREADS=1 python benchmarks/planning.py",
        "date": time.strftime("%Y-%m-%d"),
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--again", action="store_true", help="predict again, measure nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    file = options.out / "planning.json"
    report = json.loads(file.read_text()) if file.exists() else {"results": []}
    known = {r["case"]: r["measured"] for r in report["results"]}
    for case in CASES:
        if options.only in case.name and not options.again:
            known[case.name] = measured(case)
            print(case.name, known[case.name]["peaks"], flush=True)
            results = [compare(c, known[c.name]) for c in CASES if c.name in known]
            file.parent.mkdir(parents=True, exist_ok=True)
            report = {"environment": environment(), "results": results}
            file.write_text(json.dumps(report, indent=1) + "\n")
    if options.again:
        report["results"] = [compare(c, known[c.name]) for c in CASES if c.name in known]
        file.write_text(json.dumps(report, indent=1) + "\n")
    file.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
