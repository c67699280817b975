"""A run's tools with its chat template: data that offer them, and an engine that calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from srft.data.data_config import DataConfig
from srft.data.template import Template
from srft.data.tokenization import TokenizationReport, tokenize_dataset
from srft.data.turns import ToolTurns
from srft.environments.call_formats import reader
from srft.environments.episodes import ToolEngine
from srft.environments.toolbox import Toolbox
from srft.types import Example, RolloutEngine, TokenizedExample

Tokenized: TypeAlias = tuple[list[TokenizedExample], TokenizationReport]


class Tools:
    """``toolbox`` under one template.

    Raises:
        ConfigError: the template does not write calls of tools and their results, or in a form that is
            not known.
    """

    def __init__(self, toolbox: Toolbox, template: Template) -> None:
        self.toolbox = toolbox
        self.turns = ToolTurns(template)
        self._read = reader(self.turns)

    def tokenize(
        self,
        examples: Sequence[Example],
        tokenizer: Any,
        config: DataConfig,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tokenized:
        """As ``tokenize_dataset``, of prompts that offer the tools. What an environment adds to the prompt of
        a demonstration is among its tokens; for rollouts it is asked each time."""
        offered = self.toolbox.offer(examples)
        shown = [self._shown(example) if example.demonstrations else example for example in offered]
        tokenized, report = tokenize_dataset(shown, tokenizer, config, progress)
        kept = [
            replace(item, example=replace(item.example, prompt=offered[item.index].prompt))
            for item in tokenized
        ]
        return kept, report

    def _shown(self, example: Example) -> Example:
        place = self.toolbox.enter(example)
        self.toolbox.leave([place])
        return replace(example, prompt=place.prompt)

    def ends(self, stop_token_ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens that end a turn: those that end a response without tools, and what ends a call."""
        return tuple(dict.fromkeys((*stop_token_ids, self.turns.call_end_id)))

    def over(self, engine: RolloutEngine, ends: Sequence[int]) -> ToolEngine:
        """``engine``, in whose completions tools are called. ends: tokens that end a turn."""
        most = self.toolbox.max_turns
        return ToolEngine(engine, self.toolbox, self.turns, self._read, ends, most)


def build_tools(toolbox: Toolbox | None, tokenizer: Any, data: DataConfig) -> Tools | None:
    """Those of a run. Raises ConfigError, see ``Tools``."""
    return None if toolbox is None else Tools(toolbox, Template(tokenizer, data))


def tokenizing(tools: Tools | None) -> Callable[..., Tokenized]:
    """``tokenize_dataset``, or the same with the tools that prompts offer."""
    return tokenize_dataset if tools is None else tools.tokenize
