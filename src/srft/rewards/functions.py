"""Reward functions of the user's, with TRL's signature, called and checked.

``f(prompts, completions, completion_ids=..., **columns) -> list[float | None]``, or ``async``.
Facts as of TRL 1.16: a prompt that is a list of messages gives its completion as
``[{"role": "assistant", "content": text}]``, a text prompt gives text; every other column of the
dataset comes as a list; ``trainer_state``, ``log_extra(column, values)`` and ``log_metric(name,
value)`` come besides; None means that the function does not apply to that sample.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import numbers
import reprlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srft.errors import ConfigError, RewardError, RewardNotFinite
from srft.paths import local_path
from srft.rewards.deadline import call_within, too_late
from srft.types import Example

RewardFunction = Callable[..., Any]
_SHORT = reprlib.Repr()
_MOST_RETRIED = 512
_SHORT.maxstring = _SHORT.maxother = 120


def load_function(
    path: str, arguments: Mapping[str, Any] | None = None, what: str = "reward function"
) -> RewardFunction:
    """The function at ``path.py:name`` or ``package.module:name``; with `arguments`, what it
    returns when called with them. ``what`` it is in messages.

    Raises: ConfigError where the file, module or name does not exist or cannot be imported.
    """
    place, _, name = path.rpartition(":")
    module: Any
    try:
        file = local_path(place)
        # Its neighbours can be imported, behind whatever is installed.
        beside = str(file.resolve().parent if place.endswith(".py") else Path.cwd())
        if beside not in sys.path:
            sys.path.append(beside)
        if place.endswith(".py"):
            module = _module_from_file(file, f"{what} {path!r}")
        else:
            module = importlib.import_module(place)
        function = functools.reduce(getattr, name.split("."), module)
    except ConfigError:
        raise
    except AttributeError as error:
        raise ConfigError(f"{what} {path!r}: {place} has no {name!r}") from error
    except Exception as error:
        raise ConfigError(
            f"{what} {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if arguments is not None:
        try:
            function = function(**arguments)
        except Exception as error:
            raise ConfigError(
                f"{what} {path!r} called with {dict(arguments)}: {type(error).__name__}: {error}"
            ) from error
    if not callable(function):
        raise ConfigError(f"{what} {path!r} is not callable: {_SHORT.repr(function)}")
    return function


def _module_from_file(file: Path, what: str) -> Any:
    if not file.is_file():
        raise ConfigError(f"{what}: there is no file {file.resolve()}")
    spec = importlib.util.spec_from_file_location(f"srft_reward_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look modules up by name
    spec.loader.exec_module(module)
    return module


def source_digest(path: str) -> str:
    """Sixteen hexadecimal digits of the file that holds the function at ``path`` (as for ``load_function``):
    what was scored by it before it was edited is not what it would say now."""
    place = path.rpartition(":")[0]
    if place.endswith(".py"):
        file: Path | None = local_path(place)
    else:
        found = importlib.util.find_spec(place)
        file = Path(found.origin) if found is not None and found.origin else None
    if file is None or not file.is_file():
        return ""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def function_name(function: RewardFunction) -> str:
    """What TRL calls it in metrics: its name, that of the wrapped function, or its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def is_async(function: RewardFunction) -> bool:
    """Whether calling it gives a coroutine (functions, partials and callable objects)."""
    while isinstance(function, functools.partial):
        function = function.func
    call = type(function).__call__ if not inspect.isroutine(function) else function
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


