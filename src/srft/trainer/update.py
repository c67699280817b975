"""Second half of a step: groups of sequences -> gradients -> new weights.

One forward and backward pass serves every term of the method, on demonstrations and rollouts
alike. Counts are taken over the whole optimizer step first, so micro-batches simply add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from srft.data.packing import PackedBatch, pack, pack_contexts
from srft.errors import LESS_MEMORY, MemoryShort, RolloutError, out_of_memory
from srft.model.experts import Load
from srft.model.fast import training_mode
from srft.model.policy import Policy
from srft.model.scoring import TokenScores
from srft.objective.loss import active, compute_loss, counts, reduce_metrics
from srft.objective.method import Method, Progress
from srft.objective.preparation import Before, look_before, prepare
from srft.objective.table import loss_mask, take_rows, token_index
from srft.objective.terms import rollout_tokens
from srft.parallel.sharding import total_norm
from srft.parallel.world import ALONE, World
from srft.rollout.requests import request_seed
from srft.trainer.gradients import gradient_analysis
from srft.trainer.refusals import save_refused
from srft.trainer.teacher import Lesson, Teacher, ask, tokens_of
from srft.trainer.train_config import TrainConfig
from srft.types import TokenBatch, TrainingSequence


@dataclass(frozen=True)
class UpdateResult:
    """metrics as they go to the log, of the optimizer steps that were ``made``; ``refused`` says why the
    next one was not, or is None."""

    metrics: dict[str, float]
    refused: str | None = None
    made: int = 0

    def said(self, step: int) -> str:
        """What there is to say of a refused step."""
        before = f"{self.made} optimizer step{'s' * (self.made > 1)} on it came before"
        spared = f"{before}, the weights are as they left them" if self.made else ""
        return f"step {step}: non-finite ({self.refused}); {spared or 'weights are unchanged'}"


@dataclass(frozen=True)
class _Part:
    """The sequences of one optimizer step: their term counts and their micro-batches."""

    counts: dict[str, float]
    packs: list[PackedBatch]
    contexts: list[PackedBatch]


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    method: Method,
    sequences: Sequence[TrainingSequence],
    *,
    config: TrainConfig,
    progress: Progress,
    step: int,
    teacher: Teacher | None = None,
    refused_dir: Path | None = None,
    world: World = ALONE,
    max_mismatch: float | None = None,
) -> UpdateResult:
    """Moves the weights by ``config.optimizer_steps_per_batch`` optimizer steps on ``sequences``.

    Every process of ``world`` is given all sequences; the micro-batches are dealt out, and all
    processes return the same figures and refuse the same steps.

    An optimizer step whose loss, entropies, log-probabilities or gradient are not finite is refused:
    weights and optimizer state stay as they were before it, the batch is written to ``refused_dir``, and
    the remaining parts are left out. ``step`` and ``config.seed`` decide how prompts are divided.
    ``teacher`` scores the sequences that have a context, for methods that ask for one.

    Raises RolloutError, before any weight moves, where the rollouts' log-probabilities by the engine
    and by ``policy`` differ by more than ``max_mismatch`` nats on average.
    """
    model = policy.model
    extra = _taught(sequences) if method.teacher else {}
    parts = list(_parts(policy, method, sequences, config, step, world))
    if not any(part.packs for part in parts):
        # Every advantage is zero: there is nothing to learn from, which is not an error.
        return UpdateResult({"train/tokens": 0.0, "train/gradient_norm": 0.0, "loss": 0.0, **extra})
    batches = [p for part in parts for p in part.packs]
    contexts = [p for part in parts for p in part.contexts]
    noise = policy.trains_with_noise(method.rollouts)
    need_old = any((method.needs_old, len(parts) > 1, noise and method.rollouts, policy.balance))
    old: list[TokenScores] = []
    before = None
    if need_old:
        old, before = _look_back(policy, method, batches, world, max_mismatch, step)
    loads = _loads(parts, old, world) if policy.balance else [None] * len(batches)

    def batch_of(number: int, packed: PackedBatch) -> TokenBatch:
        lesson = ask(teacher, method, packed, contexts[number]) if teacher else None
        before_it = old[number] if need_old else None
        return forward(policy, packed, before_it, before, lesson, loads[number])

    sums: list[dict[str, Tensor]] = []
    norms: list[float] = []
    number, reason = 0, None
    with training_mode(model, noise):
        if config.gradient_analysis_every and step % config.gradient_analysis_every == 0:
            first = parts[0]
            extra |= gradient_analysis(model, method, first.packs, batch_of, first.counts, progress)
        for part in parts:
            optimizer.zero_grad(set_to_none=True)
            scored = (batch_of(number + i, packed) for i, packed in enumerate(part.packs))
            again = world.size == 1 and not norms  # no weight was moved yet, and nobody waits
            loss_sum, finite, metrics = _backward(
                method, scored, part.counts, progress, policy.device, again
            )
            # Over all processes, so that all of them refuse or none.
            mine = loss_sum.item(), bool(finite), _apart(metrics)
            outcomes = world.gather(mine, f"loss of step {step + 1}")
            total, all_finite = sum(o[0] for o in outcomes), all(o[1] for o in outcomes)
            norm = total_norm(p.grad for p in model.parameters() if p.grad is not None)
            if not (all_finite and norm < float("inf")):
                reason = _reason(total, norm, all_finite)
                _keep_refused(refused_dir if world.main else None, step, reason, sequences, part)
                break
            if not need_old:
                _check_mismatch([o[2] for o in outcomes], max_mismatch, step)
            clip_to(model, norm, config.max_grad_norm)
            optimizer.step()
            norms.append(norm)
            sums += metrics
            number += len(part.packs)
        optimizer.zero_grad(set_to_none=True)
    if not norms:
        return UpdateResult({"train/gradient_norm": norm, "loss": total}, reason)
    work = _work_done(batches[:number], contexts[:number])
    figures = _over_processes(world.gather((_plain(sums), work), f"metrics of step {step + 1}"))
    figures["train/sequences_skipped"] = 1 - figures.pop("sequences") / len(sequences)
    figures["train/gradient_norm"] = sum(norms) / len(norms)
    return UpdateResult({**extra, **figures}, reason, len(norms))


def _look_back(
    policy: Policy,
    method: Method,
    batches: Sequence[PackedBatch],
    world: World,
    max_mismatch: float | None,
    step: int,
) -> tuple[list[TokenScores], Before]:
    """The old policy's scores, which are to be those by which was sampled, and what is known of the whole
    step from them."""
    policy.model.eval()  # it is the one that was sampled: without dropout
    with torch.no_grad():
        old = [policy.score(packed) for packed in batches]
    apart = _sampled_apart(method, batches, old)
    _check_mismatch(world.gather(apart, f"mismatch of step {step + 1}"), max_mismatch, step)
    seen = [(p.index, o.entropy_T) for p, o in zip(batches, old, strict=True)]
    return old, look_before(method, seen, world.gather)


def _over_processes(
    shares: Sequence[tuple[Sequence[Mapping[str, float]], Mapping[str, float]]],
) -> dict[str, float]:
    """Metrics of the loss, and the work done, of all processes together."""
    figures = reduce_metrics(metrics for share, _ in shares for metrics in share)
    return figures | {key: sum(done[key] for _, done in shares) for key in shares[0][1]}


def _backward(
    method: Method,
    batches: Iterable[TokenBatch],
    counts: Mapping[str, float],
    progress: Progress,
    device: torch.device,
    retry: bool,
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Gradients of one optimizer step, micro-batch by micro-batch: the loss, whether every figure was
    finite, and the metrics of each. Raises MemoryShort where memory does not suffice and the update can
    be tried again (``retry``)."""
    loss_sum = torch.zeros((), device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    sums = []
    try:
        for batch in batches:
            loss, metrics = compute_loss(method, batch, counts, progress)
            loss.backward()
            loss_sum += loss.detach()
            # A term may mask the very tokens at which the model has broken down.
            finite &= loss.isfinite() & _all_finite(batch)
            sums.append(metrics)
        return loss_sum, finite, sums
    except (MemoryError, RuntimeError) as error:
        if not (retry and out_of_memory(error)):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
    # Outside, so that no traceback holds on to what was computed.
    raise MemoryShort(f"{LESS_MEMORY} ({said[:200]})")


def _apart(metrics: Sequence[Mapping[str, Tensor]]) -> tuple[float, float]:
    """Over all tokens of rollouts: the sum of differences between engine and trainer, and their number."""
    total, count = (
        sum(float(m[f"mismatch/abs/{part}"]) for m in metrics) for part in ("sum", "count")
    )
    return total, count


def _sampled_apart(
    method: Method, batches: Sequence[PackedBatch], old: Sequence[TokenScores]
) -> tuple[float, float]:
    """As ``_apart``, of all micro-batches, from the scores before any weight was moved."""
    total = count = 0.0
    for packed, scores in zip(batches, old, strict=True):
        if packed.sampler_logprob_T is None:
            continue
        mask_T = rollout_tokens(packed.index, method.switches) & packed.index.loss_mask_T
        gap_T = (scores.logprob_T - packed.sampler_logprob_T)[mask_T]
        total, count = total + float(gap_T.double().abs().sum()), count + len(gap_T)
    return total, count


def _check_mismatch(parts: Sequence[tuple[float, float]], most: float | None, step: int) -> None:
    """A sum that is not finite is another matter: the step is refused for it."""
    total, count = (sum(values) for values in zip(*parts, strict=True))
    if most is None or not count or not math.isfinite(total) or total / count <= most:
        return
    raise RolloutError(
        f"step {step + 1}: the rollout engine's log-probabilities and the trainer's differ by "
        f"{total / count:.3g} nats on average, more than rounding ({most:g}): they are not of the same "
        "model. The weights were not changed. Take rollout.engine=embedded, or vLLM with "
        "rollout.vllm.dtype=float32; rollout.max_mismatch allows more (and objective.importance_cap "
        "corrects for it)"
    )


def _keep_refused(
    folder: Path | None,
    step: int,
    reason: str,
    sequences: Sequence[TrainingSequence],
    part: _Part,
) -> None:
    advantages = [p.index.sequences.advantage_S for p in part.packs]
    more = {"counts": part.counts, "advantages": advantages}
    save_refused(folder, step, reason, sequences, more)


def _reason(loss: float, norm: float, all_finite: bool) -> str:
    """Why a step is refused."""
    hidden = not all_finite and math.isfinite(loss)
    scores = ", log-probabilities or entropies not" if hidden else ""
    return f"loss {loss:g}, gradient norm {norm:g}{scores}"


def _all_finite(batch: TokenBatch) -> Tensor:
    """Whether the model's figures are numbers at every token, whether or not a term reads it."""
    return (batch.logprob_T.detach().isfinite() & batch.entropy_T.isfinite()).all()


def _plain(sums: Sequence[Mapping[str, Tensor]]) -> list[dict[str, float]]:
    """Numbers in place of tensors, brought to the host in one copy."""
    values = [torch.stack([t.double() for t in part.values()]).tolist() for part in sums]
    return [dict(zip(part, row, strict=True)) for part, row in zip(sums, values, strict=True)]


def _work_done(batches: Sequence[PackedBatch], contexts: Sequence[PackedBatch]) -> dict[str, float]:
    """What this process's passes worked through; ``contexts``: its teacher's, where there is one."""
    taught = {"train/teacher_tokens": float(tokens_of(contexts))} if contexts else {}
    real = [batch for batch in batches if batch.rows]
    return {
        "sequences": float(sum(len(batch.rows) for batch in real)),
        "train/tokens": float(sum(batch.num_tokens for batch in real)),
        "train/response_tokens": float(sum(batch.num_response_tokens for batch in real)),
        "train/micro_batches": float(len(real)),
        **taught,
    }


def clip_to(model: nn.Module, norm: float, maximum: float) -> None:
    """Scales all gradients so that their global norm is at most ``maximum``."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    torch.nn.utils.clip_grads_with_norm_(parameters, maximum, torch.tensor(norm))


def _taught(sequences: Sequence[TrainingSequence]) -> dict[str, float]:
    """The share of rollouts for which there is something that a teacher can be shown."""
    told = [s.context_ids is not None for s in sequences if not s.is_demo]
    return {"teacher/taught": sum(told) / len(told)} if told else {}


def _parts(
    policy: Policy,
    method: Method,
    sequences: Sequence[TrainingSequence],
    config: TrainConfig,
    step: int,
    world: World = ALONE,
) -> Iterator[_Part]:
    """Divides the batch into the optimizer steps it is to give (``_divide``); of each, the counts of all
    processes and the micro-batches of this one."""
    table, kept = prepare(method, sequences)
    for rows in _divide(table.group_S, kept, config, step):
        part_table = take_rows(table, torch.tensor(rows))
        # Counted before dropping: a sequence without gradient still belongs to the mean.
        whole = [sequences[row] for row in rows]
        part_counts = counts(method, token_index(part_table, loss_mask(whole)))
        moving = active(method, part_table)
        chosen = [s for s, moves in zip(whole, moving.tolist(), strict=True) if moves]
        packs = pack(
            chosen,
            take_rows(part_table, moving),
            config.micro_batch_tokens,
            policy.device,
            share_prompts=policy.shares_prompts,
            rank=world.rank,
            ranks=world.size,
        )
        contexts = []
        if method.teacher is not None:
            contexts = [pack_contexts(chosen, p, policy.shares_prompts) for p in packs]
        yield _Part(part_counts, packs, contexts)


def _divide(
    group_S: Tensor, kept: Sequence[int], config: TrainConfig, step: int
) -> list[list[int]]:
    """Row numbers of each optimizer step. All sequences of a prompt stay together, except where there are
    fewer prompts than steps: sequences are then divided by themselves."""
    parts = config.optimizer_steps_per_batch
    if parts == 1:
        return [list(kept)] if kept else []
    unit_of = group_S.tolist()
    if len({unit_of[row] for row in kept}) < parts:
        unit_of = list(range(len(unit_of)))
    units = sorted({unit_of[row] for row in kept})
    generator = torch.Generator().manual_seed(request_seed(config.seed, step))
    order = torch.randperm(len(units), generator=generator).tolist()
    part_of = {units[u]: place * parts // len(units) for place, u in enumerate(order)}
    rows: list[list[int]] = [[] for _ in range(parts)]
    for row in kept:
        rows[part_of[unit_of[row]]].append(row)
    return [part for part in rows if part]


def forward(
    policy: Policy,
    packed: PackedBatch,
    old: TokenScores | None = None,
    before: Before | None = None,
    lesson: Lesson | None = None,
    load: Load | None = None,
) -> TokenBatch:
    """The objective's input for one micro-batch; without ``old`` the policy is its own old one.
    ``load`` is that of experts by the whole optimizer step, where their balance is trained."""
    reference_logprob_T = policy.reference_logprob(packed)  # first, while no activations are held
    scores = policy.score(packed, lesson.against if lesson else None)
    earlier = old or TokenScores(scores.logprob_T.detach(), scores.entropy_T.detach())
    batch = TokenBatch(
        index=packed.index,
        logprob_T=scores.logprob_T,
        entropy_T=scores.entropy_T.detach(),
        entropy_grad_T=scores.entropy_T,
        old_logprob_T=earlier.logprob_T,
        old_entropy_T=earlier.entropy_T,
        reference_logprob_T=reference_logprob_T,
        sampler_logprob_T=packed.sampler_logprob_T,
        batch_entropy=before.entropy if before else None,
        prefix_threshold=before.prefix_threshold if before else None,
        divergence_T=scores.divergence_T,
        balance=policy.balance.loss(scores.load, load)
        if policy.balance and load and scores.load
        else None,
    )
    return lesson.fill(batch) if lesson else batch


def _loads(parts: Sequence[_Part], old: Sequence[TokenScores], world: World) -> list[Load]:
    """Of each micro-batch the load of experts by its whole optimizer step, on all processes."""
    mine = iter([scores.load for scores in old if scores.load is not None])
    found: list[Load] = []
    for part in parts:
        own = [next(mine) for _ in part.packs]
        if not own:  # nothing in this step has gradient, in no process
            continue
        told = [(load.chosen_E.tolist(), load.pairs) for load in own]
        every = [load for share in world.gather(told, "load of experts") for load in share]
        chosen_E = torch.tensor([chosen for chosen, _ in every]).sum(0).to(own[0].chosen_E.device)
        found += [Load(chosen_E, chosen_E, sum(pairs for _, pairs in every))] * len(own)
    return found
