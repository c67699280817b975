"""Whatever a file or a row holds: examples or a DataError, never another error."""

import contextlib
import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from srft.data.data_config import DataConfig
from srft.data.reading import as_examples, load_examples
from srft.data.tokenization import tokenize_dataset
from srft.errors import DataError

relaxed = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
text = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ["<|im_end|>", "<eos>", "#### 1,2", "a\0b", "\ud800", "é", " "]
)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | text | st.binary(max_size=4)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | scalar},
    optional={"content": text | st.lists(st.just({"type": "text", "text": "x"})), "value": scalar},
)
value = st.recursive(
    scalar | message,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=2),
    max_leaves=6,
)
names = st.sampled_from(
    [
        *("prompt", "demonstration", "demonstrations", "answer", "question", "target"),
        *("completion", "messages", "conversations", "reward_model", "other"),
    ]
)
_USER = {"role": "user", "content": "a <|im_end|> b"}
_REPLY = {"role": "assistant", "content": "<eos> 7"}
good = st.sampled_from(
    [
        {"prompt": "3 + 4?", "demonstration": "7 <|im_end|>", "answer": 7},
        {"prompt": [_USER], "demonstrations": ["7", [_REPLY]]},
        {"question": "3 + 4?", "answer": "7 #### 7"},
        {"prompt": [_USER], "target": [_REPLY], "reward_model": {"ground_truth": "7"}},
        {"messages": [_USER, _REPLY], "other": 1},
    ]
)
anything = st.dictionaries(names | st.integers(), value, max_size=4)
# A good row with a few columns replaced gets past the first check and to the later ones.
spoiled = st.builds(lambda row, change: {**row, **change}, good, st.just({}) | anything)
rows = st.lists(good | spoiled | anything | scalar, max_size=4) | good.map(lambda row: [row])
mappings = st.none() | st.dictionaries(
    st.sampled_from(["prompt", "demonstration", "answer"]),
    st.sampled_from(["other", "answer", "target.0", "reward_model.ground_truth", ".", ""]),
    max_size=2,
)


@relaxed
@given(rows=rows, columns=mappings, policy=st.sampled_from(["error", "drop"]))
def test_any_rows_give_examples_or_a_data_error(make_tokenizer, rows, columns, policy):
    tokenizers = [make_tokenizer("bytes", "gemma"), make_tokenizer("words")]
    with contextlib.suppress(DataError):
        examples = as_examples(rows, columns=columns, invalid_rows=policy)
        assert as_examples(examples) == examples
        for tokenizer in tokenizers:
            kept, _ = tokenize_dataset(examples, tokenizer, DataConfig(invalid_rows=policy))
            assert kept and all(item.prompt_ids for item in kept)


line = (
    st.dictionaries(names, value.filter(lambda v: not isinstance(v, bytes)), max_size=3).map(
        lambda row: json.dumps(row, default=str).encode("utf-8", "surrogatepass")
    )
    | st.binary(max_size=20)
    | st.sampled_from([b"", b'{"prompt": "a"}', b"prompt,answer", b'"a', b"\xff\xfe", b"[", b"{}"])
)


@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.csv", "f.parquet"])
@relaxed
@given(lines=st.lists(line, max_size=4), end=st.sampled_from([b"\n", b"\r\n", b"\r"]))
@example(lines=[b"\xff\xfe", b"a"], end=b"\n")
@example(lines=[b"\xef\xbb\xbf"], end=b"\n")
@example(lines=[b'{"data": [{"prompt": "a"}]}'], end=b"\n")
def test_any_file_gives_examples_or_a_data_error(tmp_path, name, lines, end):
    path = tmp_path / name
    path.write_bytes(end.join(lines))
    for policy in ("error", "drop"):
        with contextlib.suppress(DataError):
            assert load_examples(str(path), invalid_rows=policy)


@relaxed
@given(where=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_damaged_parquet_file_is_a_data_error_or_still_loads(tmp_path, where, byte):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "f.parquet"
    table = pa.Table.from_pylist([{"prompt": f"p{i}", "answer": str(i)} for i in range(50)])
    pq.write_table(table, path)
    raw = bytearray(path.read_bytes())
    raw[where % len(raw)] = byte
    path.write_bytes(raw)
    with contextlib.suppress(DataError):
        assert load_examples(str(path))
