"""What a teacher is shown: the prompt, or the prompt with a solution, or with feedback on an attempt, that
the policy does not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from srft.data.data_config import DataConfig
from srft.data.template import tokenize_prompt
from srft.errors import ConfigError
from srft.objective.method import Method
from srft.trainer.collect import Collected, Rollout
from srft.trainer.teacher_config import TeacherConfig
from srft.types import Example, TokenizedExample, TrainingSequence


class Contexts:
    """Makes ``context_ids``. settings: the recipe's ``teacher``; window: tokens that the model takes, prompt
    and response together, or None where it has no limit."""

    def __init__(
        self, tokenizer: Any, data: DataConfig, settings: TeacherConfig, window: int | None
    ) -> None:
        self.tokenizer, self.data, self.settings, self.window = tokenizer, data, settings, window
        self._made: dict[tuple[str, str, str, str], tuple[int, ...]] = {}

    def give(self, method: Method, collected: Collected) -> None:
        """Puts contexts into the sequences of ``collected``, in place.

        A frozen model sees the prompt, and scores demonstrations too. The policy that teaches itself
        sees a demonstration of the prompt (its first), or the first right rollout of the group other
        than the one that is scored, or else the feedback on a wrong one. A sequence for
        which there is none, or that would not fit the model's window, has no context.
        """
        for g, example in enumerate(collected.examples):
            rollouts, demos = collected.rollouts[g], collected.demos[g]
            if method.teacher in ("model", "reference"):
                collected.demos[g] = [replace(d, context_ids=d.prompt_ids) for d in demos]
                ids = [r.sequence.prompt_ids for r in rollouts]
            else:
                own = example.example
                shown = self._shown(method, example, rollouts)
                ids = [() if s is None else self.context(own, *s) for s in shown]
            collected.rollouts[g] = [
                replace(r, sequence=self._with(r.sequence, c))
                for r, c in zip(rollouts, ids, strict=True)
            ]

    def context(self, example: Example, field: str, text: str) -> tuple[int, ...]:
        """The example's prompt with the text in it, as a "solution" or as "feedback", in tokens."""
        # Not by its source: rows put together in Python may share one.
        key = (repr(example.prompt), repr(example.tools), field, text)
        if key not in self._made:
            if len(self._made) > 65_536:  # solutions of old rollouts
                self._made.clear()
            template = self.settings.template if field == "solution" else self.settings.feedback
            assert template is not None
            asked = with_text(example, field, text, template)
            self._made[key] = tokenize_prompt(asked, self.tokenizer, self.data)
        return self._made[key]

    def _shown(
        self, method: Method, example: TokenizedExample, rollouts: Sequence[Rollout]
    ) -> list[tuple[str, str] | None]:
        """What the teacher of each rollout is shown: which field of its template, and the text."""
        if method.teacher == "demonstration":
            shown = None
            if example.demonstration_ids:
                ids = list(example.demonstration_ids[0])
                shown = ("solution", str(self.tokenizer.decode(ids, skip_special_tokens=True)))
            return [shown] * len(rollouts)
        right = [i for i, r in enumerate(rollouts) if r.sequence.correct]
        others = [next((j for j in right if j != i), None) for i in range(len(rollouts))]
        return [
            self._feedback(rollouts[i]) if j is None else ("solution", rollouts[j].text)
            for i, j in enumerate(others)
        ]

    def _feedback(self, rollout: Rollout) -> tuple[str, str] | None:
        """What a reward function noted of a wrong rollout; None where it noted nothing."""
        noted = rollout.score.extras.get("feedback")
        if rollout.sequence.correct or not self.settings.feedback or not noted:
            return None
        return ("feedback", str(noted))

    def _with(self, sequence: TrainingSequence, context: tuple[int, ...]) -> TrainingSequence:
        fits = self.window is None or len(context) + len(sequence.response_ids) <= self.window
        return replace(sequence, context_ids=context) if context and fits else sequence


def with_text(example: Example, field: str, text: str, template: str) -> Example:
    """The example whose last user message is ``template``, its {prompt} and {field} filled in.

    Raises ConfigError where the prompt does not end in a user's message.
    """

    def fill(prompt: str) -> str:
        # Texts may hold braces of their own: each field is filled in once, in the template alone.
        before, _, after = template.partition("{prompt}")
        before, after = (part.replace(f"{{{field}}}", text) for part in (before, after))
        return before + prompt + after

    if isinstance(example.prompt, str):
        return replace(example, prompt=fill(example.prompt))
    *earlier, last = example.prompt
    content: Any = last.get("content") if isinstance(last, Mapping) else None
    if last.get("role") != "user" or not isinstance(content, str):
        raise ConfigError(
            f"{example.source}: the prompt does not end in a user's message, so a teacher cannot be shown "
            f"any {field} in it; use a method without self-distillation, or prompts that end with the user"
        )
    return replace(example, prompt=(*earlier, {**last, "content": fill(content)}))
