"""Packs saved samples for the browser: an index to filter by, and blocks decoded when looked at.

A block is gzip of: 4 bytes little-endian length of a JSON header, the header, then planes of bytes.
Header: ``{"vocabulary": [token texts], "groups": [{"prompt", "asked", "answer", "source", "columns",
"responses": [number of tokens], "labels": [names of the responses] or absent}], "quantities":
[names]}``. Planes, each over all tokens of the block: token index low byte, high byte; then for each
quantity the high and the low byte of a bfloat16 (float32 cut to its upper half, so two to three
significant figures; NaN where unknown). Bytes of one significance lie together because they
compress better so.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np

from srft.runs.files import Record, is_number, to_json
from srft.runs.reading import Run, iterate_samples

QUANTITIES = ("logprob", "entropy", "loss", "base_logprob", "jsd")
"""Per-token figures of a response, as named in samples.jsonl (nats; loss: weighted, all terms)."""

_TOKENS_PER_BLOCK = 30_000
_GROUPS_PER_BLOCK = 100
_HEAD = 140
_ALIKE = 24
"""Characters that all prompts of a file may begin with before they are left out of its list."""


@dataclass(frozen=True)
class PackedSamples:
    """``index`` goes into the page as JSON; ``blocks`` are gzip bytes. ``total`` groups were saved,
    ``shown`` of them are packed."""

    index: dict[str, Any]
    blocks: tuple[bytes, ...]
    total: int
    shown: int

    @property
    def size(self) -> int:
        """Bytes of the blocks."""
        return sum(map(len, self.blocks))


Stream = Callable[[], Iterator[Record]]
"""Gives the saved groups of one run (or one model) from the start, as often as it is called."""


def pack_samples(runs: Sequence[Run], max_groups: int, max_bytes: int) -> PackedSamples:
    """Packs at most ``max_groups`` prompt groups of all runs, thinned evenly, into ``max_bytes``."""
    return pack_streams([partial(iterate_samples, run) for run in runs], max_groups, max_bytes)


def pack_streams(streams: Sequence[Stream], max_groups: int, max_bytes: int) -> PackedSamples:
    """As ``pack_samples``, from anything that gives records in the form of samples.jsonl."""
    counts = [sum(1 for _ in stream()) for stream in streams]
    total = sum(counts)
    keep = min(total, max_groups)
    while True:
        packed = _pack(streams, counts, total, keep)
        if packed.size <= max_bytes or keep <= 1:
            return packed
        keep = max(1, min(keep - 1, int(0.95 * keep * max_bytes / packed.size)))


def align_tokens(text: str, tokens: Sequence[str]) -> list[str]:
    """Gives each token the white space that stands before it in ``text`` and not in the token.

    Some tokenizers decode tokens one by one without the spaces between them. Where the tokens
    cannot be found in the text in order, they are returned as they are.
    """
    if "".join(tokens) == text:
        return list(tokens)
    aligned: list[str] = []
    at = 0
    for token in tokens:
        start = text.find(token, at) if token else at
        gap = text[at:start] if start >= 0 else ""
        if start < 0 or gap.strip():
            aligned.append(token)  # a special token, say: not part of the text
        else:
            aligned.append(gap + token)
            at = start + len(token)
    return aligned


def _pack(streams: Sequence[Stream], counts: Sequence[int], total: int, keep: int) -> PackedSamples:
    index: dict[str, list[Any]] = {name: [] for name in (*_GROUP_COLUMNS, *_RESPONSE_COLUMNS)}
    blocks: list[bytes] = []
    block = _Block()
    for run_number, record in _chosen(streams, counts, total, keep):
        if block.full:
            blocks.append(block.to_bytes())
            block = _Block()
        _add_to_index(index, record, run_number, len(blocks), len(block.groups))
        block.add(record)
    if block.groups:
        blocks.append(block.to_bytes())
    index["head"] = _heads(index["head"], index["source"])
    return PackedSamples(index, tuple(blocks), total, len(index["step"]))


def _chosen(
    streams: Sequence[Stream], counts: Sequence[int], total: int, keep: int
) -> Iterator[tuple[int, Record]]:
    """Every (total / keep)-th group over all runs, the first and the last among them."""
    wanted = set(np.linspace(0, total - 1, keep).round().astype(int).tolist()) if keep else set()
    start = 0
    for number, stream in enumerate(streams):
        for i, record in enumerate(stream()):
            if start + i in wanted:
                yield number, record
        start += counts[number]


_GROUP_COLUMNS = ("run", "step", "block", "row", "head", "source", "responses")
_RESPONSE_COLUMNS = ("kind", "reward", "correct", "truncated", "length", "advantage")


def _add_to_index(
    index: dict[str, list[Any]], record: Record, run: int, block: int, row: int
) -> None:
    responses = [r for r in record["responses"] if isinstance(r, dict)]
    index["run"].append(run)
    index["step"].append(record.get("step") if is_number(record.get("step")) else None)
    index["block"].append(block)
    index["row"].append(row)
    index["head"].append(_text(record.get("asked") or record.get("prompt"))[: 20 * _HEAD])
    index["source"].append(_text(record.get("source")))
    index["responses"].append(len(responses))
    for r in responses:
        index["kind"].append(1 if r.get("kind") == "demonstration" else 0)
        index["reward"].append(_short(r.get("reward")))
        correct = r.get("correct")
        index["correct"].append(None if correct is None else int(bool(correct)))
        index["truncated"].append(int(bool(r.get("truncated"))))
        index["length"].append(len(r.get("tokens") or ()) or None)
        index["advantage"].append(_short(r.get("advantage")))


def _heads(texts: Sequence[str], sources: Sequence[str]) -> list[str]:
    """How the texts begin, without the words that all those of one file begin with."""
    files: dict[str, list[str]] = {}
    for text, source in zip(texts, sources, strict=True):
        files.setdefault(source.rpartition(":")[0], []).append(text)
    alike = {name: _words_alike(found) for name, found in files.items()}
    heads = []
    for text, source in zip(texts, sources, strict=True):
        words = text.split()
        left_out, rest = words[: (n := alike[source.rpartition(":")[0]])], words[n:]
        long = len(" ".join(left_out)) > _ALIKE
        heads.append(f"… {' '.join(rest)}"[:_HEAD] if long else text[:_HEAD])
    return heads


def _words_alike(texts: Sequence[str]) -> int:
    """Words with which all of several different texts begin."""
    if len(set(texts)) < 2:
        return 0
    columns = zip(*map(str.split, texts), strict=False)
    return sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, columns))


class _Block:
    """Some groups on their way into one compressed block."""

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        self._vocabulary: dict[str, int] = {}
        self._tokens: list[int] = []
        self._values: dict[str, list[float]] = {name: [] for name in QUANTITIES}

    @property
    def full(self) -> bool:
        return len(self.groups) >= _GROUPS_PER_BLOCK or len(self._tokens) >= _TOKENS_PER_BLOCK

    def add(self, record: Record) -> None:
        responses = [r for r in record["responses"] if isinstance(r, dict)]
        lengths = [self._add_response(response) for response in responses]
        labels = [_text(r["label"]) for r in responses if "label" in r]
        columns = record.get("columns")
        self.groups.append(
            {
                **({"labels": labels} if len(labels) == len(responses) > 0 else {}),
                "prompt": _text(record.get("prompt")),
                "asked": _text(record.get("asked")),
                "answer": None if record.get("answer") is None else _text(record["answer"]),
                "source": _text(record.get("source")),
                "columns": columns if isinstance(columns, dict) else {},
                "responses": lengths,
            }
        )

    def _add_response(self, response: Record) -> int:
        text = _text(response.get("text"))
        raw = response.get("tokens")
        if isinstance(raw, list) and raw:
            tokens = align_tokens(text, [_text(token) for token in raw])
        else:
            tokens = [text]  # no figures by token: the whole text as one
        for token in tokens:
            # Block vocabularies stay below 65,536 entries: a block holds fewer tokens, bar one
            # giant group, whose later new tokens share the last place.
            place = self._vocabulary.setdefault(token, min(len(self._vocabulary), 65_535))
            self._tokens.append(place)
        for name in QUANTITIES:
            values = response.get(name)
            known = values if isinstance(values, list) and len(values) == len(tokens) else ()
            self._values[name].extend(float(v) if is_number(v) else math.nan for v in known)
            self._values[name].extend([math.nan] * (len(tokens) - len(known)))
        return len(tokens)

    def to_bytes(self) -> bytes:
        known = [n for n in QUANTITIES if not all(map(math.isnan, self._values[n]))]
        words = list(self._vocabulary)[:65_536]
        header = {"vocabulary": words, "groups": self.groups, "quantities": known}
        text = to_json(header, ensure_ascii=True, separators=(",", ":"), default=str).encode()
        tokens = np.asarray(self._tokens, dtype=np.uint32)
        planes = [tokens & 255, tokens >> 8]
        for name in known:
            half = _bfloat16(np.asarray(self._values[name], dtype=np.float32))
            planes += [half >> 8, half & 255]
        body = b"".join(plane.astype(np.uint8).tobytes() for plane in planes)
        # mtime 0: the same samples give the same bytes.
        return gzip.compress(len(text).to_bytes(4, "little") + text + body, 6, mtime=0)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Upper halves of float32 numbers, rounded to nearest even; uint32 below 65,536."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded)


def _short(value: Any) -> float | None:
    return float(f"{float(value):.4g}") if is_number(value) else None


def _text(value: Any) -> str:
    """Chat prompts are shown message by message."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(
        isinstance(m, dict) and "content" in m for m in value
    ):
        return "\n\n".join(f"[{m.get('role', '?')}]\n{_text(m['content'])}" for m in value)
    return json.dumps(value, ensure_ascii=False, default=str)
