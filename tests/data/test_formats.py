import math

import numpy as np
import pytest

from srft.data.data_config import DataConfig
from srft.data.reading import as_examples
from srft.errors import DataError
from srft.types import Example

USER = {"role": "user", "content": "3 + 4?"}
SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": "3 + 4 = 7"}


def one(row: dict, **options) -> Example:
    (example,) = as_examples([row], **options)
    return example


def refusal(row, **options) -> str:
    with pytest.raises(DataError) as caught:
        as_examples([row], **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("7", ("7",)),
        (None, ()),
        ([], ()),
        (["a", "b"], ("a", "b")),
        ([REPLY], ("3 + 4 = 7",)),
        (REPLY, ("3 + 4 = 7",)),
        ([[REPLY], [{"role": "assistant", "content": "7"}]], ("3 + 4 = 7", "7")),
        (["a", [REPLY]], ("a", "3 + 4 = 7")),
    ],
)
@pytest.mark.parametrize("column", ["demonstration", "demonstrations"])
def test_a_demonstration_is_text_messages_or_several_of_these(given, expected, column):
    assert one({"prompt": "p", column: given}).demonstrations == expected


def test_own_format_keeps_other_columns_and_takes_numbers_for_answers():
    row = {"prompt": [SYSTEM, USER], "demonstration": "d", "answer": 7, "level": 3, "tags": ["a"]}
    example = one(row)
    assert example.prompt == (SYSTEM, USER)
    assert example.answer == "7"
    assert example.columns == {"level": 3, "tags": ["a"]}
    assert one({"prompt": "p", "answer": math.nan}).answer is None
    assert one({"prompt": "p", "answer": ["7"]}).answer == "7"
    assert one({"prompt": "p"}).demonstrations == ()


def test_gsm8k_takes_the_answer_from_behind_the_mark_and_drops_commas():
    text = "48 / 2 = 24 #### is no mark here\nso 1,200\n#### 1,200"
    example = one({"question": "How many?", "answer": text, "id": 4})
    assert example == Example("How many?", (text,), "1200", {"id": 4}, "row 1")
    for written, answer in (("$1,234,567.5", "$1234567.5"), ("(2, 3)", "(2, 3)"), ("1,2", "1,2")):
        assert one({"question": "q", "answer": f"x\n#### {written}"}).answer == answer
    assert one({"question": "q", "answer": "x\n#### -3.5 \n"}).answer == "-3.5"


def test_rows_of_question_and_answer_without_marks_are_not_taken_for_gsm8k():
    message = refusal({"question": "Capital of France?", "answer": "Paris"})
    assert "`#### N`" in message and "data.columns: {prompt: question, answer: answer}" in message
    example = one(
        {"question": "Capital of France?", "answer": "Paris"},
        columns={"prompt": "question", "answer": "answer"},
    )
    assert (example.prompt, example.answer, example.demonstrations) == (
        "Capital of France?",
        "Paris",
        (),
    )


def test_a_gsm8k_row_without_its_mark_is_named():
    rows = [{"question": "q", "answer": "x #### 1"}, {"question": "q", "answer": "x"}]
    with pytest.raises(DataError, match="row 2: `answer` has no `#### N`"):
        as_examples(rows)


@pytest.mark.parametrize("target", [[REPLY], "3 + 4 = 7"])
def test_the_rl_communitys_columns_load(target):
    row = {
        "data_source": "numina",
        "prompt": [SYSTEM, USER],
        "target": target,
        "ability": "math",
        "reward_model": {"ground_truth": "7", "style": "rule"},
        "extra_info": {"index": 0},
    }
    example = one(row)
    assert example.demonstrations == ("3 + 4 = 7",)
    assert example.answer == "7"
    assert set(example.columns) == {"data_source", "ability", "reward_model", "extra_info"}
    assert one({**row, "target": None}).demonstrations == ()


@pytest.mark.parametrize("completion", ["3 + 4 = 7", [REPLY]])
def test_prompt_and_completion_load(completion):
    example = one({"prompt": [USER], "completion": completion})
    assert example.demonstrations == ("3 + 4 = 7",)


