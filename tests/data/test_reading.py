import csv
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from srft.data.data_config import DataConfig
from srft.data.folders import by_name, configuration, split_word
from srft.data.reading import as_examples, load_examples, load_splits
from srft.errors import DataError

ROW = {"prompt": "3 + 4?", "demonstration": "3 + 4 = 7", "answer": "7"}


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def refusal(source, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_examples(str(source), **options)
    return str(caught.value)


def test_the_same_rows_load_from_every_kind_of_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [ROW, {"prompt": 'a "b", c\nd é \u2028 e', "demonstration": None, "answer": None}]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"version": 1, "data": rows}), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(ROW))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "lines.json").write_bytes((tmp_path / "a.jsonl").read_bytes())

    def bare(source):
        return [(e.prompt, e.demonstrations, e.answer) for e in load_examples(str(source))]

    expected = [(r.prompt, r.demonstrations, r.answer) for r in as_examples(rows)]
    names = ("a.jsonl", "a.json", "b.json", "a.parquet", "a.csv", "lines.json")
    assert {name: bare(tmp_path / name) for name in names} == dict.fromkeys(names, expected)


def test_row_numbers_are_those_an_editor_shows(tmp_path):
    path = tmp_path / "x.jsonl"
    good = json.dumps(ROW)
    path.write_text(f'{good}\n\n{{"prompt": "a\u2028b"}}\n{{"prompt": }}\n\n5\n', encoding="utf-8")
    message = refusal(path)
    assert f"{path}:4: this line is not JSON" in message
    assert f"{path}:6: is a JSON int" in message
    assert "2 of 4 rows" in message
    kept = load_examples(str(path), invalid_rows="drop")
    assert [e.source for e in kept] == [f"{path}:1", f"{path}:3"]
    table = tmp_path / "x.csv"
    table.write_text('prompt,answer\n"two\nlines",1\n\n"  ",2\n', encoding="utf-8")
    assert f"{table}:5: `prompt` is null" in refusal(table)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_byte_order_marks_are_understood(tmp_path, encoding, name):
    text = {
        "a.jsonl": json.dumps({"prompt": "é?"}, ensure_ascii=False) + "\n",
        "a.json": json.dumps([{"prompt": "é?"}], ensure_ascii=False),
        "a.csv": "prompt\né?\n",
    }[name]
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert [e.prompt for e in load_examples(str(tmp_path / name))] == ["é?"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_other_encodings_are_refused_with_a_command_that_converts_them(tmp_path, name):
    text = {
        "a.jsonl": '{"prompt": "é?"}\n',
        "a.json": '[{"prompt": "é?"}]',
        "a.csv": "prompt\né?\n",
    }
    for encoding in ("utf-16", "utf-32", "utf-16-le"):
        path = tmp_path / name
        path.write_bytes(text[name].encode(encoding))
        command = refusal(path).partition("convert it: ")[2]
        assert command.startswith("iconv -f UTF-")
        if shutil.which("iconv"):
            subprocess.run(command, shell=True, check=True, cwd=tmp_path)
            new = tmp_path / f"new{path.suffix}"
            assert [e.prompt for e in load_examples(str(new))] == ["é?"]


def test_tab_separated_files_say_what_to_convert_to(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("prompt\tanswer\na\t1\n")
    assert "files ending in .tsv are not read; convert to one of" in refusal(path)
    path.rename(tmp_path / "a.csv")
    assert "separated by '\\t'" in refusal(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_latin_1_says_how_to_convert(tmp_path, name):
    path = tmp_path / name
    text = {"a.jsonl": '{"prompt":\n"é"}', "a.json": '[{"prompt":\n"é"}]', "a.csv": "prompt\né\n"}
    path.write_bytes(text[name].encode("latin-1"))
    message = refusal(path)
    assert f"{path}:2: byte 0xe9 is not UTF-8" in message and "iconv -f CP1252" in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "", "the file is empty"),
        ("a.json", " \n", "the file is empty"),
        ("a.csv", "", "the file is empty"),
        ("a.csv", "prompt,answer\n", "there are no rows"),
        ("a.json", "[]", "there are no rows"),
        ("a.json", '{"rows": 1}', "holds an object with `rows`"),
        ("a.json", '[{"prompt": "a"},\n {"prompt": ]', "a.json:2: this is not JSON"),
        ("a.json", "7", "holds 7"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.jsonl", "[" * 100_000, "not JSON"),
        ("a.jsonl", '{"prompt": ' + "9" * 5000 + "}", "not JSON"),
        ("a.csv", "prompt,prompt\na,b\n", "more than once"),
        (
            "a.jsonl",
            '{"prompt": "a", "prompt": "b"}',
            "a.jsonl:1: an object has `prompt` more than once",
        ),
        (
            "a.jsonl",
            '{"prompt": [{"role": "user", "content": "a", "content": "b"}]}',
            "has `content` more than once",
        ),
        ("a.json", '[{"prompt": "a", "prompt": "b"}]', "has `prompt` more than once"),
        (
            "a.csv",
            'prompt,answer\n"[{""role"": ""user"", ""content"": ""a"", ""content"": ""b""}]",1\n',
            "a.csv:2: an object has `content` more than once",
        ),
        ("a.csv", "prompt,\na,b\n", "column 2 of the header has no name"),
        ("a.csv", "prompt;answer\na;b\n", "separated by ';'"),
        ("a.csv", "prompt,answer\na,b,c\n", "a.csv:2: has 3 fields and the header has 2"),
        ("a.csv", 'prompt\nfine\n"never closed\n', "a.csv:3: the row that begins here is not CSV"),
        ("a.parquet", "version https://git-lfs", "not a Parquet file"),
        ("a.txt", "prompt", "files ending in .txt are not read"),
        ("noending", "prompt", "files ending in nothing are not read"),
    ],
)
def test_broken_files_are_data_errors(tmp_path, name, content, words):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert words in refusal(tmp_path / name)


def test_parquet_with_text_that_is_not_utf8_and_repeated_columns(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([b"ok", b"\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": raw}), tmp_path / "a.parquet")
    assert "cannot be read after row" in refusal(tmp_path / "a.parquet")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(twice, tmp_path / "b.parquet")
    assert "`prompt` more than once" in refusal(tmp_path / "b.parquet")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_row_of_ten_megabytes_loads(tmp_path, name):
    long = "word " * 2_000_000
    text = json.dumps({"prompt": long}) if name == "a.jsonl" else f'prompt\n"{long}"\n'
    (tmp_path / name).write_text(text, encoding="utf-8")
    before = csv.field_size_limit()
    assert load_examples(str(tmp_path / name))[0].prompt == long
    assert csv.field_size_limit() == before


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path / "a.jsonl", ROW, ROW, {"prompt": None})
    assert len(load_examples(path, limit=2)) == 2


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path / "train.jsonl", ROW)
    assert "did you mean 'train.jsonl'?" in refusal(tmp_path / "trian.jsonl")
    assert "there is no folder" in refusal(tmp_path / "nowhere" / "a.jsonl")


