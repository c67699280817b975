"""How the terms of a method pull: the norm of each term's gradient, and whether the supervised and
the reinforcement part agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from srft.data.packing import PackedBatch
from srft.model.adapters import whole
from srft.objective.loss import compute_loss
from srft.objective.method import Method, Progress
from srft.parallel.sharding import total_norm
from srft.types import TokenBatch


def gradient_analysis(
    model: nn.Module,
    method: Method,
    packs: Sequence[PackedBatch],
    forward: Callable[[int, PackedBatch], TokenBatch],
    counts: Mapping[str, float],
    progress: Progress,
) -> dict[str, float]:
    """``gradient/norm/<term>`` of each term as it enters the loss (weight included), and
    ``gradient/cosine`` between the sums of the supervised and of the reinforcement terms, where
    both are there. One backward pass per term; the model's gradients are cleared, and dropout draws
    afterwards what it would have drawn without this."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return _analysis(model, method, packs, forward, counts, progress)


def _analysis(
    model: nn.Module,
    method: Method,
    packs: Sequence[PackedBatch],
    forward: Callable[[int, PackedBatch], TokenBatch],
    counts: Mapping[str, float],
    progress: Progress,
) -> dict[str, float]:
    figures: dict[str, float] = {}
    by_source: dict[str, list[Tensor]] = {}
    parameters = [p for p in model.parameters() if p.requires_grad]
    for term in method.terms:
        model.zero_grad(set_to_none=True)
        alone = replace(method, terms=(term,))
        for number, packed in enumerate(packs):
            batch = replace(forward(number, packed), balance=None)
            loss, _ = compute_loss(alone, batch, counts, progress)
            loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        figures[f"gradient/norm/{term.name}"] = total_norm(gradients)
        earlier = by_source.get(term.source)
        by_source[term.source] = (
            [g.clone() for g in gradients]
            if earlier is None
            else list(torch._foreach_add(earlier, gradients))
        )
    model.zero_grad(set_to_none=True)
    if "sft" in by_source and "rl" in by_source:
        sft, rl = by_source["sft"], by_source["rl"]
        dot = sum(
            float(whole((a.double() * b.double()).sum())) for a, b in zip(sft, rl, strict=True)
        )
        norms = [total_norm(gradients) for gradients in (sft, rl)]
        if min(norms) > 0:
            figures["gradient/cosine"] = dot / (norms[0] * norms[1])
    return figures