def test_the_last_assistant_turn_of_a_conversation_is_the_demonstration():
    turns = [SYSTEM, USER, REPLY, {"role": "user", "content": "Sure?"}, REPLY]
    example = one({"messages": turns, "answer": "7"})
    assert example.prompt == tuple(turns[:-1])
    assert example.demonstrations == ("3 + 4 = 7",)
    assert example.answer == "7" and example.columns == {}
    assert one({"messages": [USER]}).demonstrations == ()
    shared = [{"from": "human", "value": "3 + 4?"}, {"from": "gpt", "value": "3 + 4 = 7"}]
    assert one({"conversations": shared}).prompt == (USER,)


def test_columns_are_mapped_by_name_and_dotted_path():
    row = {"task": {"text": "3 + 4?"}, "cot": "3 + 4 = 7", "meta": [{"gold": 7}], "a.b": "kept"}
    columns = {"prompt": "task.text", "demonstration": "cot", "answer": "meta.0.gold"}
    example = one(row, columns=columns)
    assert (example.prompt, example.demonstrations, example.answer) == (
        "3 + 4?",
        ("3 + 4 = 7",),
        "7",
    )
    assert set(example.columns) == {"task", "meta", "a.b"}
    assert one({"a.b": "p", "a": {"b": "other"}}, columns={"prompt": "a.b"}).prompt == "p"


def test_a_mapping_changes_only_what_it_names():
    row = {"prompt": "p", "solution": "s", "answer": "7", "reward_model": {"ground_truth": "8"}}
    example = one(row, columns={"demonstration": "solution"})
    assert (example.demonstrations, example.answer) == (("s",), "8")
    assert one(row, columns={"answer": "answer"}).answer == "7"
    gsm = {"question": "q", "better": "b", "answer": "x #### 1"}
    example = one(gsm, columns={"demonstration": "better"})
    assert (example.demonstrations, example.answer) == (("b",), "1")


def test_an_unknown_format_proposes_the_line_that_maps_it():
    row = {"problem": "p", "solutions": "s", "meta": {"ground_truth": "7"}, "id": 1}
    message = refusal(row)
    assert "Columns found: `problem`, `solutions`, `meta`, `id`" in message
    line = "data.columns: {prompt: problem, demonstration: solutions, answer: meta.ground_truth}"
    assert line in message
    columns = {"prompt": "problem", "demonstration": "solutions", "answer": "meta.ground_truth"}
    assert one(row, columns=columns).answer == "7"
    assert DataConfig(columns=columns).columns == columns
    assert "<your prompt column>" in refusal({"xyz": 1})


