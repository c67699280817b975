"""When a response ends: stop tokens at table speed, stop strings by decoding few candidates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srft.data.end_tokens import end_token_ids
from srft.types import SamplingParams

STOP_TOKEN, MAY_END_STRING = 1, 2


class StopRule:
    """Decides which freshly sampled tokens end their response.

    ``table`` (uint8 [V]) is STOP_TOKEN for stop token ids and MAY_END_STRING for tokens whose text
    could complete a stop string, so that only the rows that sampled one are decoded. Stop strings are
    sought in the text with its special tokens, as transformers seeks them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        params: SamplingParams,
        end_ids: tuple[int, ...],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        self.tokenizer = tokenizer
        self.strings = tuple(s for s in params.stop if s)
        # A character is at most four tokens of a byte-level vocabulary.
        self._tail = 8 + max((len(s.encode()) for s in self.strings), default=0)
        table = torch.zeros(vocabulary, dtype=torch.uint8)
        if self.strings:
            table[_may_end(tokenizer, self.strings, vocabulary)] = MAY_END_STRING
        stops = [i for i in {*end_ids, *params.stop_token_ids} if 0 <= i < vocabulary]
        table[stops] = STOP_TOKEN
        self.table = table.to(device)

    def text(self, token_ids: list[int], ended_by_token: bool) -> str:
        """The response's text: no special tokens, no stop token, cut before a stop string."""
        kept = token_ids[:-1] if ended_by_token else token_ids
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        if not self.strings:
            return text
        raw = str(self.tokenizer.decode(kept, skip_special_tokens=False))
        before = [raw[:at] for at in (raw.find(s) for s in self.strings) if at >= 0]
        found = [len(_without_special(self.tokenizer, part)) for part in before]
        text = _without_special(self.tokenizer, raw) if found else text
        return text[: min(found)] if found else text

    def ends_string(self, token_ids: list[int]) -> bool:
        """Whether the text of these tokens contains a stop string."""
        tail = self.tokenizer.decode(token_ids[-self._tail :], skip_special_tokens=False)
        return any(s in tail for s in self.strings)

    def first_end(self, token_ids: list[int]) -> tuple[int, bool, bool]:
        """(tokens up to the first end, whether a stop token ended it, whether anything did)."""
        codes = self.table[torch.tensor(token_ids, device=self.table.device)].tolist()
        for at, code in enumerate(codes, start=1):
            if code == STOP_TOKEN:
                return at, True, True
            if code == MAY_END_STRING and self.ends_string(token_ids[:at]):
                return at, False, True
        return len(token_ids), False, False


class StopRules:
    """The stop rules of one tokenizer, kept: a table takes a second for a vocabulary of 150,000."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._kept: dict[tuple[Any, ...], StopRule] = {}

    def get(
        self, model: Any, params: SamplingParams, vocabulary: int, device: torch.device
    ) -> StopRule:
        """The rule for these stop strings and ids and the model's end-of-sequence ids."""
        ends = end_token_ids(self.tokenizer, getattr(model, "generation_config", None))
        key = (params.stop, params.stop_token_ids, ends, vocabulary, device)
        if key not in self._kept:
            self._kept[key] = StopRule(self.tokenizer, params, ends, vocabulary, device)
        return self._kept[key]


def _without_special(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    for token in tokenizer.added_tokens_decoder.values():
        text = text.replace(token.content, "") if token.special else text
    return text


def _may_end(
    tokenizer: PreTrainedTokenizerBase, strings: tuple[str, ...], vocabulary: int
) -> Tensor:
    """bool [V]: tokens with a character sequence that ends a stop string begun earlier or in them.

    A token's text is taken alone and after another token, because some decoders put a space
    between tokens or drop one at the start of a text. Texts that are parts of a character (shown
    as the replacement character) always count.
    """
    size = min(vocabulary, len(tokenizer))
    alone = tokenizer.batch_decode([[i] for i in range(size)], skip_special_tokens=False)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    anchor = next((i for i, text in enumerate(alone) if text.strip() and i not in special), 0)
    behind = tokenizer.batch_decode([[anchor, i] for i in range(size)], skip_special_tokens=False)
    cut = len(alone[anchor])
    suffixes = {s[i:] for s in strings for i in range(len(s))}
    may = torch.zeros(vocabulary, dtype=torch.bool)
    for token, (first, pair) in enumerate(zip(alone, behind, strict=True)):
        may[token] = any(
            "\ufffd" in text
            or any(s in text for s in strings)
            or any(text.startswith(suffix) for suffix in suffixes)
            for text in (first, pair[cut:])
            if text
        )
    return may
