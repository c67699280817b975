"""Verifiers see how a prompt ends, so that they know of a thought that the template has opened."""

from __future__ import annotations

import pytest

from srft.data.data_config import DataConfig
from srft.data.tokenization import tokenize_dataset
from srft.rewards.scorer import Scorer
from srft.types import Example

OPENS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
GOOD, BARE = "Two and two.\n</think>\n\nIt is \\boxed{4}.", "It is \\boxed{4}."


@pytest.mark.parametrize(("template", "opened"), [(OPENS, True), ("chatml", False)])
def test_format_scores_by_the_template_that_the_model_saw(make_tokenizer, template, opened):
    tokenizer = make_tokenizer("bytes", template)
    example = Example("2 + 2?", (f"<think>\n{GOOD}",), "4")
    (item,), _ = tokenize_dataset([example], tokenizer, DataConfig())
    assert item.example.prompt_end.rstrip().endswith("<think>") is opened
    with Scorer("format") as scorer:
        texts = [item.example.demonstrations[0], f"<think>\n{GOOD}", GOOD, BARE]
        scores = [score.reward for score in scorer.score([item.example] * len(texts), texts)]
    assert scores == [1.0, 1.0, float(opened), 0.0]
