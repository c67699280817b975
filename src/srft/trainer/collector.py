"""The rollouts of one step after another: when they are wanted, or one step ahead.

With ``rollout.ahead`` the next step's rollouts are made and scored in a thread while this step is
trained on. They are then by the weights before this step's update: one update old, never more,
because the next weights are sent only when they are done. The ratio of the policy that is trained
to the one that was sampled from corrects the loss (``objective.importance_cap``).

A step that follows a checkpoint is not collected ahead, so that a run resumed from it goes on as the
one that was never stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from srft.data.sampler import PromptSampler
from srft.model.positions import context_length
from srft.objective.method import Method, Progress
from srft.parallel.world import World
from srft.rollout.requests import request_seed
from srft.runs.run_dir import RunDir
from srft.trainer.collect import Collected, NotFinite, collect
from srft.trainer.contexts import Contexts
from srft.trainer.refusals import save_refused
from srft.trainer.setup import Setup
from srft.trainer.state import trl_state
from srft.trainer.train_config import Stage


class Collector:
    """Hands out steps. ``sampler`` draws the prompts that rollouts are made of, ``further`` the rows of
    which the demonstrations alone are trained on, where the recipe asks for such."""

    def __init__(self, setup: Setup, run: RunDir) -> None:
        self.args, self.setup, self.run = setup.config, setup, run
        train, shuffle = self.args.train, self.args.data.shuffle
        self.sampler = PromptSampler(len(setup.train), train.prompts_per_step, train.seed, shuffle)
        self.further: PromptSampler | None = None
        if train.demonstrations_per_step:
            self._shown = [n for n, e in enumerate(setup.train) if e.demonstration_ids]
            # Another seed, for in the prompts' own order they would be these prompts once more.
            seed = request_seed(train.seed, 1)
            self.further = PromptSampler(
                len(self._shown), train.demonstrations_per_step, seed, shuffle
            )
        self.world = setup.world
        self.contexts = Contexts(
            setup.policy.tokenizer,
            setup.config.data,
            setup.config.teacher,
            context_length(setup.policy.model.config),
        )
        # A thread's collectives must not mix with those of the loop.
        self._apart = setup.world.apart() if self.args.rollout.ahead else setup.world
        self._next: Future[Collected] | None = None
        self._position: dict[str, Any] = {}
        text = hashlib.sha256()
        for row in (tokenized.example for tokenized in setup.train):
            told = (row.prompt, row.demonstrations, row.answer)
            text.update(repr(told).encode(errors="surrogatepass"))
        self._rows = text.hexdigest()[:16]

    def step(self, method: Method, progress: Progress, step: int) -> Collected:
        """The groups of step number ``step``: those that were begun ahead, or made now."""
        if self._next is None:
            return self._collect(method, progress, step, self.world)
        collected, self._next = self._next.result(), None
        collected.ahead_seconds = collected.generate_seconds + collected.score_seconds
        collected.generate_seconds = collected.score_seconds = 0.0
        return collected

    def begin_next(self, method: Method, stage: Stage, progress: Progress, step: int) -> None:
        """Starts on the step after ``step`` where that is asked for and known to come: the same
        stage goes on, and no checkpoint lies between."""
        every = self.args.run.checkpoint_every
        last = progress.step + 1 >= stage.steps
        if not self.args.rollout.ahead or not method.rollouts or last:
            return
        if every and (step + 1) % every == 0:
            return
        self._position = self._state()
        later = replace(progress, step=progress.step + 1)
        self._next = Future()
        # A daemon, so that a run that ends by an error does not wait for rollouts nobody wants.
        arguments = (self._next, method, later, step + 1)
        threading.Thread(target=self._run, args=arguments, name="srft-ahead", daemon=True).start()

    def wait(self) -> float:
        """Until what was begun is done; the seconds that took. New weights may be sent then."""
        start = time.perf_counter()
        if self._next is not None:
            self._next.exception()  # raised by ``step``, or of no interest any more
        return time.perf_counter() - start

    def drop(self) -> None:
        """Forgets what was begun, as if it had not been."""
        if self._next is not None:
            self.go_on(self._position)
            self._next = None

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over the prompts and, where there are such, over the further demonstrations."""
        more = {} if self.further is None else {"demo/epoch": self.further.epoch}
        return {"epoch": self.sampler.epoch, **more}

    def position(self) -> dict[str, Any]:
        """Where the samplers stand before the first step that was not handed out."""
        return self._position if self._next is not None else self._state()

    def go_on(self, position: dict[str, Any]) -> list[str]:
        """Hands out what follows ``position``; returns in what the data have changed since it was taken.
        Raises DataError if it is of another dataset."""
        self.sampler.load_state_dict(position)
        if self.further is not None and "further" in position:
            self.further.load_state_dict(position["further"])
        same = position.get("rows", self._rows) == self._rows
        return [] if same else ["training data: rows that were edited since (as many as before)"]

    def _state(self) -> dict[str, Any]:
        state = {**self.sampler.state_dict(), "rows": self._rows}
        return state if self.further is None else {**state, "further": self.further.state_dict()}

    def _run(self, done: Future[Collected], method: Method, progress: Progress, step: int) -> None:
        try:
            done.set_result(self._collect(method, progress, step, self._apart))
        except BaseException as error:  # noqa: BLE001 - raised again where the step is wanted
            done.set_exception(error)

    def _collect(self, method: Method, progress: Progress, step: int, world: World) -> Collected:
        """A method with refill samples further prompts in place of groups whose rewards are all
        equal, until it has enough or its rounds are used up."""
        wanted = self.args.train.prompts_per_step
        rounds = 1 + (self.args.train.max_refill_rounds if method.refill else 0)
        kept, asked = Collected(), 0
        self.setup.scorer.trainer_state = trl_state(self.setup, step)
        try:
            for round_ in range(rounds):
                rows = self.sampler.next(wanted - len(kept.examples))
                # A number of its own for each prompt, those that were dropped included.
                groups = range(asked, asked := asked + len(rows))
                found = self.rows(rows, method, progress, step, round_, groups, world=world)
                kept.take(found, only_mixed=method.refill)
                if len(kept.examples) == wanted:
                    break
            self._rescue(kept, method, progress, step, world)
            if self.further is not None and method.mixes:
                rows = [self._shown[n] for n in self.further.next()]
                groups = range(asked, asked + len(rows))
                alone = replace(method, rollouts=False)
                kept.take(self.rows(rows, alone, progress, step, groups=groups), only_mixed=False)
            if method.teacher is not None:
                self.contexts.give(method, kept)
        except NotFinite as error:
            if world.main:
                save_refused(self.run.refused, step, str(error), error.sequences)
            return Collected(refused=str(error))
        return kept

    def _rescue(
        self, kept: Collected, method: Method, progress: Progress, step: int, world: World
    ) -> None:
        """Samples prompts whose rollouts have all failed once more, after more and more of their
        demonstration, until one is right or the method gives no more."""
        if method.rescue is None:
            return
        for attempt in itertools.count():
            places = kept.unsolved
            if not places or method.rescue(1, attempt, progress) is None:
                return
            rows = [kept.rows[g] for g in places]
            round_ = self.args.train.max_refill_rounds + 1 + attempt
            again = self.rows(rows, method, progress, step, round_, places, attempt, world)
            kept.replace_groups(places, again)

    def rows(
        self,
        rows: Sequence[int],
        method: Method,
        progress: Progress,
        step: int,
        round_: int = 0,
        groups: Sequence[int] | None = None,
        rescue: int | None = None,
        world: World | None = None,
    ) -> Collected:
        """The groups of these rows of the data (``collect``)."""
        with self.setup.policy.compute():
            return collect(
                self.setup,
                rows,
                method,
                progress,
                step,
                round_=round_,
                groups=groups,
                rescue=rescue,
                world=world or self.world,
            )
