"""Packed sequences do not see each other: same scores and gradients as one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from srft.data.packing import pack
from srft.errors import ModelError
from srft.model import fast
from srft.model.packed_attention import (
    _Seen,
    can_pack,
    packed_attention,
    packed_layout,
    packed_mask,
    packed_rows,
    packs,
    use_packed_attention,
)
from srft.model.scoring import score

FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gpt_oss", "stablelm"]
LENGTHS = ((3, 30), (1, 1), (8, 9), (2, 4), (9, 8), (40, 30), (12, 5))


def loss_and_grads(model, batches):
    model.zero_grad()
    parts = [score(model, batch) for batch in batches]
    by_row = {}
    for batch, part in zip(batches, parts, strict=True):
        for s, row in enumerate(batch.rows):
            mine = batch.index.sequence_T == s
            by_row[row] = (part.logprob_T[mine], part.entropy_T[mine])
    total = sum(lp.mean() + 0.3 * h.square().mean() for lp, h in by_row.values())
    total.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    ordered = [by_row[row] for row in sorted(by_row)]
    return torch.cat([lp for lp, _ in ordered]), torch.cat([h for _, h in ordered]), grads


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_prompts_changes_neither_scores_nor_gradients(family, make_model, make_sequences):
    model = make_model(family)
    use_packed_attention(model)
    drawn = make_sequences((9, 30), (9, 1), (9, 8), (40, 5), (40, 12), (3, 4))
    prompt = {9: drawn[0].prompt_ids, 40: drawn[3].prompt_ids, 3: drawn[5].prompt_ids}
    sequences = [replace(s, prompt_ids=prompt[len(s.prompt_ids)]) for s in drawn]
    plain = loss_and_grads(model, pack(sequences, None, 999))
    (batch,) = pack(sequences, None, 999, share_prompts=True)
    assert batch.num_tokens == 9 + 40 + 3 + sum(len(s.response_ids) for s in sequences)
    shared = loss_and_grads(model, [batch])
    for ours, theirs in zip(shared[:2], plain[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    for name, grad in shared[2].items():
        scale = float(plain[2][name].abs().max())
        torch.testing.assert_close(grad, plain[2][name], rtol=1e-3, atol=1e-5 + 2e-5 * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_one_by_one(family, make_model, make_sequences) -> None:
    model = make_model(family)
    sequences = make_sequences(*LENGTHS)
    assert can_pack(model)
    # Sequence by sequence through the model's own attention, then all in one row through ours.
    alone = [
        replace(pack([sequence], None, 999)[0], rows=(row,))
        for row, sequence in enumerate(sequences)
    ]
    plain = loss_and_grads(model, alone)
    use_packed_attention(model)
    assert packs(model)
    packed = loss_and_grads(model, pack(sequences, None, 999))
    for ours, theirs in zip(packed[:2], plain[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    assert packed[2].keys() == plain[2].keys()
    for name, grad in packed[2].items():
        scale = float(plain[2][name].abs().max())
        torch.testing.assert_close(grad, plain[2][name], rtol=1e-3, atol=1e-5 + 2e-5 * scale)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_ordinary_padded_forward_is_unchanged(family, make_model) -> None:
    model = make_model(family).eval()
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    before = model(input_ids=ids, attention_mask=mask).logits
    use_packed_attention(model)
    after = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(after[mask.bool()], before[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_generation_with_a_cache_is_unchanged(family, make_model) -> None:
    model = make_model(family).eval()
    ids = torch.randint(3, 60, (2, 10), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "eos_token_id": 99}
    before = model.generate(ids, **options)
    use_packed_attention(model)
    assert torch.equal(model.generate(ids, **options), before)


def test_gradient_checkpointing_keeps_sequences_apart(make_model, make_sequences) -> None:
    model = make_model("llama").train()
    use_packed_attention(model)
    batches = pack(make_sequences(*LENGTHS), None, 999)
    plain = loss_and_grads(model, batches)
    fast.enable_checkpointing(model)
    again = loss_and_grads(model, batches)
    for name, grad in again[2].items():
        torch.testing.assert_close(grad, plain[2][name])


def test_layout_puts_similar_lengths_together_and_every_token_back() -> None:
    lengths = torch.tensor([5, 40, 38, 100, 39, 7, 100])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    layout = packed_layout(cu_seqlens)
    assert layout.buckets == ((2, 100), (3, 40), (2, 7))
    tokens = torch.arange(int(lengths.sum()))
    assert torch.equal(tokens[layout.pad_Q][layout.unpad_N], tokens)


def test_equal_lengths_need_no_moving() -> None:
    layout = packed_layout(torch.tensor([0, 6, 12, 18], dtype=torch.int32))
    assert layout.buckets == ((3, 6),)
    assert layout.pad_Q is None
    assert layout.unpad_N is None


def test_a_mask_that_lost_its_layout_is_refused() -> None:
    query = torch.randn(1, 2, 5, 8)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    with pytest.raises(ModelError, match="attention=padded"):
        packed_attention(torch.nn.Identity(), query, query, query, mask)


def test_attention_that_is_not_causal_is_refused() -> None:
    query = torch.randn(1, 2, 5, 8)
    layout = packed_layout(torch.tensor([0, 2, 5], dtype=torch.int32))
    with packed_rows(layout):
        mask = packed_mask(mask_function=causal_mask_function)
    with pytest.raises(ModelError, match="not causal"):
        packed_attention(torch.nn.Identity(), query, query, query, mask, is_causal=False)


@pytest.mark.parametrize("family", ["mamba", "bloom"])
def test_models_without_replaceable_attention_are_known(family, make_model) -> None:
    sizes = {"n_head": 4} if family == "bloom" else {}
    assert not can_pack(make_model(family, **sizes))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_windows_and_chunks_are_those_of_transformers(size):
    q, k = torch.arange(17)[:, None], torch.arange(17)[None, :]
    zero = torch.zeros(1, 1, dtype=torch.int64)
    windows = sliding_window_causal_mask_function(size)(zero, zero, q, k)
    chunks = chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.int64))(zero, zero, q, k)
    assert torch.equal(_Seen(window=size).pairs(q, k), windows)
    assert torch.equal(_Seen(chunk=size).pairs(q, k), chunks)
    assert torch.equal(_Seen().pairs(q, k), k <= q)
