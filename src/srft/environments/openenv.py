"""Environments of OpenEnv (the package openenv-core) on the contract of ``toolbox.py``.

Guess = openenv_environment("http://localhost:8000", GuessAction, name="Guess")

Facts as of openenv-core 0.2.1.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from srft.errors import ConfigError

_OWN_FIELDS = ("reward", "done", "metadata")


def openenv_environment(
    connect: str | Callable[[], Any],
    action: type,
    *,
    name: str = "OpenEnv",
    tool: str = "step",
    reset_columns: Sequence[str] = ("seed", "episode_id"),
    show: Callable[[Any], str] | None = None,
    total: Callable[[list[float]], float] = sum,
) -> type:
    """A class for ``environment_factory`` and ``environment.factory``, with one tool.

    Args:
        connect: the address of a server, or what makes a client (``lambda: MyEnv(base_url=...)``) or an
            ``Environment`` in this process. Called once for each rollout under way.
        action: the subclass of ``Action`` whose fields are the tool's arguments, with their descriptions.
        name: of the class and of its reward.
        tool: the tool's name.
        reset_columns: the columns of a row that ``reset`` is given, where the row has them.
        show: an observation as text for the model; none: its only field, or its fields as JSON.
        total: the reward of a rollout from those of its steps, in order.

    Raises:
        ConfigError: openenv-core is not installed, or ``action`` is none of its actions.
    """
    try:
        from openenv.core import GenericEnvClient
        from openenv.core.env_server.types import Action
    except ImportError as error:
        raise ConfigError(
            f"an OpenEnv environment needs the package openenv-core ({error}): pip install openenv-core"
        ) from error
    if not (isinstance(action, type) and issubclass(action, Action)):
        raise ConfigError(f"{name}: action must be a subclass of OpenEnv's Action, not {action!r}")

    def make() -> Any:
        return GenericEnvClient(base_url=connect) if isinstance(connect, str) else connect()

    def step(self: _Environment, **arguments: Any) -> str:
        return self._step(action(**arguments))

    _describe(step, action, tool)
    members = {
        "_make": staticmethod(make),
        "_show": staticmethod(show or _text),
        "_total": staticmethod(total),
        "_reset_columns": tuple(reset_columns),
        tool: step,
    }
    return type(name, (_Environment,), members)


class _Environment:
    """One client; an episode from each ``reset``."""

    _make: Callable[[], Any]
    _show: Callable[[Any], str]
    _total: Callable[[list[float]], float]
    _reset_columns: tuple[str, ...]

    def __init__(self) -> None:
        self._client = self._make()
        self._rewards: list[float] = []
        self._done = False

    def reset(self, **row: Any) -> str | None:
        asked = {key: row[key] for key in self._reset_columns if row.get(key) is not None}
        result = self._client.reset(**asked)
        self._rewards, self._done = [], bool(result.done)
        text = self._show(getattr(result, "observation", result))
        return f"\n{text}" if text else None

    def get_reward(self) -> float:
        return float(self._total(self._rewards))

    def _step(self, action: Any) -> str:
        if self._done:
            raise RuntimeError("the episode is over")
        result = self._client.step(action)
        self._done = bool(result.done)
        self._rewards.append(float(result.reward or 0.0))
        return self._show(getattr(result, "observation", result))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # a server that is gone has no session to close
            self._client.close()


def _describe(step: Any, action: Any, tool: str) -> None:
    """Gives ``step`` the types and the docstring that ``get_json_schema`` reads."""
    fields = {key: f for key, f in action.model_fields.items() if key not in _OWN_FIELDS}
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if f.is_required() else f.get_default(),
            annotation=f.annotation,
        )
        for key, f in fields.items()
    ]
    step.__signature__ = inspect.Signature([own, *named], return_annotation=str)
    step.__annotations__ = {**{key: f.annotation for key, f in fields.items()}, "return": str}
    lines = [f"    {key}: {f.description or key}" for key, f in fields.items()]
    about = inspect.cleandoc(action.__doc__ or tool)
    step.__doc__ = "\n".join([about, "", "Args:", *lines] if lines else [about])
    step.__name__ = step.__qualname__ = tool


def _text(observation: Any) -> str:
    plain = isinstance(observation, Mapping)
    values = observation if plain else observation.model_dump(mode="json")
    kept = {key: value for key, value in values.items() if key not in _OWN_FIELDS}
    if len(kept) == 1 and isinstance(value := next(iter(kept.values())), str):
        return value
    return json.dumps(kept) if kept else ""
