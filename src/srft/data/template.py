"""The one place where a prompt becomes text and text becomes tokens.

Sampling and training both take a prompt's tokens from here, so the boundary between prompt and
response is exact: prompt and demonstration are tokenized apart and joined as tokens, as a sampled
response is joined to its prompt.

Text that users wrote never becomes a control token. A chat template mixes their text with control
tokens in one string, so the template is rendered a second time with placeholders for the messages:
what is left of it is the *scaffold*, and only control tokens of the scaffold count. A row whose
text spells a control token (``<|im_end|>``) is tokenized section by section between the scaffold's
control tokens; every other row goes through the tokenizer in one piece, exactly as the model's
makers do it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from srft.data.data_config import DataConfig
from srft.data.end_tokens import end_token_ids
from srft.data.row_errors import RowError
from srft.errors import ConfigError, DataError, ModelError
from srft.types import Example, Message

_SENTINEL = re.compile(r"SRFTmessage(\d+)placeholder")
_THINK_OPEN = re.compile(r"<think>\s*\Z")
_THINK_START = re.compile(r"\A\s*<think>\s*")
_PLAIN_LABELS = {"user": "User: ", "assistant": "Assistant: "}


class _Interned(dict[int, int]):
    """One Python int per token id: a tuple of shared ids takes 8 bytes a token instead of 36, which
    is 1.5 GB instead of 6.6 GB for 46,000 demonstrations of 4,000 tokens."""

    def __missing__(self, id_: int) -> int:
        self[id_] = id_
        return id_


_INTERNED = _Interned()


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered prompt: ``content`` is what the user wrote, the rest is scaffold."""

    text: str
    content: bool


@dataclass(frozen=True)
class Rendered:
    """A text and its pieces; ``pieces`` is None where the template rewrote the messages, so that
    they cannot be told from the scaffold. ``risky``: the user's text spells a control token."""

    text: str
    pieces: tuple[Piece, ...] | None
    risky: bool


def _sentinel(number: int) -> str:
    return f"SRFTmessage{number}placeholder"


