"""Responses of several turns: a loop over an engine whose prompts grow by what was said and answered.

    while a turn calls tools:  call them;  tokens <- the frame with their results;  sample the next turn

The tokens of a turn stay as they were sampled; those of a frame are masked from everything that is
trained or measured. Turn t of completion ``seed + i`` depends on that seed, t and the tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, groupby
from typing import Any

from srft.data.row_errors import RowError
from srft.data.turns import ToolTurns
from srft.environments.call_formats import Calls, Reader
from srft.environments.toolbox import Place, Result, Toolbox
from srft.rollout.requests import request_seed
from srft.types import (
    Completion,
    Episode,
    Example,
    FinishReason,
    Message,
    RolloutEngine,
    RolloutRequest,
    SamplingParams,
    Spoken,
)

OnCompletion = Callable[[int, int, Completion], None]


@dataclass
class _Run:
    """A completion in the making: sample ``sample`` of request ``request``."""

    request: int
    sample: int
    seed: int
    limit: int
    example: Example
    place: Place
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    mask: tuple[bool, ...] = ()
    messages: list[Message] = field(default_factory=list)
    text: str = ""
    calls: Calls = field(default_factory=list)
    made: int = 0
    failures: int = 0

    def add(self, ids: Sequence[int], logprobs: Sequence[float] | None) -> None:
        """Tokens that were sampled, or (without log-probabilities) given."""
        self.ids += tuple(ids)
        self.logprobs += (0.0,) * len(ids) if logprobs is None else tuple(logprobs)
        self.mask += (logprobs is not None,) * len(ids)

    def completion(self, reason: FinishReason) -> Completion:
        place = self.place
        return Completion(
            self.ids,
            self.logprobs,
            Spoken(self.text, self.messages),
            reason,
            None if all(self.mask) else self.mask,
            Episode(place.prompt, self.prompt_ids, place.environment, self.made, self.failures),
        )


class ToolEngine:
    """``RolloutEngine`` over ``engine``, in whose completions tools may be called. ``stop_ids``: tokens
    that end a turn. Environments are used again from the next call of ``generate`` on: what they are
    asked for, such as rewards, is asked before."""

    def __init__(
        self,
        engine: RolloutEngine,
        toolbox: Toolbox,
        turns: ToolTurns,
        read: Reader,
        stop_ids: Sequence[int],
        max_turns: int | None,
    ) -> None:
        self.engine, self.toolbox, self.turns, self.read = engine, toolbox, turns, read
        self.stop_ids, self.max_turns = frozenset(stop_ids), max_turns
        self._places: list[Place] = []

    def generate(
        self,
        requests: Sequence[RolloutRequest],
        params: SamplingParams,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """See ``RolloutEngine.generate``; ``max_tokens`` counts what tools write, too.

        Raises:
            RolloutError: an environment cannot be reset, or the engine failed.
        """
        self.toolbox.leave(self._places)
        self._places = []
        results: list[list[Any]] = [[None] * request.n for request in requests]

        def finish(run: _Run, reason: FinishReason) -> None:
            completion = run.completion(reason)
            results[run.request][run.sample] = completion
            if on_completion is not None:
                on_completion(run.request, run.sample, completion)

        running = [run for r, q in enumerate(requests) for run in self._begin(r, q, params)]
        self._places = [run.place for run in running]
        turn = 0
        while running:
            turn += 1
            asked, owners = _asked(running, turn)
            last = turn == self.max_turns
            heard = partial(self._heard, owners, last, finish)
            self.engine.generate(asked, params, heard)
            running = [run for run in running if run.calls]
            told = self.toolbox.call([(run.place, run.calls) for run in running])
            fits = [self._goes_on(run, found) for run, found in zip(running, told, strict=True)]
            for run in compress(running, (not fit for fit in fits)):
                finish(run, "length")
            running = list(compress(running, fits))
        return results

    def _begin(
        self, number: int, request: RolloutRequest, params: SamplingParams
    ) -> Iterator[_Run]:
        assert request.example is not None, "tools are called for rows of data"
        example, seen = request.example, {}
        for i in range(request.n):
            place = self.toolbox.enter(example)
            ids = request.prompt_ids
            if place.environment is not None:
                key = str(place.prompt)
                if key not in seen:
                    seen[key] = self._prompt_ids(replace(example, prompt=place.prompt))
                ids = seen[key]
            limit = request.most_tokens(params)
            yield _Run(number, i, request.seed + i, limit, example, place, ids)

    def _prompt_ids(self, example: Example) -> tuple[int, ...]:
        template = self.turns.template
        return template.encode_prompt(template.render(example))

    def _heard(
        self,
        owners: Sequence[Sequence[_Run]],
        last: bool,
        finish: Callable[[_Run, FinishReason], None],
        request: int,
        sample: int,
        drawn: Completion,
    ) -> None:
        """A turn is over: it calls tools, or ends the response."""
        run = owners[request][sample]
        message = self.read(drawn.token_ids, (*run.prompt_ids, *run.ids), run.example.tools)
        run.add(drawn.token_ids, drawn.logprobs)
        run.text = drawn.text
        whole = drawn.finish_reason == "stop"
        run.calls = list(message.get("tool_calls", ())) if whole and not last else []
        run.messages.append(
            message if "tool_calls" in message else {**message, "content": drawn.text}
        )
        if not run.calls:
            finish(run, drawn.finish_reason)

    def _goes_on(self, run: _Run, results: Sequence[Result]) -> bool:
        """Adds the results of its calls, if they fit with at least one token behind them."""
        run.made += len(results)
        run.failures += sum(result.failed for result in results)
        told = [result.message for result in results]
        ended = run.ids[-1] in self.stop_ids
        try:
            frame = self.turns.frame(told, list(run.example.tools))
            ids = self.turns.frame_ids(frame, ended)
        except RowError as error:
            problem = str({"error": f"the result cannot be shown: {error}"})
            told = [{**message, "content": problem} for message in told]
            ids = self.turns.frame_ids(self.turns.frame(told, list(run.example.tools)), ended)
        if len(run.ids) + len(ids) >= run.limit:
            return False
        run.add(ids, None)
        run.messages += told
        return True

    def update_weights(self) -> None:
        self.engine.update_weights()

    def close(self) -> None:
        self.engine.close()
        self.toolbox.close()


def _asked(running: Sequence[_Run], turn: int) -> tuple[list[RolloutRequest], list[list[_Run]]]:
    """The requests of a turn, and the completions of each. At first those of one prompt are one."""
    if turn > 1:
        asked = [
            RolloutRequest(
                (*run.prompt_ids, *run.ids),
                1,
                request_seed(run.seed, turn),
                run.limit - len(run.ids),
            )
            for run in running
        ]
        return asked, [[run] for run in running]
    alike = [list(g) for _, g in groupby(running, key=lambda run: (run.request, run.prompt_ids))]
    asked = [RolloutRequest(g[0].prompt_ids, len(g), g[0].seed, g[0].limit) for g in alike]
    return asked, alike
