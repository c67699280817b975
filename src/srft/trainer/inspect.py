"""``srft data check``: what a recipe's data is, before any training on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from srft.config import SRFTConfig
from srft.data.leakage import WORDS, leakage, repeats
from srft.environments.toolbox import Toolbox
from srft.environments.tools import build_tools, tokenizing
from srft.errors import ConfigError
from srft.evaluation.evaluation_config import EvaluationConfig
from srft.evaluation.run import evaluation_sets
from srft.model.loading import load_tokenizer
from srft.rewards.audit import Finding, check_answers, check_demonstrations
from srft.rewards.scorer import Scorer
from srft.trainer.given import Given
from srft.trainer.setup import UNVERIFIED, build_methods, learns_unverified
from srft.types import Example, TokenizedExample

_SHOWN = 5


def check_data(
    config: SRFTConfig, show: int, console: Console, against: Sequence[str] = ()
) -> bool:
    """Prints counts, lengths, answers and demonstrations that do not verify, repeats, evaluation
    problems that stand in the training data, and ``show`` rows as tokens. True where nothing would
    stop a run.

    against: suites or benchmarks to look for besides the recipe's own evaluation data.

    Raises:
        ConfigError, DataError, ModelError: the data cannot be read or made into tokens.
    """
    if not config.model.path:
        raise ConfigError(
            "model.path: not set; tokens are counted with its tokenizer: a folder or a hub id, or `lab`"
        )
    say, given = _Lines(console), Given()
    toolbox = given.toolbox(config)
    splits = given.read(config, toolbox)
    tokenizer = load_tokenizer(config.model)
    tools = build_tools(toolbox, tokenizer, config.data)
    tokenized, report = tokenizing(tools)(splits.train, tokenizer, config.data)
    say.head("Rows and tokens")
    for note in splits.notes:
        say(note)
    say(report.summary())
    _truncation(config, tokenized, say)
    examples = [item.example for item in tokenized]
    say.head(f"Verifier: {', '.join(spec.label for spec in config.reward.rewards)}")
    with given.scorer(config, toolbox) as scorer:
        if fine := learns_unverified(config, build_methods(config), given, tokenized):
            say(UNVERIFIED)
        else:
            fine = _verify(scorer, toolbox, tokenized, say)
    say.head("Repeats and leakage")
    groups = repeats(examples)
    say(f"prompts that occur more than once: {len(groups):,}, in {sum(map(len, groups)):,} rows")
    for group in groups[:_SHOWN]:
        answers = len({example.answer for example in group})
        note = f", with {answers} different answers" if answers > 1 else ""
        say(f"  {', '.join(example.source for example in group[:_SHOWN])}{note}")
    for name, held_out in {**splits.eval, **_named_sets(config.evaluation, against)}.items():
        _leakage(name, examples, held_out, say)
    for item in tokenized[:show]:
        console.print(_as_tokens(item, tokenizer, console))
    return fine


class _Lines:
    """Prints text as it is, long lines left whole."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def head(self, text: str) -> None:
        self._console.print(f"[bold]{escape(text)}[/]", highlight=False, soft_wrap=True)

    def findings(self, title: str, findings: Sequence[Finding]) -> None:
        self(f"{title}: {len(findings):,}")
        for finding in findings[:_SHOWN]:
            self(f"  {finding}")


def _verify(
    scorer: Scorer,
    toolbox: Toolbox | None,
    tokenized: Sequence[TokenizedExample],
    say: _Lines,
) -> bool:
    """Answers against themselves, demonstrations against their answers."""
    examples = [item.example for item in tokenized]
    answers = check_answers(examples, scorer)
    judged = [
        item for item in tokenized if item.example.answer is not None or not scorer.needs_answer
    ]
    found = check_demonstrations(
        [item.example for item in judged],
        scorer,
        [item.demonstration_ids for item in judged],
        None if toolbox is None else toolbox.acted,
    )
    outcomes = {k: n for k, n in scorer.stats()["pool"].items() if n}
    say.findings(f"answers that do not verify, of {answers.checked:,}", answers.failed)
    if answers.text_only:
        say.findings("answers that only the same spelling will match", answers.text_only)
    say.findings(f"demonstrations that fail their verifier, of {found.total:,}", found.failed)
    if outcomes:
        say(f"verifications by outcome: {', '.join(f'{k} {n:,}' for k, n in outcomes.items())}")
    return not answers.failed and (found.passed > 0 or not found.total)


def _named_sets(
    settings: EvaluationConfig, against: Sequence[str]
) -> Mapping[str, Sequence[Example]]:
    """The problems of the suites or the dataset that the recipe evaluates on, and of those named."""
    wanted = [settings] if settings.suites or settings.dataset else []
    if against:
        wanted.append(EvaluationConfig(suites=list(against), data_dir=settings.data_dir))
    sets = [one for each in wanted for one in evaluation_sets(each)]
    return {one.benchmark.name: one.problems for one in sets}


def _leakage(
    name: str, examples: Sequence[Example], held_out: Sequence[Example], say: _Lines
) -> None:
    found = leakage(examples, held_out)
    say(
        f"problems of evaluation data {name} that occur in the training prompts ({WORDS} words in a "
        f"row): {found.problems:,} of {found.checked:,}, in {found.rows:,} rows"
    )
    for overlap in found.overlaps[:_SHOWN]:
        say(f"  {overlap.train} has {overlap.held_out}: {overlap.words}")


def _truncation(config: SRFTConfig, tokenized: Sequence[TokenizedExample], say: _Lines) -> None:
    """How many demonstrations would not fit into a rollout: a policy that imitates them is cut."""
    lengths = sorted(len(ids) for item in tokenized for ids in item.demonstration_ids)
    if not lengths:
        return
    limit = config.rollout.max_tokens
    longer = sum(length > limit for length in lengths)
    say(
        f"demonstrations longer than rollout.max_tokens={limit}: {longer:,} of {len(lengths):,} "
        f"({longer / len(lengths):.1%}), so about that share of rollouts in their style would be cut"
        + (f"; {lengths[round(0.99 * (len(lengths) - 1))]} would hold 99 %" if longer else "")
    )


def _as_tokens(
    item: TokenizedExample, tokenizer: PreTrainedTokenizerBase, console: Console
) -> Table:
    table = Table(title=escape(item.example.source), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("prompt", _tokens(item.prompt_ids, tokenizer, console))
    for ids in item.demonstration_ids:
        table.add_row("demonstration", _tokens(ids, tokenizer, console))
    table.add_row("answer", escape(str(item.example.answer)))
    return table


def _tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, console: Console) -> str:
    """Tokens in alternating shades, control tokens in colour; bars between them without colours."""
    shades = ("white on grey23", "white on grey35")
    control = set(tokenizer.all_special_ids)
    parts = []
    for place, token in enumerate(ids):
        style = "black on yellow" if token in control else shades[place % 2]
        text = escape(str(tokenizer.decode([token]))).replace("\n", "\\n")
        parts.append(f"[{style}]{text}[/]")
    return ("" if console.color_system else "|").join(parts)
