"""What the shell may offer after the first letters of a ``KEY=VALUE`` argument."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import typer


def complete_setting(ctx: typer.Context, incomplete: str) -> list[str]:
    """Settings that begin so, as ``name=``; after the ``=`` the values, where there is a known set of them.
    ``ctx`` has the words before, since bash takes ``method=gr`` for three words."""
    before = list(ctx.params.get("overrides") or ())
    given = f"{before[-2]}={incomplete}" if before[-1:] == ["="] and before[:-1] else incomplete
    name, equals, _ = given.partition("=")
    names = dict(_settings())
    if not equals:
        return [f"{found}=" for found in names if found.startswith(name)]
    values = [f"{name}={value}" for value in _values(name, names.get(name))]
    return [
        v.removeprefix(given[: len(given) - len(incomplete)]) for v in values if v.startswith(given)
    ]


def _settings(model: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every setting of a recipe; those within lists and mappings are not named."""
    from pydantic import BaseModel

    from srft.config import SRFTConfig

    for key, field in (model or SRFTConfig).model_fields.items():
        kinds = (field.annotation, *typing.get_args(field.annotation))
        listed = typing.get_origin(field.annotation) in (list, dict, tuple)
        section = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if section is None or listed:
            yield prefix + key, field.annotation
        else:
            yield from _settings(section, f"{prefix}{key}.")


def _values(name: str, kind: Any) -> list[str]:
    if name == "method":
        from srft.objective.methods import METHODS

        return sorted(METHODS)
    if kind is bool:
        return ["true", "false"]
    if typing.get_origin(kind) is typing.Literal:
        return [str(value) for value in typing.get_args(kind)]
    parts = [value for part in typing.get_args(kind) for value in _values("", part)]
    return [*parts, "null"] if type(None) in typing.get_args(kind) else parts
