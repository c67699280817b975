"""Text that users wrote never becomes a control token.

A chat template mixes users' text with control tokens in one string. So before it is rendered each
control token that users *spell* (``<|im_end|>`` in a question) is replaced by one private character,
which every template passes through: what then looks like a control token is the template's. Such a
text is tokenized section by section between the template's control tokens, with the spelled ones put
back as text; every other text goes through the tokenizer in one piece, exactly as the model's makers
do it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from srft.data.row_errors import RowError

_PRIVATE = range(0xF0000, 0xF0000 + 65_534)
_RENDERED = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)


class _Interned(dict[int, int]):
    """One Python int per token id: a tuple of shared ids takes 8 bytes a token instead of 36, which
    is 1.5 GB instead of 6.6 GB for 46,000 demonstrations of 4,000 tokens."""

    def __missing__(self, id_: int) -> int:
        self[id_] = id_
        return id_


_INTERNED = _Interned()


@dataclass(frozen=True)
class Rendered:
    """A text whose control tokens are the template's alone: the private characters in ``marked``
    stand for the ``words`` that users spelled."""

    marked: str
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """As people read it."""
        return self.restore(self.marked)

    def restore(self, marked: str) -> str:
        """A part of ``marked`` as people read it."""
        for mark, word in self.words.items():
            marked = marked.replace(mark, word)
        return marked

    def __add__(self, other: Rendered) -> Rendered:
        return Rendered(self.marked + other.marked, {**self.words, **other.words})


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Messages with every text in them changed, but for roles, kinds and the names of keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key: item if key in ("role", "type") else map_texts(item, change)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [map_texts(item, change) for item in value]
    return value


def texts_in(value: Any) -> Iterator[str]:
    """Every text in messages, those that ``map_texts`` leaves alone among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_in(item)


class ControlTokens:
    """The control tokens of a tokenizer: its special tokens and the one that ends a response."""

    def __init__(self, tokenizer: Any, end_token_id: int) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        words = {id_: token.content for id_, token in added.items() if token.special}
        words |= zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        unknown = tokenizer.unk_token_id
        if unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
            words.pop(unknown, None)  # text may hold unknown words; they control nothing
        words[end_token_id] = tokenizer.convert_ids_to_tokens(end_token_id)
        self.ids = frozenset(words)
        # The longest first, so that one token's text cannot hide a longer one.
        ordered = sorted(map(re.escape, words.values()), key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(ordered)})")
        self.id_of = {word: id_ for id_, word in words.items()}

    def marks(self, texts: Sequence[str]) -> dict[str, str]:
        """A private character that none of the texts holds for each control token they spell."""
        found = sorted({word for text in texts for word in self.pattern.findall(text)})
        if not found:
            return {}
        taken = set().union(*texts)
        free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
        return dict(zip(free, found, strict=False))

    def mark(self, text: str, marks: Mapping[str, str]) -> str:
        """``text`` with the private characters in place of what it spells."""
        by_word = {word: mark for mark, word in marks.items()}
        return self.pattern.sub(lambda match: by_word[match[0]], text) if marks else text

    def looks_rendered(self, text: str) -> str | None:
        """A control token in it, of this tokenizer or of a chat template people use, or None."""
        found = self.pattern.search(text) or _RENDERED.search(text)
        return found[0] if found else None

    def encode(self, rendered: Sequence[Rendered]) -> list[tuple[int, ...] | RowError]:
        """Token ids of each text; a RowError stands in for one that cannot be written."""
        quick = iter(self._tokenize([item.marked for item in rendered if not item.words]))
        results: list[tuple[int, ...] | RowError] = []
        for item in rendered:
            try:
                ids = self._encode_apart(item) if item.words else next(quick)
                if not ids:
                    raise RowError("produces no tokens; write a text the tokenizer knows")
                results.append(tuple(map(_INTERNED.__getitem__, ids)))
            except RowError as error:
                results.append(error)
        return results

    def encode_alone(self, rendered: Rendered) -> tuple[int, ...]:
        """Token ids of a text as in the middle of another one. Raises RowError."""
        # Behind a control token no tokenizer takes it for the beginning of a text.
        before = next((w for w in self.id_of if self._stands_alone(w)), "")
        (ids,) = self.encode([Rendered(before) + rendered])
        if isinstance(ids, RowError):
            raise ids
        return ids[1:] if before else ids

    def _stands_alone(self, word: str) -> bool:
        return self.id_of[word] in self.tokenizer.added_tokens_decoder and not self._swallows(
            word, "rstrip"
        )

    def _tokenize(self, texts: Sequence[str], as_text: bool = False) -> list[list[int]]:
        """``as_text``: special tokens spelled in the text are cut up like any other text."""
        if not texts:
            return []
        options = {"split_special_tokens": True} if as_text else {}
        return self.tokenizer(
            list(texts), add_special_tokens=False, verbose=False, **options
        ).input_ids

    def _encode_apart(self, rendered: Rendered) -> list[int]:
        """Control tokens from the template, all else as text.

        Whether this tokenizer gives the same tokens for sections as for the whole (some mark the
        beginning of a text) is tried on the same text with the offending words replaced.
        """
        harmless = rendered.marked
        for mark in rendered.words:
            harmless = harmless.replace(mark, "x")
        if self.sections(Rendered(harmless)) != self._tokenize([harmless])[0]:
            raise RowError(
                f"spells the control token `{next(iter(rendered.words.values()))}`, which this "
                "tokenizer cannot write as text without changing the text around it; remove it"
            )
        return self.sections(rendered)

    def sections(self, rendered: Rendered) -> list[int]:
        """The tokens of a text, tokenized between its control tokens."""
        ids: list[int] = []
        parts = self.pattern.split(rendered.marked)  # text, control token, text, ..., text
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(self.id_of[part])
                continue
            # A token may swallow the white space beside it (rstrip of Phi's <|end|>).
            if number and self._swallows(parts[number - 1], "rstrip"):
                part = part.lstrip()
            if number + 1 < len(parts) and self._swallows(parts[number + 1], "lstrip"):
                part = part.rstrip()
            ids += self._as_text(rendered.restore(part))
        return ids

    def _swallows(self, word: str, side: str) -> bool:
        token = self.tokenizer.added_tokens_decoder.get(self.id_of[word])
        return token is not None and getattr(token, side)

    def _as_text(self, text: str) -> list[int]:
        if not text:
            return []
        ids = self._tokenize([text], as_text=True)[0]
        if self.ids.isdisjoint(ids):
            return ids
        # The vocabulary itself maps the word to the control token (a word-level tokenizer): cut
        # the word after its first character.
        ids = []
        for part in re.split(self.pattern, text):
            halves = (part[:1], part[1:]) if self.pattern.fullmatch(part) else (part,)
            for half in filter(None, halves):
                ids += self._tokenize([half], as_text=True)[0]
        if not self.ids.isdisjoint(ids):
            raise RowError(
                f"spells the control token `{self.pattern.findall(text)[0]}`, which this tokenizer"
                " cannot write as text; remove it"
            )
        return ids
