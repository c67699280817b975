"""The formats that every room shares: JSON lines, whole files, dotted names, tables."""

from __future__ import annotations

import json
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srft.errors import did_you_mean
from srft.runs.files import (
    flatten,
    is_number,
    jsonl_lines,
    markdown_grid,
    read_jsonl,
    to_json,
    write_whole,
)
from srft.runs.logs import JsonlLog

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_json_is_what_python_reads_back_with_null_for_what_is_not_finite(value):
    def expected(x):
        if isinstance(x, float):
            return x if math.isfinite(x) else None
        if isinstance(x, dict):
            return {k: expected(v) for k, v in x.items()}
        return [expected(v) for v in x] if isinstance(x, list) else x

    text = to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == expected(value)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5), st.data())
def test_a_log_cut_anywhere_gives_its_whole_lines(tmp_path_factory, records, data):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    log = JsonlLog(path)
    ends = []
    for record in records:
        log.write(record)
        ends.append(log.offset)
    log.close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    # A line that lacks nothing but its end is whole.
    expected = sum(cut >= end - 1 for end in ends)
    assert len(read_jsonl(path)) == expected
    assert all(not isinstance(found, ValueError) for _, found in jsonl_lines(path))


def test_damaged_lines_are_numbered_and_what_is_wrong_is_said(tmp_path):
    path = tmp_path / "x.jsonl"
    deep = "[" * 100_000
    path.write_text(f'{{"a": 1}}\n\ngarbage\n[1]\n{deep}\n{{"b": "\u2028"}}\n{{"torn": ')
    found = dict(jsonl_lines(path))
    assert found[1] == {"a": 1} and found[6] == {"b": "\u2028"}
    assert set(found) == {1, 3, 4, 5, 6}
    assert "not an object but a list" in str(found[4]) and "deep" in str(found[5])
    assert read_jsonl(tmp_path / "absent.jsonl") == []


def test_a_resumed_log_goes_on_where_the_checkpoint_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonlLog(path)
    log.write({"step": 1})
    offset = log.offset
    log.write({"step": 2})
    log.close()
    log = JsonlLog(path, offset)
    log.write({"step": 3})
    log.close()
    assert [r["step"] for r in read_jsonl(path)] == [1, 3]


def test_a_file_is_replaced_whole_by_many_writers_at_once(tmp_path):
    path = tmp_path / "folder" / "report.html"
    texts = [str(n) * 200_000 for n in range(6)]
    threads = [threading.Thread(target=write_whole, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "inside").touch()
    with pytest.raises(OSError):
        write_whole(tmp_path / "x", "text")  # a folder that is not empty cannot be replaced
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_settings_become_dotted_names():
    nested = {"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_a_grid_keeps_its_columns_whatever_the_cells_hold():
    grid = markdown_grid(["a", "b"], [["x|y", "1\n2"], ["\\|", "3"]], texts=1)
    assert grid.splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 1 2 |",
        "| \\| | 3 |",
    ]


def test_what_is_a_number():
    assert [is_number(v) for v in (1, 0.5, True, None, "1", math.nan, math.inf)] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip


def test_the_nearest_word_is_named():
    assert did_you_mean("grppo", ["grpo", "sft"]) == "; did you mean 'grpo'?"
    assert did_you_mean("xyz", ["grpo", "sft"], "; known are grpo, sft") == "; known are grpo, sft"
