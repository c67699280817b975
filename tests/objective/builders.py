"""From the reference's plain sequences to the package's tensors, in float64."""

from __future__ import annotations

from dataclasses import replace

import torch
from tests.objective.reference import entropy_of

from srft.model.divergence import Logits, divergence
from srft.objective.loss import active, compute_loss, counts
from srft.objective.method import Progress
from srft.objective.table import loss_mask, sequence_table, take_rows, token_index
from srft.objective.terms import prefix_threshold
from srft.types import TokenBatch, TrainingSequence


def training_sequence(seq):
    return TrainingSequence(
        prompt_ids=(0,),
        response_ids=tuple(seq.targets),
        group=seq.group,
        is_demo=seq.demo,
        reward=seq.reward,
        correct=seq.correct,
        truncated=seq.truncated,
        prefix_length=seq.prefix,
        loss_mask=tuple(not m for m in seq.masked) if seq.masked else None,
        context_ids=(0,) if seq.teacher else None,
    )


def index_of(seqs, table):
    return token_index(table, loss_mask([training_sequence(q) for q in seqs]))


def table_of(seqs, method):
    table = sequence_table([training_sequence(q) for q in seqs])
    table = replace(table, reward_S=table.reward_S.double())
    return replace(table, advantage_S=method.advantage(table, method.switches))


def logits_of(seqs):
    return torch.tensor([z for q in seqs for z in q.logits], dtype=torch.float64)


def batch_of(seqs, table, logits_TV, batch_entropy=None, like=None, method=None):
    """The TokenBatch of whole sequences; gradient reaches ``logits_TV``.

    A field is there when every sequence of ``like`` (the whole step) has it.
    """
    index = index_of(seqs, table)
    lp_TV = torch.log_softmax(logits_TV, -1)
    device = logits_TV.device
    targets = [y for q in seqs for y in q.targets]
    target_T = torch.tensor(targets, dtype=torch.int64, device=device)
    lp_T = lp_TV.gather(1, target_T[:, None])[:, 0]
    h_T = -(lp_TV.exp() * lp_TV).sum(-1)

    def flat(name, fallback=None):
        if not all(getattr(q, name) for q in like or seqs):
            return fallback
        values = [x for q in seqs for x in getattr(q, name)]
        return torch.tensor(values, dtype=torch.float64, device=device)

    taught = {}
    if method is not None and method.teacher is not None:
        # Where there is no teacher, the policy's own.
        rows = [z for q in seqs for z in (q.teacher or q.logits)]
        other_TV = torch.tensor(rows, dtype=torch.float64).reshape(-1, logits_TV.shape[1])
        other_TV = torch.log_softmax(other_TV, -1)
        taught["teacher_logprob_T"] = other_TV.gather(1, target_T[:, None])[:, 0]
        taught["teacher_entropy_T"] = -(other_TV.exp() * other_TV).sum(-1)
        if method.divergence:
            switches = method.switches
            unit = torch.eye(logits_TV.shape[1], dtype=torch.float64)
            taught["divergence_T"] = divergence(
                Logits(logits_TV, unit), Logits(other_TV, unit),
                switches.distill_beta, switches.distill_top_k,
            )  # fmt: skip
    given = [h for q in like or seqs for h in q.old_entropy[: q.prefix]]
    if method is not None and not any(q.old_entropy for q in like or seqs):
        given = [entropy_of(z) for q in like or seqs for z in q.logits[: q.prefix]]
    given_T = torch.tensor(given, dtype=torch.float64)
    return TokenBatch(
        prefix_threshold=prefix_threshold(given_T, method.switches) if method else None,
        **taught,
        index=index,
        logprob_T=lp_T,
        entropy_T=h_T.detach(),
        entropy_grad_T=h_T,
        old_logprob_T=flat("old", lp_T.detach()),
        old_entropy_T=flat("old_entropy", h_T.detach()),
        reference_logprob_T=flat("reference"),
        sampler_logprob_T=flat("sampler"),
        batch_entropy=batch_entropy,
    )


def run(method, seqs, progress=None, cuts=None, batch_entropy=None, drop_inactive=False):
    """(loss, gradient at every logit, metrics per micro-batch) in float64.

    ``cuts`` is a list of lists of row numbers: the micro-batches. Without it there is one.
    """
    progress = progress or Progress(0, 10)
    table = table_of(seqs, method)
    total = counts(method, index_of(seqs, table))
    lengths = [len(q.targets) for q in seqs]
    starts = [sum(lengths[:i]) for i in range(len(seqs))]
    logits_TV = logits_of(seqs).requires_grad_()
    moving = active(method, table, progress).tolist()
    loss, metrics = 0.0, []
    for rows in [list(range(len(seqs)))] if cuts is None else cuts:
        rows = [i for i in rows if moving[i]] if drop_inactive else rows
        where = [t for i in rows for t in range(starts[i], starts[i] + lengths[i])]
        part = take_rows(table, torch.tensor(rows, dtype=torch.int64))
        some = [seqs[i] for i in rows]
        batch = batch_of(some, part, logits_TV[where], batch_entropy, seqs, method)
        part_loss, part_metrics = compute_loss(method, batch, total, progress)
        part_loss.backward()
        loss += part_loss.item()
        metrics.append(part_metrics)
    assert logits_TV.grad is not None, "no gradient path"
    return loss, logits_TV.grad, metrics
