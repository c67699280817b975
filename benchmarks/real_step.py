"""A GRPO step of a pretrained model on GSM8K against TRL, and its sampler against what else generates.

    OMP_NUM_THREADS=1 python benchmarks/real_step.py FOLDER [FOLDER ...] --data gsm8k/train.jsonl
    ... --what step --precision bfloat16 --pairs 2        # a part of it

4 prompts x 8 rollouts of at most 96 tokens, drawn once from the model itself; rewards alternate, so that
every sequence is trained. The same prompts, responses and lengths on both sides, in alternating pairs, each
side in a process of its own, one at a time.

step     Generation: ``generate`` of the model that TRL trains, as it does; the embedded sampler of the model
         that we train. Update: loss, backward pass, clipping and AdamW; TRL's by ``compute_loss`` of a
         GRPOTrainer (its fused head) in --cuts micro-batches, ours by ``srft.trainer.update`` in
         micro-batches of --budget tokens. TRL's own bookkeeping is left out, to its advantage. Before any
         timing the two gradients are compared. Peak memory: the most that the process ever held, weights,
         gradients and optimizer included.
sampler  the embedded sampler against ``generate`` and against vLLM's engine for CPUs (--vllm: a Python that
         has it). In bfloat16 both have the whole model in bfloat16, which is faster for them.

bfloat16 is the same on both sides in a step: float32 weights, products under autocast.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np
import sampler
import torch
import training_step
from transformers import AutoModelForCausalLM

from srft.memory.free import keep_nothing_freed
from srft.model.loading import compute_context, load_model, load_tokenizer
from srft.model.model_config import ModelConfig
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.response_end import StopRule, StopRules
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams, TrainingSequence

PROMPTS, GROUP, LONGEST = 4, 8, 96
Responses = list[list[list[int]]]
PRECISIONS = ("float32", "bfloat16")
WHAT = ("step", "sampler")


class Case:
    """A model, a precision, and rollouts that were drawn from it."""

    def __init__(
        self, folder: str, data: Path, precision: str, prompts: int, responses: Responses | None
    ) -> None:
        self.folder, self.data, self.precision = folder, data, precision
        self.config = ModelConfig(path=folder, autocast=precision)
        self.tokenizer = load_tokenizer(self.config)
        texts = self._prompts(data, prompts)
        self.responses = responses or self._draw(texts)
        lengths = np.array([[len(r) for r in group] for group in self.responses])
        self.work = common.Workload("gsm8k", texts, lengths)
        self.rollouts = [
            TrainingSequence(tuple(texts[g]), tuple(r), g, False, float(i % 2), bool(i % 2))
            for g, group in enumerate(self.responses)
            for i, r in enumerate(group)
        ]

    def _prompts(self, data: Path, prompts: int) -> list[list[int]]:
        rows = [json.loads(line) for line in data.read_text().splitlines()[:prompts]]
        if self.tokenizer.chat_template is None:
            texts = [f"Question: {row['question']}\nAnswer:" for row in rows]
            return [self.tokenizer(text)["input_ids"] for text in texts]
        return [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": row["question"]}],
                add_generation_prompt=True,
                return_dict=True,
            )["input_ids"]
            for row in rows
        ]

    def _draw(self, prompts: list[list[int]]) -> Responses:
        half = ModelConfig(path=self.folder, autocast="bfloat16")
        engine = EmbeddedEngine(load_model(half), self.tokenizer, RolloutConfig())
        requests = [
            RolloutRequest(tuple(prompt), GROUP, 100 * i) for i, prompt in enumerate(prompts)
        ]
        with compute_context(half, "cpu"):
            found = engine.generate(requests, SamplingParams(max_tokens=LONGEST))
        return [[list(one.token_ids) for one in group] for group in found]

    def ours(self, budget: int) -> Ours:
        model = endless(load_model(self.config))
        return Ours(self, training_step.Ours(model, self.rollouts, self.config, budget))

    def theirs(self, cuts: int) -> Theirs:
        compute = partial(compute_context, self.config, "cpu")
        model = endless(AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32))
        return Theirs(self, training_step.Theirs(model, self.rollouts, cuts, compute))


def endless(model: Any) -> Any:
    """``model`` without a token that ends: every rollout has its own limit."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.config.eos_token_id = None
    return model


class Endless(StopRules):
    """No token ends a response, the tokenizer's own neither."""

    def get(self, model: Any, params: Any, vocabulary: int, device: torch.device) -> StopRule:
        return StopRule(self.tokenizer, params, (), vocabulary, device)


