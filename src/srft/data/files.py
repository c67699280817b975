"""Reads JSONL, JSON, CSV and Parquet into rows that know their line or row number."""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from srft.data.messages import without_fillers
from srft.data.row_errors import Problems, RowError, named_once, quoted, repeated
from srft.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Row:
    """One row and where it stands: ``where`` is ``file:row``, counted from 1.

    The number is the line for JSONL and CSV (the first line of the row), the element for JSON and
    the row for Parquet.
    """

    where: str
    values: Mapping[str, Any]


# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (b"", "UTF-16LE"),
)


def _check_text(path: Path) -> None:
    """DataError for what is empty, binary or in another encoding than one that extends ASCII."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    if not head.strip():
        raise DataError(f"{path}: the file is empty; it needs at least one row")
    name = next(name for mark, name in _MARKS if head.startswith(mark))
    if name != "UTF-16LE" or b"\0" in head:
        raise DataError(
            f"{path}: holds NUL bytes or the mark of {name}: it is {name}, compressed or binary. "
            f"Unpack it, or convert it: iconv -f {name} -t UTF-8 {path.name} > new{path.suffix}"
        )


def _not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return (
        f"byte 0x{byte:02x} is not UTF-8; the file is probably Latin-1 or Windows-1252. "
        f"Convert it: iconv -f CP1252 -t UTF-8 {path.name} > new{path.suffix}"
    )


def _text(path: Path) -> str:
    """The whole file, decoded, without a byte-order mark."""
    _check_text(path)
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: {_not_utf8(path, error)}") from None


def _parse(text: str) -> Any:
    """JSON, or ValueError with a short reason: nesting and huge numbers have their own errors. RowError for a
    name that stands twice."""
    try:
        return json.loads(text, object_pairs_hook=named_once)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered as an editor does.

    Only a newline ends a line: ``str.splitlines`` would also split at U+2028 inside a JSON string.
    """
    _check_text(path)
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                problems.add(f"{path}:{number}", _not_utf8(path, error))


def _object(value: Any, where: str, problems: Problems) -> Iterator[Row]:
    if isinstance(value, dict):
        yield Row(where, value)
    else:
        problems.add(
            where,
            f"is a JSON {type(value).__name__}, not an object with named columns; write "
            '{"prompt": ..., "demonstration": ..., "answer": ...}',
        )


def read_jsonl(path: Path, problems: Problems) -> Iterator[Row]:
    """One JSON object per line; blank lines are skipped, broken ones become problems."""
    for number, line in _lines(path, problems):
        where = f"{path}:{number}"
        try:
            value = _parse(line)
        except RowError as error:
            problems.add(where, str(error))
            continue
        except ValueError as error:
            problems.add(
                where, f"this line is not JSON: {_reason(error)}; each line must be one object"
            )
            continue
        yield from _object(value, where, problems)


def read_json(path: Path, problems: Problems) -> Iterator[Row]:
    """A list of objects, or an object whose ``data`` is that list; JSONL named .json, too."""
    text = _text(path)
    try:
        value = _parse(text)
    except RowError as error:
        raise DataError(f"{path}: {error}") from None
    except ValueError as error:
        first, _, rest = text.strip().partition("\n")
        if rest and _is_object(first):
            yield from read_jsonl(path, problems)
            return
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{path}{line}: this is not JSON: {_reason(error)}. The file must be one list of "
            "objects (or one object per line, then name it .jsonl)"
        ) from None
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        found = f"an object with {quoted(value)}" if isinstance(value, dict) else repr(value)[:60]
        raise DataError(
            f'{path}: holds {found}; it must be a list of objects, or {{"data": [...]}} with that '
            "list inside"
        )
    for number, element in enumerate(value, start=1):
        yield from _object(element, f"{path}:{number}", problems)


def _is_object(text: str) -> bool:
    try:
        return isinstance(_parse(text), dict)
    except (RowError, ValueError):
        return False


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters a field (it is global, so put it back)."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_csv(path: Path, problems: Problems) -> Iterator[Row]:
    """Comma-separated with a header; an empty field is null."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    with _long_fields():
        try:
            header = _header(next(reader, []), path)
            while True:
                line = reader.line_num + 1
                fields = next(reader, None)
                if fields is None:
                    return
                if not fields:  # a blank line
                    continue
                where = f"{path}:{line}"
                if len(fields) != len(header):
                    problems.add(
                        where,
                        f"has {len(fields)} fields and the header has {len(header)}; put quotes "
                        "around fields with commas or line breaks",
                    )
                    continue
                values = (field if field.strip() else None for field in fields)
                yield Row(where, dict(zip(header, values, strict=True)))
        except csv.Error as error:
            raise DataError(
                f"{path}:{line}: the row that begins here is not CSV: {error}. A quote inside a "
                'quoted field is written twice ("")'
            ) from None


def _header(header: list[str], path: Path) -> list[str]:
    names = [name.strip() for name in header]
    if twice := repeated(names):
        raise DataError(
            f"{path}:1: the header names {quoted(twice)} more than once; rename the columns"
        )
    if "" in names:
        raise DataError(
            f"{path}:1: column {names.index('') + 1} of the header has no name; the first line must"
            " name every column"
        )
    if len(names) == 1:
        other = next((mark for mark in ";\t|" if mark in names[0]), None)
        if other is not None:
            raise DataError(
                f"{path}:1: the header is one column, {names[0]!r}: the file seems to be separated "
                f"by {other!r}. Save it with commas"
            )
    return names


def read_parquet(path: Path, problems: Problems) -> Iterator[Row]:
    """Rows of a Parquet file as plain Python values, read a thousand at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # OSError: truncated pages; ValueError, OverflowError: values Python has no type for.
    broken = (pa.ArrowException, OSError, ValueError, OverflowError)
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except broken as error:
        raise DataError(
            f"{path}: this is not a Parquet file ({_first_line(error)}). An interrupted download or"
            " a Git LFS pointer looks like this: fetch the file again"
        ) from None
    if twice := repeated(names):
        raise DataError(f"{path}: has {quoted(twice)} more than once; rename the columns")
    number = 0
    try:
        for batch in file.iter_batches(batch_size=1000):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path}:{number}", without_fillers(values))
    except broken as error:
        raise DataError(
            f"{path}: cannot be read after row {number:,} ({_first_line(error)}). The file is "
            "damaged or holds text that is not UTF-8: write or fetch it again"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


READERS: dict[str, Callable[[Path, Problems], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
}


def read_file(path: Path, problems: Problems, limit: int | None = None) -> list[Row]:
    """The first ``limit`` rows of a file. Raises DataError if it cannot be read at all."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: files ending in {path.suffix or 'nothing'} are not read; convert to one of "
            f"{', '.join(READERS)}"
        )
    try:
        return list(islice(reader(path, problems), limit))
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror or error}") from None


def missing_file(path: Path) -> DataError:
    """The error for a path that is not there, with the nearest names in its folder."""
    folder = path.parent
    if not folder.is_dir():
        return DataError(f"{path}: no such file, and there is no folder {folder} either")
    names = [entry.name for entry in folder.iterdir()]
    hint = did_you_mean(path.name, names, f"; look into the folder {folder}", most=3)
    return DataError(f"{path}: no such file{hint}")
