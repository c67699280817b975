"""The real files, where they are at hand (SRFT_DATA_DIR)."""

import pytest

from srft.data.data_config import DataConfig
from srft.data.reading import load_examples
from srft.data.tokenization import tokenize_dataset

BENCHMARKS = {
    "aime24": 30,
    "aime25": 30,
    "amc": 83,
    "arc_c": 1172,
    "math500": 500,
    "minerva": 272,
    "olympiad": 675,
}


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_row_of_gsm8k_loads_with_a_number_for_an_answer(real_data, split, count):
    examples = load_examples(str(real_data / "gsm8k" / f"{split}.jsonl"))
    assert len(examples) == count
    for example in examples:
        float(example.answer)
        assert "#### " in example.demonstrations[0]
        assert example.columns == {}
    assert examples[0].source.endswith(f"{split}.jsonl:1")
    folder = load_examples(str(real_data / "gsm8k"), split=split)
    assert folder == examples


@pytest.mark.parametrize(("name", "count"), BENCHMARKS.items())
def test_every_row_of_the_benchmarks_loads(real_data, name, count):
    examples = load_examples(str(real_data / "benchmarks" / f"{name}.parquet"))
    assert len(examples) == count
    for example in examples:
        assert [message["role"] for message in example.prompt] == ["system", "user"]
        assert example.answer == example.columns["reward_model"]["ground_truth"]
        assert example.demonstrations == ()
        assert {"data_source", "ability", "extra_info"} <= example.columns.keys()


def test_gsm8k_survives_tokenization_word_for_word(real_data, make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    examples = load_examples(str(real_data / "gsm8k" / "train.jsonl"), limit=1000)
    kept, report = tokenize_dataset(examples, tokenizer, DataConfig())
    assert report.kept == 1000 and report.spelled_controls == 0
    for item in kept:
        assert tokenizer.decode(item.demonstration_ids[0][:-1]) == item.example.demonstrations[0]
        assert item.example.prompt in tokenizer.decode(item.prompt_ids)
