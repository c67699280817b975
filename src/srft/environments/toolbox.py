"""What a model may call: functions, and the methods of environments, on TRL's contract.

An environment is any class with ``reset(**row)``; its other public methods are tools. ``reset`` returns
None or a text that is put behind the user's last words; ``get_reward()``, where there is one, is a reward
beside others. Objects are made when they are needed and used again after ``reset``. Facts as of TRL 1.16.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers.utils import get_json_schema

from srft.environments.call_formats import Calls, read_call
from srft.environments.environment_config import EnvironmentConfig
from srft.errors import ConfigError, DataError, RolloutError
from srft.rewards.deadline import call_within
from srft.rewards.functions import AsyncRunner, answers_of, is_async, load_function
from srft.rewards.reward_config import RewardConfig
from srft.rewards.scorer import Scorer
from srft.types import Example, Message, Spoken

Factory = Callable[[], Any]
_OWN = ("reset", "get_reward")


@dataclass
class Place:
    """What one rollout acts in. ``prompt``: its row's, with what ``reset`` added to it. ``name`` of the
    environment; ``stuck``: a call is still running in it."""

    prompt: tuple[Message, ...]
    tools: Mapping[str, Callable[..., Any]]
    environment: Any = None
    name: str | None = None
    stuck: bool = False


@dataclass(frozen=True)
class Result:
    """What the model is told of one call."""

    message: Message
    failed: bool


class _TooLate(TimeoutError):
    """A call that is given up."""


def _late(name: str, seconds: float) -> _TooLate:
    return _TooLate(f"{name} did not answer within {seconds:g} s")


class Toolbox:
    """Functions and environments of a run. ``factories``: by the names in the rows' column
    ``environment``; one under None is every row's.

    Raises:
        ConfigError: what a tool is cannot be read off its types and docstring, or a class has no
            ``reset``.
    """

    def __init__(
        self,
        tools: Sequence[Callable[..., Any]],
        factories: Mapping[str | None, Factory],
        timeout_s: float | None = None,
        max_turns: int | None = None,
    ) -> None:
        self.tools, self.factories = list(tools), dict(factories)
        self.timeout_s, self.max_turns = timeout_s, max_turns
        self._async = AsyncRunner()
        self._free: dict[str | None, list[Any]] = defaultdict(list)
        self._kinds: list[type] = []
        self._schemas: dict[str | None, tuple[Mapping[str, Any], ...]] = {}
        for name, factory in self.factories.items():
            try:
                first = factory()
            except Exception as error:  # of many kinds: the user's code
                raise ConfigError(
                    f"environment{_called(name)} cannot be made: {type(error).__name__}: {error}"
                ) from error
            if not callable(getattr(first, "reset", None)):
                raise ConfigError(f"environment {type(first).__name__} has no method `reset`")
            self._free[name].append(first)
            self._kinds.append(type(first))
            self._schemas[name] = tuple(map(_schema, [*self.tools, *_methods(first)]))
        self._functions = tuple(map(_schema, self.tools))

    # -- before a run ------------------------------------------------------------------------------

    def offer(self, examples: Sequence[Example]) -> list[Example]:
        """The examples as conversations whose prompts offer the tools. Calls and results after the user's
        last words belong to the demonstration.

        Raises:
            DataError: a row names no environment there is.
        """
        return [self._offered(example) for example in examples]

    def _offered(self, example: Example) -> Example:
        name = self._name(example)
        prompt = example.prompt
        messages = _messages(prompt)
        asked = len(messages)
        if example.demonstrations and messages[-1]["role"] == "tool":
            asked = 1 + max(k for k, m in enumerate(messages) if m["role"] == "user")
        turns = messages[asked:]
        demonstrations = tuple(
            Spoken(text, (*turns, *_turns(text))) if turns else text
            for text in example.demonstrations
        )
        tools = self._schemas[name] if self.factories else self._functions
        return replace(example, prompt=messages[:asked], demonstrations=demonstrations, tools=tools)

    def _name(self, example: Example) -> str | None:
        if not self.factories or None in self.factories:
            return None
        name = example.columns.get("environment")
        if name not in self.factories:
            known = ", ".join(map(str, self.factories))
            raise DataError(
                f"{example.source}: the column `environment` is {name!r}; there are {known}"
            )
        return name

    def rewards(self) -> list[Callable[..., Any]]:
        """A reward function for each class that has ``get_reward``, called as the class."""
        kinds = dict.fromkeys(self._kinds)
        return [_reward_of(kind) for kind in kinds if hasattr(kind, "get_reward")]

    # -- places ------------------------------------------------------------------------------------

    def enter(self, example: Example) -> Place:
        """A place to act in, set back to the example.

        Raises:
            RolloutError: ``reset`` failed.
        """
        prompt = _messages(example.prompt)
        if not self.factories:
            return Place(prompt, {tool.__name__: tool for tool in self.tools})
        name = self._name(example)
        environment = self._free[name].pop() if self._free[name] else self.factories[name]()
        row = {**example.columns, "prompt": [dict(message) for message in prompt]}
        if example.answer is not None:
            row.setdefault("answer", answers_of(example))
        if name is not None:
            row.pop("environment")
        try:
            seen = environment.reset(**row)
            seen = self._async.run([lambda: seen])[0] if inspect.isawaitable(seen) else seen
            if isinstance(seen, BaseException):
                raise seen
        except Exception as error:  # of many kinds: the user's code
            raise RolloutError(
                f"{type(environment).__name__}.reset failed for {example.source}: "
                f"{type(error).__name__}: {error}"
            ) from error
        tools = {tool.__name__: tool for tool in [*self.tools, *_methods(environment)]}
        return Place(_extended(prompt, seen), tools, environment, name)

    def leave(self, places: Iterable[Place]) -> None:
        """Gives environments back for use. One that may still be acted in is not used again."""
        for place in places:
            if place.environment is not None and not place.stuck:
                self._free[place.name].append(place.environment)

    @contextmanager
    def acted(
        self, examples: Sequence[Example], demonstrations: Sequence[str]
    ) -> Iterator[list[Any] | None]:
        """The environments in which the calls of demonstrations have been made, as rewards see those of
        rollouts; None without environments. Raises DataError for a call that cannot be read."""
        if not self.factories:
            yield None
            return
        places = [self.enter(example) for example in examples]
        for example, place, demonstration in zip(examples, places, demonstrations, strict=True):
            for turn in _turns(demonstration):
                try:
                    calls = [read_call(call) for call in turn.get("tool_calls") or ()]
                except ValueError as error:
                    raise DataError(
                        f"{example.source}: a call of a tool in its demonstration cannot be read ({error})"
                    ) from error
                self.call([(place, calls)])
        yield [place.environment for place in places]
        self.leave(places)

    def call(self, turns: Sequence[tuple[Place, Calls]]) -> list[list[Result]]:
        """Makes all calls, in order; async ones together at the end. What fails is told to the model."""
        outcomes: list[list[Any]] = []
        waiting: list[tuple[list[Any], int, Callable[[], Any]]] = []
        for place, calls in turns:
            mine: list[Any] = []
            outcomes.append(mine)
            for call in calls:
                name, arguments = call["function"]["name"], call["function"]["arguments"]
                tool = place.tools.get(name)
                if tool is None:
                    mine.append(ValueError(f"Tool {name} not found."))
                elif is_async(tool):
                    waiting.append((mine, len(mine), partial(self._awaited, name, tool, arguments)))
                    mine.append(None)
                else:
                    mine.append(self._outcome(place, name, partial(tool, **arguments)))
        found = self._async.run([call for _, _, call in waiting]) if waiting else []
        for (mine, k, _), outcome in zip(waiting, found, strict=True):
            mine[k] = outcome
        return [
            [_result(call, outcome) for call, outcome in zip(calls, mine, strict=True)]
            for (_, calls), mine in zip(turns, outcomes, strict=True)
        ]

    def _outcome(self, place: Place, name: str, call: Callable[[], Any]) -> Any:
        try:
            return call_within(self.timeout_s, name, call, _late)
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is told to the model
            place.stuck = place.stuck or isinstance(error, _TooLate)
            return error

    async def _awaited(self, name: str, tool: Callable[..., Any], arguments: Any) -> Any:
        try:
            async with asyncio.timeout(self.timeout_s) as limit:
                return await tool(**arguments)
        except TimeoutError as error:
            if limit.expired():
                assert self.timeout_s is not None
                raise _late(name, self.timeout_s) from None
            raise error

    def close(self) -> None:
        """Ends the thread of async tools. Idempotent."""
        self._async.close()


def build_toolbox(
    config: EnvironmentConfig, tools: Any = None, factory: Any = None
) -> Toolbox | None:
    """What was given, or what the recipe names; None where there is nothing.

    Raises:
        ConfigError: both are there, or what the recipe names is not.
    """
    if (tools or factory) and (config.tools or config.factory):
        raise ConfigError(
            "tools or environment_factory are given and the recipe names some too (environment.tools, "
            "environment.factory): only one of them could act; leave one out"
        )
    if not tools and not factory:
        tools = [load_function(path, what="tool") for path in config.tools]
        named = config.factory if isinstance(config.factory, dict) else {None: config.factory}
        factory = {name: load_function(p, what="environment") for name, p in named.items() if p}
    if not tools and not factory:
        return None
    factories = factory if isinstance(factory, Mapping) else {None: factory}
    found = {name: made for name, made in factories.items() if made is not None}
    return Toolbox(list(tools or ()), found, config.timeout_s, config.max_turns)


def build_scorer(
    config: RewardConfig,
    toolbox: Toolbox | None,
    functions: Any = None,
    weights: Sequence[float] | None = None,
) -> Scorer:
    """The recipe's verifier, or ``functions`` with the recipe's limits; with the rewards of environments, of
    which each has the weight 1, and these alone where no reward is named."""
    acted = [] if toolbox is None else toolbox.rewards()
    if functions is None:
        if not acted:
            return Scorer(config)
        functions = config.rewards if "rewards" in config.model_fields_set else []
    rewards = [*functions] if isinstance(functions, list | tuple) else [functions]
    return Scorer(
        [*rewards, *acted],
        config.correct_threshold,
        weights=None if weights is None else [*weights, *(1.0 for _ in acted)],
        timeout_s=config.timeout_s,
        memory_mb=config.memory_mb,
        workers=config.workers,
        function_timeout_s=config.function_timeout_s,
    )


def _called(name: str | None) -> str:
    return "" if name is None else f" {name!r}"


def _methods(environment: Any) -> list[Callable[..., Any]]:
    """Its tools. Looked for on the class, so that no property is evaluated."""
    names = [name for name, _ in inspect.getmembers(type(environment), inspect.isfunction)]
    return [getattr(environment, n) for n in names if n not in _OWN and not n.startswith("_")]


def _schema(tool: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return dict(get_json_schema(tool))
    except Exception as error:  # transformers raises several kinds of its own
        raise ConfigError(
            f"tool {getattr(tool, '__qualname__', tool)}: {error}. A tool has a docstring, types for its "
            "arguments and a line for each under `Args:`"
        ) from error


def _reward_of(kind: Any) -> Callable[..., Any]:
    """``get_reward`` of each environment of exactly this class; None for others."""

    async def later(environments: Sequence[Any], **_: Any) -> list[Any]:
        return [await e.get_reward() if type(e) is kind else None for e in environments]

    def now(environments: Sequence[Any], **_: Any) -> list[Any]:
        return [e.get_reward() if type(e) is kind else None for e in environments]

    reward = later if inspect.iscoroutinefunction(kind.get_reward) else now
    reward.__name__ = kind.__name__
    return reward


def _messages(prompt: str | tuple[Message, ...]) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt


def _turns(demonstration: str) -> tuple[Message, ...]:
    plain = ({"role": "assistant", "content": str(demonstration)},)
    return getattr(demonstration, "messages", plain)


def _extended(prompt: tuple[Message, ...], seen: Any) -> tuple[Message, ...]:
    if isinstance(seen, list):  # content blocks, of which text is known here
        seen = "".join(part["text"] for part in seen)
    if seen is None:
        return prompt
    return (*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}{seen}"})


def _result(call: Mapping[str, Any], outcome: Any) -> Result:
    failed = isinstance(outcome, BaseException)
    blocks = isinstance(outcome, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in outcome
    )
    if blocks and outcome:
        outcome = "".join(part["text"] for part in outcome)
    text = str({"error": str(outcome)} if failed else outcome)
    text = text.encode("utf-8", "replace").decode()
    return Result({"role": "tool", "name": call["function"]["name"], "content": text}, failed)
