"""Which evaluation problems stand in the training data."""

from __future__ import annotations

from srft.data.leakage import leakage, repeats
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
