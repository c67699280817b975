"""Collects what is wrong with rows, so that a user sees ten problems at once and not one a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from srft.errors import DataError

logger = logging.getLogger("srft.data")

SHOWN = 10
InvalidRows = Literal["error", "drop", "refuse"]
"""``data.invalid_rows``; ``refuse``: as error, where there is no such setting to go on with."""


def quoted(names: Iterable[str]) -> str:
    """The names of columns for a message, at most twenty of them."""
    listed = [f"`{name}`" for name in names]
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return (", ".join(listed[:20]) + more) or "none"


class RowError(Exception):
    """One row cannot be used; caught within this package and collected, never seen by users."""


def repeated(names: Sequence[str]) -> list[str]:
    """Names that stand more than once, sorted."""
    return sorted({name for name in names if names.count(name) > 1})


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``object_pairs_hook`` for json.loads, which by itself keeps the last value of a name that stands twice.
    Raises RowError for such a name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = quoted(repeated([name for name, _ in pairs]))
        raise RowError(f"an object has {twice} more than once; keep one, or rename the other")
    return found


class Problems:
    """The problems of one source: the first ten as text, and how many rows there were in all."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.count = 0
        self.shown: list[str] = []

    def add(self, where: str, what: str) -> None:
        """Note that the row at ``where`` (``file:row``) cannot be used."""
        self.count += 1
        if len(self.shown) < SHOWN:
            # A name that the row gave may hold half a surrogate pair, which no log can be written with.
            line = f"{where}: {what}".encode("utf-8", "backslashreplace").decode()
            self.shown.append(line)

    @contextmanager
    def collect(self, where: str) -> Iterator[None]:
        """Note a RowError raised inside as a problem of the row at ``where``."""
        try:
            yield
        except RowError as error:
            self.add(where, str(error))

    def settle(self, kept: int, policy: InvalidRows, fix: str | None = None) -> None:
        """Raise DataError if there were problems, or log them where ``policy`` is ``drop``.

        ``kept`` is the number of good rows; with none left, DataError is raised in any case.
        ``fix`` says what to do, where it is something else than fixing the rows.
        """
        if not self.count:
            return
        total = self.count + kept
        lines = [
            f"{self.source}: {self.count:,} of {total:,} rows cannot be used:",
            *(f"  {line}" for line in self.shown),
        ]
        if self.count > len(self.shown):
            lines.append(f"  and {self.count - len(self.shown):,} more")
        if fix is not None:
            raise DataError("\n".join([*lines, fix]))
        if kept == 0:
            lines.append("No row is left. Fix the rows, or name other columns in data.columns.")
            raise DataError("\n".join(lines))
        if policy != "drop":
            go_on = f", or set data.invalid_rows: drop to continue with the {kept:,} good rows."
            raise DataError("\n".join([*lines, f"Fix them{go_on if policy == 'error' else '.'}"]))
        logger.warning("%s", "\n".join([*lines, "They are left out (data.invalid_rows: drop)."]))
