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
from typing import Any, Literal

from rich.console import Console

from srft.config import SRFTConfig
from srft.errors import AlarmError
from srft.objective.method import Method, Progress
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
from srft.trainer.best import resume_best
from srft.trainer.callbacks import Callbacks, transformers_names
from srft.trainer.checkpoint import (
    Checkpoint,
    Checkpointer,
    check_untrained,
    list_checkpoints,
    load_newest,
    named_checkpoint,
    restore,
)
from srft.trainer.clean_stop import StopRequest
from srft.trainer.collect import Collected, group_metrics
from srft.trainer.collector import Collector
from srft.trainer.evaluating import Evaluator
from srft.trainer.export import export_model, is_exported
from srft.trainer.fitting import halved, within_memory
from srft.trainer.given import Given
from srft.trainer.live import LiveView
from srft.trainer.models import choose_device
from srft.trainer.optimization import choose_optimizer, resume_schedule, schedule_state, set_rate
from srft.trainer.plateau import watched_value
from srft.trainer.refusals import check_refusals, check_weights
from srft.trainer.sample_log import sample_records
from srft.trainer.setup import set_up
from srft.trainer.stage_reference import begin_stage, restore_stage
from srft.trainer.state import TrainResult, TrainState, due
from srft.trainer.trackers import Trackers
from srft.trainer.update import UpdateResult, update


