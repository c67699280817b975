"""What Python code hands over in place of what the recipe names."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePath
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from srft.config import SRFTConfig
from srft.data.folders import EVAL_SPLITS, TRAIN_SPLITS
from srft.data.formats import names_prompt
from srft.data.leakage import apart
from srft.data.messages import without_fillers
from srft.data.reading import (
    Splits,
    as_examples,
    evaluation_set,
    load_splits,
    with_evaluation,
)
from srft.environments.toolbox import Toolbox, build_scorer, build_toolbox
from srft.errors import ConfigError, DataError
from srft.objective.methods import get_method
from srft.rewards.functions import function_name
from srft.rewards.reward_config import RewardConfig
from srft.rewards.scorer import Scorer
from srft.types import Example, Message

NO_PROMPT: tuple[Message, ...] = ({"role": "user", "content": ""},)
"""What is asked where an environment says it all."""

_DIGESTED = 10_000
"""Rows that a digest of data is made of, at most."""
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True)
class Given:
    """A model, data, rewards and the like; None where nothing is handed over. ``weights``: one for each
    reward. ``notes``: what is to be said of it."""

    model: nn.Module | None = None
    train: Any | None = None
    rewards: Any | None = None
    weights: Sequence[float] | None = None
    evaluation: Any | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    optimizer: Optimizer | None = None
    scheduler: LRScheduler | None = None
    notes: Sequence[str] = ()
    tools: Sequence[Any] | None = None
    environment: Any | None = None

    def toolbox(self, config: SRFTConfig) -> Toolbox | None:
        """What the model may call. Raises ConfigError."""
        return build_toolbox(config.environment, self.tools, self.environment)

    def described(self) -> dict[str, list[str]]:
        """What is given and no recipe holds: names of tools, environments, rewards and a model, and what the
        data are. Digests tell one's functions and data from another's."""
        made = self.environment
        classes = made.values() if isinstance(made, Mapping) else [made] if made else []
        rewards = self.rewards if isinstance(self.rewards, list | tuple) else [self.rewards]
        named: dict[str, Any] = {
            "tools": self.tools or (),
            "environments": classes,
            "rewards": [_reward(f) for f in rewards if f is not None],
            "reward_weights": self.weights or (),
            "data_digest": _digest(self.train),
            "evaluation_digest": _digest(self.evaluation),
        }
        if self.model is not None:
            name = getattr(self.model, "name_or_path", "")
            named["model"] = [f"{type(self.model).__name__} {name}".strip()]
        if self.optimizer is not None:  # with its settings
            named["optimizer"] = [" ".join(str(self.optimizer).split())]
        if self.train is not None and not isinstance(self.train, str):
            named["data"] = (f"{type(self.train).__name__} given in Python",)
        found = {key: [getattr(f, "__name__", str(f)) for f in fs] for key, fs in named.items()}
        return {key: names for key, names in found.items() if names}

    def names_no_reward(self, config: SRFTConfig) -> bool:
        """Whether neither functions are given nor another reward named than the default."""
        return self.rewards is None and not _names_reward(config)

    def scorer(self, config: SRFTConfig, toolbox: Toolbox | None = None) -> Scorer:
        """The recipe's verifier, or the given functions with the recipe's limits; with the rewards of
        environments, of which each has the weight 1.

        Raises:
            ConfigError: there are functions and the recipe names rewards of its own.
        """
        if self.rewards is not None and _names_reward(config):
            labels = ", ".join(spec.label for spec in config.reward.rewards)
            raise ConfigError(
                f"reward_funcs are given and the recipe names rewards too ({labels}): only one of them could "
                "act. Leave the names out of args.reward (its limits and thresholds may stay), or add a "
                'verifier to the functions by its name: reward_funcs=[my_function, "math"]'
            )
        return build_scorer(config.reward, toolbox, self.rewards, self.weights)

    def read(self, config: SRFTConfig, toolbox: Toolbox | None = None) -> Splits:
        """Training and evaluation data: what was given, and what the recipe names where nothing was.
        Environments may own the data: then there are rows without prompts, or none at all.

        Raises:
            DataError: it cannot be used.
        """
        data = config.data
        train: Any = self.train
        evaluation = self.evaluation
        owns = toolbox is not None and None in toolbox.factories
        placeholder = owns and train is None and "train" not in data.model_fields_set
        if _is_splits(train):
            name = next((name for name in TRAIN_SPLITS if name in train), None)
            if name is None:
                raise DataError(
                    f"train_dataset has the splits {', '.join(map(str, train))} and none is called train: "
                    'give one of them, such as train_dataset=data["all"]'
                )
            if evaluation is None:  # as with files: the first of test, validation and the like
                evaluation = next((train[key] for key in EVAL_SPLITS if key in train), None)
            train = train[name]
        notes: list[str] = []
        if placeholder:
            splits = Splits([Example(NO_PROMPT)] * config.train.prompts_per_step, {})
        elif train is None:
            splits = load_splits(data, seed=data.seed)
        else:
            examples = _examples(train, config, toolbox, notes)
            splits = with_evaluation(examples, data, data.seed, [])
        if evaluation is not None:
            splits = replace(splits, eval=held_out(evaluation, config, notes))
        splits = replace(splits, notes=(*self.notes, *splits.notes, *notes))
        if toolbox is not None and toolbox.factories:
            return splits  # an environment may make another problem of the same prompt
        return apart(splits, drawn=evaluation is None and data.eval_fraction > 0)


def _reward(function: Any) -> str:
    """A reward's name, and a digest of its source and of the plain values that it was made with."""
    if isinstance(function, str):
        return function
    inner: Any = function
    values: dict[str, Any] = {}
    while isinstance(inner, functools.partial):
        values = {**inner.keywords, **values}
        inner = inner.func
    inner = getattr(inner, "__func__", inner)
    try:
        plain = inspect.isfunction(inner)
        text = inspect.getsource(inner if plain else type(inner))
        bound = inspect.getclosurevars(inner).nonlocals if plain else vars(inner)
    except (OSError, TypeError, ValueError):  # made where there is no file, or not in Python
        return function_name(function)
    values = {**bound, **values}
    told = [(k, v) for k, v in sorted(values.items()) if isinstance(v, str | int | float | None)]
    return f"{function_name(function)} {hashlib.sha256(f'{text}{told}'.encode()).hexdigest()[:8]}"


