"""The training loop of every method, from top to bottom.

    for each step:
        prompts      <- sampler
        rollouts     <- engine, scored while they are made            (collector.py, collect.py)
        sequences    <- rollouts and demonstrations of each prompt
        weights      <- one backward pass over all terms of the loss  (update.py)
        engine       <- new weights
        metrics, samples, evaluation, checkpoint

Which method runs is data (``objective/methods.py``): nothing here asks for its name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase

from srft.config import SRFTConfig
from srft.data.sampler import PromptSampler
from srft.errors import AlarmError, NumericalError
from srft.model.loading import first_not_finite
from srft.objective.method import Method, Progress
from srft.parallel.sharding import own_tensors
from srft.parallel.world import join_world
from srft.rewards.scorer import mean_metrics
from srft.runs.lock import Lock, hold
from srft.runs.logs import RunLogs
from srft.runs.run_dir import (
    begin_run,
    change_recipe,
    check_unused,
    choose_run_dir,
    recipe_changes,
    reserved,
)
from srft.secrets import redact, redact_values
from srft.terminal import Terminal
from srft.trainer.alarms import raised
from srft.trainer.checkpoint import (
    Checkpoint,
    Checkpointer,
    list_checkpoints,
    load_newest,
    restore,
)
from srft.trainer.clean_stop import StopRequest
from srft.trainer.collect import Collected, group_metrics
from srft.trainer.collector import Collector
from srft.trainer.evaluating import Evaluator
from srft.trainer.export import export_model, is_exported
from srft.trainer.fitting import halved, within_memory
from srft.trainer.live import LiveView
from srft.trainer.models import choose_device
from srft.trainer.optimization import build_optimizer, learning_rate, set_learning_rate
from srft.trainer.plateau import watched_value
from srft.trainer.sample_log import sample_records
from srft.trainer.setup import Given, set_up
from srft.trainer.stage_reference import begin_stage, restore_stage
from srft.trainer.state import TrainResult, TrainState, due
from srft.trainer.trackers import Trackers
from srft.trainer.update import UpdateResult, update


class SRFTTrainer:
    """Trains a language model by the method that ``args`` names.

    Args:
        model: a model (one that peft has put LoRA adapters on, too), or a folder or hub id; none:
            ``args.model.path``.
        train_dataset: a datasets.Dataset, a list of dicts or of Examples; none: ``args.data.train``.
        reward_funcs: a function ``f(prompts, completions, **columns) -> list[float | None]`` (TRL's
            signature), the name of a built-in verifier, or a list of these; none: ``args.reward``.
        args: the recipe.
        eval_dataset: as train_dataset; none: ``args.data.eval``.
        processing_class: the tokenizer; none: the one that belongs to the model.
        console: where progress is shown.

    Raises:
        ConfigError, DataError, ModelError, RewardError: found before any compute is spent.
    """

    def __init__(
        self,
        model: str | nn.Module | None = None,
        train_dataset: Any | None = None,
        reward_funcs: Any | None = None,
        args: SRFTConfig | None = None,
        eval_dataset: Any | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        console: Console | None = None,
    ) -> None:
        self.args = args or SRFTConfig()
        if isinstance(model, str):
            named = self.args.model.model_copy(update={"path": model})
            self.args, model = self.args.model_copy(update={"model": named}), None
        self.world = join_world(self.args.parallel, choose_device(self.args))
        self.console = (console or Terminal()) if self.world.main else Terminal(quiet=True)
        with self.world.together("setting up"):
            place = self.args.run.dir, [stage.method for stage in self.args.resolved_stages]
            self.run = self.world.from_main(lambda: choose_run_dir(*place), "the run directory")
            given = Given(model, train_dataset, reward_funcs, eval_dataset, processing_class)
            recipe = self.args.to_yaml(redacted=True)
            with reserved(self.run, recipe, self._say) if self.world.main else nullcontext():
                self.setup = set_up(self.args, given, self.console, self.world, self.run)
                self.args = self.setup.config
                try:
                    self._build()
                except BaseException:
                    self.close()
                    raise

    def close(self) -> None:
        """Ends what runs beside the training and gives a model handed over from Python back as it was,
        but for its weights. ``train`` does so at its end."""
        self.setup.close()

    def _build(self) -> None:
        """What the loop works with: optimizer, sampler, evaluation, checkpoints, state."""
        self.model = self.setup.policy.model
        self.tokenizer = self.setup.policy.tokenizer
        self.optimizer = build_optimizer(self.model, self.args.train)
        self.sampler = PromptSampler(
            len(self.setup.train),
            self.args.train.prompts_per_step,
            self.args.train.seed,
            self.args.data.shuffle,
        )
        self.collector = Collector(self.setup, self.sampler, self.run)
        self.evaluator = Evaluator(self.setup, self.args, self.run)
        self.checkpoints = Checkpointer(
            self.run.checkpoints,
            self.args.run.keep_checkpoints,
            self.world,
            self.args.run.background_checkpoints,
        )
        self.state = TrainState()
        self.saved: Mapping[str, Any] = {}
        self.changes: list[str] = []
        self.lock: Lock | None = None

    # -- the loop ------------------------------------------------------------------------------

    def train(self, resume: bool = False) -> TrainResult:
        """Runs all stages; with ``resume`` from the newest whole checkpoint of the run directory. A
        finished run whose recipe has more steps by then trains on.

        Ctrl-C and SIGTERM end the step in hand, write a checkpoint and return, with ``stopped_by``
        set; a second one acts at once. Of several processes, the main one writes to the run directory.

        Raises:
            ConfigError: the run directory holds another run.
            CheckpointError: nothing to resume from, or a checkpoint cannot be written.
            NumericalError, AlarmError: refused steps or an alarm, where these are to stop the run.
            RewardError, RolloutError: from the reward functions and the engine.
            RankError: a process is gone; PeerError: another process failed, and says why.
        """
        metrics: dict[str, Any] = {}
        stopped_by: str | None = None
        with ExitStack() as stack:
            stack.enter_context(self.world.together("training"))
            stack.callback(self.close)
            if self.world.main:
                self.lock = stack.enter_context(hold(self.run.path, "training", self._say))
            stack.callback(self.checkpoints.wait)  # a background save is part of the writing
            self._open_logs(self._resume() if resume else self._begin(), stack)
            first = self.state.step
            stop = stack.enter_context(StopRequest())
            self.view = stack.enter_context(
                LiveView(
                    self.run.path, self.total_steps, self.state.step, self.args.run, self.console
                )
            )
            for change in self.changes:
                self._event("note", f"resumed after step {first} with {change}")
            if self.state.step == 0 and self.args.evaluation.at_start:
                self._evaluate()
            while not self.finished:
                if stopped_by := self.world.first(stop.requested, "the next step"):
                    break
                metrics = self._train_step()
                self._log(metrics)
                self._watch(metrics)
                if self.finished:
                    break
                if due(self.state.step, self.args.evaluation.every_steps):
                    self._evaluate()
                if due(self.state.step, self.args.run.checkpoint_every):
                    self._checkpoint()
            finished = self.finished
            if finished and self.state.evaluated != self.state.step:
                self._evaluate()
            self._checkpoint()
            self.checkpoints.wait()
            model_dir = self.run.model if finished and self.args.run.export else None
            if model_dir and (self.state.step > first or not self._exported()):
                self._export(model_dir)
        return TrainResult(
            self.run.path,
            model_dir,
            self.state.step,
            metrics,
            self.evaluator.records(),
            None if finished else stopped_by,
        )

    @property
    def finished(self) -> bool:
        """Whether the last stage is over."""
        return self.state.finished(self.args.resolved_stages)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, as far as is known: a stage may end early, at its plateau."""
        return self.state.total_steps(self.args.resolved_stages)

    def _train_step(self) -> dict[str, Any]:
        start = time.perf_counter()
        stage = self.args.resolved_stages[self.state.stage]
        method = self.setup.methods[self.state.stage]
        progress = Progress(
            self.state.step - self.state.stage_start, stage.steps, self.state.entropy
        )
        rate = learning_rate(
            progress.step,
            stage.steps,
            stage.learning_rate or self.args.train.learning_rate,
            self.args.train,
        )
        set_learning_rate(self.optimizer, rate)

        self.view.phase("generating" if method.rollouts else "reading")
        collected = self.collector.step(method, progress, self.state.step)
        if method.collect_unsolved:
            self.state.unsolved += [collected.rows[g] for g in collected.unsolved]
        self.collector.begin_next(method, stage, progress, self.state.step)
        self._save_samples(method, collected, progress)
        train_start = time.perf_counter()
        self.view.phase("training")
        result = self._update(method, collected, progress)
        train_end = time.perf_counter()
        waited = self.collector.wait()
        sync_start = time.perf_counter()
        self.setup.engine.update_weights()
        end = time.perf_counter()
        figures = group_metrics(collected)
        sampled = figures.get("rollout/tokens", 0.0)
        trained = result.metrics.get("train/tokens", 0.0)
        self.state.step += 1
        self.state.rollout_tokens += sampled
        self.state.trained_tokens += trained
        self.state.seconds += end - start
        self.state.entropy = result.metrics.get("entropy/rollouts", self.state.entropy)
        phases = {
            "time/generate": collected.generate_seconds + waited,
            "time/score": collected.score_seconds,
            "time/train": train_end - train_start,
            "time/sync": end - sync_start,
        }
        metrics = {
            "step": self.state.step,
            "method": method.name,
            "stage": self.state.stage,
            "epoch": self.sampler.epoch,
            "learning_rate": rate,
            **figures,
            **result.metrics,
            **{f"user/{name}": mean for name, mean in mean_metrics(collected.logged).items()},
            **phases,
            "time/other": end - start - sum(phases.values()),
            "time/step": end - start,
            "time/ahead": collected.ahead_seconds,
            "tokens_per_second": (sampled + trained) / (end - start),
            "total/rollout_tokens": self.state.rollout_tokens,
            "total/trained_tokens": self.state.trained_tokens,
            "total/seconds": self.state.seconds,
        }
        self._judge(result)
        self._advance(metrics)
        return metrics

    # -- the two halves of a step --------------------------------------------------------------

    def _update(self, method: Method, collected: Collected, progress: Progress) -> UpdateResult:
        """An update on the step's groups; then, where the method interleaves another and enough
        unsolved prompts have come together, one of that method on their demonstrations."""
        if collected.refused:
            return UpdateResult({}, collected.refused)
        result = self._update_by(method, collected, progress)
        batch = self.args.train.interleave_prompts or self.args.train.prompts_per_step
        if method.interleave is None or len(self.state.unsolved) < batch or result.refused:
            return result
        rows, self.state.unsolved = self.state.unsolved[:batch], self.state.unsolved[batch:]
        other = self.setup.interleaved[method.interleave]
        demonstrations = self.collector.rows(rows, other, progress, self.state.step)
        second = self._update_by(other, demonstrations, progress)
        metrics = {**result.metrics, **{f"interleave/{k}": v for k, v in second.metrics.items()}}
        metrics["train/tokens"] += second.metrics.get("train/tokens", 0.0)
        return UpdateResult(metrics, second.refused)

    def _update_by(self, method: Method, collected: Collected, progress: Progress) -> UpdateResult:
        attempt = partial(
            update,
            self.setup.policy_of(method),
            self.optimizer,
            method,
            collected.sequences,
            progress=progress,
            step=self.state.step,
            teacher=self.setup.teacher_of(method),
            refused_dir=self.run.refused,
            world=self.world,
            max_mismatch=self.setup.max_mismatch,
        )
        while (result := within_memory(attempt, self.args.train)) is None:
            self.args, message = halved(self.args, self.run, self.state.step)
            self._event("warning", message)
        return result

    # -- after a step --------------------------------------------------------------------------

    def _judge(self, result: UpdateResult) -> None:
        """A refused step is noted; too many in a row, or the policy, end the run."""
        if result.refused is None:
            self.state.refused_in_a_row = 0
            return
        self.state.refused_in_a_row += 1
        message = f"step {self.state.step}: non-finite ({result.refused}); weights are unchanged"
        self._event("warning", message)
        self._check_weights()
        train = self.args.train
        if train.on_nonfinite == "stop" or self.state.refused_in_a_row > train.max_nonfinite:
            raise NumericalError(
                f"{message}, {self.state.refused_in_a_row} in a row. The batch is in {self.run.refused}. "
                "Lower train.learning_rate, or look at the samples for exploding responses"
            )

    def _check_weights(self) -> None:
        """Broken weights are repaired by no step, and no checkpoint of them may replace a good one."""
        odd = self.world.first(first_not_finite(own_tensors(self.model)), "the weights")
        if odd is not None:
            raise NumericalError(
                f"after step {self.state.step} the weight {odd} is non-finite. Resume from the last "
                "checkpoint with a lower train.learning_rate"
            )

    def _watch(self, metrics: Mapping[str, Any]) -> None:
        """Raises the alarms that this step's figures set off."""
        for alarm, message in raised(self.args.alarms, metrics, self.state.alarms):
            self._event("warning", f"step {self.state.step}: {message}")
            if alarm.action == "stop":
                raise AlarmError(f"step {self.state.step}: {message}. The last checkpoint stays")

    def _advance(self, metrics: Mapping[str, Any]) -> None:
        """Goes on to the next stage, where there is one, when this one is over."""
        method = self.setup.methods[self.state.stage]
        if (value := watched_value(method, metrics)) is not None:
            self.state.watched.append(value)
        stages = self.args.resolved_stages
        if not self.state.stage_over(stages):
            return
        stage = stages[self.state.stage]
        if self.state.step - self.state.stage_start < stage.steps:
            self._event("note", f"step {self.state.step}: plateau, stage {stage.method} ends")
        self.collector.drop()
        if self.state.next_stage(stages):
            begin_stage(self.setup, self.state.stage, self.run)

    def _log(self, metrics: Mapping[str, Any]) -> None:
        if self.lock is not None:
            self.lock.check()
        self.logs.metrics.write(metrics)
        self.trackers.log(metrics, self.state.step)
        self.view.update(self.state.step, self.total_steps, metrics)

    def _save_samples(self, method: Method, collected: Collected, progress: Progress) -> None:
        step = self.state.step + 1
        if step != 1 and not due(step, self.args.run.samples_every):
            return
        records = sample_records(
            self.setup.policy_of(method),
            method,
            collected,
            prompts=self.args.run.samples_prompts,
            progress=progress,
            token_budget=self.args.train.micro_batch_tokens,
            teacher=self.setup.teacher_of(method),
        )
        for record in records:
            self.logs.samples.write({"step": step, **record})

    def _evaluate(self) -> None:
        if not self.setup.evaluation:
            return
        self.view.phase("evaluating")
        self.state.evaluated = self.state.step
        with self.setup.policy.compute():
            metrics = self.evaluator.evaluate(self.state.step, self.view.evaluating)
        self.trackers.log(metrics, self.state.step)
        self._watch(metrics)
        self.view.evaluated(metrics)
        better = self.evaluator.better_than(metrics, self.state.best)
        if better is not None:
            self.state.best = better
            if self.state.step:
                self._export(self.run.best)

    # -- starting, saving, resuming ------------------------------------------------------------

    def _begin(self) -> dict[str, int]:
        if self.world.main:
            check_unused(self.run)
            begin_run(self.run, self.args.to_yaml(redacted=True))
        for note in self.setup.notes:
            self._say(note)
        return {}

    def _resume(self) -> dict[str, int]:
        """Weights, optimizer, random state and positions of the newest whole checkpoint; returns
        the lengths in bytes to which the logs are cut back."""
        nothing = self.run.config.exists() and not list_checkpoints(self.run.checkpoints)
        if self.world.from_main(lambda: nothing, "checkpoints"):
            self._say("resume: no checkpoint was written yet; starting from the beginning")
            if self.world.main:
                begin_run(self.run, self.args.to_yaml(redacted=True))
            return {}
        checkpoint, damaged = load_newest(self.run.checkpoints, self.world)
        recipe = self.args.to_yaml(redacted=True)
        self.changes = recipe_changes(self.run, recipe)
        for sentence in [*damaged, *self.changes]:
            self._say(f"resume: {sentence}")
        self._restore(checkpoint)
        if self.changes and self.world.main:
            change_recipe(self.run, recipe, self.state.step)
        more = ": the run is finished, and continues if the recipe now has more steps"
        place = f"resumed after step {self.state.step} from {checkpoint.path}"
        self._say(place + (more if self.finished else ""))
        return checkpoint.state["logs"]

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.state, self.saved = TrainState(**checkpoint.state["train"]), checkpoint.state
        began = self.state.go_on(self.args.resolved_stages)
        restore(checkpoint, self.model, self.optimizer, self.world)
        self.sampler.load_state_dict(checkpoint.state["sampler"])
        (begin_stage if began else restore_stage)(self.setup, self.state.stage, self.run)
        self.setup.engine.update_weights()

    def _open_logs(self, offsets: Mapping[str, int], stack: ExitStack) -> None:
        self.logs = RunLogs(self.run, offsets, silent=not self.world.main)
        stack.callback(self.logs.close)
        self.evaluator.log = self.logs.evaluation
        self.trackers = Trackers(
            self.args.run.trackers if self.world.main else (),
            self.run,
            redact_values(self.args.model_dump(mode="json")),
            self.state.step,
            note=lambda text: self._event("warning", text),
        )
        stack.callback(self.trackers.close)

    def _checkpoint(self) -> None:
        """Saves, unless the last checkpoint holds this very state."""
        state = {
            "train": asdict(self.state),
            "sampler": self.collector.position(),
            "logs": self.logs.offsets,
        }
        if self.world.from_main(lambda: state == self.saved, "a checkpoint"):
            return
        self.view.phase("saving")
        self._check_weights()
        self.checkpoints.save(self.state.step, self.model, self.optimizer, state)
        self.saved = state

    def _export(self, folder: Path) -> None:
        self.view.phase("exporting")
        export_model(self.setup.policy, folder, self.args, self.run, self.state.step, self.world)

    def _exported(self) -> bool:
        """Whether the final model was written, after this very step and by this very recipe."""
        where = (self.run.model, self.args, self.run, self.state.step)
        return self.world.from_main(lambda: is_exported(*where), "the model")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _event(self, level: str, message: str) -> None:
        message = redact(message)
        self.logs.events.write({"step": self.state.step, "level": level, "message": message})
        self.view.note(message)