class Ours:
    def __init__(self, case: Case, trained: training_step.Ours) -> None:
        self.case, self.trained = case, trained
        self.engine = EmbeddedEngine(trained.model, case.tokenizer, RolloutConfig())
        self.engine.stop_rules = Endless(case.tokenizer)
        self.update = trained.train

    def generation(self) -> int:
        with compute_context(self.case.config, "cpu"):
            return sampler.run_embedded(self.engine, self.case.work)

    def gradients(self) -> dict[str, torch.Tensor]:
        """The clipped gradient of the first update, before its optimizer step."""
        kept: dict[str, torch.Tensor] = {}

        def keep(*_: Any, **__: Any) -> None:
            kept.update({n: p.grad.bfloat16() for n, p in self.trained.model.named_parameters()})

        handle = self.trained.optimizer.register_step_pre_hook(keep)
        self.update()
        handle.remove()
        return kept


class Theirs:
    def __init__(self, case: Case, trained: training_step.Theirs) -> None:
        self.case, self.trained = case, trained
        self.update = trained.train

    def generation(self) -> None:
        self.trained.model.eval()
        with compute_context(self.case.config, "cpu"):
            sampler.run_generate(self.trained.model, self.case.work)

    def gradients(self) -> dict[str, torch.Tensor]:
        model = self.trained.model
        self.trained.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return {n: p.grad.bfloat16() for n, p in model.named_parameters()}