def _digest(data: Any) -> list[str]:
    """Of the first rows of all that was given, and how many there are; of a stream, which may be read once,
    nothing."""
    parts = list(data.values()) if _is_splits(data) else [data]
    digest = hashlib.sha256()
    for part in map(plain_data, parts):
        if not hasattr(part, "__len__"):
            return []
        rows = [part] if isinstance(part, str) else islice(part, _DIGESTED)
        digest.update(f"{len(part)}".encode())
        for row in rows:
            digest.update(_ADDRESS.sub("", repr(row)).encode())
    return [digest.hexdigest()[:8]]


def _names_reward(config: SRFTConfig) -> bool:
    return config.reward.rewards != RewardConfig().rewards


def with_names(config: SRFTConfig, train: Any, evaluation: Any) -> tuple[SRFTConfig, Any, Any]:
    """The recipe with the names of sources that are given in place of data, and the data that are not such.

    Raises:
        ConfigError: evaluation data are given, and the recipe names some too.
    """
    data, named = config.data, dict[str, Any]()
    train, evaluation = plain_data(train), plain_data(evaluation)
    if evaluation is not None and (data.eval is not None or data.eval_fraction > 0):
        raise ConfigError(
            "eval_dataset is given, and args.data names evaluation data too (eval or eval_fraction): only "
            "one of them could act"
        )
    if isinstance(train, str):
        named["train"], train = train, None
    sets = evaluation if isinstance(evaluation, Mapping) else {"eval": evaluation}
    names = {str(name): plain_data(part) for name, part in sets.items()}
    if all(isinstance(name, str) for name in names.values()):
        named["eval"], evaluation = names, None
    return config.model_copy(update={"data": data.model_copy(update=named)}), train, evaluation


