"""A dataset in tokens, with a report of what was dropped, cut or left as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from srft.data.control_tokens import Rendered
from srft.data.data_config import DataConfig
from srft.data.differences import Differences
from srft.data.row_errors import SHOWN, Problems, RowError
from srft.data.template import Response, Template
from srft.errors import DataError
from srft.types import Example, TokenizedExample

_CHUNK = 256
_END = 16  # tokens of a prompt's end that verifiers may see
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class TokenizationReport:
    """What became of a dataset. All lengths are in tokens, end tokens included.

    prompt_tokens, demonstration_tokens: lengths at the quantiles 0, 0.5, 0.9, 0.99 and 1 of what
        was kept (empty where nothing was).
    dropped_rows: rows left out for another reason than length (``invalid_rows: drop``).
    without_demonstration: kept rows with no demonstration, given or left.
    spelled_controls: texts that spelled a control token and were kept as text.
    cut_ends: demonstrations whose own end token or doubled ``<think>`` was cut.
    unknown_tokens: share of tokens the tokenizer does not know (0 for byte-level vocabularies).
    differences: how prompts with their demonstrations differ from what the chat template makes of
        the whole conversation, and what is learned instead.
    """

    total: int
    kept: int
    dropped_prompts: int
    truncated_prompts: int
    dropped_demonstrations: int
    truncated_demonstrations: int
    dropped_rows: int
    without_demonstration: int
    spelled_controls: int
    cut_ends: int
    unknown_tokens: float
    prompt_tokens: tuple[int, ...]
    demonstration_tokens: tuple[int, ...]
    template: str
    end_token: str
    notes: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    def summary(self) -> str:
        """A few lines for the log."""
        lines = [
            f"{self.kept:,} of {self.total:,} rows kept; {self.template}; end {self.end_token}"
        ]
        for name, lengths in (
            ("prompt", self.prompt_tokens),
            ("demonstration", self.demonstration_tokens),
        ):
            if lengths:
                values = " / ".join(f"{length:,}" for length in lengths)
                lines.append(f"{name} tokens, min / median / 90 % / 99 % / max: {values}")
        counts = {
            "prompts dropped, too long": self.dropped_prompts,
            "prompts cut, too long": self.truncated_prompts,
            "demonstrations dropped, too long": self.dropped_demonstrations,
            "demonstrations cut, too long": self.truncated_demonstrations,
            "rows dropped, not usable": self.dropped_rows,
            "rows without a demonstration": self.without_demonstration,
            "texts that spell a control token": self.spelled_controls,
            "demonstrations whose own end token or <think> was cut": self.cut_ends,
        }
        lines += [f"{name}: {count:,}" for name, count in counts.items() if count]
        if self.unknown_tokens > 0:
            lines.append(
                f"tokens the tokenizer does not know: {self.unknown_tokens:.1%}; is this the "
                "tokenizer for this data?"
            )
        return "\n".join([*lines, *self.differences, *self.notes])


@dataclass
class _Tally:
    """What tokenize_dataset counts on its way."""

    counts: Counter[str] = field(default_factory=Counter)
    prompt_lengths: list[int] = field(default_factory=list)
    demonstration_lengths: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differences: Differences = field(default_factory=Differences)
    rendered: list[tuple[str, str]] = field(
        default_factory=list
    )  # row, control token in its prompt
    tokens: int = 0
    unknown: int = 0

    def note(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.notes) < SHOWN:
            self.notes.append(text)


def tokenize_example(
    example: Example, index: int, tokenizer: Any, config: DataConfig
) -> TokenizedExample:
    """One example in tokens, under the same policies as ``tokenize_dataset``.

    Raises DataError if it cannot be used, or its prompt is dropped for its length.
    """
    if config.prompt_is_rendered is None:  # one row says nothing of most
        config = config.model_copy(update={"prompt_is_rendered": False})
    kept, report = _tokenize([example], Template(tokenizer, config), config, None)
    if not kept:
        raise DataError("\n".join(report.notes))
    return replace(kept[0], index=index)


def tokenize_dataset(
    examples: Sequence[Example],
    tokenizer: Any,
    config: DataConfig,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[TokenizedExample], TokenizationReport]:
    """All examples in tokens, and what was dropped or cut on the way.

    ``index`` of each result is its place in ``examples``; its ``example.demonstrations`` are the
    texts of its ``demonstration_ids``, one for one: without those dropped, and without an end token
    written out in the data. (A truncated demonstration keeps its whole text.)
    ``progress(done, total)`` is called now and then. Raises DataError for rows that cannot be used
    (see ``data.invalid_rows``, ``data.overlong_prompt``, ``data.overlong_demonstration``) or if none
    is left.
    """
    kept, report = _tokenize(examples, Template(tokenizer, config), config, progress)
    if not kept:
        raise DataError(
            f"none of the {len(examples):,} examples is left to train on:\n{report.summary()}"
        )
    return kept, report


def _tokenize(
    examples: Sequence[Example],
    template: Template,
    config: DataConfig,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[TokenizedExample], TokenizationReport]:
    tally = _Tally()
    bad, overlong = Problems("tokenization"), Problems("tokenization")
    kept: list[TokenizedExample] = []
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        for offset, ids in enumerate(_encode_chunk(chunk, template, tally)):
            example = chunk[offset]
            if isinstance(ids, RowError):
                bad.add(example.source, str(ids))
                continue
            with overlong.collect(example.source):
                fitted = _fit(example, start + offset, ids, template, tally)
                if fitted is not None:
                    kept.append(fitted)
        if progress is not None:
            progress(min(start + _CHUNK, len(examples)), len(examples))
    _check_rendered(len(examples), config, tally)
    overlong.settle(len(kept), "error", fix="Raise the limit or choose another policy.")
    bad.settle(len(examples) - bad.count, config.invalid_rows)
    tally.counts["dropped_rows"] = bad.count
    return kept, _report(len(examples), kept, template, tally)


def _check_rendered(total: int, config: DataConfig, tally: _Tally) -> None:
    """DataError where most prompts look rendered already and nothing was said about it."""
    found = tally.rendered
    if config.prompt_is_rendered is not None or len(found) <= total / 2:
        return
    source, word = found[0]
    raise DataError(
        f"{len(found):,} of {total:,} prompts hold control tokens of a chat template, such as `{word}` "
        f"({source}): they seem to be rendered already. Set data.prompt_is_rendered: true to use such "
        "prompts as they stand, or false to put them into the template as text like any other"
    )


# The ids of a prompt, and of its demonstrations with their text as it was tokenized.
_Ids = tuple[tuple[int, ...], list[tuple[str, tuple[int, ...]]]]


@dataclass
class _Written:
    """An example as text: its prompt, what follows it, and what of it is in which tokens."""

    example: Example
    prompt: Rendered
    responses: list[Response]


def _encode_chunk(
    examples: Sequence[Example], template: Template, tally: _Tally
) -> list[_Ids | RowError]:
    """Prompt ids and demonstration ids (end token included) of each example, or what is wrong."""
    written: list[_Written | RowError] = []
    texts: list[Rendered] = []
    for example in examples:
        try:
            one = _write(example, template, tally)
        except RowError as error:
            written.append(error)
            continue
        written.append(one)
        texts.append(one.prompt)
        # Together with its prompt: what a tokenizer does at the beginning of a text (SentencePiece
        # marks it) has no place in the middle of a conversation.
        texts += [_joined(one.prompt, response.rendered) for response in one.responses]
    encoded = iter(template.controls.encode(texts))
    return [
        one if isinstance(one, RowError) else _ids(one, encoded, template, tally) for one in written
    ]


def _write(example: Example, template: Template, tally: _Tally) -> _Written:
    conversation = template.converse(example)
    prompt = template.render(example, conversation)
    responses = template.responses(example, conversation, prompt)
    tally.counts["spelled_controls"] += sum(
        bool(text.words) for text in (prompt, *(response.rendered for response in responses))
    )
    tally.counts["cut_ends"] += sum(response.cut for response in responses)
    if conversation.messages is not None:
        asked = str(conversation.messages[-1]["content"])
        word = template.controls.looks_rendered(prompt.restore(asked))
        if word:
            tally.rendered.append((example.source, word))
    return _Written(example, prompt, responses)


def _joined(prompt: Rendered, response: Rendered) -> Rendered:
    return Rendered(prompt.marked + response.marked, {**prompt.words, **response.words})


def _ids(
    written: _Written,
    encoded: Iterator[tuple[int, ...] | RowError],
    template: Template,
    tally: _Tally,
) -> _Ids | RowError:
    prompt = next(encoded)
    wholes = [next(encoded) for _ in written.responses]
    if isinstance(prompt, RowError):
        return RowError(f"prompt {prompt}")
    demonstrations = []
    for response, whole in zip(written.responses, wholes, strict=True):
        if not isinstance(whole, RowError) and whole[: len(prompt)] == prompt:
            ids = whole[len(prompt) :]
            apart = False
        else:
            # A token would span the boundary, which no sampled response can have.
            try:
                ids, apart = template.controls.encode_alone(response.rendered), True
            except RowError as error:
                return RowError(f"demonstration {error}")
        if template.jinja is not None:
            tally.differences.add(written.example, written.prompt, response, apart)
        demonstrations.append((response.text, template.ended(ids)))
    return template.with_bos(prompt), demonstrations


def _fit(
    example: Example, index: int, ids: _Ids, template: Template, tally: _Tally
) -> TokenizedExample | None:
    """Apply the length policies and append end tokens. None: dropped. RowError: refused.

    The result's ``example.demonstrations`` are those that were kept, as they were tokenized.
    """
    prompt = _fit_prompt(example, ids[0], template, tally)
    if prompt is None:
        return None
    demonstrations, texts = [], []
    for text, text_ids in ids[1]:
        fitted = _fit_demonstration(example, text_ids, template, tally)
        if fitted is not None:
            demonstrations.append(fitted)
            texts.append(text)
    prompt_end = template.tokenizer.decode(prompt[-_END:])
    example = replace(example, demonstrations=tuple(texts), prompt_end=prompt_end)
    unknown = template.tokenizer.unk_token_id
    if unknown is not None and unknown not in template.controls.ids:
        tally.unknown += sum(part.count(unknown) for part in (prompt, *demonstrations))
    tally.tokens += len(prompt) + sum(map(len, demonstrations))
    tally.prompt_lengths.append(len(prompt))
    tally.demonstration_lengths += map(len, demonstrations)
    return TokenizedExample(example, index, prompt, tuple(demonstrations))


def _fit_prompt(
    example: Example, ids: tuple[int, ...], template: Template, tally: _Tally
) -> tuple[int, ...] | None:
    config = template.config
    limit = config.max_prompt_tokens
    if limit is None or len(ids) <= limit:
        return ids
    what = f"the prompt has {len(ids):,} tokens, above data.max_prompt_tokens = {limit:,}"
    if config.overlong_prompt == "error":
        raise RowError(what)
    if config.overlong_prompt == "drop":
        tally.note("dropped_prompts", f"{example.source}: {what}; dropped")
        return None
    tally.note("truncated_prompts", f"{example.source}: {what}; cut on the left")
    bos = ids[:1] if ids[0] == template.tokenizer.bos_token_id and limit > 1 else ()
    return bos + ids[len(ids) - limit + len(bos) :]


def _fit_demonstration(
    example: Example, ids: tuple[int, ...], template: Template, tally: _Tally
) -> tuple[int, ...] | None:
    config = template.config
    limit = config.max_demonstration_tokens
    if limit is None or len(ids) <= limit:
        return ids
    what = (
        f"a demonstration has {len(ids):,} tokens, above data.max_demonstration_tokens = {limit:,}"
    )
    if config.overlong_demonstration == "error":
        raise RowError(what)
    if config.overlong_demonstration == "drop":
        tally.note("dropped_demonstrations", f"{example.source}: {what}; dropped")
        return None
    tally.note("truncated_demonstrations", f"{example.source}: {what}; cut, without end token")
    return ids[:limit]


def _report(
    total: int, kept: Sequence[TokenizedExample], template: Template, tally: _Tally
) -> TokenizationReport:
    counts = tally.counts
    return TokenizationReport(
        total=total,
        kept=len(kept),
        dropped_prompts=counts["dropped_prompts"],
        truncated_prompts=counts["truncated_prompts"],
        dropped_demonstrations=counts["dropped_demonstrations"],
        truncated_demonstrations=counts["truncated_demonstrations"],
        dropped_rows=counts["dropped_rows"],
        without_demonstration=sum(not item.demonstration_ids for item in kept),
        spelled_controls=counts["spelled_controls"],
        cut_ends=counts["cut_ends"],
        unknown_tokens=tally.unknown / max(1, tally.tokens),
        prompt_tokens=_quantiles(tally.prompt_lengths),
        demonstration_tokens=_quantiles(tally.demonstration_lengths),
        template=template.description,
        end_token=str(template.tokenizer.convert_ids_to_tokens(template.end_token_id)),
        notes=tuple(tally.notes),
        differences=tally.differences.lines(template),
    )


def _quantiles(lengths: Sequence[int]) -> tuple[int, ...]:
    """Nearest-rank quantiles: every one is a length that occurs."""
    if not lengths:
        return ()
    ordered = sorted(lengths)
    return tuple(ordered[round(q * (len(ordered) - 1))] for q in _QUANTILES)
