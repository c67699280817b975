"""``python -m srft.reference FILE``: docs/configuration.md, made from the config's own descriptions."""

from __future__ import annotations

import re
import sys
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from srft.config import SRFTConfig
from srft.runs.files import markdown_grid

_INTRO = """# Configuration

A recipe is a YAML file with the sections below; every setting can be replaced on the command line as
`section.key=value`, and `srft train recipe.yaml --dry-run` prints what results. Unknown keys are
refused, with the nearest known one named. This page is generated (`make docs`).
"""


def reference() -> str:
    """The page as Markdown: a table for each section, nested sections after their parent."""
    parts = [_INTRO]
    todo: list[tuple[str, type[BaseModel]]] = [("", SRFTConfig)]
    while todo:
        name, model = todo.pop(0)
        title = f"`{name}`" if name else "Top level"
        about = " ".join((model.__doc__ or "").split())
        rows = []
        for key, field in model.model_fields.items():
            text = (f"`{key}`", _type(field.annotation), _default(field), field.description or "")
            rows.append(text)
            nested = _nested(field.annotation)
            path = f"{name}.{key}" if name else key
            if nested is not None and not any(nested is seen for _, seen in todo):
                todo.append((path, nested))
        grid = markdown_grid(("key", "type", "default", "what it is"), rows)
        parts.append(f"## {title}\n\n{about}\n\n{grid}\n")
    return "\n".join(parts)


def _type(annotation: Any) -> str:
    if isinstance(annotation, type):
        return annotation.__name__
    text = str(annotation).replace("typing.", "").replace("Literal", "")
    # A class by its own name, wherever it stands.
    return re.sub(r"\bsrft(?:\.\w+)*\.(\w+)", r"\1", text).replace("NoneType", "None")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        made = field.default_factory()  # type: ignore[call-arg]
        models = made.values() if isinstance(made, dict) else [made]
        shown_below = made and all(isinstance(model, BaseModel) for model in models)
        return "see below" if shown_below else f"`{made}`"
    assert field.default is not PydanticUndefined
    return "" if field.default is None else f"`{field.default!r}`"


def _nested(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *typing.get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
