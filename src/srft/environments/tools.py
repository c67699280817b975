"""A run's tools with its chat template: data that offer them, and an engine that calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from srft.config import SRFTConfig
from srft.data.data_config import DataConfig
from srft.data.template import Template
from srft.data.tokenization import TokenizationReport, tokenize_dataset
from srft.data.turns import ToolTurns
from srft.environments.call_formats import reader
from srft.environments.episodes import ToolEngine
from srft.environments.toolbox import Toolbox
from srft.types import Example, RolloutEngine, SamplingParams, TokenizedExample


class Tools:
    """``toolbox`` under one template.

    Raises:
        ConfigError: the template does not write calls of tools and their results, or in a form that is
            not known.
    """

    def __init__(self, toolbox: Toolbox, template: Template, max_turns: int | None) -> None:
        self.toolbox, self.max_turns = toolbox, max_turns
        self.turns = ToolTurns(template)
        self._read = reader(self.turns)

    def tokenize(
        self,
        examples: Sequence[Example],
        tokenizer: Any,
        config: DataConfig,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[list[TokenizedExample], TokenizationReport]:
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

    def over(self, engine: RolloutEngine, sampling: SamplingParams) -> ToolEngine:
        """``engine``, in whose completions tools are called."""
        ends = sampling.stop_token_ids
        return ToolEngine(engine, self.toolbox, self.turns, self._read, ends, self.max_turns)


def build_tools(toolbox: Toolbox | None, tokenizer: Any, config: SRFTConfig) -> Tools | None:
    """Those of a recipe. Raises ConfigError, see ``Tools``."""
    if toolbox is None:
        return None
    return Tools(toolbox, Template(tokenizer, config.data), config.environment.max_turns)
