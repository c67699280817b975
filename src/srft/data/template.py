"""The one place where a prompt becomes text, and where what follows it comes from.

Sampling and training both take a prompt from here. What follows it is taken from the rendering of
the *whole conversation*, as the model's makers write it when they train: what stands there behind
the prompt is the response, with the empty ``<think>`` block, the channels or the white space that the
template puts around a demonstration. Where the whole conversation does not begin with the prompt
(some templates open ``<think>`` in it, or leave thinking out), the demonstration follows the prompt
as it was given, and how the two differ is reported (``Difference``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

from srft.data.control_tokens import ControlTokens, Rendered, map_texts, texts_in
from srft.data.data_config import DataConfig
from srft.data.end_tokens import end_token_ids
from srft.data.message_forms import MessageForms, sentinel, tools_of
from srft.data.messages import SPOKEN, begins_response
from srft.data.row_errors import RowError
from srft.errors import ConfigError, DataError, ModelError
from srft.paths import local_path
from srft.types import Example, Message

_THINK_OPEN = re.compile(r"<think>\s*\Z")
_THINK_START = re.compile(r"\A\s*<think>\s*")
_PLAIN_LABELS = {"user": "User: ", "assistant": "Assistant: "}

Difference = Literal[
    "written",
    "space",
    "inside",
    "dropped",
    "twice",
    "earlier",
    "turns",
    "other",
    "refused",
    "no_end",
]
"""How a response differs from its demonstration (``written``) or from the whole conversation."""


@dataclass(frozen=True)
class Response:
    """What follows a prompt. ``text`` is what a verifier reads of it, as it reads a rollout's;
    ``official``: the whole conversation where it differs, None where there is none to compare with;
    ``cut``: ends in the data were cut; ``whole``: the whole conversation in any case, marked. ``later``: of
    several turns, the frame before each but the first, and the turn (``turns.ToolTurns``)."""

    rendered: Rendered
    text: str
    differences: tuple[Difference, ...]
    official: str | None
    cut: bool
    whole: str = ""
    later: tuple[tuple[Rendered, Rendered], ...] = ()


@dataclass(frozen=True)
class Conversation:
    """A prompt's messages as the template reads them, with private characters for control tokens
    that users spelled (``marks``). ``messages`` is None for a prompt that is rendered already."""

    messages: tuple[Message, ...] | None
    tools: Any
    marks: Mapping[str, str]


def read_template(path: str) -> str:
    """The source of a chat template of the recipe's own.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return local_path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"data.chat_template: {path} cannot be read ({error}); give `auto`, `none` or the"
            " path of a Jinja file"
        ) from None


