"""What all sections of a recipe have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

LARGEST = 2**62
"""Whole numbers end before it: what is added to one still fits a machine's word."""
_LONGEST_S = 1e9
"""30 years, which every clock and every lock takes for a time to wait."""


class Section(BaseModel):
    """Unknown keys are refused, numbers that are not finite or that no machine holds, and ``true`` where a
    number belongs (Python takes it for 1)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        value = _path_as_text(value)
        field = cls.model_fields[info.field_name or ""]
        kinds = set(_kinds(field.annotation))
        if (
            not kinds.isdisjoint((int, float))
            and kinds.isdisjoint((bool, Any))
            and _has_bool(value)
        ):
            raise ValueError(f"is {str(value).lower()}, which is not a number; write one")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _numbers_fit(cls, value: Any, info: ValidationInfo) -> Any:
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, int) and not -LARGEST < number < LARGEST:
                raise ValueError(f"is {number}; whole numbers end before 2^62")
            seconds = (info.field_name or "").endswith("_s") and isinstance(number, int | float)
            if seconds and number > _LONGEST_S:
                raise ValueError(f"is {number:g} seconds; at most {_LONGEST_S:g} (30 years)")
        return value


def _path_as_text(value: Any) -> Any:
    """Recipes are text: what Python has as a path is written out, also in a list or mapping of such."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple) and any(isinstance(item, PurePath) for item in value):
        return [_path_as_text(item) for item in value]
    if isinstance(value, dict) and any(isinstance(item, PurePath) for item in value.values()):
        return {key: _path_as_text(item) for key, item in value.items()}
    return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types in an annotation, inside out."""
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _has_bool(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value
    inside = items if isinstance(value, (Mapping, list, tuple)) else ()
    return isinstance(value, bool) or any(map(_has_bool, inside))
