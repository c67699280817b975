"""reasoning-gym's own scorers as a verifier, for the problems of ``data/reasoning_gym.py``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from srft.rewards.answers import extract_answer
from srft.rewards.verifiers import BAD_GOLD, NO_ANSWER, Verdict


def check_gym(
    text: str, answer: str | None, columns: Mapping[str, Any], options: Mapping[str, Any]
) -> Verdict:
    """The family's score of the announced answer, or of the whole text where none is announced.

    Scores lie between 0 and 1, with parts for answers in a wrong form. Reads the column
    ``reasoning_gym``, an entry as JSON.
    """
    entry = columns.get("reasoning_gym")
    if not entry:
        return BAD_GOLD
    found = (extract_answer(text) or text).strip()
    if not found:
        return NO_ANSWER
    from reasoning_gym import get_score_answer_fn

    whole = json.loads(entry)
    score = get_score_answer_fn(whole["metadata"]["source_dataset"])
    more = {"entry": whole} if "entry" in inspect.signature(score).parameters else {}
    return Verdict(min(1.0, max(0.0, float(score(answer=found, **more)))))