@dataclass(frozen=True)
class Batch:
    """Completions to score together. token_ids is None where the caller has no tokens, environments
    where the completions were not made in any. known: columns that some row of the data has, in this batch
    or not."""

    examples: Sequence[Example]
    completions: Sequence[str]
    token_ids: Sequence[Sequence[int]] | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    environments: Sequence[Any] | None = None
    known: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.completions)

    def only(self, i: int) -> Batch:
        """The batch of sample `i` alone."""
        ids = None if self.token_ids is None else [self.token_ids[i]]
        acted = None if self.environments is None else [self.environments[i]]
        return Batch([self.examples[i]], [self.completions[i]], ids, self.extras, acted, self.known)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments TRL would call a reward function with."""
        prompts: list[Any] = []
        completions: list[Any] = []
        for example, text in zip(self.examples, self.completions, strict=True):
            if isinstance(example.prompt, str):
                prompts.append(example.prompt)
                completions.append(text)
            else:
                prompts.append([dict(message) for message in example.prompt])
                said = getattr(text, "messages", ({"role": "assistant", "content": text},))
                completions.append([dict(message) for message in said])
        own = dict.fromkeys(name for example in self.examples for name in example.columns)
        # A function may use up a list that it is given: every completion has its own, as in TRL.
        values: dict[str, Any] = {
            name: [_own(example.columns.get(name)) for example in self.examples]
            for name in (*own, *self.known)
            if name in own or name != "answer"
        }
        if "answer" in self.known or any(e.answer is not None for e in self.examples):
            values.setdefault("answer", [answers_of(example) for example in self.examples])
        values |= self.extras
        values |= {"prompts": prompts, "completions": completions}
        if self.token_ids is not None:
            values["completion_ids"] = [list(ids) for ids in self.token_ids]
        if self.environments is not None:
            values["environments"] = list(self.environments)
        return values


def _own(value: Any) -> Any:
    return copy.deepcopy(value) if isinstance(value, list | dict | set) else value


def answers_of(example: Example) -> str | list[str] | None:
    """The answer, or the list of all that are right."""
    others = example.other_answers
    return [str(example.answer), *others] if others else example.answer


def _fitted(
    function: RewardFunction, values: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """`values` without what the signature has no room for, and what it asks for that is not there."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built-ins without a signature
        return dict(values), []
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in values]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(values), missing
    return {p.name: values[p.name] for p in named if p.name in values}, missing


def prepare(function: RewardFunction, batch: Batch) -> Callable[[], Any]:
    """The call, ready to make. Raises: RewardError where it asks for columns there are not."""
    values = batch.arguments()
    accepted, missing = _fitted(function, values)
    if missing:
        ours = {"prompts", "completions", "completion_ids", "environments", *batch.extras}
        columns = sorted(set(values) - ours)
        tokens = (
            " (no token ids are available in this check)" if "completion_ids" in missing else ""
        )
        raise RewardError(
            f"reward function {function_name(function)} needs {', '.join(missing)}{tokens}; "
            f"{batch.examples[0].source} has the columns {', '.join(columns) or 'none'}"
        )
    return functools.partial(function, **accepted)


def columns_of(examples: Sequence[Example]) -> list[str]:
    """What functions are given by keyword of any of ``examples``: their columns, and ``answer``."""
    names = dict.fromkeys(name for example in examples for name in example.columns)
    answered = any(example.answer is not None for example in examples)
    return [*names, *(["answer"] if answered and "answer" not in names else [])]


def checked(function: RewardFunction, batch: Batch, output: Any) -> list[float | None]:
    """`output` as one float or None per sample. Raises: RewardError where it is not that."""
    name = function_name(function)
    try:
        rewards = list(output)
    except TypeError:
        rewards = None
    if rewards is None or isinstance(output, str | bytes | Mapping):
        raise RewardError(
            f"reward function {name} returned {_SHORT.repr(output)}: expected a list of "
            f"{len(batch)} numbers or None{_where(batch)}"
        )
    if len(rewards) != len(batch):
        raise RewardError(
            f"reward function {name} returned {len(rewards)} rewards for {len(batch)} completions"
            f"{_where(batch)}; it must return one for each"
        )
    return [_number(name, value, batch, i) for i, value in enumerate(rewards)]


def _number(name: str, value: Any, batch: Batch, i: int) -> float | None:
    if value is None:
        return None
    # Tensors and numpy scalars of one element are numbers to TRL as well.
    if not isinstance(value, numbers.Real) and hasattr(value, "item") and _is_single(value):
        value = value.item()
    with contextlib.suppress(OverflowError):  # 10**400
        if isinstance(value, numbers.Real) and math.isfinite(value):
            return float(value)
    kind = RewardNotFinite if isinstance(value, numbers.Real) else RewardError
    raise kind(
        f"reward function {name} returned {_SHORT.repr(value)} for {batch.examples[i].source}: "
        f"expected a finite number or None. The completion was {_SHORT.repr(batch.completions[i])}"
    )


