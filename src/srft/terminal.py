"""What a terminal is shown: characters that command it are shown as escapes (``\\u001b``).

Texts of models and of data hold whatever somebody put there: a sequence that sets the window's title,
clears the screen, writes the clipboard or lets a line read backwards. They reach a terminal through a
`Terminal` (all of rich's output: tables, live view, error messages) or through the streams that `guard`
puts in place of stdout and stderr (JSON, warnings, logs and tracebacks of ours and of libraries).
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# C0 without tab and line feed, DEL, C1, directions of writing, separators of lines, half surrogates.
_COMMANDS = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
_UNSAFE = re.compile(_COMMANDS)
# Of libraries that write to a stream themselves: colours, and what redraws a progress bar's line.
_COLOUR_OR_COMMAND = re.compile(rf"(\x1b\[[\d;]*m|\x1b\[\d*[AK]|\r)|{_COMMANDS}")


def visible(text: str) -> str:
    """``text`` with every character that commands a terminal as an escape; also inside of JSON."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


class Terminal(Console):
    """Rich's console; what it renders is `visible`, the codes are its own.

    carries_on: where whoever reads the output is gone, the work goes on unseen; else the process ends.
    """

    carries_on = False

    def on_broken_pipe(self) -> None:
        if not self.carries_on:
            super().on_broken_pipe()
        self.quiet = True

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            unsafe = not segment.control and _UNSAFE.search(segment.text)
            yield Segment(visible(segment.text), segment.style) if unsafe else segment

    @property
    def file(self) -> Any:
        stream = super().file
        return stream.guarded if isinstance(stream, _Guarded) else stream

    @file.setter
    def file(self, new_file: Any) -> None:
        Console.file.fset(self, new_file)  # type: ignore[attr-defined]


class _Guarded:
    """A stream for everybody but rich."""

    def __init__(self, stream: TextIO) -> None:
        self.guarded = stream

    def write(self, text: str) -> int:
        self.guarded.write(_COLOUR_OR_COMMAND.sub(lambda m: m[1] or _escape(m), text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guarded, name)


class _Formatter(logging.Formatter):
    """Of warnings that no handler has asked for."""

    def format(self, record: logging.LogRecord) -> str:
        from srft.secrets import redact

        return visible(redact(super().format(record)))


def guard() -> None:
    """Guard what this process writes to stdout and stderr from here on. Idempotent."""
    if not isinstance(sys.stdout, _Guarded):
        sys.stdout = _Guarded(sys.stdout)
    if not isinstance(sys.stderr, _Guarded):
        sys.stderr = _Guarded(sys.stderr)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Formatter())