class Template:
    """How one tokenizer, under one DataConfig, turns examples into tokens."""

    def __init__(self, tokenizer: Any, config: DataConfig) -> None:
        """Raises ConfigError if ``data.chat_template`` or ``data.eos_token`` cannot be used."""
        self.tokenizer = tokenizer
        self.config = config
        self.jinja = self._load_jinja()
        self._scaffolds: dict[tuple[str, ...], tuple[str, ...] | None] = {}
        added = tokenizer.added_tokens_decoder
        words = {id_: token.content for id_, token in added.items() if token.special}
        words |= zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        unknown = tokenizer.unk_token_id
        if unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
            words.pop(unknown, None)  # text may hold unknown words; they control nothing
        end = self.end_token_id
        words[end] = tokenizer.convert_ids_to_tokens(end)
        self.control_ids = frozenset(words)
        # The longest first, so that one token's text cannot hide a longer one.
        ordered = sorted(map(re.escape, words.values()), key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(ordered)})")
        self._control_id = {word: id_ for id_, word in words.items()}

    def _load_jinja(self) -> str | None:
        """The chat template's source, or None for plain text."""
        choice = self.config.chat_template
        if choice == "none":
            return None
        if choice == "auto":
            if not self.tokenizer.chat_template:
                return None
            return self.tokenizer.get_chat_template()
        try:
            return Path(choice).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"data.chat_template: {choice} cannot be read ({error}); give `auto`, `none` or the"
                " path of a Jinja file"
            ) from None

    @property
    def description(self) -> str:
        """Which template is used, in words."""
        if self.jinja is None:
            return f"plain text {self.config.prompt_template!r}"
        if self.config.chat_template == "auto":
            return "the tokenizer's chat template"
        return f"the chat template {self.config.chat_template}"

    # ---- rendering -------------------------------------------------------------------------

    def render(self, example: Example) -> Rendered:
        """The prompt as text, up to where the response begins. Raises RowError."""
        messages = self._messages(example)
        contents = [str(message["content"]) for message in messages]
        if self.jinja is None:
            pieces: tuple[Piece, ...] | None = self._plain_pieces(messages)
            text = "".join(piece.text for piece in pieces or ())
        else:
            text = self._apply(messages)
            pieces = _match(text, self._scaffold(messages), contents)
        return Rendered(text, pieces, any(self._control.search(content) for content in contents))

    def _messages(self, example: Example) -> list[Message]:
        """The prompt as messages, with ``data.system_prompt`` where it has no system message."""
        prompt = example.prompt
        messages: list[Message]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        system = self.config.system_prompt
        if system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        if messages[0]["role"] == "system" and self.jinja is not None and not self._takes_system:
            first, second, *rest = messages
            text = f"{first['content']}\n\n{second['content']}"
            messages = [{"role": second["role"], "content": text}, *rest]
        return messages

    def _plain_pieces(self, messages: Sequence[Message]) -> tuple[Piece, ...]:
        """``prompt_template`` around the text; several turns are labelled User: and Assistant:."""
        before, after = self.config.prompt_template.split("{prompt}")
        labelled = sum(message["role"] != "system" for message in messages) > 1
        pieces = [Piece(before, False)]
        for number, message in enumerate(messages):
            label = _PLAIN_LABELS.get(message["role"], "") if labelled else ""
            pieces.append(Piece(("\n\n" if number else "") + label, False))
            pieces.append(Piece(str(message["content"]), True))
        pieces.append(Piece(("\n\nAssistant:" if labelled else "") + after, False))
        return tuple(piece for piece in pieces if piece.text)

    def _apply(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.jinja,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self.config.chat_template_kwargs,
            )
        # Templates are programs of others: besides Jinja's own errors they fail as Python does.
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RowError(
                f"the chat template refuses the messages ({roles}): {error}. Change their roles, or"
                " set data.chat_template: none or to a template of your own"
            ) from None

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template shows a system message (Gemma's refuses it, others drop it)."""
        user = {"role": "user", "content": _sentinel(1)}
        try:
            text = self._apply([{"role": "system", "content": _sentinel(0)}, user])
        except RowError:
            return False
        return _sentinel(0) in text

    def _scaffold(self, messages: Sequence[Message]) -> tuple[str, ...] | None:
        """The rendering with placeholders, cut at them: text, number, text, number, ..., text.

        None where the template changed the letters of a placeholder; RowError where it left out
        one.
        """
        roles = tuple(message["role"] for message in messages)
        if roles not in self._scaffolds:
            text = self._apply([{"role": r, "content": _sentinel(i)} for i, r in enumerate(roles)])
            parts = tuple(_SENTINEL.split(text))
            shown = {int(number) for number in parts[1::2]}
            for number in sorted(set(range(len(roles))) - shown):
                if _sentinel(number).lower() not in text.lower():
                    raise RowError(
                        f"the chat template leaves out the {roles[number]}'s message (number "
                        f"{number + 1} of {len(roles)}); name another one in data.chat_template"
                    )
                parts = ()
            self._scaffolds[roles] = parts or None
        return self._scaffolds[roles]

    # ---- tokens ----------------------------------------------------------------------------

    def encode(self, rendered: Sequence[Rendered]) -> list[tuple[int, ...] | RowError]:
        """Token ids of each text, without an end token; a RowError stands in for a bad one."""
        plain = [item.text for item in rendered if not item.risky]
        quick = iter(self._tokenize(plain))
        results: list[tuple[int, ...] | RowError] = []
        for item in rendered:
            try:
                ids = self._encode_apart(item) if item.risky else next(quick)
                if not ids:
                    raise RowError("gives no tokens at all; write a text the tokenizer knows")
                results.append(tuple(map(_INTERNED.__getitem__, ids)))
            except RowError as error:
                results.append(error)
        return results

    def encode_prompt(self, rendered: Rendered) -> tuple[int, ...]:
        """Token ids of one prompt, as the model sees it before it responds. Raises RowError."""
        return self.with_bos(_one(self.encode([rendered])))

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

    def _tokenize(self, texts: Sequence[str], as_text: bool = False) -> list[list[int]]:
        """``as_text``: special tokens spelled in the text are cut up like any other text."""
        if not texts:
            return []
        options = {"split_special_tokens": True} if as_text else {}
        return self.tokenizer(
            list(texts), add_special_tokens=False, verbose=False, **options
        ).input_ids

    def _encode_apart(self, rendered: Rendered) -> list[int]:
        """Control tokens from the scaffold, all else as text.

        Whether this tokenizer gives the same tokens for sections as for the whole (some mark the
        beginning of a text) is tried on the same row with the offending words replaced.
        """
        word = next(iter(self._words_in(rendered)), "")
        if rendered.pieces is None:
            raise RowError(
                f"spells the control token `{word}`, and the chat template rewrites messages so "
                "that it cannot be kept as text; remove it"
            )
        defused = [
            Piece(self._control.sub("x", piece.text), True) if piece.content else piece
            for piece in rendered.pieces
        ]
        whole = self._tokenize(["".join(piece.text for piece in defused)])[0]
        if self._sections(defused) != whole:
            raise RowError(
                f"spells the control token `{word}`, which this tokenizer cannot write as text "
                "without changing the text around it; remove it"
            )
        return self._sections(rendered.pieces)

    def _words_in(self, rendered: Rendered) -> list[str]:
        pieces = rendered.pieces or (Piece(rendered.text, True),)
        return [
            word for piece in pieces if piece.content for word in self._control.findall(piece.text)
        ]

    def _sections(self, pieces: Sequence[Piece]) -> list[int]:
        parts: list[str] = [""]  # text, control token, text, ..., text
        for piece in pieces:
            if piece.content:
                parts[-1] += piece.text
            else:
                first, *others = self._control.split(piece.text)
                parts[-1] += first
                parts += others
        ids: list[int] = []
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(self._control_id[part])
                continue
            # A token may swallow the white space beside it (rstrip of Phi's <|end|>).
            if number and self._swallows(parts[number - 1], "rstrip"):
                part = part.lstrip()
            if number + 1 < len(parts) and self._swallows(parts[number + 1], "lstrip"):
                part = part.rstrip()
            ids += self._as_text(part)
        return ids

    def _swallows(self, word: str, side: str) -> bool:
        token = self.tokenizer.added_tokens_decoder.get(self._control_id[word])
        return token is not None and getattr(token, side)

    def _as_text(self, text: str) -> list[int]:
        if not text:
            return []
        ids = self._tokenize([text], as_text=True)[0]
        if self.control_ids.isdisjoint(ids):
            return ids
        # The vocabulary itself maps the word to the control token (a word-level tokenizer): cut
        # the word after its first character.
        ids = []
        for part in re.split(self._control, text):
            halves = (part[:1], part[1:]) if self._control.fullmatch(part) else (part,)
            for half in filter(None, halves):
                ids += self._tokenize([half], as_text=True)[0]
        if not self.control_ids.isdisjoint(ids):
            raise RowError(
                f"spells the control token `{self._control.findall(text)[0]}`, which this tokenizer"
                " cannot write as text; remove it"
            )
        return ids

    # ---- demonstrations and their end --------------------------------------------------------

    def demonstration(self, text: str, prompt: str) -> tuple[Rendered, bool]:
        """A demonstration ready for ``encode``, and whether its ends were cut.

        Cut are the text of the end token at the end, which many datasets carry (the token itself is
        appended), and an opening ``<think>`` that the prompt already ends with.
        """
        kept = self._without_ends(text)
        if _THINK_OPEN.search(prompt):
            kept = _THINK_START.sub("", kept)
        rendered = Rendered(kept, (Piece(kept, True),), bool(self._control.search(kept)))
        return rendered, kept != text

    def _without_ends(self, text: str) -> str:
        """``text`` without the end tokens spelled at its end, and the space before them. By places and
        not by copies: a row may hold megabytes of them."""
        end = len(text)
        while True:
            stop = end
            while stop and text[stop - 1].isspace():
                stop -= 1
            word = next((w for w in self._end_words if text.endswith(w, 0, stop)), None)
            if word is None:
                break
            end = stop - len(word)
        if end == len(text):
            return text
        return text[:end].rstrip()

    @cached_property
    def _end_words(self) -> tuple[str, ...]:
        end = self.tokenizer.convert_ids_to_tokens(self.end_token_id)
        return tuple(word for word in (end, self.tokenizer.eos_token) if word)

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
        turn_end = None if self.jinja is None else self._turn_end()
        if turn_end is not None:
            return turn_end
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no EOS token, so a response could never end; set data.eos_token "
                "to the token that ends a text"
            )
        return self.tokenizer.eos_token_id

    def _turn_end(self) -> int | None:
        """The added token that directly follows an assistant's message in the chat template."""
        messages = [
            {"role": "user", "content": _sentinel(0)},
            {"role": "assistant", "content": _sentinel(1)},
        ]
        try:
            text = self._apply(messages, generation_prompt=False)
        except RowError:
            return None
        _, found, tail = text.rpartition(_sentinel(1))
        tail = tail.lstrip()
        words = {token.content: id_ for id_, token in self.tokenizer.added_tokens_decoder.items()}
        starts = [word for word in words if word and tail.startswith(word)]
        return words[max(starts, key=len)] if found and starts else None

    def stop_token_ids(self, generation_config: Any = None) -> tuple[int, ...]:
        """Tokens at which sampling must stop: the end token first, then the tokenizer's EOS and
        those of the model's ``generation_config``."""
        ids = (self.end_token_id, *end_token_ids(self.tokenizer, generation_config))
        return tuple(dict.fromkeys(ids))


