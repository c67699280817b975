"""A small model whose template knows tools, and one that calls them at random."""

from __future__ import annotations

import json
import re

import pytest
from tests.data.conftest import make_byte_bpe
from tests.toys import HERMES, save_tool_model

from srft.config import parse_config
from srft.data.turns import tool_call


def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


@pytest.fixture(scope="session")
def tokenizer():
    return make_byte_bpe(HERMES)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    return save_tool_model(tmp_path_factory.mktemp("tools"))


def random_reader(turns):
    """Every turn that begins with an even token calls ``add``, or the first tool there is."""

    def read(ids, before, tools):
        message = {"role": "assistant", "content": turns.template.tokenizer.decode(ids)}
        if ids[0] % 2:
            return message
        name = tools[0]["function"]["name"]
        return message | {"tool_calls": [tool_call(name, {"a": ids[0], "b": 1})]}

    return read


@pytest.fixture
def calls_at_random(monkeypatch):
    monkeypatch.setattr("srft.environments.tools.reader", random_reader)


@pytest.fixture
def tool_recipe(model_path, tokenizer, tmp_path):
    """``tool_recipe(**sections)``: three steps in which many tokens end a turn."""

    def build(**sections):
        values = {
            "method": "grpo",
            "model": {"path": str(model_path)},
            "rollout": {
                "group_size": 4,
                "max_tokens": 120,
                "stop_token_ids": list(range(len(tokenizer) // 2, len(tokenizer))),
            },
            "environment": {"max_turns": 3},
            "train": {"steps": 3, "prompts_per_step": 2, "learning_rate": 1e-3},
            "evaluation": {"every_steps": 0},
            "run": {
                "dir": str(tmp_path / "run"),
                "live": "never",
                "checkpoint_every": 1,
                "samples_every": 1,
            },
        }
        for name, section in sections.items():
            both = isinstance(section, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **section} if both else section
        return parse_config(json.loads(json.dumps(values)))

    return build


def sums(count: int) -> list[dict]:
    return [
        {"prompt": [{"role": "user", "content": f"What is {n} + 4?"}], "answer": str(n + 4)}
        for n in range(count)
    ]


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)
