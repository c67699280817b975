"""What a teacher is shown: the prompt, or the prompt with a solution that the policy does not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from srft.data.data_config import DataConfig
from srft.data.template import tokenize_prompt
from srft.errors import ConfigError
from srft.objective.method import Method
from srft.trainer.collect import Collected, Rollout
from srft.types import Example, TokenizedExample, TrainingSequence


class Contexts:
    """Makes ``context_ids``. template: ``teacher.template``; window: tokens that the model takes, prompt
    and response together, or None where it has no limit."""

    def __init__(self, tokenizer: Any, data: DataConfig, template: str, window: int | None) -> None:
        self.tokenizer, self.data, self.template, self.window = tokenizer, data, template, window
        self._made: dict[tuple[str, str], tuple[int, ...]] = {}

    def give(self, method: Method, collected: Collected) -> None:
        """Puts contexts into the sequences of ``collected``, in place.

        A frozen model sees the prompt, and scores demonstrations too. The policy that teaches itself
        sees a demonstration of the prompt (its first), or the first right rollout of the group other
        than the one that is scored. A sequence for which there is none, or that would not fit the
        model's window, has no context.
        """
        for g, example in enumerate(collected.examples):
            rollouts, demos = collected.rollouts[g], collected.demos[g]
            if method.teacher in ("model", "reference"):
                collected.demos[g] = [replace(d, context_ids=d.prompt_ids) for d in demos]
                ids = [r.sequence.prompt_ids for r in rollouts]
            else:
                solutions = self._solutions(method, example, rollouts)
                own = example.example
                ids = [() if s is None else self.shown(own, s) for s in solutions]
            collected.rollouts[g] = [
                replace(r, sequence=self._with(r.sequence, c))
                for r, c in zip(rollouts, ids, strict=True)
            ]

    def shown(self, example: Example, solution: str) -> tuple[int, ...]:
        """The example's prompt with the solution in it, as tokens."""
        key = (example.source, solution)
        if key not in self._made:
            if len(self._made) > 65_536:  # solutions of old rollouts
                self._made.clear()
            asked = with_solution(example, solution, self.template)
            self._made[key] = tokenize_prompt(asked, self.tokenizer, self.data)
        return self._made[key]

    def _solutions(
        self, method: Method, example: TokenizedExample, rollouts: Sequence[Rollout]
    ) -> list[str | None]:
        """What the teacher of each rollout is shown."""
        if method.teacher == "demonstration":
            text = None
            if example.demonstration_ids:
                ids = list(example.demonstration_ids[0])
                text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            return [text] * len(rollouts)
        right = [i for i, r in enumerate(rollouts) if r.sequence.correct]
        others = [next((j for j in right if j != i), None) for i in range(len(rollouts))]
        return [None if j is None else rollouts[j].text for j in others]

    def _with(self, sequence: TrainingSequence, context: tuple[int, ...]) -> TrainingSequence:
        fits = self.window is None or len(context) + len(sequence.response_ids) <= self.window
        return replace(sequence, context_ids=context) if context and fits else sequence


def with_solution(example: Example, solution: str, template: str) -> Example:
    """The example whose last user message is ``template`` filled in.

    Raises ConfigError where the prompt does not end in a user's message.
    """

    def fill(text: str) -> str:
        # Texts may hold braces of their own: each field is filled in once, in the template alone.
        before, _, after = template.partition("{prompt}")
        return before.replace("{solution}", solution) + text + after.replace("{solution}", solution)

    if isinstance(example.prompt, str):
        return replace(example, prompt=fill(example.prompt))
    *earlier, last = example.prompt
    content: Any = last.get("content") if isinstance(last, Mapping) else None
    if last.get("role") != "user" or not isinstance(content, str):
        raise ConfigError(
            f"{example.source}: the prompt does not end in a user's message, so a teacher cannot be shown "
            "a solution in it; take a method without self-distillation, or prompts that end with the user"
        )
    return replace(example, prompt=(*earlier, {**last, "content": fill(content)}))
