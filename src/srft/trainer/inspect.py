"""``srft data check``: what a recipe's data is, before any training on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from srft.config import SRFTConfig
from srft.data.reading import load_splits
from srft.data.tokenization import tokenize_dataset
from srft.model.loading import load_tokenizer
from srft.rewards.audit import Finding, check_answers, check_demonstrations
from srft.rewards.scorer import Scorer
from srft.types import Example, TokenizedExample

NGRAM_WORDS = 13
"""Words in a row that count as leakage, as in the GPT-3 and Llama reports' contamination checks."""

_SHOWN = 5


def check_data(config: SRFTConfig, show: int, console: Console) -> bool:
    """Prints counts, lengths, answers and demonstrations that do not verify, duplicates, leakage of
    evaluation problems and ``show`` rows as tokens. True where nothing would stop a run.

    Raises:
        ConfigError, DataError, ModelError: the data cannot be read or made into tokens.
    """
    splits = load_splits(config.data, seed=config.data.seed)
    tokenizer = load_tokenizer(config.model)
    tokenized, report = tokenize_dataset(splits.train, tokenizer, config.data)
    console.print(report.summary(), highlight=False, markup=False)
    examples = [item.example for item in tokenized]
    with Scorer(config.reward) as scorer:
        answers = check_answers(examples, scorer)
        demonstrations = check_demonstrations(examples, scorer)
    _findings(console, f"answers that do not verify, of {answers.checked:,}", answers.failed)
    _findings(
        console,
        f"demonstrations that fail their verifier, of {demonstrations.total:,}",
        demonstrations.failed,
    )
    _truncation(config, tokenized, console)
    repeated = [n for n in Counter(_text(e) for e in examples).values() if n > 1]
    console.print(f"prompts that stand more than once: {sum(repeated):,}", highlight=False)
    for name, held_out in splits.eval.items():
        leaked = leaked_rows(examples, held_out)
        console.print(
            f"rows sharing {NGRAM_WORDS} words in a row with evaluation data {name}: {len(leaked):,}"
            + (f" (such as {leaked[0]})" if leaked else ""),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    for item in tokenized[:show]:
        console.print(_as_tokens(item, tokenizer))
    return not answers.failed and demonstrations.passed > 0


def leaked_rows(train: Sequence[Example], held_out: Sequence[Example]) -> list[str]:
    """Sources of the training rows whose prompt shares ``NGRAM_WORDS`` words in a row with the
    prompt of an evaluation row, or is the whole of a shorter one."""
    seen = {gram for example in held_out for gram in _grams(_text(example))}
    return [e.source for e in train if not seen.isdisjoint(_grams(_text(e)))]


def _grams(text: str) -> set[tuple[str, ...]]:
    words = text.casefold().split()
    if len(words) <= NGRAM_WORDS:
        return {tuple(words)}
    return {tuple(words[i : i + NGRAM_WORDS]) for i in range(len(words) - NGRAM_WORDS + 1)}


def _text(example: Example) -> str:
    """What the user says; system messages are shared by all rows."""
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n".join(str(m["content"]) for m in example.prompt if m["role"] != "system")


def _findings(console: Console, title: str, findings: Sequence[Finding]) -> None:
    console.print(f"{title}: {len(findings):,}", highlight=False)
    for finding in findings[:_SHOWN]:
        console.print(f"  {finding}", highlight=False, markup=False, soft_wrap=True)


def _truncation(
    config: SRFTConfig, tokenized: Sequence[TokenizedExample], console: Console
) -> None:
    """How many demonstrations would not fit into a rollout: a policy that imitates them is cut."""
    lengths = [len(ids) for item in tokenized for ids in item.demonstration_ids]
    if lengths:
        longer = sum(length > config.rollout.max_tokens for length in lengths)
        console.print(
            f"demonstrations longer than rollout.max_tokens={config.rollout.max_tokens}: {longer:,} of "
            f"{len(lengths):,}",
            highlight=False,
            soft_wrap=True,
        )


def _as_tokens(item: TokenizedExample, tokenizer: PreTrainedTokenizerBase) -> Table:
    table = Table(title=escape(item.example.source), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("prompt", _tokens(item.prompt_ids, tokenizer))
    for ids in item.demonstration_ids:
        table.add_row("demonstration", _tokens(ids, tokenizer))
    table.add_row("answer", escape(str(item.example.answer)))
    return table


def _tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Tokens in alternating shades, control tokens in colour."""
    shades = ("white on grey23", "white on grey35")
    control = set(tokenizer.all_special_ids)
    parts = []
    for place, token in enumerate(ids):
        style = "black on yellow" if token in control else shades[place % 2]
        text = escape(str(tokenizer.decode([token]))).replace("\n", "\\n")
        parts.append(f"[{style}]{text}[/]")
    return "".join(parts)
