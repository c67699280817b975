"""From a source (hub id, folder, file, Python object) to validated Examples."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.data import reasoning_gym
from srft.data.files import READERS, Row, missing_file, read_file
from srft.data.folders import (
    EVAL_SPLITS,
    TRAIN_SPLITS,
    by_name,
    configuration,
    data_files,
    is_saved,
    pick_files,
    pick_split,
    split_word,
)
from srft.data.formats import choose_format, seen_columns, to_example
from srft.data.messages import (
    begins_response,
    check_characters,
    check_demonstrations,
    check_prompt,
    check_text,
    is_coded,
    without_fillers,
)
from srft.data.row_errors import InvalidRows, Problems
from srft.errors import DataError
from srft.paths import local_path
from srft.types import Example

if TYPE_CHECKING:
    from srft.data.data_config import DataConfig


LAB_SOURCES = ("lab", "lab-hard")
LAB_TRAIN_ROWS = 4096
LAB_EVAL_ROWS_PER_FAMILY = 100
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Splits:
    """What ``load_splits`` returns: ``eval`` maps a name to examples (empty: no evaluation).
    ``notes`` say of each source which of its columns were used for what."""

    train: list[Example]
    eval: dict[str, list[Example]]
    notes: tuple[str, ...] = ()


def load_examples(
    source: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    invalid_rows: InvalidRows = "error",
    seed: int = 0,
    evaluation: bool = False,
    notes: list[str] | None = None,
) -> list[Example]:
    """Read ``source`` and check every row.

    source: a hub dataset id, a local folder, a .jsonl, .json, .parquet or .csv file, or
        ``lab`` or ``lab-hard`` for the built-in tasks (``split`` "train" or "eval", made from ``seed``).
    split: of a hub dataset or folder; None takes ``train`` where there is one, with ``evaluation``
        the first of ``test``, ``validation`` and the like.
    columns: ``data.columns``: {"prompt" | "demonstration" | "answer" | "system": column or dotted
        path}.
    limit: read the first ``limit`` rows.
    invalid_rows: "error", or "drop" to leave bad rows out and log them.
    notes: receives a line on which columns were used for what, and which were not.

    Raises DataError naming ``file:row``, what is wrong and how to fix it.
    """
    prefer = EVAL_SPLITS if evaluation else TRAIN_SPLITS
    if source in LAB_SOURCES:
        return _convert(_lab(source, split, limit, seed, prefer), None, source, "error", notes)
    if source.startswith(reasoning_gym.PREFIX):
        rows = _labelled(source, reasoning_gym.rows_of(source, limit, seed))
        return _convert(rows, None, source, "error", notes)
    problems = Problems(source)
    path = local_path(source)
    if path.is_dir():
        rows = _folder(path, subset, split, limit, prefer, problems, notes)
    elif path.is_file():
        rows = read_file(path, problems, limit)
    elif path.suffix.lower() in READERS or not _HUB_ID.fullmatch(source):
        raise missing_file(path)
    else:
        rows = _hub(source, subset, split, limit, prefer)
    return _convert(rows, columns, problems, invalid_rows, notes)


def as_examples(
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    invalid_rows: InvalidRows = "error",
    notes: list[str] | None = None,
) -> list[Example]:
    """Examples from Python: a ``datasets.Dataset``, a list of dicts or of Examples, or a source
    name as for ``load_examples``. The same formats and checks as for files; row numbers in errors
    count from 1. Raises DataError."""
    if isinstance(data, (str, Path)):
        return load_examples(
            str(data), columns=columns, limit=limit, invalid_rows=invalid_rows, notes=notes
        )
    if isinstance(data, Mapping):
        raise DataError(
            f"the data is one mapping with the keys {', '.join(map(str, data))}; give a list of "
            'rows, and of a DatasetDict one split, for example data["train"]'
        )
    table = hasattr(data, "with_format") and hasattr(data, "column_names")
    if table:
        data = _plain_rows(data)
    if isinstance(data, (bytes, bytearray)) or not isinstance(data, Iterable):
        raise DataError(
            f"the data is of type {type(data).__name__}; give a list of dicts, a list of Example, a"
            " datasets.Dataset or the name of a file"
        )
    items = list(itertools.islice(data, limit))
    if items and all(isinstance(item, Example) for item in items):
        return _check_examples(items, invalid_rows)
    problems = Problems("the data")
    rows = []
    for number, item in enumerate(items, start=1):
        if isinstance(item, Mapping):
            rows.append(Row(f"row {number}", without_fillers(item) if table else item))
        else:
            problems.add(
                f"row {number}", f"is of type {type(item).__name__}; a row is a dict of columns"
            )
    return _convert(rows, columns, problems, invalid_rows, notes)


def load_splits(config: DataConfig, seed: int = 0) -> Splits:
    """Everything ``data`` asks for: the training examples and the named evaluation sets.

    ``seed`` decides which rows ``eval_fraction`` holds out, and makes the lab's problems.
    """
    notes: list[str] = []
    train: list[Example] = []
    for source in [config.train] if isinstance(config.train, str) else config.train:
        train += load_examples(
            source,
            split=config.split,
            subset=config.subset,
            columns=_roles(config.columns),
            limit=config.limit,
            invalid_rows=config.invalid_rows,
            seed=seed,
            notes=notes,
        )
    return with_evaluation(train, config, seed, notes)


def with_evaluation(
    train: list[Example], config: DataConfig, seed: int, notes: list[str]
) -> Splits:
    """Training examples, and beside them the evaluation sets that ``data`` names or holds out of them."""
    if config.eval_fraction > 0:
        splits = _hold_out(train, config.eval_fraction, seed)
    else:
        named = _named(config.eval).items()
        sets = {name: evaluation_set(source, config, seed, notes) for name, source in named}
        splits = Splits(train, sets)
    return replace(splits, notes=tuple(notes))


def evaluation_set(source: str, config: DataConfig, seed: int, notes: list[str]) -> list[Example]:
    """The problems of one source, as ``data`` says evaluation data are read."""
    return load_examples(
        source,
        split=config.eval_split,
        subset=config.eval_subset or config.subset,
        columns=_roles(config.columns if config.eval_columns is None else config.eval_columns),
        limit=config.eval_limit,
        invalid_rows=config.invalid_rows,
        seed=seed,
        evaluation=True,
        notes=notes,
    )


def _roles(columns: Mapping[Any, str]) -> dict[str, str]:
    return {str(role): path for role, path in columns.items()}


def _hold_out(examples: list[Example], fraction: float, seed: int) -> Splits:
    count = max(1, round(fraction * len(examples)))
    if count >= len(examples):
        raise DataError(
            f"data.eval_fraction = {fraction} of {len(examples)} rows leaves none to train on"
        )
    held = set(random.Random(f"{seed}/eval").sample(range(len(examples)), count))
    train = [example for row, example in enumerate(examples) if row not in held]
    return Splits(train, {"heldout": [examples[row] for row in sorted(held)]})


def _named(sources: str | list[str] | dict[str, str] | None) -> dict[str, str]:
    if sources is None:
        return {}
    if isinstance(sources, dict):
        return dict(sources)
    named: dict[str, str] = {}
    for source in [sources] if isinstance(sources, str) else sources:
        # What stands after a question mark are settings of generated problems.
        path = Path(source.partition("?")[0].removeprefix(reasoning_gym.PREFIX))
        stem = path.stem if path.suffix.lower() in READERS else path.name or source
        name, number = stem, 2
        while name in named:
            name, number = f"{stem}-{number}", number + 1
        named[name] = source
    return named


def _convert(
    rows: Sequence[Row],
    columns: Mapping[str, str] | None,
    problems: Problems | str,
    invalid_rows: InvalidRows,
    notes: list[str] | None,
) -> list[Example]:
    problems = Problems(problems) if isinstance(problems, str) else problems
    if not rows:
        problems.settle(0, invalid_rows)
        raise DataError(f"{problems.source}: there are no rows; at least one is needed")
    form = choose_format([row.values for row in rows], columns, problems.source)
    examples: list[Example] = []
    for row in rows:
        with problems.collect(row.where):
            examples.append(to_example(row.values, form, row.where))
    problems.settle(len(examples), invalid_rows)
    if notes is not None:
        notes.append(f"{problems.source}: {form.describe(seen_columns(r.values for r in rows))}")
        notes += [f"{problems.source}: {text}" for text in _doubts(examples)]
    return examples


def _doubts(examples: Sequence[Example]) -> list[str]:
    """What was read as it stands but may have been meant otherwise."""
    doubts = []
    coded = [e for e in examples if isinstance(e.prompt, str) and is_coded(e.prompt)]
    if len(coded) > len(examples) / 2:
        doubts.append(
            f"{len(coded):,} of {len(examples):,} prompts look like JSON and are used as they are, such "
            f"as {str(coded[0].prompt)[:80]!r} ({coded[0].source}); if the question is a "
            "part of it, write that part into its own column"
        )
    filled = [e for e in examples if not isinstance(e.prompt, str) and begins_response(e.prompt)]
    if filled:
        doubts.append(
            f"{len(filled):,} prompts end with a message of the assistant ({filled[0].source}): "
            "responses continue it"
        )
    return doubts


def _check_examples(items: Sequence[Example], invalid_rows: InvalidRows) -> list[Example]:
    problems = Problems("the examples")
    good: list[Example] = []
    for number, item in enumerate(items, start=1):
        where = f"row {number}" if item.source == "<memory>" else item.source
        with problems.collect(where):
            demonstrations = check_demonstrations(item.demonstrations, "`demonstrations`")
            if item.answer is not None:
                check_text(item.answer, "`answer`")
            check_characters(item.tools, "`tools`")
            prompt = check_prompt(item.prompt, "`prompt`")
            good.append(
                replace(item, prompt=prompt, demonstrations=tuple(demonstrations), source=where)
            )
    problems.settle(len(good), invalid_rows)
    return good


def source_files(source: str) -> list[Path]:
    """The local files that a source names, those of all splits of a folder; none where it is no path."""
    path = local_path(source)
    if source in LAB_SOURCES or source.startswith(reasoning_gym.PREFIX):
        return []
    if path.is_dir():
        return (
            sorted(p for p in path.rglob("*") if p.is_file())
            if is_saved(path)
            else data_files(path)
        )
    return [path] if path.is_file() else []


def _folder(
    folder: Path,
    subset: str | None,
    split: str | None,
    limit: int | None,
    prefer: Sequence[str],
    problems: Problems,
    notes: list[str] | None,
) -> list[Row]:
    part = configuration(folder, subset)
    if isinstance(part, Path) and is_saved(part):
        return _saved_dataset(part, split, limit, prefer)
    splits = by_name(part) if isinstance(part, Path) else part
    if not splits:
        raise DataError(f"{part}: holds no data; files ending in {', '.join(READERS)} are read")
    files = pick_files(splits, str(folder), split, prefer)
    left = sorted(path for name in splits for path in splits[name] if path not in files)
    alike = prefer is TRAIN_SPLITS and any(
        split_word(name) in TRAIN_SPLITS for name in splits if splits[name] != files
    )
    if notes is not None and left and ("" in splits or (split is None and alike)):
        names = ", ".join(str(path.relative_to(folder)) for path in left)
        notes.append(f"{folder}: not read, by their names: {names}")
    kinds = {path.suffix.lower() for path in files}
    if len(kinds) > 1:
        raise DataError(
            f"{folder}: holds several kinds of files ({', '.join(sorted(kinds))}); name one file, "
            "or put the files of one dataset into their own folder"
        )
    rows: list[Row] = []
    for path in files:
        rows += read_file(path, problems, None if limit is None else limit - len(rows))
        if limit is not None and len(rows) >= limit:
            break
    return rows


def _labelled(label: str, rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [Row(f"{label}:{number}", row) for number, row in enumerate(rows, start=1)]


def _plain_rows(dataset: Any) -> Any:
    """The ``datasets.Dataset`` with plain Python values of the columns that its ``set_format`` shows, or
    with what its ``set_transform`` makes of them."""
    shown = getattr(dataset, "format", {})  # a stream has none
    if shown.get("type") == "custom":
        return dataset
    more = {key: shown[key] for key in ("columns", "output_all_columns") if key in shown}
    return dataset.with_format(None, **more)


def _rows_of(dataset: Any, label: str, limit: int | None) -> list[Row]:
    rows = itertools.islice(_plain_rows(dataset), limit)
    return _labelled(label, map(without_fillers, rows))


def _saved_dataset(
    folder: Path, split: str | None, limit: int | None, prefer: Sequence[str]
) -> list[Row]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: looks like a dataset saved with save_to_disk but cannot be loaded: {error}"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[pick_split(str(folder), list(loaded), split, prefer)]
    return _rows_of(loaded, str(folder), limit)


def _hub(
    source: str, subset: str | None, split: str | None, limit: int | None, prefer: Sequence[str]
) -> list[Row]:
    import datasets

    try:
        loaded = datasets.load_dataset(source, name=subset)
    except datasets.exceptions.DatasetNotFoundError as error:
        if "gated" in str(error):
            raise DataError(
                f"{source}: access to this dataset is restricted. Accept its terms at "
                f"https://huggingface.co/datasets/{source} with your account, then log in with "
                "`hf auth login` and start again"
            ) from None
        raise DataError(
            f"{source}: no such file or folder here, and no such dataset on the hub (or it is "
            f"private: log in with `hf auth login`). The hub says: {error}"
        ) from None
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        offline = isinstance(error, ConnectionError) or os.environ.get("HF_HUB_OFFLINE") == "1"
        hint = (
            "There is no connection to the hub and no copy in the cache. Download the dataset "
            f"where there is one (`hf download --repo-type dataset {source} --local-dir data`) "
            "and give the folder instead, or check the path if you meant a local file"
            if offline
            else "Check data.subset and data.split, or download the files and give the folder"
        )
        raise DataError(f"{source}: cannot be loaded from the hub: {error}. {hint}") from None
    name = pick_split(source, list(loaded), split, prefer)
    return _rows_of(loaded[name], f"{source}[{name}]", limit)


def _lab(
    source: str, split: str | None, limit: int | None, seed: int, prefer: Sequence[str]
) -> list[Row]:
    from srft.lab.data import lab_eval, lab_train

    chosen = pick_split(source, ["train", "eval"], split, prefer)
    if chosen == "train":
        rows = lab_train(LAB_TRAIN_ROWS if limit is None else limit, seed, source)
    else:
        rows = lab_eval(LAB_EVAL_ROWS_PER_FAMILY, seed, tasks=source)
        if limit is not None:
            # Families stand one after the other: take the rows evenly, not the first family only.
            step = max(1.0, len(rows) / limit)
            rows = [rows[int(k * step)] for k in range(min(limit, len(rows)))]
    return _labelled(f"{source}[{chosen}]", rows)
