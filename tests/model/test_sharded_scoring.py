"""Scores and gradients of a model sharded by FSDP2 are those of the whole model."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from srft.data.packing import pack
from srft.model.packed_attention import use_packed_attention
from srft.model.scoring import score

RANKS = 2


def compare_on_rank(rank: int, rendezvous: str, models: list, sequences: list) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=240),
    )
    for model in models:
        use_packed_attention(model)
        compare(rank, model, sequences)
    dist.destroy_process_group()


def compare(rank: int, model: torch.nn.Module, sequences: list) -> None:
    mesh = init_device_mesh("cpu", (RANKS,))
    whole = copy.deepcopy(model)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    batches = [pack(sequences[k::RANKS], None, 999)[0] for k in range(RANKS)]
    with torch.no_grad():
        before = score(model, batches[rank]).logprob_T
    scores = score(model, batches[rank])
    assert torch.equal(before, scores.logprob_T.detach())
    (scores.logprob_T.sum() + scores.entropy_T.sum()).backward()
    for k, batch in enumerate(batches):
        expected = score(whole, batch)
        if k == rank:
            torch.testing.assert_close(scores.logprob_T.detach(), expected.logprob_T.detach())
        # FSDP averages gradients over ranks.
        ((expected.logprob_T.sum() + expected.entropy_T.sum()) / RANKS).backward()
    others = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), others[name].grad)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sharding_changes_nothing(tmp_path: Path, make_model, make_sequences) -> None:
    models = [make_model("llama"), make_model("qwen3")]  # an untied head and a tied one
    sequences = make_sequences((3, 30), (1, 1), (8, 9), (2, 4), (5, 5), (7, 3))
    arguments = (str(tmp_path / "rendezvous"), models, sequences)
    multiprocessing.spawn(compare_on_rank, arguments, nprocs=RANKS)
