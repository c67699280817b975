"""Columns as people have them: which is used for what, and that nothing is dropped without a word."""

from __future__ import annotations

import json
import math
import random
from decimal import Decimal

import pytest

from srft.data.reading import as_examples, load_examples
from srft.errors import DataError
from srft.trainer.given import plain_data
from srft.types import Example, Spoken

USER = {"role": "user", "content": "3 + 4?"}
SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": "3 + 4 = 7"}


def one(row: dict, **options) -> Example:
    (example,) = as_examples([row], **options)
    return example


def notes_of(*rows: dict, **options) -> str:
    notes: list[str] = []
    as_examples(rows, notes=notes, **options)
    return "\n".join(notes)


@pytest.mark.parametrize("target", [9, 9.0, Decimal(9), "9", "-1,234.5"])
def test_a_target_that_is_a_number_is_no_demonstration(target):
    example = one({"prompt": "Make 9.", "numbers": [1, 2, 3], "target": target})
    assert example.demonstrations == ()
    assert example.columns == {"numbers": [1, 2, 3], "target": target}


def test_a_target_that_is_text_is_one():
    assert one({"prompt": "p", "target": "3 + 4 = 7"}).demonstrations == ("3 + 4 = 7",)


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "3 + 4?"},
        {"prompt": [USER]},
        {"messages": [USER, REPLY]},
        {"conversations": [{"from": "human", "value": "3 + 4?"}]},
        {"instruction": "3 + 4?", "output": "7"},
        {"question": "3 + 4?", "answer": "x\n#### 7"},
    ],
)
def test_a_system_column_is_the_system_message(row, name):
    assert one({**row, name: "Be brief."}).prompt == (SYSTEM, USER)
    for nothing in (None, "", math.nan):
        rows = as_examples([{**row, name: "Be brief."}, {**row, name: nothing}])
        assert rows[1].prompt == one(row).prompt


def test_two_system_messages_are_refused_unless_they_are_one():
    row = {"messages": [SYSTEM, USER, REPLY]}
    assert one({**row, "system": "Be brief."}).prompt == (SYSTEM, USER)
    with pytest.raises(DataError, match=r"row 1: has a system message .* another in `system`"):
        one({**row, "system": "Be long."})


def test_demonstrations_beside_messages_are_read():
    assert one({"messages": [USER], "demonstration": "d"}).demonstrations == ("d",)
    both = one({"messages": [USER, REPLY], "demonstrations": ["d", "e"]})
    assert both.demonstrations == ("3 + 4 = 7", "d", "e")


@pytest.mark.parametrize(("context", "output"), [("input", "output"), ("context", "response")])
def test_alpacas_and_dollys_columns_load(context, output):
    row = {"instruction": "Add.", context: "3 + 4", output: "7"}
    example = one(row)
    assert (example.prompt, example.demonstrations) == ("Add.\n\n3 + 4", ("7",))
    assert example.columns == {}
    for nothing in ("", None, math.nan):
        rows = as_examples([row, {**row, context: nothing}])
        assert rows[1].prompt == "Add."
    mapped = one({**row, "cot": "3 + 4 = 7"}, columns={"demonstration": "cot"})
    assert (mapped.prompt, mapped.demonstrations) == ("Add.\n\n3 + 4", ("3 + 4 = 7",))


def merged(message: dict, draw: random.Random) -> dict:
    """The message as one of a table that holds both schemas, the other one's keys null."""
    nothing = draw.choice([None, math.nan])
    shared = dict.fromkeys(("from", "value", "tool_calls", "reasoning_content", "name"), nothing)
    if draw.random() < 0.5:
        return {**shared, **message}
    names = {"user": "human", "assistant": "gpt"}
    role = names.get(message["role"], message["role"])
    return {
        "role": nothing,
        "content": nothing,
        **shared,
        "from": role,
        "value": message["content"],
    }


def test_merged_schemas_read_as_what_they_were_merged_from():
    draw = random.Random(3)
    for number in range(200):
        turns = [SYSTEM] if draw.random() < 0.5 else []
        for turn in range(draw.randint(1, 3)):
            turns += [{"role": "user", "content": f"q{number}.{turn}"}]
            turns += [{"role": "assistant", "content": f"a{number}.{turn}"}]
        expected = one({"messages": turns})
        mixed = one({"conversations": [merged(turn, draw) for turn in turns]})
        assert (mixed.prompt, mixed.demonstrations) == (expected.prompt, expected.demonstrations)
        assert not isinstance(mixed.demonstrations[0], Spoken)


