"""Everything that can be wrong is looked at here, before any compute is spent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress as ProgressBar
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from srft.config import SRFTConfig
from srft.data.reading import Splits, as_examples, load_splits
from srft.data.template import stop_token_ids
from srft.data.tokenization import tokenize_dataset
from srft.errors import ConfigError, DataError
from srft.model.config import ModelConfig
from srft.model.loading import (
    check_vocabulary,
    choose_attention,
    compute_context,
    load_model,
    load_tokenizer,
)
from srft.model.scoring import check_scoring
from srft.objective.method import Method
from srft.objective.methods import get_method
from srft.rewards.scorer import Score, Scorer
from srft.rollout.engine import build_engine
from srft.types import RolloutEngine, SamplingParams, TokenizedExample


@dataclass(frozen=True)
class Setup:
    """All that a run works with. ``train[i].index`` is i, and ``demo_scores[i]`` are the scores of
    its demonstrations."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    train: list[TokenizedExample]
    demo_scores: list[list[Score]]
    evaluation: dict[str, list[TokenizedExample]]
    methods: list[Method]
    interleaved: Mapping[str, Method]
    reference: nn.Module | None
    scorer: Scorer
    engine: RolloutEngine
    sampling: SamplingParams
    compute: Callable[[], AbstractContextManager[Any]]
    notes: list[str]

    def decode(self, ids: Sequence[int]) -> str:
        """Response tokens as text, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def close(self) -> None:
        self.engine.close()
        self.scorer.close()


def set_up(
    config: SRFTConfig,
    model: str | PreTrainedModel | None,
    train: Any | None,
    rewards: Any | None,
    evaluation: Any | None,
    tokenizer: PreTrainedTokenizerBase | None,
    console: Console,
) -> Setup:
    """Reads data, builds the model and checks that they fit.

    Raises:
        ConfigError, DataError, ModelError, RewardError.
    """
    methods = build_methods(config)
    interleaved = {m.interleave: get_method(m.interleave) for m in methods if m.interleave}
    set_seed(config.train.seed)
    device = _device(config)
    model_config = config.model
    if isinstance(model, str):
        model_config = model_config.model_copy(update={"path": model})
    if not model_config.path and not isinstance(model, PreTrainedModel):
        raise ConfigError(
            "model.path: not set; give a folder or a hub id, such as model.path=Qwen/Qwen3-0.6B"
        )
    if tokenizer is None:
        path = model.name_or_path if isinstance(model, PreTrainedModel) else model_config.path
        tokenizer = load_tokenizer(model_config.model_copy(update={"path": path}))
    splits = _read(config, train, evaluation)
    notes: list[str] = []
    examples, evaluation_sets = _tokenize(config, splits, tokenizer, notes, console)
    scorer = _scorer(config, rewards)
    try:
        examples, demo_scores = _score_demonstrations(config, examples, scorer, notes, console)
        _check_data(methods, examples)
        policy = _policy(model, model_config, device)
        check_vocabulary(policy, tokenizer)
        sampling = _sampling(config, tokenizer, policy)
        _check_lengths(config, methods, policy, examples)
        compute = partial(compute_context, model_config, device)
        check_scoring(policy, tokenizer)
        with compute():
            engine = build_engine(policy, tokenizer, config.rollout)
    except BaseException:
        scorer.close()
        raise
    reference = None
    if any(method.needs_reference for method in methods):
        reference = copy.deepcopy(policy).requires_grad_(False).eval()
    return Setup(
        policy,
        tokenizer,
        device,
        examples,
        demo_scores,
        evaluation_sets,
        methods,
        interleaved,
        reference,
        scorer,
        engine,
        sampling,
        compute,
        notes,
    )


def build_methods(config: SRFTConfig) -> list[Method]:
    """The method of each stage with the recipe's switches.

    Raises:
        ConfigError: an unknown name, or a switch that the method does not read.
    """
    return [
        get_method(stage.method, stage.objective, longest_response=config.rollout.max_tokens)
        for stage in config.resolved_stages
    ]


def _scorer(config: SRFTConfig, rewards: Any | None) -> Scorer:
    """The recipe's verifier, or the functions given from Python with the recipe's limits."""
    if rewards is None:
        return Scorer(config.reward)
    return Scorer(
        rewards,
        config.reward.correct_threshold,
        timeout_s=config.reward.timeout_s,
        memory_mb=config.reward.memory_mb,
        workers=config.reward.workers,
    )


def _policy(
    model: str | PreTrainedModel | None, config: ModelConfig, device: torch.device
) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        return load_model(config, device)
    choose_attention(model, config)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to without its types
    return model


def _device(config: SRFTConfig) -> torch.device:
    if config.train.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.train.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device: cuda is asked for but PyTorch sees no GPU; set it to cpu or auto"
        )
    return torch.device(config.train.device)


def _read(config: SRFTConfig, train: Any | None, evaluation: Any | None) -> Splits:
    columns = {str(role): name for role, name in config.data.columns.items()}
    if train is None:
        splits = load_splits(config.data, seed=config.train.seed)
    else:
        splits = Splits(
            as_examples(train, columns=columns, limit=config.data.limit), {}
        )
    if evaluation is not None:
        splits = Splits(
            splits.train, {"eval": as_examples(evaluation, columns=columns)}
        )
    return splits


def _tokenize(
    config: SRFTConfig,
    splits: Splits,
    tokenizer: PreTrainedTokenizerBase,
    notes: list[str],
    console: Console,
) -> tuple[list[TokenizedExample], dict[str, list[TokenizedExample]]]:
    with _progress(console) as bar:
        train, report = tokenize_dataset(
            splits.train, tokenizer, config.data, _ticker(bar, "tokenizing", len(splits.train))
        )
    notes.append(f"training data: {report.summary()}")
    evaluation = {}
    for name, examples in splits.eval.items():
        evaluation[name], report = tokenize_dataset(examples, tokenizer, config.data)
        notes.append(f"evaluation data {name}: {report.kept:,} of {report.total:,} rows kept")
    return train, evaluation


def _score_demonstrations(
    config: SRFTConfig,
    examples: Sequence[TokenizedExample],
    scorer: Scorer,
    notes: list[str],
    console: Console,
) -> tuple[list[TokenizedExample], list[list[Score]]]:
    """Scores every demonstration with the verifier that scores rollouts, applies the policy for
    those that fail, and numbers the examples by their place in the list.

    Raises:
        RewardError: a reward function failed.
        DataError: no demonstration passes, so the verifier cannot be the right one.
    """
    session = scorer.session()
    with _progress(console) as bar:
        tick = _ticker(bar, "scoring demonstrations", len(examples))
        for row, tokenized in enumerate(examples):
            for k, ids in enumerate(tokenized.demonstration_ids):
                text = tokenized.example.demonstrations[k]
                session.add((row, k), tokenized.example, text, ids)
            tick(row + 1, len(examples))
        scores: dict[Any, Score] = session.results()
    failed = [key for key, score in scores.items() if not score.correct]
    if failed:
        sources = ", ".join(examples[row].example.source for row, _ in failed[:3])
        policy = config.reward.failed_demonstrations
        notes.append(
            f"{len(failed):,} of {len(scores):,} demonstrations fail their own verifier ({sources}"
            f"{', ...' if len(failed) > 3 else ''}); reward.failed_demonstrations={policy}"
        )
        if policy == "drop" and len(failed) == len(scores):
            raise DataError(
                f"none of the {len(scores):,} demonstrations passes the verifier, such as {sources}: is "
                f"{' + '.join(scorer.labels)} the right reward, and does the answer column hold the answer? "
                "Look with `srft data check`"
            )
    drop = set(failed) if config.reward.failed_demonstrations == "drop" else set()
    kept_examples, kept_scores = [], []
    for row, tokenized in enumerate(examples):
        kept = [k for k in range(len(tokenized.demonstration_ids)) if (row, k) not in drop]
        kept_examples.append(
            replace(
                tokenized,
                index=row,
                example=replace(
                    tokenized.example,
                    demonstrations=tuple(tokenized.example.demonstrations[k] for k in kept),
                ),
                demonstration_ids=tuple(tokenized.demonstration_ids[k] for k in kept),
            )
        )
        kept_scores.append([scores[(row, k)] for k in kept])
    return kept_examples, kept_scores


def _check_data(methods: Sequence[Method], examples: Sequence[TokenizedExample]) -> None:
    with_demo = sum(bool(example.demonstration_ids) for example in examples)
    for method in methods:
        reads_demos = method.demonstrations or method.prefix or method.interleave
        if reads_demos and not with_demo:
            raise DataError(
                f"method {method.name} needs demonstrations, but no row has one that can be used; map the "
                "column with data.columns.demonstration=NAME, or take a method that needs none, such as grpo"
            )


def _check_lengths(
    config: SRFTConfig,
    methods: Sequence[Method],
    policy: PreTrainedModel,
    examples: Sequence[TokenizedExample],
) -> None:
    """Every sequence must fit the model's window.

    Raises:
        ConfigError: one does not.
    """
    window = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    if window is None:
        return
    prompt = max(len(example.prompt_ids) for example in examples)
    demo = max((len(d) for e in examples for d in e.demonstration_ids), default=0)
    if any(method.rollouts for method in methods):
        given = demo if any(method.prefix for method in methods) else 0
        if prompt + given + config.rollout.max_tokens > window:
            raise ConfigError(
                f"the longest prompt ({prompt} tokens) and rollout.max_tokens={config.rollout.max_tokens} "
                f"exceed the model's window of {window} tokens; lower rollout.max_tokens or "
                "data.max_prompt_tokens, or set model.max_position_embeddings"
            )
    longest = max(
        (len(e.prompt_ids) + len(d) for e in examples for d in e.demonstration_ids), default=0
    )
    if any(method.demonstrations for method in methods) and longest > window:
        raise ConfigError(
            f"a prompt with its demonstration has {longest} tokens, more than the model's window of "
            f"{window}; lower data.max_demonstration_tokens, or set model.max_position_embeddings"
        )


def _sampling(
    config: SRFTConfig, tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel
) -> SamplingParams:
    """Rollouts end with the very token that demonstrations end with."""
    params = config.rollout.sampling_params()
    ends = stop_token_ids(tokenizer, config.data, policy.generation_config)
    return replace(params, stop_token_ids=tuple(dict.fromkeys((*ends, *params.stop_token_ids))))


def _progress(console: Console) -> ProgressBar:
    return ProgressBar(console=console, transient=True, disable=not console.is_terminal)


def _ticker(bar: ProgressBar, text: str, total: int) -> Callable[[int, int], None]:
    task = bar.add_task(text, total=total)
    return lambda done, of: bar.update(task, completed=done, total=of)
