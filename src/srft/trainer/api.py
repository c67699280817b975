"""``srft.SRFTTrainer``: the training loop as users of transformers and TRL know a trainer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer_utils import PredictionOutput

from srft.environments.tools import tokenizing
from srft.errors import ConfigError
from srft.evaluation.results import EvaluationResult
from srft.model.adapters import has_adapters
from srft.parallel.sharding import put_tensors
from srft.paths import local_path
from srft.runs.files import to_json, write_whole
from srft.trainer.arguments import arguments_for, lora_from, recipe_from
from srft.trainer.callbacks import Callbacks, transformers_names
from srft.trainer.evaluating import figures, predictions
from srft.trainer.export import export_model
from srft.trainer.given import Given, held_out, with_names
from srft.trainer.hub import push
from srft.trainer.setup import EvaluationData
from srft.trainer.state import TrainResult
from srft.trainer.trainer import TrainingLoop
from srft.trainer.trl_arguments import is_trl


class SRFTTrainer(TrainingLoop):
    """Trains a language model by the method that ``args`` names. Arguments and methods are called as TRL's
    ``GRPOTrainer`` calls them.

    Args:
        model: a model (one that peft has put adapters on, too), or a folder or hub id; none:
            ``args.model.path``.
        reward_funcs: a function ``f(prompts, completions, **columns) -> list[float | None]``, the name of a
            built-in verifier, or a list of these; none: ``args.reward``.
        args: the recipe: an SRFTConfig, a dict of its sections, or a ``trl.GRPOConfig``, whose method
            is trained then (docs/python.md).
        train_dataset: a datasets.Dataset, a DatasetDict (its ``train``), a stream (read as far as the run
            needs), a list of dicts or of Examples, or the name of a source; none: ``args.data.train``.
        eval_dataset: the same, or a mapping of names to such; none: ``args.data.eval``.
        processing_class: the tokenizer; none: the one that belongs to the model.
        callbacks: transformers' ``TrainerCallback`` objects or classes.
        optimizers: an optimizer over the given model's parameters, and a scheduler that is stepped once a
            training step; none: the recipe's.
        quantization_config: transformers' BitsAndBytesConfig for four bits (nf4), with adapters.
        peft_config: peft's LoraConfig; none: ``args.model.lora``.
        tools: functions that the model may call in its responses; none: ``args.environment.tools``.
        environment_factory: a class whose public methods are tools, or several by the names that rows hold
            in a column ``environment`` (docs/environments.md); none: ``args.environment.factory``.
        console: where progress is shown.

    Raises:
        ConfigError, DataError, ModelError, RewardError: found before any compute is spent.
    """

    def __init__(
        self,
        model: str | nn.Module | None = None,
        reward_funcs: Any | None = None,
        args: Any | None = None,
        train_dataset: Any | None = None,
        eval_dataset: Any | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        quantization_config: Any | None = None,
        peft_config: Any | None = None,
        tools: Sequence[Callable[..., Any]] | None = None,
        *,
        environment_factory: Any | None = None,
        console: Console | None = None,
    ) -> None:
        recipe, notes = recipe_from(args, train_dataset)
        recipe, train_dataset, eval_dataset = with_names(recipe, train_dataset, eval_dataset)
        settings: dict[str, Any] = {}
        if isinstance(model, str | Path):
            settings["path"], model = str(model), None
        if peft_config is not None or quantization_config is not None:
            base = model or settings.get("path", recipe.model.path)
            settings["lora"] = lora_from(peft_config, quantization_config, base)
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=settings)})
        self._load_best = bool(getattr(args, "load_best_model_at_end", False))
        adapted = recipe.model.lora is not None or (model is not None and has_adapters(model))
        if self._load_best and adapted:
            raise ConfigError(
                "load_best_model_at_end: not with adapters; the best model is kept in <output_dir>/best"
            )
        given = Given(
            model=model,
            train=train_dataset,
            rewards=reward_funcs,
            weights=getattr(args, "reward_weights", None),
            evaluation=eval_dataset,
            tokenizer=processing_class,
            optimizer=optimizers[0],
            scheduler=optimizers[1],
            notes=notes,
            tools=tools,
            environment=environment_factory,
        )
        made = [item() if isinstance(item, type) else item for item in callbacks or ()]
        arguments = arguments_for(args, recipe) if made or is_trl(args) else None
        super().__init__(recipe, given, console, Callbacks(made, arguments))
        if arguments is not None and not is_trl(args):
            self._tell_where(arguments)

    def _tell_where(self, arguments: Any) -> None:
        """Callbacks are given ``arguments`` with the run directory, which may have been chosen here."""
        arguments.output_dir = str(self.run.path)
        self.callbacks.arguments = arguments

    # -- what is asked of it before, while and after it trains -------------------------------------

    @property
    def state(self) -> TrainerState:
        """transformers' TrainerState: ``global_step``, ``log_history``, ``best_metric``."""
        return self.callbacks.state

    @property
    def processing_class(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self.tokenizer

    @property
    def accelerator(self) -> SimpleNamespace:
        """As far as scripts ask it who and where they are: there is no Accelerator here."""
        return SimpleNamespace(
            print=self._say,
            is_main_process=self.world.main,
            num_processes=self.world.size,
            process_index=self.world.rank,
            device=self.setup.policy.device,
        )

    @property
    def hub_model_id(self) -> str:
        """What ``push_to_hub`` calls the repository, if it is told nothing else."""
        return getattr(self.callbacks.arguments, "hub_model_id", None) or self.run.path.name

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        self.callbacks.callbacks.append(callback() if isinstance(callback, type) else callback)
        if self.callbacks.arguments is None:
            self._tell_where(arguments_for(None, self.args))

    def pop_callback(
        self, callback: TrainerCallback | type[TrainerCallback]
    ) -> TrainerCallback | None:
        """Takes a callback, or the first of a class, out and returns it; None where it is not there."""
        for found in self.callbacks.callbacks:
            if found is callback or (isinstance(callback, type) and type(found) is callback):
                self.callbacks.callbacks.remove(found)
                return found
        return None

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        self.pop_callback(callback)

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> TrainResult:
        result = super().train(resume_from_checkpoint)
        if self._load_best and self.run.best.is_dir():
            best = type(self.model).from_pretrained(self.run.best, dtype=self.model.dtype)
            put_tensors(self.model, best.state_dict())
        return result

    train.__doc__ = TrainingLoop.train.__doc__

    def log(self, logs: Mapping[str, float]) -> None:
        """Tells callbacks of figures of your own; they also stand in the next step's line of metrics.jsonl,
        as ``user/<name>``."""
        self.callbacks.noted |= {f"user/{name}": float(value) for name, value in logs.items()}
        self.callbacks.log(logs)

    def evaluate(
        self, eval_dataset: Any | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Figures of the policy as it is, such as ``eval_accuracy`` and ``eval_reward``, on ``eval_dataset``
        or on the evaluation data that the trainer was given.

        Raises:
            ConfigError: there is none.
            DataError: ``eval_dataset`` cannot be used.
        """
        _, results = self._results(eval_dataset)
        metrics = transformers_names(figures(results), metric_key_prefix)
        self.callbacks.evaluated(metrics)
        return metrics

    def evaluate_greedily(self) -> list[EvaluationResult]:
        """Results of the policy as it is on the recipe's evaluation data, each token the likeliest."""
        with self._open():
            sets, step = self.setup.evaluation, self.train_state.step
            return self.evaluator.results(sets, step, greedy=True)

    def predict(self, test_dataset: Any, metric_key_prefix: str = "test") -> PredictionOutput:
        """Rollouts of the policy as it is, with their rewards. ``predictions`` has a dict for each: prompt,
        completion, reward, rewards (by reward function), correct, truncated, tokens; ``label_ids`` are the
        rows' answers, ``metrics`` as those of ``evaluate``.

        Raises:
            DataError: ``test_dataset`` cannot be used.
        """
        sets, results = self._results(test_dataset)
        metrics = transformers_names(figures(results), metric_key_prefix)
        self.callbacks.predicted(metrics)
        rollouts = [p for r in results for p in predictions(r, sets[r.name].problems)]
        answers = [problem.truth for result in results for problem in result.problems]
        return PredictionOutput(rollouts, answers, metrics)  # type: ignore[arg-type]

    def _results(
        self, dataset: Any | None
    ) -> tuple[dict[str, EvaluationData], list[EvaluationResult]]:
        sets = self.setup.evaluation
        if dataset is not None:
            tokenize = tokenizing(self.setup.tools)
            sets = {
                name: EvaluationData(
                    tokenize(rows, self.tokenizer, self.args.data)[0], self.setup.scorer
                )
                for name, rows in held_out(dataset, self.args, []).items()
            }
        if not sets:
            raise ConfigError(
                "there is nothing to evaluate on: give eval_dataset, here or to the trainer"
            )
        with self._open():
            return sets, self.evaluator.results(sets, self.train_state.step)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Around what needs the engine: opened where ``train`` has closed it, and then closed again."""
        was_closed = self.setup.closed
        self.setup.reopen()
        try:
            with self.setup.policy.compute():
                yield
        finally:
            if was_closed:
                self.close()

    def end(self) -> None:
        """As transformers' ``Trainer.end``, the last call of a script: what ``train`` has not closed is."""
        self.close()

    # -- what it leaves --------------------------------------------------------------------------

    def save_model(self, output_dir: str | Path | None = None) -> Path:
        """Writes the model as it is, its tokenizer and a card with the run's figures, as transformers and
        vLLM load it; none: to ``model`` in the run directory. Returns the folder."""
        folder = self.run.model if output_dir is None else local_path(output_dir)
        step = self.train_state.step
        return export_model(self.setup.policy, folder, self.args, self.run, step, self.world)

    def log_metrics(self, split: str, metrics: Mapping[str, Any]) -> None:
        """Prints figures, as transformers' ``Trainer.log_metrics`` does."""
        self._say(f"***** {split} metrics *****")
        for name, value in sorted(metrics.items()):
            self._say(f"  {name} = {value}")

    def save_metrics(self, split: str, metrics: Mapping[str, Any], combined: bool = True) -> None:
        """Writes figures to ``<split>_results.json`` in the run directory, and among those of
        ``all_results.json`` with ``combined``."""
        if not self.world.main:
            return
        write_whole(self.run.path / f"{split}_results.json", to_json(metrics, indent=4))
        every = self.run.path / "all_results.json"
        if combined:
            earlier = json.loads(every.read_text(encoding="utf-8")) if every.exists() else {}
            write_whole(every, to_json({**earlier, **metrics}, indent=4))

    def save_state(self) -> None:
        """Writes ``state`` to ``trainer_state.json`` in the run directory."""
        if self.world.main:
            self.state.save_to_json(str(self.run.path / "trainer_state.json"))

    def push_to_hub(
        self, commit_message: str = "End of training", *, token: str | None = None, **settings: Any
    ) -> str:
        """Uploads what ``save_model`` writes to the hub and returns the address of the commit. settings:
        ``repo_id`` (none: ``hub_model_id`` of TRL's arguments, else the run directory's name), ``private``,
        ``revision``; ``dataset_name`` and ``tags`` go into the card.

        Raises:
            ConfigError: the hub refuses it.
        """
        with tempfile.TemporaryDirectory() as folder:
            model = self.save_model(Path(folder) / "model")
            if not self.world.main:
                return ""
            arguments = self.callbacks.arguments
            return push(model, self.hub_model_id, commit_message, token, arguments, settings)