def test_a_mapped_column_that_is_nowhere_proposes_the_nearest():
    message = refusal({"question_text": "p"}, columns={"prompt": "question_txt"})
    assert "data.columns.prompt" in message and "did you mean 'question_text'?" in message
    assert "data.columns names `reply`" in refusal({"prompt": "p"}, columns={"reply": "prompt"})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": None}, "`prompt` is null"),
        ({"prompt": " \n"}, "`prompt` is empty"),
        ({"prompt": 5}, "`prompt` is of type int, neither text nor chat messages"),
        ({"prompt": "a\0b"}, "NUL character at position 2"),
        ({"prompt": "a\ud800"}, r"half a surrogate pair (\ud800) at position 2"),
        ({"prompt": []}, "no messages"),
        ({"prompt": [SYSTEM]}, "no message of the user"),
        ({"messages": [USER, REPLY, REPLY]}, "ends with a message of the assistant"),
        (
            {"prompt": [USER, {"role": "assistant", "tool_calls": [1]}]},
            "ends with a message of the",
        ),
        ({"prompt": [USER, SYSTEM, USER]}, "system message after the first place"),
        ({"prompt": ["hi"]}, "message 1 is of type str"),
        ({"prompt": [{"role": "wizard", "content": "x"}]}, "message 1 has the role 'wizard'"),
        ({"prompt": [{"role": ["user"], "content": "x"}]}, "has the role ['user']"),
        ({"prompt": [{"role": "user"}]}, "message 1 (content) is null"),
        ({"prompt": [{"role": "user", "content": ""}]}, "message 1 (content) is empty"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "parts that are not text",
        ),
        ({"prompt": "p", "demonstration": ""}, "`demonstration` is empty"),
        ({"prompt": "p", "demonstration": 7}, "`demonstration` is of type int"),
        ({"prompt": "p", "demonstration": ["a", None]}, "`demonstration` number 2 is null"),
        ({"prompt": "p", "demonstration": [USER, REPLY]}, "has the messages (user, assistant)"),
        ({"prompt": "p", "demonstration": [REPLY, REPLY]}, "has the messages (assistant, assist"),
        ({"prompt": "p", "answer": {"x": 1}}, "`answer` is of type dict"),
        ({"prompt": "p", "answer": ["1", ["2"]]}, "`answer` is of type list"),
        ({"prompt": "p", "answer": ""}, "`answer` is empty"),
        ({"messages": [REPLY]}, "no messages"),
        ({"messages": "hi"}, "`messages` is of type str"),
    ],
)
def test_a_row_that_cannot_be_used_says_why_and_where(row, words):
    message = refusal(row)
    assert words in message
    assert "row 1: " in message


def test_text_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "3 + "}, {"type": "text", "text": "4?"}]
    assert one({"prompt": [{"role": "user", "content": parts}]}).prompt == (USER,)


def test_ten_problems_are_shown_and_all_are_counted():
    rows = [{"prompt": "p"}, *({"prompt": None} for _ in range(24))]
    with pytest.raises(DataError) as caught:
        as_examples(rows)
    message = str(caught.value)
    assert "24 of 25 rows cannot be used" in message
    assert message.count("`prompt` is null") == 10
    assert "row 2: " in message and "and 14 more" in message
    assert "data.invalid_rows: drop" in message


def test_bad_rows_can_be_dropped_and_are_logged(caplog):
    rows = [{"prompt": None}, {"prompt": "p"}]
    assert [e.source for e in as_examples(rows, invalid_rows="drop")] == ["row 2"]
    assert "1 of 2 rows cannot be used" in caplog.text
    with pytest.raises(DataError, match="No row is left"):
        as_examples(rows[:1], invalid_rows="drop")


def test_python_objects_of_all_kinds_are_taken():
    import datasets

    rows = [{"prompt": [SYSTEM, USER], "answer": "7"}, {"prompt": [SYSTEM, USER], "answer": "8"}]
    expected = as_examples(rows)
    dataset = datasets.Dataset.from_list(rows)
    assert as_examples(dataset) == expected
    assert as_examples(dataset.with_format("numpy")) == expected
    assert as_examples(expected) == expected
    assert as_examples(dict(row) for row in rows) == expected
    assert as_examples(rows, limit=1) == expected[:1]
    array = np.array([SYSTEM, USER], dtype=object)
    assert one({"prompt": array, "answer": np.array(["7"])}) == expected[0]


def test_hand_made_examples_are_checked_too():
    with pytest.raises(DataError, match="row 2: `prompt` is empty"):
        as_examples([Example("p"), Example("")])
    with pytest.raises(DataError, match=r"f\.jsonl:9: `demonstrations` number 1 is empty"):
        as_examples([Example("p", ("",), source="f.jsonl:9")])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (5, "of type int"),
        (None, "of type NoneType"),
        (b"x", "of type bytes"),
        ({"train": [], "test": []}, 'data["train"]'),
        ([], "there are no rows"),
        ([1], "row 1: is of type int"),
        ([Example("p"), {"prompt": "p"}], "row 1: is of type Example"),
    ],
)
def test_other_objects_are_refused_with_what_is_taken(data, words):
    with pytest.raises(DataError) as caught:
        as_examples(data)
    assert words in str(caught.value)
