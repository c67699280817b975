"""The formats of a run directory: JSON lines, files written whole, settings as dotted names, tables.

Everything that this package writes for itself or for a person to read goes through here, so that a
process killed at any moment leaves whole files, and whole lines but for the last.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, which can be drawn and compared."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# What JSON leaves as it is: DEL, C1, directions of writing, separators of lines.
_COMMANDS = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def to_json(value: Any, **style: Any) -> str:
    """JSON, which has no NaN and no infinity: null says that a figure does not exist. What would command the
    terminal of whoever reads the file there is escaped. ``style`` goes to ``json.dumps``."""
    options: dict[str, Any] = {"ensure_ascii": False, **style}
    try:
        text = json.dumps(value, allow_nan=False, **options)
    except ValueError:
        text = json.dumps(_finite(value), **options)
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, and its folder where there is none; a process killed meanwhile leaves what was
    there. A lone surrogate, which JSON text may hold and UTF-8 may not, is written as "?"."""
    data = content if isinstance(content, bytes) else content.encode(errors="replace")
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer: two at once must not share a half-written file.
    temporary = path.with_name(f".writing-{os.getpid()}-{threading.get_ident()}-{path.name}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def jsonl_lines(path: Path, growing: bool = True) -> Iterator[tuple[int, Record | ValueError]]:
    """The number and the object of every line that is not blank, or what is wrong with it. Of a
    ``growing`` file a last line that is not whole is passed over: something is writing it, or was
    killed while it did.

    Only a newline ends a line: ``str.splitlines`` would also split at separators that JSON text
    leaves as they are.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            found = _record(line)
            torn = isinstance(found, ValueError) and not line.endswith(b"\n")
            if line.strip() and not (torn and growing):
                yield number, found


def _record(line: bytes) -> Record | ValueError:
    try:
        value = json.loads(line)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error
    if isinstance(value, dict):
        return value
    return ValueError(f"not an object but a {type(value).__name__}")


def read_jsonl(path: Path) -> list[Record]:
    """The object of every whole line of a log, nothing where there is no file; a line that something
    else has damaged is left out (the report says how many these are)."""
    if not path.exists():
        return []
    return [found for _, found in jsonl_lines(path) if not isinstance(found, ValueError)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.key`` -> value, in order; an empty section is nothing."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def markdown_grid(
    head: Sequence[str], rows: Iterable[Sequence[str]], texts: int | None = None
) -> str:
    """A Markdown table; all columns but the first ``texts`` hold numbers and are set to the right."""
    rule = ["---" if texts is None or i < texts else "---:" for i in range(len(head))]
    lines = [[_cell(cell) for cell in row] for row in (head, *rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (lines[0], rule, *lines[1:]))


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text).replace("\n", " ")