def plain_data(data: Any) -> Any:
    """A path as the text that names it, and a DataFrame as its rows, with None where it has no value;
    anything else as it is."""
    if isinstance(data, PurePath):
        return str(data)
    if hasattr(data, "to_dict") and hasattr(data, "iloc"):
        rows = data.astype(object).where(data.notna(), None).to_dict("records")
        return [without_fillers(row) for row in rows]
    return data


def held_out(data: Any, config: SRFTConfig, notes: list[str]) -> dict[str, list[Example]]:
    """Evaluation sets by name: those of a mapping, or one that is called ``eval``.

    Raises:
        DataError: they cannot be used.
    """
    data = plain_data(data)
    named = data if _is_splits(data) else {"eval": data}
    return {str(name): _held_out(rows, config, notes) for name, rows in named.items()}


def _is_splits(data: Any) -> bool:
    """Whether it is a DatasetDict, or any mapping of names to sets of rows or to names of sources."""

    def rows(part: Any) -> bool:
        if isinstance(part, list | tuple):
            return not part or isinstance(part[0], Mapping | Example)
        return hasattr(part, "column_names") or isinstance(plain_data(part), str | list)

    return isinstance(data, Mapping) and bool(data) and all(map(rows, data.values()))


def _is_routed(data: Any, columns: Mapping[str, str], toolbox: Toolbox | None) -> bool:
    """Whether rows name an environment and hold no prompt, which is then the environment's."""
    if toolbox is None or not toolbox.factories or isinstance(data, Mapping):
        return False
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    first = data[0] if indexed and len(data) else {}
    if not isinstance(first, Mapping) or "environment" not in first:
        return False
    return not names_prompt([row for row in data if isinstance(row, Mapping)], columns)


def _rows_needed(config: SRFTConfig) -> int:
    """Rows after which a stream is not read on: as many as the run can ask for."""
    rounds = 1
    if any(get_method(stage.method).refill for stage in config.resolved_stages):
        rounds += config.train.max_refill_rounds
    return config.total_steps * config.train.prompts_per_step * rounds


def _examples(
    data: Any, config: SRFTConfig, toolbox: Toolbox | None, notes: list[str]
) -> list[Example]:
    columns = {str(role): name for role, name in config.data.columns.items()}
    limit = config.data.limit
    if _is_routed(data, columns, toolbox):
        return [
            Example(NO_PROMPT, columns=dict(row), source=f"row {number}")
            for number, row in enumerate(islice(data, limit), start=1)
        ]
    if not hasattr(data, "__len__"):  # a stream, which need not end
        most = _rows_needed(config)
        limit = most if limit is None else min(most, limit)
    invalid = config.data.invalid_rows
    return as_examples(data, columns=columns, limit=limit, invalid_rows=invalid, notes=notes)


def _held_out(data: Any, config: SRFTConfig, notes: list[str]) -> list[Example]:
    columns = config.data.eval_columns
    columns = config.data.columns if columns is None else columns
    limit = config.data.eval_limit
    data = plain_data(data)
    if isinstance(data, str):
        return evaluation_set(data, config.data, config.data.seed, notes)
    if limit is None and not hasattr(data, "__len__"):
        raise DataError(
            "eval_dataset is a stream, which need not end: set args.data.eval_limit to how many of its rows "
            "are the evaluation set"
        )
    return as_examples(
        data,
        columns={str(role): name for role, name in columns.items()},
        limit=limit,
        invalid_rows=config.data.invalid_rows,
        notes=notes,
    )
