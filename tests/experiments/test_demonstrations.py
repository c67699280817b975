"""Demonstrations that a model makes itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from srft.errors import ConfigError
from srft.experiments.demonstrations import make_demonstrations
from srft.experiments.experiment import base_recipe
from srft.rewards.scorer import Scorer
from srft.types import Example

QUIET = Console(quiet=True)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_self_made_ones_are_verified_rollouts_and_the_experts_cover_the_same_prompts(
    experiment, tmp_path, settings
):
    # The shipped model answers some prompts; one with random weights would not.
    base = base_recipe(experiment, [*settings, "model.path=lab", "rollout.max_tokens=16"])
    paths = make_demonstrations(base, tmp_path, QUIET, samples=4)
    own, expert = rows(paths["self-made"]), rows(paths["expert-same"])
    assert len(own) == len(expert) == 20
    covered = [row for row in own if row["demonstration"]]
    assert 0 < len(covered) < 20
    for ours, theirs in zip(own, expert, strict=True):
        assert ours["prompt"] == theirs["prompt"]
        assert bool(ours["demonstration"]) == bool(theirs["demonstration"])
    with Scorer(base.reward) as scorer:
        examples = [Example(row["prompt"], answer=row["answer"]) for row in covered]
        scores = scorer.score(examples, [row["demonstration"] for row in covered])
    assert all(score.correct for score in scores)
    before = (tmp_path / "self_made.jsonl").read_bytes()
    assert make_demonstrations(base, tmp_path, QUIET, samples=4) == paths
    assert (tmp_path / "self_made.jsonl").read_bytes() == before


def test_demonstrations_of_another_model_are_refused(experiment, tmp_path, settings):
    lab = base_recipe(experiment, [*settings, "model.path=lab", "rollout.max_tokens=16"])
    make_demonstrations(lab, tmp_path, QUIET, samples=4)
    with pytest.raises(ConfigError, match="another base model"):
        make_demonstrations(base_recipe(experiment, settings), tmp_path, QUIET)
