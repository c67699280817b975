"""Several turns in one response: calls of tools, and what the chat template writes around their results.

What stands between a turn that calls tools and the next one (the *frame*: the results in their wrapping,
and the header of the assistant's next turn) is cut out of the template's own rendering of a short
conversation, behind the token that ends the call. What was sampled is never tokenized again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any

from srft.data.control_tokens import Rendered, map_texts, texts_in
from srft.data.message_forms import sentinel
from srft.data.row_errors import RowError
from srft.data.template import Conversation, Response, Template
from srft.errors import ConfigError
from srft.types import Message, Spoken

_CALL, _RESULT = sentinel(0), sentinel(1)


def tool_call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call as chat templates read it."""
    return {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}


class ToolTurns:
    """How one chat template writes calls of tools and their results."""

    def __init__(self, template: Template) -> None:
        self.template = template

    @cached_property
    def call_end(self) -> str:
        """The token that ends a turn with calls.

        Raises ConfigError where the template does not show calls and results, or no such token.
        """
        result = {"role": "tool", "name": "probe", "content": _RESULT}
        name = self.template.description
        problem = f"{name} leaves out calls of tools or their results"
        try:
            text = self._rendered([result], None)
        except RowError as error:
            text, problem = "", str(error)
        behind, shown, _ = text.rpartition(_CALL)[2].partition(_RESULT)
        if _CALL in text and shown:
            words = map(
                self.template.tokenizer.convert_ids_to_tokens, self.template.stop_token_ids()
            )
            ends = {behind.find(word): word for word in words if word in behind}
            if ends:
                return str(ends[min(ends)])
            if control := self._after_call(text):
                return control
            problem = f"{name} writes no token that ends a turn with a call"
        raise ConfigError(
            f"tools: {problem}; name a template that knows tools in data.chat_template"
        )

    def _after_call(self, text: str) -> str | None:
        """The control token with which the template ends a turn with a call that is the last one, or that
        follows the call in ``text``."""
        alone = self._rendered([], None).rstrip()
        controls = self.template.controls
        last = next((word for word in controls.id_of if alone.endswith(word)), None)
        if last is None:
            pairs = enumerate(zip(alone, text, strict=False))
            parted = next((at for at, (one, other) in pairs if one != other), len(alone))
            last = found[0] if (found := controls.pattern.search(text, parted)) else None
        return last

    @property
    def call_end_id(self) -> int:
        return self.template.controls.id_of[self.call_end]

    def frame(self, results: Sequence[Message], tools: Any = None) -> Rendered:
        """What stands between the end token of a turn with calls and the assistant's next turn.
        ``results``: tools' messages. Raises RowError."""
        marks = self.template.controls.marks(list(texts_in([results, tools])))
        mark = self.template.controls.mark
        results = map_texts(results, lambda text: mark(text, marks)) if marks else results
        text = self._rendered(results, tools)
        frame = text.partition(_CALL)[2].partition(self.call_end)[2]
        return Rendered(frame, {m: word for m, word in marks.items() if m in frame})

    def frame_ids(self, frame: Rendered, ended: bool = True) -> tuple[int, ...]:
        """Its tokens. ``ended``: the turn before has its end token, which is added otherwise."""
        (ids,) = self.template.controls.encode([Rendered(self.call_end) + frame])
        if isinstance(ids, RowError):
            raise ids
        assert ids[0] == self.call_end_id
        return ids[1:] if ended else ids

    def _rendered(self, results: Sequence[Message], tools: Any) -> str:
        """A question, a call and the results, up to the assistant's next turn; without results the whole."""
        name = results[0].get("name", "tool") if results else "probe"
        call = tool_call(str(name), {"x": _CALL})
        asked = {"role": "user", "content": "?"}
        refused: RowError | None = None
        for arguments in (call["function"]["arguments"], f'{{"x": "{_CALL}"}}'):
            call["function"]["arguments"] = arguments
            said = {"role": "assistant", "content": "", "tool_calls": [call]}
            try:
                return self.template.apply([asked, said, *results], tools, whole=not results)
            except RowError as error:  # some templates take arguments as text alone
                refused = refused or error
        assert refused is not None
        raise refused

    def response(
        self, demo: Spoken, conversation: Conversation, prompt: Rendered, source: str
    ) -> Response:
        """A demonstration of several turns: each is what it would be as the last one, behind the prompt
        that a rollout would see. Raises RowError."""
        template, before = self.template, list(conversation.messages or ())
        shown = before
        begin = prompt
        done: list[Response] = []
        frames: list[Rendered] = []
        mark = template.controls.mark
        total = len(before) + len(demo.messages)
        for from_tool, run in groupby(demo.messages, lambda message: message["role"] == "tool"):
            messages = list(run)
            if from_tool:
                frames.append(self.frame(messages, conversation.tools))
            else:
                (message,) = messages
                asked = replace(conversation, messages=tuple(shown))
                text = Spoken(message["content"] or "", (message,))
                end = self.call_end if len(before) + 1 < total else None
                done.append(template.response(text, asked, prompt, source, end))
            before += [map_texts(m, lambda text: mark(text, conversation.marks)) for m in messages]
            if from_tool:
                shown = template.forms.read(before, conversation.tools, source)
                marked = template.apply(shown, conversation.tools)
                words = {m: word for m, word in conversation.marks.items() if m in marked}
                prompt = Rendered(marked, words)
        later = tuple(zip(frames, (part.rendered for part in done[1:]), strict=True))
        differences = dict.fromkeys(d for part in done for d in part.differences)
        official = next((part.official for part in done if part.official), done[0].official)
        if not differences.keys() - {"written", "no_end"}:
            parts = (begin, done[0].rendered, *chain.from_iterable(later))
            learned = "".join(part.text for part in parts)
            if "no_end" in done[-1].differences:
                learned = learned.removesuffix(template.end_word)
            whole = Rendered(done[-1].whole, conversation.marks).text
            if not whole.startswith(learned):
                official, differences["turns"] = whole, None
        return replace(
            done[0],
            text=Spoken(done[-1].text, demo.messages),
            differences=tuple(differences),
            official=official,
            cut=any(part.cut for part in done),
            later=later,
        )

    def later_ids(self, response: Response) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Tokens of all but the first turn, frames included, and which are not a frame's."""
        ids: tuple[int, ...] = ()
        mask: tuple[bool, ...] = ()
        for frame, turn in response.later:
            before = self.frame_ids(frame)
            (whole,) = self.template.controls.encode([Rendered(self.call_end) + frame + turn])
            begun = (self.call_end_id, *before)
            if not isinstance(whole, RowError) and whole[: len(begun)] == begun:
                own = whole[len(begun) :]
            else:
                own = self.template.controls.encode_alone(turn)
            own = self.template.ended(own)
            ids += (*before, *own)
            mask += (False,) * len(before) + (True,) * len(own)
        return ids, mask