class Side:
    """Ours or TRL's in a process of its own, which does what it is told."""

    def __init__(self, case: Case, side: str, cut: int, *more: str) -> None:
        self.kept = tempfile.TemporaryDirectory()
        rollouts = Path(self.kept.name, "rollouts.json")
        rollouts.write_text(json.dumps(case.responses))
        job = [case.folder, "--data", str(case.data), "--precision", case.precision]
        job += ["--prompts", str(len(case.responses)), "--one", side, str(cut), str(rollouts)]
        job += more
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, *job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        print(what, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                return found
        raise RuntimeError(f"the process ended ({self.process.wait()})")

    def timed(self, what: str) -> common.Timing:
        found = self.ask(what)
        return common.Timing(found["wall"], found["cpu"])

    def gradients(self) -> dict[str, torch.Tensor]:
        path = Path(self.kept.name, "gradients.pt")
        self.ask(f"gradients {path}")
        found: dict[str, torch.Tensor] = torch.load(path)
        path.unlink()
        return found

    def close(self) -> float:
        """Ends it; the most that it ever held, GiB."""
        peak = float(self.ask("peak")["gib"])
        self.process.kill()
        self.process.wait()
        self.kept.cleanup()
        return peak


def obey(options: Any) -> None:
    """The side of ``Side`` in its process."""
    side, cut, kept = options.one
    if options.short_of_memory:
        keep_nothing_freed()
    responses = json.loads(Path(kept).read_text())
    case = Case(options.models[0], options.data, options.precision[0], options.prompts, responses)
    one = case.ours(int(cut)) if side == "ours" else case.theirs(int(cut))
    for line in sys.stdin:
        what, *where = line.split()
        found: dict[str, float] = {}
        if what == "gradients":
            torch.save(one.gradients(), where[0])
        elif what == "peak":
            found = {"gib": common.resident_mib("VmHWM") / 1024}
        else:
            timing = common.timed(getattr(one, what))
            found = {"wall": timing.wall, "cpu": timing.cpu}
        print("RESULT " + json.dumps(found), flush=True)


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The difference of two gradients as a share of the second's norm."""
    pairs = [(ours[name].float(), theirs[name].float()) for name in theirs]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((difference / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5)


def compare_steps(case: Case, options: Any) -> dict[str, dict[str, Any]]:
    """Pairs of whole steps, the two halves of each timed apart, in alternating order."""
    ours = Side(case, "ours", options.budget, *["--short-of-memory"] * options.short_of_memory)
    theirs = Side(case, "theirs", options.cuts)
    difference = apart(ours.gradients(), theirs.gradients())
    assert difference < {"float32": 1e-2, "bfloat16": 0.1}[case.precision], difference
    halves = ("generation", "update")
    done: dict[str, list[tuple[common.Timing, common.Timing]]] = {h: [] for h in (*halves, "step")}
    for number in range(options.pairs):
        found: dict[Side, list[common.Timing]] = {}
        for side in (ours, theirs) if number % 2 == 0 else (theirs, ours):
            a, b = (side.timed(half) for half in halves)
            found[side] = [a, b, common.Timing(a.wall + b.wall, a.cpu + b.cpu)]
            print([f"{t.cpu:.1f}" for t in found[side]], flush=True)
        for what, a, b in zip(done, found[ours], found[theirs], strict=True):
            done[what].append((a, b))
    more = {
        "trl_micro_batches": options.cuts,
        "tokens_a_micro_batch": options.budget,
        "short_of_memory": options.short_of_memory,
        "gradients_differ": difference,
        "peak_gib_ours": ours.close(),
        "peak_gib_theirs": theirs.close(),
    }
    return {what: {**common.paired(pairs), **more} for what, pairs in done.items()}


def compare_samplers(case: Case, options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    ours = case.ours(options.budget)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[case.precision]
    model = endless(AutoModelForCausalLM.from_pretrained(case.folder, dtype=dtype)).eval()
    mine = sampler.checked(ours.generation, case.work.tokens)
    theirs = sampler.checked(partial(sampler.run_generate, model, case.work), case.work.tokens)
    yield "generate", common.compare(mine, theirs, options.pairs, options.seconds)
    if options.vllm is None or not options.vllm.exists():
        return
    server = sampler.Vllm(options.vllm, model, case.tokenizer, case.precision)
    del model
    try:
        call = partial(server.run, case.work)
        yield "vLLM", common.compare(mine, call, options.pairs, options.seconds)
    except RuntimeError as error:
        yield "vLLM", {"failed": str(error)[:300]}
    finally:
        server.close()


def run_case(case: Case, options: Any) -> list[dict[str, Any]]:
    label = {
        "model": Path(case.folder).name,
        "precision": case.precision,
        "prompt_tokens": [len(p) for p in case.work.prompts],
        "tokens": case.work.tokens,
    }
    results: list[dict[str, Any]] = []

    def note(what: str, figures: dict[str, Any]) -> None:
        results.append({**label, "what": what, **figures})
        print(json.dumps(results[-1]), flush=True)

    if "step" in options.what:
        for what, figures in compare_steps(case, options).items():
            note(what, {"other": "TRL", **figures})
    if "sampler" in options.what:
        for other, figures in compare_samplers(case, options):
            note("sampler", {"other": other, **figures})
    return results


def markdown(report: dict[str, Any]) -> str:
    rows = report["results"]
    models = {r["model"]: r for r in rows}
    steps = [r for r in rows if r["what"] == "step"]
    lines = [
        "# Pretrained models: a GRPO step against TRL, the sampler against others",
        "",
        *dict.fromkeys(common.about(r["environment"]) for r in rows),
        "",
        f"GSM8K, groups of {GROUP} rollouts of at most {LONGEST} tokens drawn from the model; every sequence "
        "is trained. Ratios are theirs / ours within a pair (above 1: srft is faster): median (range). "
        "Seconds of processor time: median.",
        "",
        *(
            f"{model}: prompts of {', '.join(map(str, r['prompt_tokens']))} tokens, {r['tokens']} "
            "response tokens."
            for model, r in models.items()
        ),
        "",
        "| model | precision | what | against | pairs | ours, s | theirs, s | ratio, cpu | ratio, wall |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        what = r["what"] + ", short of memory" * r.get("short_of_memory", False)
        head = f"| {r['model']} | {r['precision']} | {what} | {r['other']} "
        if "failed" in r:
            lines.append(head + f"| did not run: {r['failed'].splitlines()[0]} | | | | |")
            continue
        lines.append(head + f"| {r['pairs']} {common.seconds_and_ratios(r, 1)}")
    lines += [
        "",
        "The most that the process of each side ever held, weights, gradients and optimizer included, GiB:",
        "",
        "| model | precision | srft, tokens a micro-batch | short of memory | peak "
        "| TRL, micro-batches | peak | TRL / srft | gradients differ |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in steps:
        mine, other = r["peak_gib_ours"], r["peak_gib_theirs"]
        lines.append(
            f"| {r['model']} | {r['precision']} | {r['tokens_a_micro_batch']} "
            f"| {'yes' if r.get('short_of_memory') else ''} | {mine:.2f} "
            f"| {r['trl_micro_batches']} | {other:.2f} | {other / mine:.2f} | {r['gradients_differ']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="folders of transformers models")
    parser.add_argument("--data", type=Path, required=True, help="GSM8K as JSON lines")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="for a sampler's pairs")
    parser.add_argument("--cuts", type=int, default=4, help="micro-batches of TRL's")
    parser.add_argument("--budget", type=int, default=2048, help="tokens of a micro-batch of ours")
    parser.add_argument(
        "--short-of-memory", action="store_true", help="ours as a run that needs most of its memory"
    )
    parser.add_argument("--vllm", type=Path, default=sampler.VLLM, help="a Python that has vLLM")
    parser.add_argument(
        "--rollouts", type=Path, help="responses of an earlier run, in place of new ones"
    )
    parser.add_argument("--more", action="store_true", help="add to what the report holds already")
    parser.add_argument("--out", type=Path, default=common.RESULTS)
    parser.add_argument("--one", nargs=3, help="used by the benchmark itself")
    options = parser.parse_args()
    if options.one:
        obey(options)
        return
    before = options.out / "real_step.json"
    results = json.loads(before.read_text())["results"] if options.more else []
    for folder in options.models:
        responses = None
        if options.rollouts:
            responses = json.loads(options.rollouts.read_text())[: options.prompts]
        for precision in options.precision:
            case = Case(folder, options.data, precision, options.prompts, responses)
            responses = case.responses
            for row in run_case(case, options):
                results.append({**row, "environment": common.environment()})
            report = {"results": results}
            common.write("real_step", report, markdown(report), options.out)


if __name__ == "__main__":
    main()
