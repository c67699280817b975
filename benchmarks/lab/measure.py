"""What a lab model can do and what it tends to do, per family.

    python -m benchmarks.lab.measure [MODEL_DIR] [--n 200]

Columns: `sampled` accuracy at temperature 1; `greedy` accuracy; `traced`, the share of sampled
responses that start a worked trace, and `traced ok`, their accuracy; `step`, the share of expert
steps after the first that greedy decoding reproduces given the steps before; `given 1`, sampled
accuracy when the expert's first step is given; `length`, mean sampled response length in tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from srft.lab import base_model_path
from srft.lab.data import Row
from srft.lab.tasks import ANSWER_MARK, FAMILIES, Problem, make_problem

BATCH = 100
MAX_NEW_TOKENS = 96


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    greedy: bool = False,
    seed: int = 0,
) -> list[str]:
    """One response per prompt, as text without special tokens; the same for the same seed.

    Samples at temperature 1 unless `greedy`. Leaves the global random state as it was.
    """
    sampling: dict[str, Any] = {"do_sample": False}
    if not greedy:
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    generative: Any = model  # `generate` comes from a mix-in that the annotation does not name
    responses: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for at in range(0, len(prompts), BATCH):
            inputs = tokenizer(list(prompts[at : at + BATCH]), return_tensors="pt", padding=True)
            out = generative.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=MAX_NEW_TOKENS,
                **sampling,
            )
            new = out[:, inputs["input_ids"].shape[1] :]
            responses += tokenizer.batch_decode(new, skip_special_tokens=True)
    return responses


def is_correct(response: str, problem: Problem) -> bool:
    """Whether what follows the last answer mark is the answer."""
    _, mark, answer = response.rpartition(ANSWER_MARK)
    return bool(mark) and answer.strip() == problem.answer


@torch.no_grad()
def loss_of(model: Any, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Mean of -log p of the tokens of responses, nats; `pairs`: ids of prompt and response."""
    total, count = 0.0, 0
    for prompt, response in pairs:
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        total += float(functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="sum"))
        count += len(response)
    return total / count


def demonstration_ids(tokenizer: Any, rows: Sequence[Row]) -> list[tuple[list[int], list[int]]]:
    """Ids of prompt and demonstration, without an end token."""
    return [
        (
            tokenizer(row["prompt"]).input_ids,
            tokenizer(row["demonstration"], add_special_tokens=False).input_ids,
        )
        for row in rows
    ]


@torch.no_grad()
def step_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> float:
    """Share of expert steps after the first whose every token is the model's first choice, given
    the prompt and the expert's steps before."""
    right = total = 0
    for problem in problems:
        prompt = problem.prompt.split()
        ids = tokenizer(f"{problem.prompt} {problem.trace}", return_tensors="pt")["input_ids"]
        hit = model(input_ids=ids).logits[0, :-1].argmax(-1) == ids[0, 1:]
        at = len(prompt) + len(problem.steps[0].split())  # first token after the first step
        for step in problem.steps[1:]:
            end = at + 1 + len(step.split())  # the separator belongs to the step
            right += bool(hit[at - 1 : end - 1].all())
            total += 1
            at = end
    return right / max(total, 1)


def measure_family(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, family: str, n: int, seed: int
) -> dict[str, float]:
    """The columns above for one family, over `n` held-out problems."""
    problems = [make_problem(family, seed, i, held_out=True) for i in range(n)]
    prompts = [p.prompt for p in problems]
    sampled = generate(model, tokenizer, prompts, seed=seed)
    greedy = generate(model, tokenizer, prompts, greedy=True)
    begun = [f"{p.prompt} {p.steps[0]}" for p in problems]
    given = generate(model, tokenizer, begun, seed=seed)
    right = [is_correct(r, p) for r, p in zip(sampled, problems, strict=True)]
    traced = [not r.startswith(ANSWER_MARK) for r in sampled]
    return {
        "sampled": sum(right) / n,
        "greedy": sum(map(is_correct, greedy, problems)) / n,
        "traced": sum(traced) / n,
        "traced ok": sum(a and b for a, b in zip(right, traced, strict=True)) / max(sum(traced), 1),
        "step": step_accuracy(model, tokenizer, problems),
        "given 1": sum(map(is_correct, given, problems)) / n,
        "length": sum(len(r.split()) + 1 for r in sampled) / n,
    }


def measure(
    model_dir: str | Path, n: int = 200, seed: int = 1, families: Sequence[str] = ()
) -> dict[str, dict[str, float]]:
    """`measure_family` for each family (all by default) of the model saved at `model_dir`."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    return {f: measure_family(model, tokenizer, f, n, seed) for f in families or FAMILIES}


def as_table(rows: dict[str, dict[str, float]]) -> str:
    """The measurements as a Markdown table."""
    columns = list(next(iter(rows.values())))
    lines = [f"| family | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for family, row in rows.items():
        cells = [f"{row[c]:.1f}" if c == "length" else f"{row[c]:.3f}" for c in columns]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure a lab model, per family.")
    parser.add_argument("model_dir", nargs="?", default=base_model_path())
    parser.add_argument("--n", type=int, default=200)
    options = parser.parse_args()
    table = as_table(measure(options.model_dir, options.n))
    Console(soft_wrap=True).print(table, markup=False, highlight=False)
