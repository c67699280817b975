"""The responses that are scored: read from files and run directories, and turned into tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

from srft.data.data_config import DataConfig
from srft.data.messages import is_message
from srft.errors import DataError
from srft.paths import local_path
from srft.runs.files import is_number, jsonl_lines
from srft.runs.run_dir import RunDir
from srft.types import Example

_RESPONSE_KEYS = ("response", "responses", "completion", "completions", "output")


@dataclass(frozen=True)
class Response:
    """One response to one prompt.

    kind: "demonstration", "rollout", or what the file says. group: responses to the same prompt at
    the same step share it. prompt_ids and ids are given where the file holds tokens; otherwise
    ``prompt`` and ``text`` are tokenized. rendered: the prompt is the text the model was shown, its
    template included. mask is False at tokens that a tool wrote. reward is None where it is not known.
    """

    prompt: Any
    text: str
    kind: str
    source: str
    group: int
    reward: float | None = None
    correct: bool | None = None
    truncated: bool = False
    answer: str | None = None
    rendered: bool = False
    prompt_ids: tuple[int, ...] | None = None
    ids: tuple[int, ...] | None = None
    mask: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class TokenizedResponse:
    """``prompt_ids + ids`` is what a model is shown; ``own`` is what is scored: the tokens where ``mask`` is
    True, which no tool wrote (None: all)."""

    response: Response
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    mask: tuple[bool, ...] | None = None

    @property
    def own(self) -> tuple[int, ...]:
        return self.ids if self.mask is None else tuple(compress(self.ids, self.mask))

    def cut(self, most: int) -> TokenizedResponse:
        """The first ``most`` tokens."""
        return replace(self, ids=self.ids[:most], mask=self.mask and self.mask[:most])


def read_responses(
    data: str | Path | Sequence[str | Path],
    *,
    kinds: Sequence[str] | None = None,
    limit: int | None = 500,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> list[Response]:
    """Responses from one or several places.

    data: a run directory (its samples.jsonl), a samples.jsonl, a JSONL file whose rows hold
        ``prompt`` and ``response`` (or ``responses``, ``completion``, ``completions``, ``output``;
        text or a list, optionally ``kind`` and ``reward``), or any training data with
        demonstrations (``lab``, hub name, JSONL, Parquet).
    columns: of training data, as ``load_examples`` takes them.
    kinds: keep these kinds only. limit: at most so many responses of each kind, drawn with
        ``seed`` by whole prompts; None takes all.

    Raises:
        DataError: a place holds no response; names ``file:row`` where a row is at fault.
    """
    places = [data] if isinstance(data, (str, Path)) else list(data)
    found: list[Response] = []
    for place in places:
        found.extend(_read(place, len(found), columns))
    if kinds is not None:
        found = [response for response in found if response.kind in kinds]
    if not found:
        wanted = f" of kind {', '.join(kinds)}" if kinds else ""
        raise DataError(
            f"{', '.join(map(str, places))}: no response{wanted} to score; give a run directory with "
            "samples, a JSONL with `prompt` and `response`, or a data set with demonstrations"
        )
    return _draw(found, limit, seed)


def _read(place: str | Path, first_group: int, columns: Mapping[str, str] | None) -> list[Response]:
    path = local_path(place)
    if path.is_dir() and (path / "samples.jsonl").is_file():
        path = path / "samples.jsonl"
    elif path.is_dir() and (path / "metrics.jsonl").is_file():
        raise DataError(
            f"{path}: the run has saved no samples (run.samples_every is 0, or too few steps)"
        )
    if path.is_file() and path.suffix == ".jsonl":
        rows = list(_rows(path))
        if rows and _holds_responses(rows[0][1]):
            return [
                r for i, (at, row) in enumerate(rows) for r in _from_row(row, at, first_group + i)
            ]
    return _from_examples(str(place), first_group, columns)


def _holds_responses(row: Mapping[str, Any]) -> bool:
    """Whether it is a row of responses to a prompt, not of training data that names its columns otherwise."""
    value = next((row[key] for key in _RESPONSE_KEYS if key in row), None)
    value = value[0] if isinstance(value, list) and value else value
    told = isinstance(value, str) or (isinstance(value, Mapping) and not is_message(value))
    return told and ("prompt" in row or not {"question", "problem", "instruction"} & row.keys())


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in jsonl_lines(path, growing=path.name == RunDir(path.parent).samples.name):
        if isinstance(row, ValueError):
            raise DataError(f"{path}:{number}: not a JSON object ({row}); fix or remove the line")
        yield f"{path}:{number}", row


def _from_row(row: dict[str, Any], at: str, group: int) -> Iterator[Response]:
    """Of a row of samples.jsonl, whose responses are objects, or of one whose responses are text."""
    key = next((key for key in _RESPONSE_KEYS if key in row), None)
    if key is None or "prompt" not in row:
        missing = "prompt" if key else "response"
        raise DataError(f"{at}: no `{missing}`; every row needs `prompt` and `response`")
    values = row[key] if isinstance(row[key], list) else [row[key]]
    sampled = bool(values) and isinstance(values[0], dict)
    for value in values:
        item = value if sampled else {**row, "text": value}
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            what = "an object without `text`" if sampled else f"{type(value).__name__}, not text"
            raise DataError(f"{at}: `{key}` holds {what}")
        yield Response(
            prompt=row["prompt"],
            text=item["text"],
            kind=str(item.get("kind", "rollout" if sampled else "response")),
            source=str(row.get("source") or at) if sampled else at,
            group=group,
            reward=float(item["reward"]) if is_number(item.get("reward")) else None,
            correct=item.get("correct"),
            truncated=bool(item.get("truncated")),
            answer=None if row.get("answer") is None else str(row["answer"]),
            rendered=sampled,
            prompt_ids=_ids(row.get("prompt_ids")),
            ids=_ids(item.get("token_ids")),
            mask=_mask(item.get("logprob")),
        )


def _from_examples(
    place: str, first_group: int, columns: Mapping[str, str] | None
) -> list[Response]:
    from srft.data.reading import load_examples

    return [
        Response(
            example.prompt,
            text,
            "demonstration",
            example.source,
            first_group + i,
            1.0,
            True,
            False,
            example.answer,
        )
        for i, example in enumerate(load_examples(place, columns=columns, invalid_rows="refuse"))
        for text in example.demonstrations
    ]


def _ids(value: Any) -> tuple[int, ...] | None:
    return (
        tuple(value) if isinstance(value, list) and all(isinstance(v, int) for v in value) else None
    )


def _mask(logprobs: Any) -> tuple[bool, ...] | None:
    """samples.jsonl has no log-probability at tokens that a tool wrote. (No loss, it also has at those of a
    response that the method left out of training.)"""
    known = isinstance(logprobs, list) and None in logprobs
    return tuple(value is not None for value in logprobs) if known else None


def _draw(found: list[Response], limit: int | None, seed: int) -> list[Response]:
    """At most ``limit`` responses of each kind, whole prompts, in the order of the files."""
    if limit is None:
        return found
    groups = sorted({response.group for response in found})
    random.Random(seed).shuffle(groups)
    place = {group: i for i, group in enumerate(groups)}
    taken: dict[str, int] = {}
    chosen = []
    for number in sorted(range(len(found)), key=lambda i: (place[found[i].group], i)):
        kind = found[number].kind
        if taken.get(kind, 0) < limit:
            taken[kind] = taken.get(kind, 0) + 1
            chosen.append(number)
    return [found[number] for number in sorted(chosen)]


def tokenize(
    responses: Sequence[Response],
    tokenizer: Any,
    config: DataConfig | None = None,
    max_tokens: int = 8192,
) -> tuple[list[TokenizedResponse], list[str]]:
    """Tokens of each response under the prompt format of training, and notes on what was left out.

    Text goes through the same code as training data: chat template (``config``), end-of-sequence
    token after a response unless it was truncated or is longer than ``max_tokens``. Prompts of
    samples.jsonl have the template in them already and are taken as they stand.

    Raises:
        DataError: a prompt or response that cannot be used, or none left.
    """
    nothing = "every response is empty: there is nothing to score"
    config = config or DataConfig()
    as_it_stands = config.model_copy(
        update={
            "chat_template": "none",
            "prompt_template": "{prompt}",
            "prompt_is_rendered": False,
            "system_prompt": None,
        }
    )
    kept = [r for r in responses if r.ids or r.text.strip()]
    if not kept:
        raise DataError(nothing)
    done: dict[int, TokenizedResponse] = {}
    for number, r in enumerate(kept):
        if r.prompt_ids and r.ids:
            done[number] = TokenizedResponse(r, r.prompt_ids, r.ids, r.mask)
    for rendered, form in ((False, config), (True, as_it_stands)):
        rest = [i for i, r in enumerate(kept) if i not in done and r.rendered is rendered]
        done |= _from_text(rest, kept, tokenizer, form)
    cut = sum(len(t.ids) > max_tokens for t in done.values())
    result = [whole for i in sorted(done) if (whole := done[i].cut(max_tokens)).own]
    if not result:
        raise DataError(nothing)
    return result, _notes(responses, result, cut, max_tokens, tokenizer)


def _from_text(
    rows: Sequence[int], responses: Sequence[Response], tokenizer: Any, config: DataConfig
) -> dict[int, TokenizedResponse]:
    from srft.data.tokenization import tokenize_dataset

    if not rows:
        return {}
    unlimited = config.model_copy(
        update={
            "max_prompt_tokens": None,
            "max_demonstration_tokens": None,
            "invalid_rows": "error",
        }
    )
    examples = []
    for row in rows:
        r = responses[row]
        prompt = tuple(r.prompt) if isinstance(r.prompt, list) else r.prompt
        examples.append(Example(prompt=prompt, demonstrations=(r.text,), source=r.source))
    tokenized, _ = tokenize_dataset(examples, tokenizer, unlimited)
    found = {}
    for item in tokenized:
        r = responses[rows[item.index]]
        ids, mask = item.demonstration_ids[0], item.demonstration_masks[0]
        whole = TokenizedResponse(r, item.prompt_ids, ids, mask)
        # A response cut at the length limit never said that it was finished.
        found[rows[item.index]] = whole.cut(len(ids) - 1) if r.truncated else whole
    return found


def _notes(
    given: Sequence[Response],
    done: Sequence[TokenizedResponse],
    cut: int,
    limit: int,
    tokenizer: Any,
) -> list[str]:
    notes = []
    if cut:
        notes.append(f"{cut} of {len(done)} responses were cut at {limit} tokens.")
    if len(done) < len(given):
        left = len(given) - len(done)
        notes.append(f"{left} responses without a token of the model's own were left out.")
    from_text = any(t.response.rendered and t.response.prompt_ids is None for t in done)
    if from_text and getattr(tokenizer, "chat_template", None):
        notes.append(
            "Prompts of samples.jsonl were tokenized from their text; special tokens of a chat "
            "template, which the text leaves out, are missing."
        )
    unknown = getattr(tokenizer, "unk_token_id", None)
    count = sum(t.own.count(unknown) for t in done) if unknown is not None else 0
    if count:
        total = sum(len(t.own) for t in done)
        notes.append(
            f"{count} of {total} tokens are unknown to the tokenizer: is it the right one?"
        )
    return notes
