"""The file that holds every judged sample of an evaluation, so that nothing is done twice.

JSONL: the first line holds the settings that every sample was made under, each further line one
sample. Lines are only ever appended, one flush per batch, so a run that is killed loses at most the
samples that were being judged; a torn last line is dropped on the next start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from srft.errors import ConfigError, DataError
from srft.evaluation.results import Sample
from srft.runs.files import jsonl_lines, to_json

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One judged sample of one problem. ``prompt`` is a digest of the prompt's tokens: a sample
    drawn from another prompt (a changed chat template) is not taken for this problem's."""

    id: str
    prompt: str
    sample: Sample


class Journal:
    """Append-only store of judged samples; a context manager. Without a path it only remembers."""

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        """Open or continue the file at ``path``.

        Raises:
            ConfigError: the file was made under other settings.
            DataError: the file is not such a journal.
        """
        self.path = None if path is None else Path(path)
        self._entries: dict[tuple[str, str, int], Sample] = {}
        self._file: IO[str] | None = None
        if self.path is None:
            return
        settings = json.loads(json.dumps(settings))  # tuples become lists, as when read back
        self.path.parent.mkdir(parents=True, exist_ok=True)
        continued = self._read(self.path, settings)
        self._file = self.path.open("a", encoding="utf-8")
        if not continued:
            self._write([{"format": FORMAT, "settings": settings}])

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was judged stays readable."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, problem: str, prompt: str, index: int) -> Sample | None:
        """Sample ``index`` of a problem, or None where it has not been judged."""
        return self._entries.get((problem, prompt, index))

    def add(self, entries: Iterable[Entry]) -> None:
        """Remember judged samples and write them out."""
        lines = []
        for e in entries:
            self._entries[e.id, e.prompt, e.sample.index] = e.sample
            line = {"id": e.id, "prompt": e.prompt, **asdict(e.sample)}
            if e.sample.messages is None:  # as nearly always
                del line["messages"]
            lines.append(line)
        self._write(lines)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        if self._file is not None:
            self._file.write("".join(to_json(line) + "\n" for line in lines))
            self._file.flush()

    def _read(self, path: Path, settings: Mapping[str, Any]) -> bool:
        """Read what is there; False where there is nothing to continue."""
        if not path.exists():
            return False
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the last line was torn when the run was killed
            with path.open("r+b") as file:
                file.truncate(whole)
        lines = jsonl_lines(path)
        _, header = next(lines, (1, None))
        if header is None:
            return False
        if data[:whole].count(b"\n") == 1 and isinstance(header, Mapping) and "settings" in header:
            path.write_bytes(b"")  # begun, and no sample was judged: nothing binds to its settings
            return False
        _check_settings(path, header, settings)
        for number, row in lines:
            try:
                if isinstance(row, ValueError):
                    raise row
                key = row.pop("id"), row.pop("prompt"), row["index"]
                self._entries[key] = Sample(**row)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not a scored sample ({error}). Remove that line, or the "
                    "file to evaluate again."
                ) from error
        return True


def _check_settings(
    path: Path, header: Mapping[str, Any] | ValueError, settings: Mapping[str, Any]
) -> None:
    if isinstance(header, ValueError) or not {"settings", "format"} <= header.keys():
        raise DataError(
            f"{path}:1: not a file of evaluation samples. Choose another output folder."
        )
    there, version = header["settings"], header["format"]
    if version != FORMAT:
        raise DataError(f"{path}:1: format {version}, this version reads {FORMAT}.")
    keys = sorted({*there, *settings})
    changed = [k for k in keys if there.get(k) != settings.get(k)]
    if changed:
        listed = "; ".join(f"{k}: {there.get(k)!r} there, {settings.get(k)!r} now" for k in changed)
        raise ConfigError(
            f"{path} holds samples made under other settings ({listed}). Choose another output "
            "folder, or remove the file to evaluate again."
        )