def _one(results: Sequence[tuple[int, ...] | RowError]) -> tuple[int, ...]:
    (result,) = results
    if isinstance(result, RowError):
        raise result
    return result


def _match(
    text: str, scaffold: Sequence[str] | None, contents: Sequence[str]
) -> tuple[Piece, ...] | None:
    """``text`` cut into scaffold and messages, or None if the template changed a message by more
    than trimming it or wrote another scaffold for these."""
    if scaffold is None or not text.startswith(scaffold[0]):
        return None
    pieces = [Piece(scaffold[0], False)]
    position = len(scaffold[0])
    for number, after in zip(scaffold[1::2], scaffold[2::2], strict=True):
        content = contents[int(number)]
        for form in (content, content.strip(), content.lstrip(), content.rstrip()):
            if text.startswith(form + after, position):
                break
        else:
            return None
        position += len(form) + len(after)
        pieces += [Piece(form, True), Piece(after, False)]
    return tuple(pieces) if position == len(text) else None


def render_prompt(example: Example, tokenizer: Any, config: DataConfig) -> str:
    """The prompt as the model sees it, as text. Raises DataError."""
    try:
        return Template(tokenizer, config).render(example).text
    except RowError as error:
        raise DataError(f"{example.source}: {error}") from None


def tokenize_prompt(example: Example, tokenizer: Any, config: DataConfig) -> tuple[int, ...]:
    """The prompt's token ids, the very ones rollouts start from; no length limit is applied.

    Raises DataError.
    """
    template = Template(tokenizer, config)
    try:
        return template.encode_prompt(template.render(example))
    except RowError as error:
        raise DataError(f"{example.source}: {error}") from None


def stop_token_ids(
    tokenizer: Any, config: DataConfig, generation_config: Any = None
) -> tuple[int, ...]:
    """As ``Template.stop_token_ids``; the first is the token every demonstration ends with."""
    return Template(tokenizer, config).stop_token_ids(generation_config)