class Template:
    """How one tokenizer, under one DataConfig, turns examples into text and text into tokens."""

    def __init__(self, tokenizer: Any, config: DataConfig) -> None:
        """Raises ConfigError if ``data.chat_template`` or ``data.eos_token`` cannot be used."""
        self.tokenizer = tokenizer
        self.config = config
        self.jinja = self._load_jinja()
        self.controls = ControlTokens(tokenizer, self.end_token_id)
        self.forms = MessageForms(self.apply)

    def _load_jinja(self) -> str | None:
        """The chat template's source, or None for plain text."""
        choice = self.config.chat_template
        own = self.tokenizer.chat_template
        if choice == "none" or (choice == "auto" and not own):
            return None
        if choice == "auto" and isinstance(own, dict):
            chosen = own.get("default") or (next(iter(own.values())) if len(own) == 1 else None)
            if chosen is None:
                raise ConfigError(
                    f"data.chat_template: the tokenizer has several chat templates ({', '.join(own)}) "
                    "and none called default; write the one you mean into a file and name the file"
                )
            return str(chosen)
        if choice == "auto":
            return str(own)
        return read_template(choice)

    @property
    def description(self) -> str:
        """Which template is used, in words."""
        if self.jinja is None:
            return f"plain text {self.config.prompt_template!r}"
        if self.config.chat_template == "auto":
            return "the tokenizer's chat template"
        return f"the chat template {self.config.chat_template}"

    # ---- prompts ---------------------------------------------------------------------------

    def converse(self, example: Example) -> Conversation:
        """The example's messages as the template reads them. Raises RowError."""
        prompt = example.prompt
        complete = self.config.prompt_is_rendered and isinstance(prompt, str)
        if complete and self.controls.looks_rendered(str(prompt)):
            return Conversation(None, None, self.controls.marks(example.demonstrations))
        messages: list[Message]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        system = self.config.system_prompt
        if system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        tools = list(example.tools) or tools_of(example.columns.get("tools"))
        turns = [getattr(text, "messages", text) for text in example.demonstrations]
        marks = self.controls.marks(list(texts_in([messages, tools, turns])))
        messages = [_marked(message, self.controls, marks) for message in messages]
        if self.jinja is not None:
            messages = self.forms.read(messages, tools, example.source)
        elif tools or any(not m.keys().isdisjoint(SPOKEN) or m["role"] == "tool" for m in messages):
            raise RowError(
                "has tools or thinking in messages, and plain text has no place for them"
            )
        return Conversation(tuple(messages), _marked(tools, self.controls, marks), marks)

    def render(self, example: Example, conversation: Conversation | None = None) -> Rendered:
        """The prompt, up to where the response begins. Raises RowError."""
        conversation = conversation or self.converse(example)
        if conversation.messages is None:
            return Rendered(str(example.prompt))
        if self.jinja is None:
            text = self._plain(conversation.messages)
        else:
            text = self.apply(conversation.messages, conversation.tools)
        return Rendered(text, {m: w for m, w in conversation.marks.items() if m in text})

    def _plain(self, messages: Sequence[Message]) -> str:
        """``prompt_template`` around the text; several turns are labelled User: and Assistant:."""
        before, after = self.config.prompt_template.split("{prompt}")
        spoken = [m for m in messages if m["role"] not in ("system", "developer")]
        labels = _PLAIN_LABELS if len(spoken) > 1 else {}
        texts = [f"{labels.get(m['role'], '')}{m['content']}" for m in messages]
        if begins_response(messages):
            texts.pop()
            after = f"\n\nAssistant:{after}{messages[-1]['content']}"
        elif labels:
            after = f"\n\nAssistant:{after}"
        return before + "\n\n".join(texts) + after

    def apply(self, messages: Sequence[Message], tools: Any, whole: bool = False) -> str:
        """The messages as text: a prompt with its beginning of a response, or the whole of them."""
        import jinja2

        jinja = self.jinja
        own = self.tokenizer.chat_template
        if tools and isinstance(own, dict) and self.config.chat_template == "auto":
            jinja = own.get("tool_use", jinja)
        begun = begins_response(messages) and not whole
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=tools or None,
                chat_template=jinja,
                tokenize=False,
                add_generation_prompt=not begun and not whole,
                continue_final_message=begun,
                **self.config.chat_template_kwargs,
            )
        # Templates are programs of others: besides Jinja's own errors they fail as Python does.
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RowError(
                f"the chat template refuses the messages ({roles}): {error}. Change their roles, or"
                " set data.chat_template: none or to a template of your own"
            ) from None

    # ---- responses -------------------------------------------------------------------------

    def response(
        self,
        demo: str,
        conversation: Conversation,
        prompt: Rendered,
        source: str,
        end_word: str | None = None,
    ) -> Response:
        """What follows the prompt, for a demonstration of one turn; ``end_word`` ends it where the template
        ends the whole conversation with no token. Raises RowError."""
        kept = self._without_ends(demo)
        cut = kept != demo
        message = {"role": "assistant", "content": kept, **getattr(demo, "messages", ({},))[-1]}
        message["content"] = None if message["content"] is None else kept
        message = _marked(message, self.controls, conversation.marks)
        given, says_more = message["content"] or "", not message.keys().isdisjoint(SPOKEN)
        official = None
        if self.jinja is not None and conversation.messages is not None:
            try:
                official = self._whole(message, conversation, source)
            except RowError:
                if says_more:
                    raise
                official = ""
        made = partial(self._made, conversation.marks, official or "")
        for begun in (prompt.marked, prompt.marked.rstrip()):
            if official and self._tail is not None and official.startswith(begun):
                body, spaced = official[len(begun) :], begun != prompt.marked
                body, end, found = self._ended(body.lstrip() if spaced else body, end_word)
                if body.strip() != given.strip():
                    found = (*found, "written")
                return made(body, end, ("space",) if spaced else found, "", cut)
        if official and (behind := self._behind(message, conversation, source)):
            body, end, found = self._ended(behind, end_word)
            return made(body, end, (*found, "earlier"), official, cut)
        if says_more:
            raise RowError(
                "has thinking or tool calls in a message, and no whole conversation that begins with "
                "the prompt, so that no response could be cut out of it (plain text has none, this "
                "chat template another); write them into the content, or name another template in "
                "data.chat_template"
            )
        opened = _THINK_OPEN.search(prompt.marked)
        bare = _THINK_START.sub("", given) if opened else given
        kinds = () if official is None else (_kind(prompt.marked, official, bare),)
        return made(bare, end_word or self.end_word, kinds, official, cut or bare != given)

    def _whole(self, message: Message, conversation: Conversation, source: str) -> str:
        """The whole conversation, this demonstration at its end."""
        messages = list(conversation.messages or ())
        if begins_response(messages):
            begun = messages.pop()
            message = {
                **begun,
                **message,
                "content": f"{begun['content']}{message['content'] or ''}",
            }
        else:
            tools = conversation.tools
            try:
                message = self.forms.read([*messages, message], tools, source, True)[-1]
            except RowError:  # what earlier turns lack there is in the prompt
                question: Message = {"role": "user", "content": sentinel(0)}
                message = self.forms.read([question, message], tools, source, True)[-1]
        return self.apply([*messages, message], conversation.tools, whole=True)

    def _behind(self, message: Message, conversation: Conversation, source: str) -> str:
        """What the whole conversation has behind the prompt's last message and the words that begin the
        response, where it writes earlier turns otherwise than the prompt; "" where it differs here."""
        messages = list(conversation.messages or ())
        if self._tail is None or begins_response(messages):
            return ""
        messages[-1] = {**messages[-1], "content": sentinel(0)}
        _, known, begun = self.apply(messages, conversation.tools).rpartition(sentinel(0))
        whole = self._whole(message, replace(conversation, messages=tuple(messages)), source)
        body = whole.rpartition(sentinel(0))[2]
        return body[len(begun) :] if known and body.startswith(begun) else ""

    def _ended(self, body: str, end_word: str | None) -> tuple[str, str, tuple[Difference, ...]]:
        """What the template writes behind a prompt, up to its end token; that token; and whether it is
        the template's own. ``end_word``: the one where it writes none."""
        before, found, _ = body.partition(self.end_word) if self._spelled_end else (body, "", "")
        if found:
            return before, found, ()
        closed = body.rstrip()
        last = next((w for w in self.controls.id_of if closed.endswith(w)), None)
        if last is None:
            bare = body.removesuffix(self._tail or "")
            return bare, end_word or self.end_word, () if end_word else ("no_end",)
        # Another end of the template's own stays, such as that of a tool call.
        end = self.end_word if last == self._turn_end_word else last
        return closed.removesuffix(last), end, ()

    def _made(
        self,
        marks: Mapping[str, str],
        conversation: str,
        body: str,
        end: str,
        differences: tuple[Difference, ...],
        official: str | None,
        cut: bool,
    ) -> Response:
        if not body.strip():
            raise RowError("a demonstration produces no tokens; write a text the tokenizer knows")
        words = {mark: word for mark, word in marks.items() if mark in body}
        text = Rendered(self.controls.pattern.sub("", body), words).text
        whole = Rendered(body + (end if self._spelled_end else ""), words)
        shown = None if official is None else Rendered(official, words).text
        return Response(whole, text, differences, shown, cut, conversation)

    # ---- tokens ----------------------------------------------------------------------------

    def encode_prompt(self, rendered: Rendered) -> tuple[int, ...]:
        """Token ids of one prompt, as the model sees it before it responds. Raises RowError."""
        (result,) = self.controls.encode([rendered])
        if isinstance(result, RowError):
            raise result
        return self.with_bos(result)

    def with_bos(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """``ids`` with the tokenizer's BOS in front, for plain text only: a chat template writes
        its own."""
        bos = self.tokenizer.bos_token_id
        if self.jinja is not None or not self._adds_bos or ids[:1] == (bos,):
            return ids
        return (bos, *ids)

    @cached_property
    def _adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a").input_ids[:1] == [bos]

    def ended(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """A response's ids with its end token, where a text cannot spell it."""
        return ids if self._spelled_end else (*ids, self.end_token_id)

    # ---- ends ------------------------------------------------------------------------------

    def _without_ends(self, text: str) -> str:
        """``text`` without the end tokens spelled at its end, which many datasets carry, and the space
        before them. By places and not by copies: a row may hold megabytes of them."""
        end = len(text)
        while True:
            stop = end
            while stop and text[stop - 1].isspace():
                stop -= 1
            words = (self.end_word, self.tokenizer.eos_token)
            word = next((w for w in words if w and text.endswith(w, 0, stop)), None)
            if word is None:
                break
            end = stop - len(word)
        if end == len(text):
            return str(text)
        return text[:end].rstrip()

    @cached_property
    def end_token_id(self) -> int:
        """The token a response ends with: ``data.eos_token``; else the token with which the chat
        template ends an assistant's turn; else the tokenizer's EOS.

        Raises ConfigError if ``data.eos_token`` is no token, ModelError if there is none at all.
        """
        named = self.config.eos_token
        if named is not None:
            vocabulary = self.tokenizer.get_vocab()
            if named not in vocabulary:
                raise ConfigError(
                    f"data.eos_token: `{named}` is not a token of this tokenizer; its EOS is "
                    f"`{self.tokenizer.eos_token}`"
                )
            return vocabulary[named]
        if self._turn_end_word is not None:
            return self.tokenizer.convert_tokens_to_ids(self._turn_end_word)
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no EOS token, so a response could never end; set data.eos_token "
                "to the token that ends a text"
            )
        return self.tokenizer.eos_token_id

    @cached_property
    def end_word(self) -> str:
        """The end token as text."""
        return str(self.tokenizer.convert_ids_to_tokens(self.end_token_id))

    @cached_property
    def _spelled_end(self) -> bool:
        """Whether the end token, spelled in a text, becomes that token."""
        return self.end_token_id in self.tokenizer.added_tokens_decoder

    @cached_property
    def _tail(self) -> str | None:
        """What the chat template writes behind an assistant's message; None if it shows none."""
        if self.jinja is None:
            return None
        messages = [
            {"role": "user", "content": sentinel(0)},
            {"role": "assistant", "content": sentinel(1)},
        ]
        try:
            text = self.apply(messages, None, whole=True)
        except RowError:
            return None
        _, found, tail = text.rpartition(sentinel(1))
        return tail if found else None

    @cached_property
    def _turn_end_word(self) -> str | None:
        """The added token that directly follows an assistant's message in the chat template."""
        tail = (self._tail or "").lstrip()
        words = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        return max((w for w in words if w and tail.startswith(w)), key=len, default=None)

    def stop_token_ids(self, generation_config: Any = None) -> tuple[int, ...]:
        """Tokens at which sampling must stop: the end token first, then the tokenizer's EOS and
        those of the model's ``generation_config``."""
        ids = (self.end_token_id, *end_token_ids(self.tokenizer, generation_config))
        return tuple(dict.fromkeys(ids))


def _marked(value: Any, controls: ControlTokens, marks: Mapping[str, str]) -> Any:
    return map_texts(value, lambda text: controls.mark(text, marks)) if marks else value


def _kind(prompt: str, official: str, given: str) -> Difference:
    """Why the whole conversation does not begin with the prompt."""
    if not official:
        return "refused"
    if _THINK_OPEN.search(prompt):
        return "dropped" if "</think>" in given else "inside"
    if prompt.rstrip().endswith("</think>") and "</think>" in given:
        return "twice"
    return "other"


def tokenize_prompt(example: Example, tokenizer: Any, config: DataConfig) -> tuple[int, ...]:
    """The prompt's token ids, the very ones rollouts start from; no length limit is applied.

    Raises DataError.
    """
    template = Template(tokenizer, config)
    try:
        return template.encode_prompt(template.render(example))
    except RowError as error:
        raise DataError(f"{example.source}: {error}") from None
