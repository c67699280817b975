"""Packing loses nothing, pads nothing and keeps to the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from srft.data.packing import pack, partition
from srft.errors import DataError
from srft.objective.table import sequence_table
from srft.types import TrainingSequence


def sequence(prompt, response, **fields) -> TrainingSequence:
    known = {"group": 0, "is_demo": False, "reward": 0.0, "correct": False}
    return TrainingSequence(tuple(prompt), tuple(response), **{**known, **fields})


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120), st.integers(1, 6))
def test_every_row_is_in_one_part_within_the_budget(lengths, budget, at_least) -> None:
    parts = partition(lengths, budget, at_least)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    assert len(parts) >= min(at_least, len(lengths))
    for part in parts:
        assert part
        assert len(part) == 1 or sum(lengths[row] for row in part) <= budget
    assert parts == partition(lengths, budget, at_least)


def test_similar_lengths_share_a_part() -> None:
    lengths = [10, 90, 12, 88, 11, 30, 31, 29]
    parts = partition(lengths, 100)
    assert [[lengths[row] for row in part] for part in parts] == [
        [90],
        [88],
        [31, 30],
        [29, 12, 11, 10],
    ]


def test_even_parts_rather_than_full_ones() -> None:
    # 12 sequences of 10 tokens, 50 a batch: three are needed, and they hold 4 each, not 5, 5, 2.
    assert [len(part) for part in partition([10] * 12, 50)] == [4, 4, 4]


def test_a_sequence_longer_than_the_budget_is_alone() -> None:
    assert partition([200, 5, 5], 100) == [(0,), (1, 2)]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(1, 60), st.integers(2, 4))
def test_ranks_share_the_batches_between_them_equally_many_each(lengths, budget, ranks) -> None:
    sequences = [sequence([1], [2] * n, group=row) for row, n in enumerate(lengths)]
    table = sequence_table(sequences)
    shares = [pack(sequences, table, budget, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    rows = [row for share in shares for batch in share for row in batch.rows]
    assert sorted(rows) == list(range(len(lengths)))


def test_contents_line_up() -> None:
    sequences = [
        sequence([1, 2], [3, 4, 5], group=7, is_demo=True, reward=1.0, correct=True),
        sequence([6], [8, 9, 10, 11, 12], prefix_length=2, truncated=True),
    ]
    table = replace(sequence_table(sequences), advantage_S=torch.tensor([0.5, -2.0]))
    (batch,) = pack(sequences, table, 100)
    assert batch.rows == (1, 0)
    assert batch.input_ids_N.tolist() == [6, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5]
    assert batch.position_ids_N.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    assert batch.cu_seqlens.tolist() == [0, 6, 11]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_length == 6
    assert batch.target_T.tolist() == [8, 9, 10, 11, 12, 3, 4, 5]
    assert batch.predict_T.tolist() == [0, 1, 2, 3, 4, 7, 8, 9]
    assert batch.index.sequence_T.tolist() == [0] * 5 + [1] * 3
    assert batch.index.position_T.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    table = batch.index.sequences
    assert table.advantage_S.tolist() == [-2.0, 0.5]
    assert table.group_S.tolist() == [0, 7]
    assert table.is_demo_S.tolist() == [False, True]
    assert table.prefix_S.tolist() == [2, 0]
    assert table.truncated_S.tolist() == [True, False]
    assert batch.sampler_logprob_T is None
    assert (batch.num_tokens, batch.num_response_tokens) == (11, 8)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 40),
)
def test_each_prediction_is_of_the_token_after_it(lengths, budget) -> None:
    sequences = [sequence(range(p), range(100, 100 + r)) for p, r in lengths]
    total = 0
    for batch in pack(sequences, None, budget):
        assert torch.equal(batch.target_T, batch.input_ids_N[batch.predict_T + 1])
        assert torch.equal(
            batch.position_ids_N[batch.predict_T] + 1,
            torch.tensor([len(sequences[r].prompt_ids) for r in batch.rows])[batch.index.sequence_T]
            + batch.index.position_T,
        )
        total += batch.num_response_tokens
    assert total == sum(r for _, r in lengths)


def test_sampler_logprobs_follow_their_tokens_and_demonstrations_count_as_certain() -> None:
    sequences = [
        sequence([1], [2, 3], is_demo=True),
        sequence([1], [4, 5, 6], sampler_logprobs=(-0.1, -0.2, -0.3)),
    ]
    (batch,) = pack(sequences, None, 100)
    torch.testing.assert_close(batch.sampler_logprob_T, torch.tensor([-0.1, -0.2, -0.3, 0.0, 0.0]))
    alone = pack(sequences, None, 1)
    assert [b.sampler_logprob_T is None for b in alone] == [False, True]


def test_moving_moves_every_tensor() -> None:
    (batch,) = pack([sequence([1], [2], sampler_logprobs=(-0.1,))], None, 10)
    moved = batch.to("meta")
    tensors = [
        moved.input_ids_N,
        moved.position_ids_N,
        moved.cu_seqlens,
        moved.target_T,
        moved.predict_T,
        moved.sampler_logprob_T,
        moved.index.sequence_T,
        moved.index.position_T,
        *vars(moved.index.sequences).values(),
    ]
    assert all(t.device.type == "meta" for t in tensors)


@pytest.mark.parametrize(
    ("prompt", "response", "part"), [((), (1,), "prompt"), ((1,), (), "response")]
)
def test_empty_parts_are_refused(prompt, response, part) -> None:
    with pytest.raises(DataError, match=f"sequence 1 .*empty {part}"):
        pack([sequence([1], [2]), sequence(prompt, response)], None, 10)


def test_a_wrong_number_of_sampler_logprobs_is_refused() -> None:
    with pytest.raises(DataError, match="2 tokens but 1 log-prob"):
        pack([sequence([1], [2, 3], sampler_logprobs=(-0.1,))], None, 10)


def _sequence(prompt, response, group=0):
    return TrainingSequence(tuple(prompt), tuple(response), group, False, 0.0, False)


def test_a_shared_prompt_stands_once_and_every_response_finds_it():
    sequences = [
        _sequence([1, 2, 3], [10, 11]),
        _sequence([5, 6], [20], group=1),
        _sequence([1, 2, 3], [30]),
    ]
    (batch,) = pack(sequences, None, 100, share_prompts=True)
    assert batch.input_ids_N.tolist() == [1, 2, 3, 10, 11, 30, 5, 6, 20]
    assert batch.position_ids_N.tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2]
    assert batch.rows == (0, 2, 1)
    assert batch.target_T.tolist() == [10, 11, 30, 20]
    assert batch.predict_T.tolist() == [2, 3, 2, 7]
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 12]
    assert batch.expand_P.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8]
    assert batch.num_tokens == 9


def test_a_group_larger_than_the_budget_becomes_several_units():
    sequences = [_sequence([1, 2, 3, 4], [9] * 5) for _ in range(4)]
    batches = pack(sequences, None, 15, share_prompts=True)
    assert [batch.num_tokens for batch in batches] == [14, 14]
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2, 3]


def test_without_a_common_prompt_sharing_changes_nothing():
    sequences = [_sequence([1, 2], [3]), _sequence([4], [5, 6], group=1)]
    (shared,) = pack(sequences, None, 100, share_prompts=True)
    (plain,) = pack(sequences, None, 100)
    assert shared.expand_P is None
    assert shared.input_ids_N.tolist() == plain.input_ids_N.tolist()