def test_folders_are_read_by_split(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", {"prompt": "a"})
    write(tmp_path / "train-00001-of-00002.jsonl", {"prompt": "b"})
    (tmp_path / "test").mkdir()
    write(tmp_path / "test" / "x.jsonl", {"prompt": "c"})
    (tmp_path / "README.md").write_text("not data")

    def prompts(**options):
        return [example.prompt for example in load_examples(str(tmp_path), **options)]

    assert prompts() == ["a", "b"]
    assert prompts(split="test") == ["c"]
    assert prompts(limit=1) == ["a"]
    assert "has no split `dev`; it has test, train" in refusal(tmp_path, split="dev")


MEANING = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation",
           "testing": "test", "eval": "test", "evaluation": "test"}  # fmt: skip
WORDS = [("train", "test"), ("training", "dev"), ("train", "val"), ("train", "evaluation")]
BEFORE = ["", "gsm8k_", "gsm8k-", "gsm8k.", "my ", "v2", "latest", "devtools_"]
AFTER = ["", "_v2", ".en", " set", "7", "ing-day"]
SHARD = "-00000-of-00001"
HIDDEN = [".ipynb_checkpoints/train-checkpoint.jsonl", "__MACOSX/train.jsonl", "x/.train.jsonl"]
LAYOUTS = [
    *([f"{holder}{before}{word}{after}.jsonl" for word in WORDS[0]]
      for before, after, holder in itertools.product(BEFORE, AFTER, ["", "data/"])),
    *([f"sub/{before}{word}{after}{SHARD}.jsonl" for word in WORDS[0]]
      for before, after in itertools.product(BEFORE, AFTER)),
    *([f"{word}.jsonl" for word in words] for words in WORDS),
    *([f"{before}{word}/part.jsonl" for word in words]
      for words, before in itertools.product(WORDS, BEFORE)),
    *([f"data/{name}{SHARD}.jsonl" for name in names]
      for names in (["train_sft", "train_gen", "test_sft", "test_gen"], ["algebra", "test"],
                    ["gsm8k_train", "gsm8k_test"], ["algebra", "geometry"])),
    *([f"{folder}algebra{SHARD}.jsonl", f"{folder}geometry{SHARD}.jsonl"] for folder in ("", "a/")),
    ["data/train/algebra.jsonl", "data/train/geometry.jsonl", "data/test/algebra.jsonl"],
    ["train/part-0.jsonl", "dev/part-0.jsonl", "test/part-0.jsonl"],
    ["algebra.jsonl", "geometry.jsonl"],
    *(["train.jsonl", path] for path in HIDDEN),
]  # fmt: skip


