"""Which evaluation problems stand in the training data."""

from __future__ import annotations

import pytest

from srft.config import SRFTConfig
from srft.data.leakage import apart, leakage, repeats
from srft.data.reading import Splits
from srft.errors import DataError
from srft.trainer.given import Given
from srft.types import Example

LONG = "A train leaves Basel at nine and reaches Bern, 95 km away, one hour later. How fast is it?"


def examples(*prompts: str, name: str = "train") -> list[Example]:
    return [Example(p, (), "1", {}, f"{name}:{n}") for n, p in enumerate(prompts, start=1)]


def test_a_problem_is_found_whatever_stands_around_it_and_however_it_is_set() -> None:
    held_out = examples("Another one.", LONG, name="eval")
    train = examples(
        "Nothing alike", f"Solve this: {LONG.upper().replace(',', '')} Answer briefly."
    )
    found = leakage(train, held_out)
    assert (found.rows, found.problems, found.checked) == (1, 1, 2)
    assert (found.overlaps[0].train, found.overlaps[0].held_out) == ("train:2", "eval:2")
    assert len(found.overlaps[0].words.split()) == 13


def test_twelve_shared_words_are_no_leak() -> None:
    words = LONG.split()
    train = examples(" ".join([*words[:12], "elsewhere", *words[14:]]))
    assert leakage(train, examples(LONG)).rows == 0


def test_a_short_problem_leaks_as_a_whole_and_a_very_short_one_alone() -> None:
    held_out = examples("How many legs have seven spiders together?", "2 + 2 = ?", name="eval")
    inside = examples("Quiz: how many legs have seven spiders together? And what is 2 + 2 = ?")
    assert leakage(inside, held_out).problems == 1
    assert leakage(examples("2 + 2 = ?"), held_out).problems == 1


def test_a_common_instruction_is_no_leak() -> None:
    instruction = "Reason step by step and then put the final answer in a box at the very end."
    held_out = examples(*(f"{n} plus {n + 1} {instruction}" for n in range(40)), name="eval")
    assert leakage(examples(f"A new question, {instruction}"), held_out).rows == 0
    assert leakage(examples(f"7 plus 8 {instruction}"), held_out).problems == 1


def test_system_messages_are_not_searched_and_repeats_are_grouped() -> None:
    system = {"role": "system", "content": LONG}
    chats = [Example((system, {"role": "user", "content": t}), (), "1") for t in ("a b", "A  b")]
    assert leakage(chats, examples(LONG)).rows == 0
    assert [len(group) for group in repeats([*chats, *examples("c")])] == [2]


def test_neighbouring_seeds_of_generated_problems_are_held_apart() -> None:
    """reasoning-gym's problem i + 1 of one seed is problem i of the next."""
    pytest.importorskip("reasoning_gym")
    kind = "reasoning-gym:chain_sum?min_terms=2&max_terms=3&min_digits=1&max_digits=2"
    config = SRFTConfig(data={"train": f"{kind}&size=60&seed=1", "eval": f"{kind}&size=20&seed=2"})
    splits = Given().read(config)
    held = {example.prompt for example in splits.eval["chain_sum"]}
    assert len(splits.eval["chain_sum"]) == 20 and len(splits.train) == 40
    assert held.isdisjoint(example.prompt for example in splits.train)
    (note,) = [note for note in splits.notes if "training rows too" in note]
    assert "20 of 20 problems" in note and "20 training rows left out, 40 are kept" in note


def test_users_own_rows_stay_and_are_said_to_be_problems_too() -> None:
    train = examples("a", "b", "B  ", "c")
    found = apart(Splits(train, {"test": examples("b", "d", name="test")}))
    assert found.train == train
    (note,) = found.notes
    assert note.startswith("evaluation data test: 1 of 2 problems are training rows too")
    assert "the first: train:2" in note
    assert apart(Splits(train, {"test": examples("e")})).notes == ()


def test_repeated_rows_do_not_leak_over_a_drawn_split() -> None:
    found = apart(Splits(examples("a", "b", "a", "c"), {"heldout": examples("a")}), drawn=True)
    assert [example.prompt for example in found.train] == ["b", "c"]
    with pytest.raises(DataError, match="every training row is an evaluation problem"):
        apart(Splits(examples("a"), {"heldout": examples("a")}), drawn=True)
