"""transformers' callbacks around the training loop (TrainerCallback, TrainerState, TrainerControl).

Steps are training steps. Of several processes the main one's callbacks are told and heard, and all obey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from srft.config import SRFTConfig
from srft.parallel.world import ALONE, World

# What TRL's GRPOTrainer calls the figures that ours are.
TRL_NAMES: dict[str, str] = {
    "reward/mean": "reward",
    "reward/std": "reward_std",
    "groups/equal_reward": "frac_reward_zero_std",
    "rollout/length_mean": "completions/mean_length",
    "rollout/length_max": "completions/max_length",
    "rollout/truncated": "completions/clipped_ratio",
    "rollout/entropy": "entropy",
    "time/step": "step_time",
    "total/rollout_tokens": "num_tokens",
}
_NOT_CALLED = (
    *("on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_prediction_step"),
    "on_push_begin",
)


class Callbacks:
    """What the loop tells and asks. ``arguments``: what callbacks are given as ``args``, a
    TrainingArguments. ``state``: how far the training is, with all that was logged. ``noted``: figures
    to go into the next step's line of metrics.jsonl."""

    def __init__(self, callbacks: Sequence[TrainerCallback] = (), arguments: Any = None) -> None:
        self.callbacks = list(callbacks)
        self.arguments = arguments
        self.state, self.control = TrainerState(), TrainerControl()
        self.noted: dict[str, float] = {}
        self._given: dict[str, Any] = {}
        self._world: World = ALONE
        self._in_epoch: int | None = None

    def attach(self, world: World, config: SRFTConfig, given: Mapping[str, Any]) -> list[str]:
        """Once the loop is set up; ``given``: what callbacks get by keyword. Returns sentences on events
        that they wait for in vain."""
        self._world = world
        self._given = {**given, "train_dataloader": None, "eval_dataloader": None}
        self.state.max_steps = config.total_steps
        self.state.is_local_process_zero = self.state.is_world_process_zero = world.main
        self.state.train_batch_size = config.train.prompts_per_step
        # TRL counts optimizer steps.
        each = config.train.optimizer_steps_per_batch
        self.state.logging_steps = max(1, getattr(self.arguments, "logging_steps", 1) // each)
        self.state.eval_steps = config.evaluation.every_steps
        self.state.save_steps = config.run.checkpoint_every
        self._tell("on_init_end")
        return [
            f"{type(callback).__name__}.{event} is never called: this loop has no such event"
            for callback in self.callbacks
            for event in _NOT_CALLED
            if getattr(type(callback), event, None) is not getattr(TrainerCallback, event)
        ]

    @property
    def stop(self) -> str | None:
        """Who ends the training, where a callback does."""
        return "callback" if self.control.should_training_stop else None

    def train_begin(self) -> None:
        self.control = TrainerControl()
        self._tell("on_train_begin")

    def step_begin(self, epoch: float) -> None:
        """``epoch``: epochs drawn so far."""
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        if int(epoch) != self._in_epoch:
            self._end_epoch()
            self._in_epoch, self.control.should_epoch_stop = int(epoch), False
            self._tell("on_epoch_begin")
        self._tell("on_step_begin")

    def step_end(self, step: int, epoch: float, evaluate: bool, save: bool) -> None:
        """``control`` says then what is to be done after a step: what the recipe wishes (``evaluate``,
        ``save``), and what callbacks make of it."""
        self.state.global_step, self.state.epoch = step, epoch
        self.control.should_log = step % self.state.logging_steps == 0
        self.control.should_evaluate, self.control.should_save = evaluate, save
        self._tell("on_step_end")
        self.heard()

    def heard(self) -> TrainerControl:
        """What the main process's callbacks want by now, in every process; all ask together."""
        self.control = self._world.from_main(lambda: self.control, "callbacks")
        return self.control

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Numbers, under our names and under TRL's."""
        logs = {k: v for k, v in metrics.items() if isinstance(v, int | float) and k != "step"}
        logs |= {theirs: logs[ours] for ours, theirs in TRL_NAMES.items() if ours in logs}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._tell("on_log", logs=logs)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """``metrics`` by transformers' names."""
        self.state.log_history.append({**metrics, "step": self.state.global_step})
        self._tell("on_evaluate", metrics=dict(metrics))

    def best(self, value: float, folder: Path) -> None:
        """The best model so far was kept."""
        self.state.best_metric, self.state.best_model_checkpoint = value, str(folder)
        self.state.best_global_step = self.state.global_step

    def saved(self) -> None:
        self._tell("on_save")

    def predicted(self, metrics: Mapping[str, float]) -> None:
        self._tell("on_predict", metrics=dict(metrics))

    def train_end(self) -> None:
        self._end_epoch()
        self._tell("on_train_end")

    def _end_epoch(self) -> None:
        if self._in_epoch is not None:
            self._tell("on_epoch_end")
        self._in_epoch = None

    def state_dict(self) -> dict[str, Any]:
        """What callbacks that say so (transformers' ``ExportableState``) are to go on with after a resume."""
        exportable = [c for c in self.callbacks if isinstance(c, ExportableState)]
        return {type(callback).__name__: callback.state() for callback in exportable}

    def load_state_dict(self, states: Mapping[str, Any], step: int, best: float | None) -> None:
        self.state.global_step, self.state.best_metric = step, best
        for callback in self.callbacks:
            for name, value in (
                states.get(type(callback).__name__, {}).get("attributes", {}).items()
            ):
                setattr(callback, name, value)

    def _tell(self, event: str, **more: Any) -> None:
        for callback in self.callbacks if self._world.main else ():
            tell = getattr(callback, event)
            # It may change what it is given, return another, or return nothing.
            changed = tell(self.arguments, self.state, self.control, **self._given, **more)
            self.control = changed or self.control


def transformers_names(metrics: Mapping[str, float], prefix: str = "eval") -> dict[str, float]:
    """``eval/accuracy`` as ``eval_accuracy``, ``eval/gsm8k/reward`` as ``eval_gsm8k_reward``; of the set that
    is called eval itself ``eval_reward``."""
    short = {key.removeprefix("eval/").removeprefix("eval/"): v for key, v in metrics.items()}
    return {f"{prefix}_{key}".replace("/", "_"): value for key, value in short.items()}
