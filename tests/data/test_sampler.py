import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srft.data.sampler import PromptSampler
from srft.errors import DataError

sizes = st.integers(1, 40)


def draw(sampler: PromptSampler, batches: int) -> list[list[int]]:
    return [sampler.next() for _ in range(batches)]


@given(n=sizes, batch=sizes, seed=st.integers(0, 99), shuffle=st.booleans())
def test_every_epoch_holds_every_row_once(n, batch, seed, shuffle):
    batches = draw(PromptSampler(n, batch, seed, shuffle), 5 * n // batch + 2)
    stream = [row for rows in batches for row in rows]
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))


@given(n=sizes, batch=sizes, seed=st.integers(0, 99))
def test_no_row_is_twice_in_a_batch_that_the_dataset_can_fill(n, batch, seed):
    for rows in draw(PromptSampler(n, batch, seed), 30):
        assert len(rows) == batch
        if batch <= n:
            assert len(set(rows)) == batch
        else:
            counts = Counter(rows)
            assert max(counts.values()) - min(counts[row] for row in range(n)) <= 2


@given(
    n=sizes, batch=sizes, seed=st.integers(0, 9), before=st.integers(0, 30), shuffle=st.booleans()
)
def test_a_restored_sampler_continues_exactly(n, batch, seed, before, shuffle):
    sampler = PromptSampler(n, batch, seed, shuffle)
    draw(sampler, before)
    state = json.loads(json.dumps(sampler.state_dict()))
    expected = draw(sampler, 20)
    other = PromptSampler(n, batch, seed, shuffle)
    other.load_state_dict(state)
    assert draw(other, 20) == expected


def test_order_differs_between_epochs_and_seeds_and_is_file_order_without_shuffle():
    sampler = PromptSampler(50, 50, seed=1)
    first, second = draw(sampler, 2)
    assert first != second
    assert PromptSampler(50, 50, seed=2).next() != first
    assert PromptSampler(50, 50, seed=1).next() == first
    assert draw(PromptSampler(4, 2, shuffle=False), 3) == [[0, 1], [2, 3], [0, 1]]


def test_the_order_is_the_same_on_every_machine():
    assert PromptSampler(8, 8, seed=7).next() == [6, 3, 2, 1, 7, 0, 4, 5]


def test_extra_prompts_can_be_drawn_and_the_epoch_counts_rows():
    sampler = PromptSampler(10, 4)
    assert len(sampler.next(3)) == 3
    assert sampler.epoch == pytest.approx(0.3)
    rows = sampler.next(9)
    assert len(set(rows)) == 9
    assert sampler.epoch == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 11}, "11 prompts and the dataset now has 10"),
        ({"seed": 5}, "seed = 5"),
        ({"shuffle": False}, "shuffle = False"),
    ],
)
def test_a_state_of_another_run_is_refused(change, words):
    state = {**PromptSampler(10, 4).state_dict(), **change}
    with pytest.raises(DataError, match=words):
        PromptSampler(10, 4).load_state_dict(state)
    with pytest.raises(DataError, match="lacks"):
        PromptSampler(10, 4).load_state_dict({"n": 10})


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="empty"):
        PromptSampler(0, 4)
    with pytest.raises(DataError, match="batch_size"):
        PromptSampler(4, 0)
