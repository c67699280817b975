"""``make docs``: configuration.md from the config's own descriptions, metrics.md from the registry of
metrics."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from srft.config import SRFTConfig
from srft.runs.files import markdown_grid, write_whole
from srft.runs.metrics import GROUPS

_INTRO = """# Configuration

A recipe is a YAML file with the sections below; every setting can be replaced on the command line as
`section.key=value`, in a list by its place (`stages.0.steps=50`), and `srft train recipe.yaml --dry-run`
prints what results. A section given as a mapping changes the settings that it names (`train={steps: 5}`); any
other mapping is replaced. A value is YAML, but ` #` begins no comment there, and keys are text (`on: lab`).
Unknown keys are refused, with the nearest known one named. This page is generated (`make docs`).
"""


def metrics_tables(page: str) -> str:
    """docs/metrics.md, a table for each group of the registry between its two marks."""
    parts = []
    for group, found in GROUPS.items():
        rows = [(f"`{m.key}`{' *' * m.spread}", m.title, m.unit, m.meaning) for m in found]
        parts.append(
            f"### {group}\n\n{markdown_grid(('key', 'title', 'unit', 'meaning'), rows)}\n\n"
        )
    begin, end = "<!-- from the registry -->\n", "<!-- end -->"
    head, _, rest = page.partition(begin)
    return f"{head}{begin}\n{''.join(parts)}{end}{rest.partition(end)[2]}"


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
    text = re.sub(
        r"Annotated\[(\w+), FieldInfo\(.*?\)\]\)\]", r"\1", text
    )  # limits stand in the text
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
    docs = Path(__file__).parent
    write_whole(docs / "configuration.md", reference())
    metrics = docs / "metrics.md"
    write_whole(metrics, metrics_tables(metrics.read_text(encoding="utf-8")))
