"""What all sections of a recipe have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """Unknown keys are refused, numbers that are not finite, and ``true`` where a number belongs (Python
    takes it for 1)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        kinds = set(_kinds(field.annotation))
        if (
            not kinds.isdisjoint((int, float))
            and kinds.isdisjoint((bool, Any))
            and _has_bool(value)
        ):
            raise ValueError(f"is {str(value).lower()}, which is not a number; write one")
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