def made(folder, paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write(folder / path, {"prompt": path})
    return folder


def of_datasets(folder, subset=None):
    """The splits as ``datasets`` reads them, and the prompts of each."""
    import datasets

    builder = datasets.load_dataset_builder(str(folder), subset, cache_dir=str(folder / ".cache"))
    return {
        str(split): sorted(str(Path(path).relative_to(folder)) for path in files)
        for split, files in builder.config.data_files.items()
    }


def of_srft(folder, subset=None, by_word=False):
    part = configuration(folder, subset)
    names = by_name(part) if isinstance(part, Path) else part
    found = {}
    for name in names:
        word = (by_word and split_word(name)) or name
        read = load_examples(str(folder), subset=subset, split=name or None)
        found.setdefault(MEANING.get(word, word) or "train", []).extend(e.prompt for e in read)
    return {name: sorted(prompts) for name, prompts in found.items()}


@pytest.mark.parametrize("paths", LAYOUTS, ids=lambda paths: paths[0])
def test_a_folders_splits_are_those_of_datasets(tmp_path, paths):
    folder = made(tmp_path, paths)
    expected = of_datasets(folder)
    assert of_srft(folder, by_word=not paths[0].startswith("data/")) == expected
    notes: list[str] = []
    for evaluation, name in ((False, "train"), (True, "test")):
        if name in expected and len(expected) > 1:
            read = load_examples(str(folder), evaluation=evaluation, notes=notes)
            assert sorted(e.prompt for e in read) == expected[name]
    assert not any("not read" in note for note in notes)


def test_what_datasets_would_mix_or_leave_out_is_asked_about_or_said(tmp_path):
    names = ["train_sft", "train_gen", "test_sft", "test_gen"]
    folder = made(tmp_path / "a", [f"{name}{SHARD}.jsonl" for name in names])
    assert of_srft(folder) == {name: [f"{name}{SHARD}.jsonl"] for name in names}
    assert "has the splits test_gen, test_sft, train_gen, train_sft; say which" in refusal(folder)
    notes: list[str] = []
    folder = made(tmp_path / "b", [f"train{SHARD}.jsonl", f"train_gen{SHARD}.jsonl", "test.jsonl"])
    assert [e.prompt for e in load_examples(str(folder), notes=notes)] == [f"train{SHARD}.jsonl"]
    assert notes[0] == f"{folder}: not read, by their names: test.jsonl, train_gen{SHARD}.jsonl"
    folder = made(tmp_path / "c", [f"train_sft{SHARD}.jsonl", f"test_sft{SHARD}.jsonl"])
    assert [e.prompt for e in load_examples(str(folder))] == [f"train_sft{SHARD}.jsonl"]
    held = load_examples(str(folder), evaluation=True)
    assert [e.prompt for e in held] == [f"test_sft{SHARD}.jsonl"]
    folder = made(tmp_path / "d", ["problems.jsonl"])
    (folder / "dataset_infos.json").write_text('{"default": {}}')
    assert of_srft(folder) == of_datasets(folder) == {"train": ["problems.jsonl"]}


def test_tests_are_not_trained_on_because_the_rest_is_compressed(tmp_path):
    folder = made(tmp_path, ["train.jsonl.gz", "test.jsonl", ".old/train.jsonl.gz"])
    for evaluation in (False, True):
        assert "train.jsonl.gz: is compressed; unpack it" in refusal(folder, evaluation=evaluation)
    write(folder / "train.jsonl", ROW)
    assert [e.prompt for e in load_examples(str(folder))] == [ROW["prompt"]]


README = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-*]
- config_name: socratic
  data_dir: socratic
- config_name: every
  data_files: "**/train-*.jsonl"
- config_name: parts
  data_files:
  - split: hard
    path: "*/tes*.jsonl"
