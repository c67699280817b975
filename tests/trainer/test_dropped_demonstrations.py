"""Demonstrations that are left out of training are spoken of, loudly where they are many."""

from __future__ import annotations

import pytest

from srft.config import SRFTConfig
from srft.parallel.world import World
from srft.rewards.scorer import Scorer
from srft.trainer.setup import _score_demonstrations
from srft.types import Example, TokenizedExample


@pytest.mark.parametrize(("wrong", "loud"), [(0, False), (2, False), (10, True)])
def test_more_than_a_few_percent_are_a_warning_with_examples(wrong, loud):
    texts = ["#### 5"] * (100 - wrong) + [f"#### {n}" for n in range(10, 10 + wrong)]
    examples = [
        TokenizedExample(Example("q", (text,), "5", source=f"d.jsonl:{row}"), row, (1,), ((2,),))
        for row, text in enumerate(texts, start=1)
    ]
    notes: list[str] = []
    config = SRFTConfig(model={"path": "m"}, data={"train": "d.jsonl"}, reward="numeric")
    with Scorer("numeric") as scorer:
        kept, _ = _score_demonstrations(config, examples, scorer, notes, World(), None, True)
    assert sum(bool(item.demonstration_ids) for item in kept) == 100 - wrong
    assert len(notes) == bool(wrong)
    for note in notes:
        assert f"{wrong} of 100 demonstrations ({wrong}.0%)" in note
        assert note.startswith("WARNING: ") is loud and f"d.jsonl:{101 - wrong}" in note