def _is_single(value: Any) -> bool:
    return math.prod(getattr(value, "shape", ())) == 1


def _where(batch: Batch) -> str:
    sources = [example.source for example in batch.examples]
    if not sources:
        return ""
    last = f" to {sources[-1]}" if len(sources) > 1 else ""
    return f" (from {sources[0]}{last})"


def run_functions(
    functions: Mapping[str, RewardFunction],
    batch: Batch,
    runner: AsyncRunner,
    timeout_s: float | None = None,
) -> dict[str, list[float | None]]:
    """Rewards of every function for every sample; the async ones are awaited together. timeout_s:
    wall-clock seconds for each call (all async ones count as one); None: no limit.

    Raises: RewardError naming the function and the sample where one fails.
    """
    if not len(batch):
        return {label: [] for label in functions}
    calls = {label: prepare(function, batch) for label, function in functions.items()}
    outputs: dict[str, Any] = {}
    waiting = [label for label, function in functions.items() if is_async(function)]
    for label, call in calls.items():
        if label not in waiting:
            try:
                what = f"reward function {label}{_where(batch)}"
                outputs[label] = call_within(timeout_s, what, call)
            except RewardError:
                raise
            except (Exception, SystemExit) as error:
                raise _failure(functions[label], batch, error, runner, timeout_s) from error
    if waiting:
        try:
            results = runner.run([calls[label] for label in waiting], timeout_s)
        except TimeoutError:
            what = f"reward functions {', '.join(waiting)}{_where(batch)}"
            raise too_late(what, timeout_s) from None
        for label, result in zip(waiting, results, strict=True):
            if isinstance(result, BaseException):
                raise _failure(functions[label], batch, result, runner, timeout_s) from result
            outputs[label] = result
    return {
        label: checked(function, batch, outputs[label]) for label, function in functions.items()
    }


def _failure(
    function: RewardFunction,
    batch: Batch,
    error: BaseException,
    runner: AsyncRunner,
    timeout_s: float | None,
) -> RewardError:
    """What a user is told when their function raises. The samples are tried one at a time, within the
    same limit, so that the message names the one the function cannot take, if it is one."""

    def culprit() -> Batch:
        for i in range(len(batch)) if len(batch) <= _MOST_RETRIED else ():
            single = batch.only(i)
            if type(_error_of(function, single, runner)) is type(error):
                return single
        return batch

    with contextlib.suppress(RewardError):
        batch = call_within(timeout_s, "the search for the sample", culprit)
    return RewardError(
        f"reward function {function_name(function)} raised {type(error).__name__}: {error}"
        f"{_where(batch)}; the completion was {_SHORT.repr(batch.completions[0])}"
    )


def _error_of(function: RewardFunction, batch: Batch, runner: AsyncRunner) -> BaseException | None:
    call = prepare(function, batch)
    try:
        result = runner.run([call])[0] if is_async(function) else call()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any error is the answer sought
        return error
    return result if isinstance(result, BaseException) else None


class AsyncRunner:
    """An event loop in a thread of its own, so that async rewards work in notebooks (where a loop
    already runs) and keep their connections from one call to the next."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def run(self, calls: Sequence[Callable[[], Any]], timeout_s: float | None = None) -> list[Any]:
        """Await all calls at once; results, or the exceptions they raised, in order.

        Raises: TimeoutError after ``timeout_s``; what was not done is cancelled."""

        async def gather() -> list[Any]:
            async def one(call: Callable[[], Any]) -> Any:
                return await call()

            return await asyncio.gather(*map(one, calls), return_exceptions=True)

        awaited = asyncio.run_coroutine_threadsafe(gather(), self._running())
        try:
            return awaited.result(timeout_s)
        finally:
            awaited.cancel()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=self._loop.run_forever, name="async-rewards", daemon=True
                ).start()
            return self._loop

    def close(self) -> None:
        """Stop the loop. Idempotent."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None