- config_name: elsewhere
  data_files: elsewhere/*.jsonl
---
# About
"""
PARTS = [
    f"{name}/{split}-00000-of-00001.jsonl" for name in ("main", "socratic") for split in WORDS[0]
]


@pytest.mark.parametrize("subset", ["main", "socratic", "every", "parts"])
def test_a_folders_configurations_are_those_of_its_readme(tmp_path, subset):
    folder = made(tmp_path, PARTS)
    (folder / "README.md").write_text(README)
    assert of_srft(folder, subset) == of_datasets(folder, subset)
    found = "main, socratic, every, parts"
    assert f"describes the configurations {found}; say which: data.subset" in refusal(folder)
    assert "subfolder; did you mean 'main'?" in refusal(folder, subset="mian")
    splits = load_splits(DataConfig(train=str(folder), eval=str(folder), subset="main"))
    assert [e.prompt for e in (*splits.train, *splits.eval[folder.name])] == PARTS[:2]
    marked = README.replace("config_name: socratic", "config_name: socratic\n  default: true")
    (folder / "README.md").write_text(marked)
    assert of_srft(folder) == of_datasets(folder) == of_srft(folder, "default")


@pytest.mark.parametrize(
    "readme", [None, "# About", "---\na: [\n---\n", "---\nconfigs: main\n---\n"]
)
def test_a_subset_without_a_description_is_a_subfolder(tmp_path, readme):
    import datasets

    folder = made(tmp_path, PARTS)
    if readme is not None:
        (folder / "README.md").write_text(readme)
    assert of_srft(folder, "main") == {"train": PARTS[:1], "test": PARTS[1:2]}
    assert len(load_examples(str(folder), subset="default")) == 2
    assert len(load_examples(str(folder))) == 2
    assert "`mian`, which is no configuration" in refusal(folder, subset="mian")
    saved = datasets.Dataset.from_list([ROW])
    saved.save_to_disk(folder / "saved")
    assert len(load_examples(str(folder), subset="saved")) == 1
    assert len(load_examples(str(folder / "saved"), subset="x")) == 1


def test_folders_that_leave_a_choice_say_so(tmp_path):
    assert "holds no data" in refusal(tmp_path)
    write(tmp_path / "a.jsonl", ROW)
    assert len(load_examples(str(tmp_path))) == 1
    (tmp_path / "b.csv").write_text("prompt\nx\n")
    assert "several kinds of files (.csv, .jsonl)" in refusal(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    write(other / "dev.jsonl", ROW)
    write(other / "test.jsonl", ROW)
    assert "has the splits dev, test; say which" in refusal(other)


def test_a_dataset_saved_by_datasets_loads(tmp_path):
    import datasets

    train = datasets.Dataset.from_list([ROW, ROW])
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=train.select([0])).save_to_disk(tmp_path / "two")
    assert load_examples(str(tmp_path / "one"))[1].source == f"{tmp_path / 'one'}:2"
    assert len(load_examples(str(tmp_path / "two"))) == 2
    assert len(load_examples(str(tmp_path / "two"), split="test")) == 1


def test_hub_datasets_pick_their_split_and_name_rows(monkeypatch):
    import datasets

    asked = []
    train = datasets.Dataset.from_list([ROW, {**ROW, "prompt": " "}])

    def load(source, name=None):
        asked.append((source, name))
        return datasets.DatasetDict(train=train, test=train.select([0]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_examples("org/set", subset="main", split="test")[0].source == "org/set[test]:1"
    assert asked == [("org/set", "main")]
    assert "org/set[train]:2: `prompt` is empty" in refusal("org/set")
    assert "has no split `dev`; it has train, test" in refusal("org/set", split="dev")


def test_an_unreachable_hub_is_a_data_error_that_says_what_to_do(monkeypatch):
    import datasets

    def load(source, name=None):
        raise ConnectionError(f"Couldn't reach '{source}' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = refusal("org/set")
    assert "no connection to the hub" in message and "give the folder instead" in message

    def missing(source, name=None):
        raise datasets.exceptions.DatasetNotFoundError("doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    assert "no such file or folder here" in refusal("org/set")

    def unknown(source, name=None):
        raise ValueError("Config name is missing. Please pick one of ['main', 'socratic']")

    monkeypatch.setattr(datasets, "load_dataset", unknown)
    assert "'main', 'socratic'" in refusal("org/set")


def test_the_lab_is_a_source_like_any_other():
    pytest.importorskip("srft.lab.data")
    train = load_examples("lab", limit=20)
    assert len(train) == 20
    assert all(e.demonstrations and e.answer and e.columns["family"] for e in train)
    assert train == load_examples("lab", limit=20)
    assert train != load_examples("lab", limit=20, seed=1)
    held = load_examples("lab", split="eval", limit=27)
    assert len(held) == 27
    assert len({e.columns["family"] for e in held}) > 6
    assert "has no split `dev`; it has train, eval" in refusal("lab", split="dev")


def test_splits_come_from_other_sources_or_are_held_out(tmp_path):
    rows = [{"prompt": f"p{i}"} for i in range(10)]
    train = write(tmp_path / "train.jsonl", *rows)
    other = write(tmp_path / "other.jsonl", ROW, ROW)
    splits = load_splits(DataConfig(train=[train, other], eval=[other, other], eval_limit=1))
    assert len(splits.train) == 12
    assert {name: len(rows) for name, rows in splits.eval.items()} == {"other": 1, "other-2": 1}
    named = load_splits(DataConfig(train=train, eval={"math": other}))
    assert list(named.eval) == ["math"]
    assert load_splits(DataConfig(train=train)).eval == {}

    config = DataConfig(train=train, eval_fraction=0.3)
    held = load_splits(config, seed=1)
    prompts = [e.prompt for e in (*held.train, *held.eval["heldout"])]
    assert len(held.eval["heldout"]) == 3
    assert sorted(map(str, prompts)) == sorted(row["prompt"] for row in rows)
    assert load_splits(config, seed=1) == held
    assert load_splits(config, seed=2) != held
    single = write(tmp_path / "single.jsonl", ROW)
    with pytest.raises(DataError, match="leaves none to train on"):
        load_splits(DataConfig(train=single, eval_fraction=0.5))


def test_an_evaluation_folder_gives_its_test_split(tmp_path):
    write(tmp_path / "train.jsonl", {"prompt": "a"})
    write(tmp_path / "test.jsonl", {"prompt": "b"})
    splits = load_splits(DataConfig(train=str(tmp_path), eval=str(tmp_path)))
    assert [e.prompt for e in splits.train] == ["a"]
    assert [e.prompt for (rows) in splits.eval.values() for e in rows] == ["b"]


def test_evaluation_data_may_have_other_columns(tmp_path):
    train = write(tmp_path / "a.jsonl", {"problem": "p", "solution": "s"})
    other = write(tmp_path / "b.jsonl", ROW)
    mapping = {"prompt": "problem", "demonstration": "solution"}
    with pytest.raises(DataError, match=r"b\.jsonl: data\.columns\.\w+: no row has a column"):
        load_splits(DataConfig(train=train, eval=other, columns=mapping))
    splits = load_splits(DataConfig(train=train, eval=other, columns=mapping, eval_columns={}))
    assert splits.train[0].demonstrations == ("s",)
    assert splits.eval["b"][0].answer == "7"


def test_files_of_no_split_beside_others_are_what_is_trained_on(tmp_path):
    for name in ("algebra", "geometry", "test"):
        write(tmp_path / f"{name}.jsonl", {"prompt": name})
    notes: list[str] = []
    read = load_examples(str(tmp_path), notes=notes)
    assert [e.prompt for e in read] == ["algebra", "geometry"]
    assert f"{tmp_path}: not read, by their names: test.jsonl" in notes
    held = load_examples(str(tmp_path), evaluation=True, notes=notes)
    assert [e.prompt for e in held] == ["test"]
    assert f"{tmp_path}: not read, by their names: algebra.jsonl, geometry.jsonl" in notes
    assert [e.prompt for e in load_examples(str(tmp_path), split="test")] == ["test"]
    write(tmp_path / "train.jsonl", {"prompt": "train"})
    assert [e.prompt for e in load_examples(str(tmp_path), notes=notes)] == ["train"]
    assert "algebra.jsonl, geometry.jsonl, test.jsonl" in notes[-2]


def test_an_evaluation_set_is_not_taken_from_files_for_training(tmp_path):
    write(tmp_path / "train.jsonl", {"prompt": "a"})
    write(tmp_path / "more.jsonl", {"prompt": "b"})
    with pytest.raises(DataError, match="no file is named for an evaluation"):
        load_examples(str(tmp_path), evaluation=True)


@pytest.mark.parametrize("names", [("train.jsonl",), ("train/a.jsonl", "test/a.jsonl")])
def test_a_subset_for_the_hub_leaves_a_folder_without_any_as_it_is(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, ROW)
    assert len(load_examples(str(tmp_path), subset="main")) == 1
