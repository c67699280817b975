"""Names of files and folders as people write them."""

from __future__ import annotations

from pathlib import Path


def at_home(argument: str) -> str:
    """``--out=~/x`` and ``'~/x'`` with the home folder, which no shell has put there."""
    option, sign, value = (
        argument.rpartition("=") if argument.startswith("-") else ("", "", argument)
    )
    return f"{option}{sign}{local_path(value)}" if value.startswith("~/") else argument


def local_path(text: str | Path) -> Path:
    """``text`` as a path, with ``~`` for the home folder; a name that only begins with ``~`` is kept."""
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:  # no user of that name
        return path
