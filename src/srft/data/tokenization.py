"""A dataset in tokens, with a report of what was dropped, cut or left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from srft.data.control_tokens import Rendered
from srft.data.data_config import DataConfig
from srft.data.differences import Differences
from srft.data.row_errors import SHOWN, Problems, RowError
from srft.data.template import Response, Template
from srft.data.turns import ToolTurns
from srft.errors import DataError
from srft.types import Example, Spoken, TokenizedExample

_CHUNK = 256
_END = 16  # tokens of a prompt's end that verifiers may see


@dataclass
class TokenizationReport:
    """What became of a dataset. All lengths are in tokens, end tokens included.

    prompt_lengths, demonstration_lengths: of what was kept.
    dropped_rows: rows left out for another reason than length (``invalid_rows: drop``).
    without_demonstration: kept rows with no demonstration, given or left.
    spelled_controls: texts that spelled a control token and were kept as text.
    cut_ends: demonstrations whose own end token or doubled ``<think>`` was cut.
    tokens, unknown: tokens that were made, and those the tokenizer does not know.
    rendered: row and control token of each prompt that seems to be rendered already.
    differences: how prompts with their demonstrations differ from what the chat template makes of
        the whole conversation, and what is learned instead.
    """

    total: int
    template: str
    end_token: str
    kept: int = 0
    dropped_prompts: int = 0
    truncated_prompts: int = 0
    dropped_demonstrations: int = 0
    truncated_demonstrations: int = 0
    dropped_rows: int = 0
    without_demonstration: int = 0
    spelled_controls: int = 0
    cut_ends: int = 0
    tokens: int = 0
    unknown: int = 0
    prompt_lengths: list[int] = field(default_factory=list)
    demonstration_lengths: list[int] = field(default_factory=list)
    rendered: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differences: Differences = field(default_factory=Differences)

    @property
    def unknown_tokens(self) -> float:
        """Share of tokens the tokenizer does not know (0 for byte-level vocabularies)."""
        return self.unknown / max(1, self.tokens)

    def summary(self) -> str:
        """A few lines for the log."""
        lines = [
            f"{self.kept:,} of {self.total:,} rows kept; {self.template}; end {self.end_token}"
        ]
        lengths = {"prompt": self.prompt_lengths, "demonstration": self.demonstration_lengths}
        for name, found in lengths.items():
            if found:
                values = " / ".join(f"{length:,}" for length in quantiles(found))
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
        if self.unknown:
            lines.append(
                f"tokens the tokenizer does not know: {self.unknown_tokens:.1%}; is this the "
                "tokenizer for this data?"
            )
        return "\n".join([*lines, *self.differences.lines(), *self.notes[:SHOWN]])

    def check_rendered(self) -> None:
        """DataError where most prompts look rendered already."""
        if len(self.rendered) > self.total / 2:
            source, word = self.rendered[0]
            raise DataError(
                f"{len(self.rendered):,} of {self.total:,} prompts hold control tokens of a chat template, "
                f"such as `{word}` ({source}): they seem to be rendered already. Set "
                "data.prompt_is_rendered: true to use such prompts as they stand, or false to put them "
                "into the template as text like any other"
            )


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
    template = Template(tokenizer, config)
    turns = ToolTurns(template)
    report = TokenizationReport(len(examples), template.description, template.end_word)
    bad, overlong = Problems("tokenization"), Problems("tokenization")
    kept: list[TokenizedExample] = []
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        for offset, ids in enumerate(_encode_chunk(chunk, turns, report)):
            example = chunk[offset]
            if isinstance(ids, RowError):
                bad.add(example.source, str(ids))
                continue
            with overlong.collect(example.source):
                fitted = _fit(example, start + offset, ids, template, report)
                if fitted is not None:
                    kept.append(fitted)
        if progress is not None:
            progress(min(start + _CHUNK, len(examples)), len(examples))
    if config.prompt_is_rendered is None:
        report.check_rendered()
    overlong.settle(len(kept), "error", fix="Raise the limit or choose another policy.")
    bad.settle(len(examples) - bad.count, config.invalid_rows)
    report.kept, report.dropped_rows = len(kept), bad.count
    report.without_demonstration = sum(not item.demonstration_ids for item in kept)
    report.differences.left_out = template.forms.left_out
    if not kept:
        raise DataError(
            f"none of the {len(examples):,} examples is left to train on:\n{report.summary()}"
        )
    return kept, report


# The ids of a prompt, and of its demonstrations: text as it was tokenized, ids, mask.
_Ids = tuple[tuple[int, ...], list[tuple[str, tuple[int, ...], tuple[bool, ...] | None]]]


def _encode_chunk(
    examples: Sequence[Example], turns: ToolTurns, report: TokenizationReport
) -> list[_Ids | RowError]:
    """Prompt ids and demonstration ids (end token included) of each example, or what is wrong."""
    template = turns.template
    written: list[tuple[Rendered, list[Response]] | RowError] = []
    texts: list[Rendered] = []
    for example in examples:
        try:
            prompt, responses = _write(example, turns, report)
        except RowError as error:
            written.append(error)
            continue
        written.append((prompt, responses))
        # Together with its prompt: what a tokenizer does at the beginning of a text (SentencePiece
        # marks it) has no place in the middle of a conversation.
        texts += [prompt, *(prompt + response.rendered for response in responses)]
    encoded = iter(template.controls.encode(texts))
    results: list[_Ids | RowError] = []
    for example, one in zip(examples, written, strict=True):
        try:
            if isinstance(one, RowError):
                raise one
            results.append(_ids(example, *one, encoded, turns, report))
        except RowError as error:
            results.append(error)
    return results


def _write(
    example: Example, turns: ToolTurns, report: TokenizationReport
) -> tuple[Rendered, list[Response]]:
    template = turns.template
    conversation = template.converse(example)
    prompt = template.render(example, conversation)
    responses = []
    for demo in example.demonstrations:
        of_demo = (conversation, prompt, example.source)
        if isinstance(demo, Spoken) and len(demo.messages) > 1:
            responses.append(turns.response(demo, *of_demo))
        else:
            responses.append(template.response(demo, *of_demo))
    report.spelled_controls += sum(
        bool(r.words) for r in (prompt, *(r.rendered for r in responses))
    )
    report.cut_ends += sum(response.cut for response in responses)
    if conversation.messages is not None:
        asked = prompt.restore(str(conversation.messages[-1]["content"]))
        if word := template.controls.looks_rendered(asked):
            report.rendered.append((example.source, word))
    return prompt, responses


def _ids(
    example: Example,
    prompt: Rendered,
    responses: Sequence[Response],
    encoded: Iterator[tuple[int, ...] | RowError],
    turns: ToolTurns,
    report: TokenizationReport,
) -> _Ids:
    template = turns.template
    ids = next(encoded)
    wholes = [next(encoded) for _ in responses]
    if isinstance(ids, RowError):
        raise RowError(f"prompt {ids}")
    demonstrations = []
    for response, whole in zip(responses, wholes, strict=True):
        # Otherwise a token would span the boundary, which no sampled response can have.
        together = not isinstance(whole, RowError) and whole[: len(ids)] == ids
        try:
            alone = () if together else template.controls.encode_alone(response.rendered)
        except RowError as error:
            raise RowError(f"demonstration {error}") from None
        report.differences.add(example, prompt, response, apart=not together)
        own = whole[len(ids) :] if together and not isinstance(whole, RowError) else alone
        own, mask = template.ended(own), None
        if response.later:
            later, behind = turns.later_ids(response)
            own, mask = own + later, (True,) * len(own) + behind
        demonstrations.append((response.text, own, mask))
    return template.with_bos(ids), demonstrations


def _fit(
    example: Example, index: int, ids: _Ids, template: Template, report: TokenizationReport
) -> TokenizedExample | None:
    """Apply the length policies. None: dropped. RowError: refused.

    The result's ``example.demonstrations`` are those that were kept, as they were tokenized.
    """
    config, prompt = template.config, ids[0]
    limit = config.max_prompt_tokens
    if limit is not None and len(prompt) > limit:
        what = f"the prompt has {len(prompt):,} tokens, above data.max_prompt_tokens = {limit:,}"
        if _drops(config.overlong_prompt, what):
            report.dropped_prompts += 1
            report.notes.append(f"{example.source}: {what}; dropped")
            return None
        report.truncated_prompts += 1
        report.notes.append(f"{example.source}: {what}; cut on the left")
        bos = prompt[:1] if prompt[0] == template.tokenizer.bos_token_id and limit > 1 else ()
        prompt = bos + prompt[len(prompt) - limit + len(bos) :]
    demonstrations, texts, masks = [], [], []
    limit = config.max_demonstration_tokens
    for text, own, mask in ids[1]:
        if limit is not None and len(own) > limit:
            count = f"{len(own):,} tokens, above data.max_demonstration_tokens = {limit:,}"
            what = f"a demonstration has {count}"
            if _drops(config.overlong_demonstration, what):
                report.dropped_demonstrations += 1
                report.notes.append(f"{example.source}: {what}; dropped")
                continue
            report.truncated_demonstrations += 1
            report.notes.append(f"{example.source}: {what}; cut, without end token")
            own, mask = own[:limit], mask and mask[:limit]
        demonstrations.append(own)
        texts.append(text)
        masks.append(mask)
    prompt_end = template.tokenizer.decode(prompt[-_END:])
    example = replace(example, demonstrations=tuple(texts), prompt_end=prompt_end)
    unknown = template.tokenizer.unk_token_id
    if unknown is not None and unknown not in template.controls.ids:
        report.unknown += sum(part.count(unknown) for part in (prompt, *demonstrations))
    report.tokens += len(prompt) + sum(map(len, demonstrations))
    report.prompt_lengths.append(len(prompt))
    report.demonstration_lengths += map(len, demonstrations)
    return TokenizedExample(example, index, prompt, tuple(demonstrations), tuple(masks))


def _drops(policy: str, what: str) -> bool:
    """Whether what is too long is dropped, not cut. RowError where it is an error."""
    if policy == "error":
        raise RowError(what)
    return policy == "drop"


def quantiles(lengths: Sequence[int]) -> tuple[int, ...]:
    """At 0, 0.5, 0.9, 0.99 and 1, by nearest rank: every one is a length that occurs."""
    ordered = sorted(lengths)
    return tuple(ordered[round(q * (len(ordered) - 1))] for q in (0.0, 0.5, 0.9, 0.99, 1.0))