class TrainingLoop:
    """Trains by the method that ``args`` names. ``srft.SRFTTrainer`` is this loop as users of transformers
    know a trainer. callbacks: transformers', told of what happens and heard.

    Raises:
        ConfigError, DataError, ModelError, RewardError: found before any compute is spent.
    """

    def __init__(
        self,
        args: SRFTConfig,
        given: Given,
        console: Console | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.args = args
        self.world = join_world(self.args.parallel, choose_device(self.args))
        self.console = (console or Terminal()) if self.world.main else Terminal(quiet=True)
        self.callbacks = callbacks or Callbacks()
        with self.world.together("setting up"):
            place = self.args.run.dir, [stage.method for stage in self.args.resolved_stages]
            self.run = self.world.from_main(lambda: choose_run_dir(*place), "the run directory")
            recipe = self.args.to_yaml(redacted=True)
            with reserved(self.run, recipe, self._say) if self.world.main else nullcontext():
                self.setup = set_up(self.args, given, self.console, self.world, self.run)
                self.args = self.setup.config
                try:
                    self._build(given)
                except BaseException:
                    self.close()
                    raise

    def close(self) -> None:
        """Ends what runs beside the training and gives the model back as it was, but for its weights.
        ``train`` does so at its end; what is asked of the trainer after that opens it again."""
        self.setup.close()

    def _build(self, given: Given) -> None:
        """What the loop works with: optimizer, sampler, evaluation, checkpoints, state."""
        self.model = self.setup.policy.model
        self.tokenizer = self.setup.policy.tokenizer
        self.optimizer, self.scheduler = choose_optimizer(self.model, self.args, given)
        run = self.args.run
        self.collector = Collector(self.setup, self.run)
        self.sampler = self.collector.sampler
        self.evaluator = Evaluator(self.setup, self.args, self.run)
        self.checkpoints = Checkpointer(
            self.run.checkpoints, run.keep_checkpoints, self.world, run.background_checkpoints
        )
        self.train_state = TrainState(evaluation_due=self.args.evaluation.at_start)
        self.saved: Mapping[str, Any] = {}
        self.changes: list[str] = []
        self.lock: Lock | None = None
        names = {"processing_class": self.tokenizer, "lr_scheduler": self.scheduler}
        told = {"model": self.model, "optimizer": self.optimizer, **names}
        self.setup.notes.extend(self.callbacks.attach(self.world, self.args, told))

    # -- the loop ------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> TrainResult:
        """Runs all stages; with ``resume_from_checkpoint=True`` from the run's newest whole checkpoint, with
        a path from that one, what came after it dropped. A finished run of more steps by then trains on.

        Ctrl-C and SIGTERM end the step in hand, or leave the evaluation or export in hand to the resumed
        run, write a checkpoint and return, with ``stopped_by`` set; a second one acts at once. Of several
        processes, the main one writes to the run directory.

        Raises:
            ConfigError: the run directory holds another run.
            CheckpointError: the one that is named is not there, or one cannot be read or written.
            NumericalError, AlarmError: refused steps or an alarm, where these are to stop the run.
            RewardError, RolloutError: from the reward functions and the engine.
            RankError: a process is gone; PeerError: another process failed, and says why.
        """
        metrics: dict[str, Any] = {}
        stopped_by: str | None = None
        with ExitStack() as stack:
            stack.enter_context(self.world.together("training"))
            self.setup.reopen()
            stack.callback(self.close)
            if self.world.main:
                self.lock = stack.enter_context(hold(self.run.path, "training", self._say))
            stack.callback(self.checkpoints.wait)  # a background save is part of the writing
            which = resume_from_checkpoint
            self._open_logs(self._resume(which) if which else self._begin(), stack)
            first = self.train_state.step
            self.stop = stack.enter_context(StopRequest())
            view = LiveView(self.run.path, self.total_steps, first, self.args.run, self.console)
            self.view = stack.enter_context(view)
            for change in self.changes:
                self._event("note", f"resumed after step {first} with {change}")
            self.callbacks.train_begin()
            if self.train_state.evaluation_due:
                self._evaluate()
            while not self.finished:
                wanted = self.stop.requested or self.callbacks.stop
                if stopped_by := self.world.first(wanted, "the next step"):
                    break
                metrics = self._step()
            finished = self.finished or stopped_by == "callback"
            if finished and self.setup.evaluation and not self.train_state.is_evaluated:
                self._checkpoint(told=False)  # so that no failing evaluation loses what was trained
                self._evaluate()
            self._checkpoint()
            self.checkpoints.wait()
            model_dir = self.run.model if finished and self.args.run.export else None
            if model_dir and (self.train_state.step > first or not self._exported()):
                model_dir = self._export_at_end(model_dir)
            stopped_by = self.world.first(self.stop.requested, "the end") or stopped_by
            self.callbacks.train_end()
        step, records = self.train_state.step, self.evaluator.records()
        return TrainResult(self.run.path, model_dir, step, metrics, records, stopped_by)

    @property
    def finished(self) -> bool:
        """Whether the last stage is over."""
        return self.train_state.finished(self.args.resolved_stages)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, as far as is known: a stage may end early, at its plateau."""
        return self.train_state.total_steps(self.args.resolved_stages)

    def _step(self) -> dict[str, Any]:
        """A training step, and what is to be done after it."""
        self.callbacks.step_begin(self.sampler.epoch)
        metrics = self._train_step()
        step, more = self.train_state.step, not self.finished
        self.callbacks.step_end(
            step,
            self.sampler.epoch,
            evaluate=more and due(step, self.args.evaluation.every_steps),
            save=more and due(step, self.args.run.checkpoint_every),
        )
        self._log(metrics)
        self._watch(metrics)
        if self.callbacks.heard().should_epoch_stop:
            self.collector.drop()
            self.sampler.end_epoch()
        if self.callbacks.control.should_evaluate:
            self._evaluate()
        if self.callbacks.heard().should_save:
            self._checkpoint()
        return metrics

    def _train_step(self) -> dict[str, Any]:
        start = time.perf_counter()
        stage = self.args.resolved_stages[self.train_state.stage]
        method = self.setup.methods[self.train_state.stage]
        progress = Progress(
            self.train_state.step - self.train_state.stage_start,
            stage.steps,
            self.train_state.entropy,
        )
        rate = set_rate(self.optimizer, self.scheduler, self.args.train, stage, progress.step)

        self.view.phase("generating" if method.rollouts else "reading")
        collected = self.collector.step(method, progress, self.train_state.step)
        self.collector.begin_next(method, stage, progress, self.train_state.step)
        self._save_samples(method, collected, progress)
        train_start = time.perf_counter()
        self.view.phase("training")
        result = self._update(method, collected, progress)
        train_end = time.perf_counter()
        if self.scheduler is not None:
            self.scheduler.step()
        waited = self.collector.wait()
        sync_start = time.perf_counter()
        self.setup.engine.update_weights()
        end = time.perf_counter()
        figures = group_metrics(collected)
        sampled = figures.get("rollout/tokens", 0.0)
        trained = result.metrics.get("train/tokens", 0.0)
        self.train_state.step += 1
        self.train_state.rollout_tokens += sampled
        self.train_state.trained_tokens += trained
        self.train_state.seconds += end - start
        self.train_state.entropy = result.metrics.get("entropy/rollouts", self.train_state.entropy)
        phases = {
            "time/generate": collected.generate_seconds + waited,
            "time/score": collected.score_seconds,
            "time/train": train_end - train_start,
            "time/sync": end - sync_start,
        }
        metrics = {
            "step": self.train_state.step,
            "method": method.name,
            "stage": self.train_state.stage,
            **self.collector.epochs,
            "learning_rate": rate,
            **figures,
            **result.metrics,
            **{f"user/{name}": mean for name, mean in mean_metrics(collected.logged).items()},
            **phases,
            "time/other": end - start - sum(phases.values()),
            "time/step": end - start,
            "time/ahead": collected.ahead_seconds,
            "tokens_per_second": (sampled + trained) / (end - start),
            "total/rollout_tokens": self.train_state.rollout_tokens,
            "total/trained_tokens": self.train_state.trained_tokens,
            "total/seconds": self.train_state.seconds,
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
        batch = self.args.train.interleave_prompts or self.args.train.prompts_per_step
        if method.collect_unsolved:
            waiting = self.train_state.unsolved + [collected.rows[g] for g in collected.unsolved]
            self.train_state.unsolved = waiting[-max(batch, len(self.setup.train)) :]
        result = self._update_by(method, collected, progress)
        if method.interleave is None or len(self.train_state.unsolved) < batch or result.refused:
            return result
        unsolved = self.train_state.unsolved
        rows, self.train_state.unsolved = unsolved[:batch], unsolved[batch:]
        other = self.setup.interleaved[method.interleave]
        demonstrations = self.collector.rows(rows, other, progress, self.train_state.step)
        second = self._update_by(other, demonstrations, progress)
        metrics = {**result.metrics, **{f"interleave/{k}": v for k, v in second.metrics.items()}}
        metrics["train/tokens"] += second.metrics.get("train/tokens", 0.0)
        return UpdateResult(metrics, second.refused, result.made + second.made)

    def _update_by(self, method: Method, collected: Collected, progress: Progress) -> UpdateResult:
        attempt = partial(
            update,
            self.setup.policy_of(method),
            self.optimizer,
            method,
            collected.sequences,
            progress=progress,
            step=self.train_state.step,
            teacher=self.setup.teacher_of(method),
            refused_dir=self.run.refused,
            world=self.world,
            max_mismatch=self.setup.max_mismatch,
        )
        while (result := within_memory(attempt, self.args.train)) is None:
            self.args, message = halved(self.args, self.run, self.train_state.step)
            self.setup.config = self.args
            self._event("warning", message)
        return result

    # -- after a step --------------------------------------------------------------------------

    def _judge(self, result: UpdateResult) -> None:
        """A refused step is noted; too many in a row, or the policy, end the run."""
        state, train = self.train_state, self.args.train
        state.refused_in_a_row = state.refused_in_a_row + 1 if result.refused else 0
        if result.refused:
            message = result.said(state.step)
            self._event("warning", message)
            check_weights(self.model, state.step, self.world)
            most = 0 if train.on_nonfinite == "stop" else train.max_nonfinite
            check_refusals(message, state.refused_in_a_row, most, self.run.refused)

    def _watch(self, metrics: Mapping[str, Any]) -> None:
        """Raises the alarms that this step's figures set off."""
        for alarm, message in raised(self.args.alarms, metrics, self.train_state.alarms):
            message = f"step {self.train_state.step}: {message}"
            self._event("warning", message)
            if alarm.action == "stop":
                raise AlarmError(f"{message}. The last checkpoint stays")

    def _advance(self, metrics: Mapping[str, Any]) -> None:
        """Goes on to the next stage, where there is one, when this one is over."""
        method = self.setup.methods[self.train_state.stage]
        if (value := watched_value(method, metrics)) is not None:
            self.train_state.watched.append(value)
        stages = self.args.resolved_stages
        if not self.train_state.stage_over(stages):
            return
        stage = stages[self.train_state.stage]
        if self.train_state.step - self.train_state.stage_start < stage.steps:
            self._event("note", f"step {self.train_state.step}: plateau, stage {stage.method} ends")
        self.collector.drop()
        if self.train_state.next_stage(stages):
            begin_stage(self.setup, self.train_state.stage, self.run)

    def _log(self, metrics: Mapping[str, Any]) -> None:
        if self.lock is not None:
            self.lock.check()
        metrics, self.callbacks.noted = {**metrics, **self.callbacks.noted}, {}
        self.logs.metrics.write(metrics)
        self.trackers.log(metrics, self.train_state.step)
        self.view.update(self.train_state.step, self.total_steps, metrics)
        if self.callbacks.control.should_log:
            self.callbacks.log(metrics)

    def _save_samples(self, method: Method, collected: Collected, progress: Progress) -> None:
        step = self.train_state.step + 1
        if step == 1 or due(step, self.args.run.samples_every):
            for record in sample_records(self.setup, method, collected, progress):
                self.logs.samples.write({"step": step, **record})

    def _evaluate(self) -> None:
        if not self.setup.evaluation:
            return
        self.view.phase("evaluating")
        step, self.train_state.evaluation_due = self.train_state.step, True
        with self.setup.policy.compute():
            metrics = self.evaluator.evaluate(step, self.view.evaluating, self.stop)
        if metrics is None:
            return  # a stop was asked for: a resumed run begins with it
        self.train_state.evaluated, self.train_state.evaluation_due = step, False
        self.trackers.log(metrics, step)
        self._watch(metrics)
        self.view.evaluated(metrics)
        self.callbacks.evaluated(transformers_names(metrics))
        better = self.evaluator.better_than(metrics, self.train_state.best)
        if better is not None and step:  # the base is nothing that was trained
            self.train_state.best, self.train_state.best_of = better, self.evaluator.measure
            self.callbacks.best(better, self.run.best)
            self._export(self.run.best)

    # -- starting, saving, resuming ------------------------------------------------------------

    def _begin(self) -> dict[str, int]:
        if self.world.main:
            check_unused(self.run)
            begin_run(self.run, self.args.to_yaml(redacted=True), self.setup.given.described())
        for note in self.setup.notes:
            self._say(note)
        return {}

    def _resume(self, which: Literal[True] | str | Path) -> dict[str, int]:
        """Weights, optimizer, random state and positions of the newest whole checkpoint, or of the one
        that is named; returns the lengths in bytes to which the logs are cut back."""
        recipe = self.args.to_yaml(redacted=True)
        name = None if which is True else named_checkpoint(self.run, Path(which))
        nothing = self.run.config.exists() and not list_checkpoints(self.run.checkpoints)
        if self.world.from_main(lambda: nothing, "checkpoints"):
            check_untrained(self.train_state.step, self.args.run.dir)
            self._say(f"resume: no checkpoint in {self.run.path} yet; starting from the beginning")
            if self.world.main:
                begin_run(self.run, recipe, self.setup.given.described())
            return {}
        checkpoint, damaged = load_newest(self.run.checkpoints, self.world, name)
        self.changes = recipe_changes(self.run, recipe)
        for sentence in damaged:
            self._say(f"resume: {sentence}")
        self._restore(checkpoint)
        if self.changes and self.world.main:
            change_recipe(self.run, recipe, self.train_state.step)
        more = ": finished, and continues if the recipe now has more steps" if self.finished else ""
        self._say(f"resumed after step {self.train_state.step} from {checkpoint.path}{more}")
        return checkpoint.state["logs"]

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.train_state, self.saved = TrainState(**checkpoint.state["train"]), checkpoint.state
        began = self.train_state.go_on(self.args.resolved_stages)
        restore(checkpoint, self.model, self.optimizer, self.world)
        self.changes += self.collector.go_on(checkpoint.state["sampler"])
        if self.scheduler is not None and "scheduler" in checkpoint.state:
            resume_schedule(self.optimizer, self.scheduler, checkpoint.state)
        (begin_stage if began else restore_stage)(self.setup, self.train_state.stage, self.run)
        self.setup.engine.update_weights()
        # What the run takes again goes last, when nothing refuses to go on any more.
        checkpoint.drop_later()
        if said := resume_best(self.train_state, self.evaluator.measure, self.run, self.world):
            self._say(f"resume: {said}")
        told = checkpoint.state.get("callbacks", {})
        self.callbacks.load_state_dict(told, self.train_state.step, self.train_state.best)

    def _open_logs(self, offsets: Mapping[str, int], stack: ExitStack) -> None:
        self.logs = RunLogs(self.run, offsets, silent=not self.world.main)
        stack.callback(self.logs.close)
        self.evaluator.log = self.logs.evaluation
        self.trackers = Trackers(
            self.args.run.trackers if self.world.main else (),
            self.run,
            redact_values(self.args.model_dump(mode="json")),
            self.train_state.step,
            note=lambda text: self._event("warning", text),
        )
        stack.callback(self.trackers.close)

    def _checkpoint(self, told: bool = True) -> None:
        """Saves, unless the last checkpoint holds this very state. told: callbacks are."""
        state = {
            "train": asdict(self.train_state),
            "sampler": self.collector.position(),
            "logs": self.logs.offsets,
            "callbacks": self.callbacks.state_dict(),
        }
        if self.scheduler is not None:
            state |= schedule_state(self.optimizer, self.scheduler)
        if self.world.from_main(lambda: state == self.saved, "a checkpoint"):
            return
        self.view.phase("saving")
        check_weights(self.model, self.train_state.step, self.world)
        self.checkpoints.save(self.train_state.step, self.model, self.optimizer, state)
        self.saved = state
        if told:
            self.callbacks.saved()

    def _export(self, folder: Path) -> Path:
        self.view.phase("exporting")
        step = self.train_state.step
        return export_model(self.setup.policy, folder, self.args, self.run, step, self.world)

    def _export_at_end(self, folder: Path) -> Path | None:
        """The final model, unless a stop is asked for; several processes write it together or not at all."""
        export = partial(self._export, folder)
        if self.world.size == 1:
            return self.stop.unless_asked(export)
        return None if self.world.first(self.stop.requested, "the export") else export()

    def _exported(self) -> bool:
        """Whether the final model was written, after this very step and by this very recipe."""
        where = (self.run.model, self.args, self.run, self.train_state.step)
        return self.world.from_main(lambda: is_exported(*where), "the model")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _event(self, level: str, message: str) -> None:
        message = redact(message)
        self.logs.events.write({"step": self.train_state.step, "level": level, "message": message})
        self.view.note(message)