@pytest.mark.parametrize(
    "write", [json.dumps, repr, lambda value: " " + json.dumps(value, indent=1)]
)
def test_messages_written_out_as_text_are_messages(write):
    assert one({"prompt": write([SYSTEM, USER])}).prompt == (SYSTEM, USER)
    assert one({"prompt": write(USER)}).prompt == (USER,)
    chat = one({"messages": write([USER, REPLY])})
    assert (chat.prompt, chat.demonstrations) == ((USER,), ("3 + 4 = 7",))
    assert one({"prompt": "p", "target": write([REPLY])}).demonstrations == ("3 + 4 = 7",)


def test_other_json_is_asked_as_it_stands_and_that_is_said():
    row = {"prompt": json.dumps({"question": "3 + 4?"}), "answer": "7"}
    assert one(row).prompt == row["prompt"]
    assert "1 of 1 prompts look like JSON" in notes_of(row) and "(row 1)" in notes_of(row)
    printed = {"prompt": "[{'role': 'system', 'content': 'a'}\n {'role': 'user'}]"}  # as numpy does
    assert "1 of 1 prompts look like JSON" in notes_of(printed)
    assert "JSON" not in notes_of({"prompt": "Sort [3, 1].", "answer": "7"})


def test_thinking_and_tool_calls_of_a_message_are_kept():
    call = {"function": {"name": "add", "arguments": {"a": 3}}}
    for more in ({"reasoning_content": "Add."}, {"thinking": "Add."}, {"tool_calls": [call]}):
        (turn,) = one({"messages": [USER, {**REPLY, **more}]}).demonstrations
        assert turn == "3 + 4 = 7" and turn.messages == ({**REPLY, **more},)
    silent = one({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    assert silent.demonstrations[0].messages[0]["tool_calls"] == [call]
    asked = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    answered = [*asked, {"role": "tool", "content": "7"}]
    assert [m["role"] for m in one({"prompt": answered}).prompt] == ["user", "assistant", "tool"]


def test_numbers_are_written_out_and_keep_their_value():
    draw = random.Random(5)
    for _ in range(2000):
        value = draw.choice([1, -1]) * draw.random() * 10.0 ** draw.randint(-20, 25)
        value = draw.choice([value, float(round(value, 3)), float(int(value))])
        text = one({"prompt": "p", "answer": value}).answer
        assert float(text) == value
        assert "e" not in text or len(repr(value)) < len(format(Decimal(repr(value)), "f"))
        assert "e" not in text or not 1e-15 < abs(value) < 1e30
        exact = Decimal(draw.randint(-(10**9), 10**9)).scaleb(-draw.randint(0, 9))
        assert Decimal(one({"prompt": "p", "answer": exact}).answer) == exact
        whole = draw.randint(-(10**40), 10**40)
        assert one({"prompt": "p", "answer": whole}).answer == str(whole)


@pytest.mark.parametrize(
    ("answer", "text"),
    [(1e-05, "0.00001"), (1e16, "10000000000000000"), (3.0, "3"), (Decimal("2.50"), "2.50"),
     (6.02e23, "602000000000000000000000"), (True, "True"), (math.nan, None), (None, None),
     (Decimal("NaN"), None), ([7], "7"), ((7.5,), "7.5")],
)  # fmt: skip
def test_an_answer_of_any_kind_of_number_is_its_text(answer, text):
    assert one({"prompt": "p", "answer": answer}).answer == text


def test_parquet_files_of_data_frames_read_as_what_was_meant(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "prompt": ["a", "b", "c"],
        "demonstration": ["x", None, "z"],
        "answer": pa.array([3.0, None, math.nan], pa.float64()),
        "price": pa.array([Decimal("2.50")] * 3, pa.decimal128(10, 2)),
        "chat": [[USER, {**REPLY, "name": None}]] * 3,
    }
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    assert [e.answer for e in load_examples(str(path))] == ["3", None, None]
    assert [e.demonstrations for e in load_examples(str(path))] == [("x",), (), ("z",)]
    priced = load_examples(str(path), columns={"answer": "price"})
    assert [e.answer for e in priced] == ["2.50"] * 3


def test_what_each_column_is_used_for_is_said_and_which_is_not():
    row = {"id": 1, "system": "s", "messages": [USER, REPLY], "answer": "7", "level": None}
    line = notes_of(row)
    assert line == (
        "the data: columns used (chat): `messages`: prompt, and the assistant's last turn as "
        "demonstration; `system`: system message; `answer`: answer; for rewards only: `id`"
    )
    graded = {"prompt": "p", "reward_model": {"ground_truth": "7"}, "ability": "math"}
    assert "`reward_model.ground_truth`: answer; for rewards only: `ability`" in notes_of(graded)
    gsm = {"question": "q", "answer": "x #### 1"}
    assert "`answer`: demonstration and answer" in notes_of(gsm)


@pytest.mark.parametrize("name", ["solution", "response", "generations", "output"])
def test_a_column_that_looks_like_demonstrations_is_pointed_out_where_none_are_read(name):
    row = {"prompt": "p", "answer": "7", name: "3 + 4 = 7"}
    assert f"data.columns: {{demonstration: {name}}}" in notes_of(row)
    assert "data.columns" not in notes_of(row, columns={"demonstration": name})
    assert "data.columns" not in notes_of({**row, "demonstration": "d"})
    assert "data.columns" not in notes_of({**row, name: 7})


def test_a_conversation_beside_a_prompt_is_pointed_out_and_can_be_taken():
    row = {"prompt": "3 + 4?", "messages": [USER, REPLY]}
    assert "data.columns: {prompt: messages}" in notes_of(row)
    assert one(row, columns={"prompt": "messages"}).demonstrations == ("3 + 4 = 7",)


def test_one_target_that_is_a_number_among_texts_is_a_demonstration_like_them():
    rows = as_examples([{"prompt": "p", "target": "7"}, {"prompt": "q", "target": "3 + 4 = 7"}])
    assert [e.demonstrations for e in rows] == [("7",), ("3 + 4 = 7",)]


def test_a_system_column_can_be_mapped():
    row = {"problem": "3 + 4?", "how": "Be brief."}
    example = one(row, columns={"prompt": "problem", "system": "how"})
    assert example.prompt == (SYSTEM, USER) and example.columns == {}


def called(name: str, arguments: dict) -> dict:
    """A question that is answered by a call, with the function that is called."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    kinds = {key: {"type": "string", "enum": ["1", None]} for key in arguments}
    needed = {"type": "object", "properties": kinds, "required": [*arguments]}
    return {
        "messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}],
        "tools": [{"type": "function", "function": {"name": name, "parameters": needed}}],
    }


def written(rows: list[dict], folder, kind: str):
    """The rows as a source, or as data in Python."""
    import datasets
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    table = datasets.Dataset.from_list(rows)
    if kind == "saved":
        table.save_to_disk(folder / "saved")
    return {
        "parquet": str(path),
        "saved": str(folder / "saved"),
        "dataset": table,
        "stream": table.to_iterable_dataset(),
        "transformed": table.with_transform(lambda columns: columns),
        "frame": plain_data(pd.read_parquet(path)),
    }[kind]


@pytest.mark.parametrize("kind", ["parquet", "saved", "dataset", "stream", "transformed", "frame"])
def test_nulls_of_a_tables_schema_are_no_arguments_and_no_parameters(tmp_path, kind):
    rows = [
        called("weather", {"city": "1"}),
        called("add", {"a": "2", "b": "3"}),
        called("now", {}),
    ]
    read = as_examples(written(rows, tmp_path, kind))
    expected = as_examples(rows)
    assert [e.prompt for e in read] == [e.prompt for e in expected]
    calls = [[e.demonstrations[0].messages for e in examples] for examples in (read, expected)]
    assert calls[0] == calls[1]
    assert [e.columns for e in read] == [e.columns for e in expected]


def test_a_null_that_was_written_stays(tmp_path):
    row = called("weather", {"city": None})
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (example,) = load_examples(str(path))
    (call,) = example.demonstrations[0].messages[0]["tool_calls"]
    assert call["function"]["arguments"] == {"city": None}


def test_a_dataset_shows_what_its_format_and_its_transform_show():
    import datasets

    table = datasets.Dataset.from_list([{"prompt": "3 + 4?", "demonstration": "7", "answer": "7"}])
    ask = table.with_transform(
        lambda columns: {"prompt": [f"{p} Think." for p in columns["prompt"]]}
    )
    (example,) = as_examples(ask)
    assert (example.prompt, example.demonstrations) == (ask[0]["prompt"], ())
    for shown in (["prompt", "answer"], None):
        hidden = table.with_format("numpy", columns=shown)
        (example,) = as_examples(hidden)
        assert (example.prompt, example.demonstrations) == ("3 + 4?", () if shown else ("7",))
    (example,) = as_examples(
        table.with_format("numpy", columns=["prompt"], output_all_columns=True)
    )
    assert example.demonstrations == ("7",)
    (example,) = as_examples(table.to_iterable_dataset().with_format("numpy"))
    assert example.prompt == "3 + 4?"
