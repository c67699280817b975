"""Which files of a folder hold which split, as ``datasets`` reads them off their names or README.md."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from srft.data.files import READERS
from srft.errors import DataError, did_you_mean

TRAIN_SPLITS = ("train", "training")
EVAL_SPLITS = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_ABOUT = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_FRONT = re.compile(r"---\s*\n(.*?)\n---\s*(\n|\Z)", re.S)

FilesBySplit = dict[str, list[Path]]
"""Under "" are those of no split."""


def is_saved(folder: Path) -> bool:
    """Whether it is a ``datasets.Dataset`` on the disk, or several."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def data_files(folder: Path) -> list[Path]:
    """A folder's files of rows. What is hidden is no data, nor what runs and evaluations have written.

    Raises DataError for one that is compressed: without it, what is left could be another split."""
    made = {
        path.parent for name in ("environment.json", "tables.md") for path in folder.rglob(name)
    }
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(map(_is_hidden, path.relative_to(folder).parts))
        if made.isdisjoint(path.parents) and path.is_file() and path.name not in _ABOUT
    ]
    for path in files:
        inner = path.with_suffix("")
        if path.suffix in _PACKED and inner.suffix.lower() in READERS and not inner.exists():
            raise DataError(f"{path}: is compressed; unpack it, or name one file")
    return [path for path in files if path.suffix.lower() in READERS]


def _is_hidden(part: str) -> bool:
    return part.startswith((".", "__"))


def configuration(folder: Path, subset: str | None) -> Path | FilesBySplit:
    """The part of a folder that ``data.subset`` names: a folder, or files as README.md describes them.

    A folder in which there is nothing to choose is read as a file is, whatever was named for other sources.
    Raises DataError where it names none, or where one has to be named.
    """
    described = dict(_described(folder))
    usual = "default" if "default" in described else None
    name = subset or (next(iter(described)) if len(described) == 1 else usual)
    if name in described:
        return described[name]
    if subset is None and described:
        raise DataError(
            f"{folder}: README.md describes the configurations {', '.join(described)}; say which: "
            "data.subset (data.eval_subset)"
        )
    if subset is None or subset == "default":
        return folder
    if (folder / subset).is_dir():
        return folder / subset
    below = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    known = [*described, *(name for name in below if not _is_hidden(name) and not split_word(name))]
    if not known:
        return folder
    raise DataError(
        f"{folder}: data.subset (or data.eval_subset) is `{subset}`, which is no configuration in README.md "
        f"and no subfolder{did_you_mean(subset, known)}; `default` stands for the folder as it is"
    )


def _described(folder: Path) -> Iterator[tuple[str, FilesBySplit]]:
    """The configurations of which README.md names files that are here; the default one by that name too."""
    for config in _front_matter(folder / "README.md").get("configs") or ():
        root = folder / str(config.get("data_dir") or "")
        named = config.get("data_files")
        found = _resolved(root, named) if named else by_name(root) if root.is_dir() else {}
        if found:
            yield str(config.get("config_name", "default")), found
            if config.get("default") is True:
                yield "default", found


def _front_matter(path: Path) -> Mapping[str, Any]:
    try:
        front = _FRONT.match(path.read_text(encoding="utf-8"))
        read = yaml.safe_load(front[1]) if front else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    configs = read.get("configs") if isinstance(read, dict) else None
    good = isinstance(configs, list) and all(isinstance(config, dict) for config in configs)
    return {"configs": configs} if good else {}


def _resolved(root: Path, named: Any) -> FilesBySplit:
    """``data_files`` of a configuration: patterns, or patterns by split, of files that are here."""
    if not isinstance(named, list) or not all(isinstance(part, dict) for part in named):
        named = [{"split": "train", "path": named}]
    here = set(data_files(root)) if root.is_dir() else set()
    found: FilesBySplit = {}
    for part in named:
        patterns = part.get("path")
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            names = glob.glob(str(pattern), root_dir=root, recursive=True)  # noqa: PTH207 - refuses none
            files = here.intersection(root / name for name in names)
            found.setdefault(str(part.get("split", "train")), []).extend(files)
    return {split: sorted(set(files)) for split, files in found.items() if files}


def by_name(folder: Path) -> FilesBySplit:
    """The files of a folder by the splits that their names or their subfolders tell."""
    splits: FilesBySplit = {}
    for path in data_files(folder):
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    return splits


def _split_of(path: Path) -> str:
    """The split of a file: the whole of NAME in NAME-00000-of-00002 (``test_sft``), else a word in its
    name, else in that of a folder; "" where there is none."""
    *folders, name = path.parts
    shard = _SHARD.match(name)
    if shard and (folders == ["data"] or split_word(shard[1])):
        return shard[1]
    return next(filter(None, map(split_word, (path.stem, *folders))), "")


def split_word(name: str) -> str:
    """The first word of a name that means a split (``gsm8k_test.v2``: test), or ""."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((word for word in words if word in TRAIN_SPLITS or word in EVAL_SPLITS), "")


def pick_split(source: str, names: Sequence[str], split: str | None, prefer: Sequence[str]) -> str:
    """The split that is named, or else the first of ``prefer``, or the only one whose name has such a
    word, or the only one. Raises DataError where there is none, or a choice."""
    if split is not None:
        if split in names:
            return split
        raise DataError(f"{source}: has no split `{split}`; it has {', '.join(names)}")
    for name in (*prefer, *(names if len(names) == 1 else ())):
        if name in names:
            return name
    alike = [name for name in names if split_word(name) in prefer]
    if len(alike) == 1:
        return alike[0]
    raise DataError(
        f"{source}: has the splits {', '.join(names)}; say which: data.split (data.eval_split)"
    )


def pick_files(
    splits: FilesBySplit, source: str, split: str | None, prefer: Sequence[str]
) -> list[Path]:
    """The files to read. Beside files for evaluation, those of no split are the training data."""
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    names = [name for name in splits if name]
    if split is None and "" in splits and not set(prefer) & set(map(split_word, names)):
        if prefer is TRAIN_SPLITS:
            return splits[""]
        raise DataError(
            f"{source}: no file is named for an evaluation ({', '.join(EVAL_SPLITS)}); name a file, or a "
            "split by data.eval_split"
        )
    return splits[pick_split(source, names, split, prefer)]
