from dataclasses import replace

import pytest
from tests.data.conftest import tokenize_example

from srft.data.data_config import DataConfig
from srft.data.template import tokenize_prompt
from srft.data.tokenization import quantiles, tokenize_dataset
from srft.errors import DataError
from srft.types import Example

ONE_TURN = (
    "{% if messages[1:] %}{{ raise_exception('one only') }}{% endif %}{{ messages[0]['content'] }}"
)


def plain(**options) -> DataConfig:
    """A config under which one digit is one token of the word-level tokenizer."""
    return DataConfig(prompt_template="{prompt}", **options)


def digits(count: int) -> str:
    return " ".join("7" for _ in range(count))


def sized(prompt: int, *demonstrations: int, source: str = "f:1") -> Example:
    return Example(digits(prompt), tuple(map(digits, demonstrations)), source=source)


@pytest.fixture
def words(make_tokenizer):
    return make_tokenizer("words")


def test_a_dataset_gives_the_tokens_of_its_examples_one_by_one(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    config = DataConfig(system_prompt="Be kind.")
    examples = [
        Example(
            f"What is {i} + 4?", tuple(f"It is {i + k}." for k in range(i % 3)), source=f"f:{i}"
        )
        for i in range(600)
    ]
    examples[7] = Example("<|im_end|> é", ("<|im_start|> 7<|im_end|>",), source="f:7")
    calls = []
    kept, report = tokenize_dataset(
        examples, tokenizer, config, progress=lambda done, total: calls.append((done, total))
    )
    assert kept == [tokenize_example(e, i, tokenizer, config) for i, e in enumerate(examples)]
    assert all(t.prompt_ids == tokenize_prompt(t.example, tokenizer, config) for t in kept[:20])
    assert calls[-1] == (600, 600) and len(calls) > 1
    assert (report.total, report.kept, report.spelled_controls, report.cut_ends) == (600, 600, 2, 1)
    assert report.without_demonstration == 200
    assert report.end_token == "<|im_end|>"
    assert report.template == "the tokenizer's chat template"


def test_lengths_are_reported_as_lengths_that_occur_with_end_tokens(words):
    examples = [sized(n, 2 * n) for n in range(1, 101)]
    _, report = tokenize_dataset(examples, words, plain())
    assert quantiles(report.prompt_lengths) == (1, 51, 90, 99, 100)
    assert quantiles(report.demonstration_lengths) == (3, 103, 181, 199, 201)
    assert "min / median / 90 % / 99 % / max: 1 / 51 / 90 / 99 / 100" in report.summary()


def test_long_prompts_are_dropped_cut_on_the_left_or_refused(words):
    examples = [sized(5, 1), Example("1 2 3 4 5 6", source="f:2")]
    kept, report = tokenize_dataset(examples, words, plain(max_prompt_tokens=5))
    assert [(t.index, len(t.prompt_ids)) for t in kept] == [(0, 5)]
    assert report.dropped_prompts == 1
    assert "f:2: the prompt has 6 tokens, above data.max_prompt_tokens = 5" in report.summary()

    config = plain(max_prompt_tokens=5, overlong_prompt="truncate_left")
    kept, report = tokenize_dataset(examples, words, config)
    assert words.decode(kept[1].prompt_ids) == "2 3 4 5 6"
    assert report.truncated_prompts == 1

    with pytest.raises(DataError, match="f:2: the prompt has 6 tokens"):
        tokenize_dataset(examples, words, plain(max_prompt_tokens=5, overlong_prompt="error"))


def test_cutting_a_prompt_keeps_its_bos(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "llama3")
    config = DataConfig(max_prompt_tokens=6, overlong_prompt="truncate_left")
    whole = tokenize_prompt(Example("What is 3 + 4?"), tokenizer, config)
    item = tokenize_example(Example("What is 3 + 4?"), 0, tokenizer, config)
    assert item.prompt_ids == (whole[0], *whole[-5:])
    assert whole[0] == tokenizer.bos_token_id


def test_long_demonstrations_are_dropped_cut_or_refused_and_the_prompt_stays(words):
    examples = [sized(2, 3, 4), sized(2, 9)]
    end = words.eos_token_id
    kept, report = tokenize_dataset(examples, words, plain(max_demonstration_tokens=4))
    assert [tuple(map(len, t.demonstration_ids)) for t in kept] == [(4,), ()]
    assert kept[0].demonstration_ids[0][-1] == end
    assert (report.dropped_demonstrations, report.without_demonstration) == (2, 1)

    config = plain(max_demonstration_tokens=4, overlong_demonstration="truncate")
    kept, report = tokenize_dataset(examples, words, config)
    assert [tuple(map(len, t.demonstration_ids)) for t in kept] == [(4, 4), (4,)]
    assert kept[0].demonstration_ids[0][-1] == end
    assert end not in kept[0].demonstration_ids[1] + kept[1].demonstration_ids[0]
    assert report.truncated_demonstrations == 2

    config = plain(max_demonstration_tokens=4, overlong_demonstration="error")
    with pytest.raises(DataError, match=r"2 of 2 rows .*\n.*5 tokens, above data\.max_demon"):
        tokenize_dataset(examples, words, config)


def test_null_limits_are_no_limits(words):
    config = plain(max_prompt_tokens=None, max_demonstration_tokens=None)
    kept, _ = tokenize_dataset([sized(3000, 20_000)], words, config)
    assert (len(kept[0].prompt_ids), len(kept[0].demonstration_ids[0])) == (3000, 20_001)


def test_rows_that_cannot_be_tokenized_are_refused_or_dropped(make_tokenizer):
    tokenizer = make_tokenizer("bytes", ONE_TURN)
    turns = tuple({"role": role, "content": "x"} for role in ("user", "tool"))
    examples = [Example("fine"), Example(turns, source="f:2")]
    with pytest.raises(
        DataError, match=r"f:2: the chat template refuses the messages \(user, tool"
    ):
        tokenize_dataset(examples, tokenizer, DataConfig())
    config = DataConfig(invalid_rows="drop")
    kept, report = tokenize_dataset(examples, tokenizer, config)
    assert [t.index for t in kept] == [0]
    assert report.dropped_rows == 1


def test_a_dataset_of_which_nothing_is_left_is_an_error_with_the_report(words):
    with pytest.raises(DataError, match=r"none of the 2 examples(.|\n)*too long: 2"):
        tokenize_dataset([sized(9), sized(9)], words, plain(max_prompt_tokens=5))
    with pytest.raises(DataError, match="f:1: the prompt has 9 tokens"):
        tokenize_example(sized(9), 0, words, plain(max_prompt_tokens=5))


def test_words_the_tokenizer_does_not_know_are_reported(words):
    _, report = tokenize_dataset([Example("who 7 7 7")], words, plain())
    assert report.unknown_tokens == pytest.approx(0.25)
    assert "does not know: 25.0%" in report.summary()


def test_equal_token_ids_share_one_object_so_that_large_datasets_fit(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    kept, _ = tokenize_dataset([Example("a"), Example("b")], tokenizer, DataConfig())
    large = [id_ for id_ in kept[0].prompt_ids if id_ > 256]  # Python shares the small ones itself
    assert large
    objects = {id(id_) for item in kept for id_ in item.prompt_ids}
    assert len(objects) == len({id_ for item in kept for id_ in item.prompt_ids})


def test_texts_and_tokens_of_demonstrations_stay_side_by_side(make_tokenizer):
    tokenizer = make_tokenizer("bytes", "chatml")
    given = Example("3 + 4?", ("first " * 50, "#### 7<|im_end|>\n", "7"))
    (item,), _ = tokenize_dataset([given], tokenizer, DataConfig(max_demonstration_tokens=40))
    assert item.example.demonstrations == ("#### 7", "7")
    assert [tokenizer.decode(ids[:-1]) for ids in item.demonstration_ids] == ["#### 7", "7"]
    untouched = Example("3 + 4?", ("7",))
    (item,), _ = tokenize_dataset([untouched], tokenizer, DataConfig())
    assert replace(item.example, prompt_end="") == untouched
    assert item.example.prompt_end.endswith("assistant\n")
