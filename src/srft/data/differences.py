"""Says how what is learned differs from what the chat template makes of the whole conversation."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from srft.types import Example

if TYPE_CHECKING:
    from srft.data.control_tokens import Rendered
    from srft.data.template import Response

_AROUND = 40  # characters shown on each side

_WRITTEN = (
    "learned as the chat template writes them in the whole conversation, not as the data has them"
)
_EXPLAINED = {
    "apart": "the last token of the prompt and the first of the response would be one token in the "
    "whole conversation; the response after the prompt's own tokens is learned, as it is sampled",
    "space": "have different white space before them in the whole conversation: what is learned is "
    "what the template writes after the prompt, after the prompt's own white space",
    "inside": "have no thinking, but the prompt has opened `<think>`, which the whole conversation "
    "has not: they are learned as thinking. Give demonstrations with `<think>...</think>`, or a "
    "template that does not open it (data.chat_template_kwargs: {enable_thinking: false}, where it "
    "reads that)",
    "dropped": "have thinking, which the whole conversation leaves out: the demonstration is learned "
    "as it was given, after the prompt's `<think>`",
    "twice": "have thinking, and the prompt closes an empty `<think>` block: two blocks are learned. "
    "Leave out enable_thinking: false, or the thinking",
    "earlier": "follow earlier turns that the whole conversation writes otherwise than the prompt: what is "
    "learned is what the template writes behind them",
    "turns": "have turns that the whole conversation writes otherwise: each is learned as the template "
    "writes it as the last one, after the prompt that a rollout would see",
    "other": "follow a prompt with which the whole conversation does not begin: the demonstration is "
    "learned as it was given, after the prompt",
    "refused": "are in a whole conversation that the chat template refuses or does not show: the "
    "demonstration is learned as it was given, after the prompt",
    "no_end": "are followed by no end token in the chat template: the end token above is learned",
}


class Differences:
    """Counts them by kind and keeps the first of each, in the words of its text."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.total = 0
        self.left_out: dict[str, str] = {}  # what prompts have and the template does not show
        self._first: dict[str, str] = {}

    def add(self, example: Example, prompt: Rendered, response: Response, apart: bool) -> None:
        """Note one demonstration; ``apart``: it was tokenized apart from its prompt."""
        if response.official is None:
            return
        self.total += 1
        for kind in (*response.differences, *(("apart",) if apart else ())):
            self.counts[kind] += 1
            if kind not in self._first:
                self._first[kind] = f"{example.source}: {_shown(kind, prompt, response)}"

    def lines(self) -> tuple[str, ...]:
        """For the log: what was checked, and each kind of difference with an example."""
        said = []
        if self.total:
            differ = sum(self.counts[kind] for kind in _EXPLAINED)
            said.append(
                f"checked against the chat template's whole conversation, token by token: {self.total:,} "
                f"demonstrations, {max(0, self.total - differ):,} equal"
            )
        for kind, count in self.counts.items():
            words = _EXPLAINED.get(kind, _WRITTEN)
            said.append(f"  {count:,} demonstrations {words}. {self._first[kind]}")
        for what, source in self.left_out.items():
            said.append(f"  the chat template leaves out {what} in prompts ({source})")
        return tuple(said)


def _shown(kind: str, prompt: Rendered, response: Response) -> str:
    """Where the texts part, on both sides."""
    turns = (part.text for part in chain.from_iterable(response.later))
    learned = response.rendered.text + "".join(turns)
    if kind == "written":
        return f"{learned[: 2 * _AROUND]!r}"
    ours = prompt.text + learned
    if kind in ("apart", "no_end") or not response.official:
        place = len(prompt.text)
        return f"{ours[max(0, place - _AROUND) : place]!r} + {learned[:_AROUND]!r}"
    pairs = enumerate(zip(ours, response.official, strict=False))
    place = next((k for k, (one, other) in pairs if one != other), 0)
    start = max(0, place - _AROUND // 2)
    end = place + _AROUND
    return f"learned {ours[start:end]!r}, whole conversation {response.official[start:end]!r}"
