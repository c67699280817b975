"""Benchmarks: every declaration is complete, and what is asked is what was meant."""

from __future__ import annotations

import csv
import json
from collections import Counter

import numpy as np
import pytest

from srft.errors import ConfigError, DataError
from srft.evaluation.benchmarks import BENCHMARKS, SUITES, resolve
from srft.evaluation.choices import Question, shuffle_options
from srft.evaluation.problems import load_benchmark, select, source_of, with_system
from srft.rewards.options import LETTERS
from srft.types import Example

LOCAL = [b for b in BENCHMARKS.values() if b.file and b.name not in ("gpqa_diamond", "mmlu_pro")]


def test_suites_name_benchmarks_and_the_paper_has_its_eight():
    assert all(name in BENCHMARKS for members in SUITES.values() for name in members)
    assert [BENCHMARKS[n].title for n in SUITES["paper"]] == [
        *("AIME24", "AMC", "MATH500", "Minerva", "Olympiad"),
        *("ARC-C", "GPQA-D", "MMLU-Pro"),
    ]
    assert {n for n, b in BENCHMARKS.items() if b.n == 32} == {"aime24", "aime25", "amc"}
    for b in BENCHMARKS.values():
        assert b.temperature == 0.6 and (b.families or (b.max_tokens == 8192 and b.hub))


def test_resolve_expands_suites_once_and_forgives_spelling():
    assert [b.name for b in resolve(["math5", "AIME24", "gpqa-diamond"])] == [
        *SUITES["math5"],
        "gpqa_diamond",
    ]
    assert [b.name for b in resolve(["lab"])] == ["lab", "lab_ood"]
    with pytest.raises(ConfigError, match="did you mean 'math500'"):
        resolve(["math50"])


@pytest.mark.parametrize("layout", ["letters", "gpqa", "mmlu_pro", "arc"])
def test_the_right_option_keeps_its_text_under_every_shuffle(layout):
    options = ["red", "green", "blue", "black"]
    example = {
        "letters": Example("Which?\n\nA) red\nB) green\nC) blue\nD) black\n", (), "C"),
        "gpqa": Example(
            "Which?",
            (),
            "blue",
            {f"Incorrect Answer {i + 1}": o for i, o in enumerate(["red", "green", "black"])},
        ),
        "mmlu_pro": Example("Which?", (), "C", {"options": options, "answer_index": 2}),
        "arc": Example("Which?", (), "3", {"choices": {"text": options, "label": list("1234")}}),
    }[layout]
    places = Counter()
    for seed in range(200):
        asked = shuffle_options(example, layout, seed)
        shown = asked.columns["options"]
        assert sorted(shown) == sorted(options)
        assert shown[LETTERS.index(asked.answer)] == "blue"
        assert f"\n{asked.answer}) blue" in asked.prompt and asked.prompt.startswith("Which?\n\n")
        places[asked.answer] += 1
    assert len(places) == 4 and min(places.values()) > 25
    assert shuffle_options(example, layout, 1) == shuffle_options(example, layout, 1)


def test_chats_keep_their_system_message_when_options_are_shuffled():
    chat = ({"role": "system", "content": "s"}, {"role": "user", "content": "Q\n\n1) a\n2) b\n"})
    asked = shuffle_options(Example(chat, (), "2"), "letters", 3)
    assert asked.prompt[0] == chat[0] and asked.prompt[1]["role"] == "user"
    assert f"{asked.answer}) b" in asked.prompt[1]["content"]


def test_rows_without_options_or_with_a_foreign_answer_are_named():
    with pytest.raises(DataError, match=r"x:1.*does not end with options"):
        shuffle_options(Example("Which?", (), "A", {}, "x:1"), "letters", 0)
    with pytest.raises(DataError, match=r"x:2.*not one of its options"):
        shuffle_options(Example("Q\n\nA) a\nB) b", (), "E", {}, "x:2"), "letters", 0)
    with pytest.raises(DataError, match=r"x:3.*options"):
        shuffle_options(Example("Q", (), "E", {}, "x:3"), "mmlu_pro", 0)


def test_a_question_with_options_across_lines_is_written_as_it_was_read():
    text = "Two lines\nof question?\n\nA) one\nB) two"
    question = Question("Two lines\nof question?", ("one", "two"), 0)
    assert question.written() == text


def test_select_is_nested_seeded_and_even_over_families():
    examples = [Example(str(i), (), "1", {"family": "ab"[i // 10]}) for i in range(20)]
    small, large = select(examples, 4, 0), select(examples, 10, 0)
    assert [e for e in large if e in small] == small
    assert Counter(e.columns["family"] for e in small) == {"a": 2, "b": 2}
    assert select(examples, 4, 1) != small
    assert select(examples, None, 0) == select(examples, 99, 0) == examples


def test_system_prompt_is_replaced_removed_or_kept():
    chat = Example(({"role": "system", "content": "s"}, {"role": "user", "content": "u"}))
    assert with_system(chat, None) == chat
    assert [m["role"] for m in with_system(chat, "").prompt] == ["user"]
    assert with_system(chat, "t").prompt[0] == {"role": "system", "content": "t"}
    assert with_system(Example("u"), "t").prompt[1] == {"role": "user", "content": "u"}
    assert with_system(Example("u"), "") == Example("u")


def test_lab_problems_have_families_and_the_declared_size():
    for name in ("lab", "lab_ood"):
        examples = load_benchmark(BENCHMARKS[name])
        assert len(examples) == BENCHMARKS[name].size
        assert {e.columns["family"] for e in examples} == set(BENCHMARKS[name].families)
        assert not any(e.demonstrations for e in examples)


def test_a_data_dir_that_does_not_exist_is_an_error_and_an_unset_one_means_the_hub(monkeypatch):
    monkeypatch.delenv("SRFT_DATA_DIR", raising=False)
    assert source_of(BENCHMARKS["aime24"]) == "hub:HuggingFaceH4/aime_2024"
    with pytest.raises(DataError, match="no such folder"):
        source_of(BENCHMARKS["aime24"], "/nowhere")


@pytest.mark.parametrize("benchmark", LOCAL, ids=lambda b: b.name)
def test_local_files_hold_the_declared_number_of_problems(benchmark, real_data):
    examples = load_benchmark(benchmark, real_data)
    assert len(examples) == benchmark.size
    assert all(e.answer and not e.demonstrations for e in examples)
    if benchmark.verifier == "choice":
        assert all(e.answer in LETTERS[: len(e.columns["options"])] for e in examples)


def test_gsm8k_asks_for_a_boxed_answer_and_hides_the_solution(real_data):
    example = load_benchmark(BENCHMARKS["gsm8k"], real_data)[0]
    assert example.answer == "18" and example.prompt.endswith("\\boxed{}.")
    assert "16 - 3 - 4" not in example.prompt


HUB_ROWS = {
    "aime24": {"problem": "p", "solution": "s", "answer": "204"},
    "aime25": {"problem": "p", "answer": "70"},
    "amc": {"problem": "p", "answer": 142.0},
    "math500": {"problem": "p", "solution": "s", "answer": "5", "level": 1, "subject": "Algebra"},
    "minerva": {"question": "p", "answer": "1.6"},
    "olympiad": {"question": "p", "solution": ["s"], "final_answer": ["1", "2"], "context": "c",
                 "subfield": "Algebra"},
    "gsm8k": {"question": "p", "answer": "s\n#### 7"},
    "arc_c": {"question": "p", "choices": {"text": ["x", "y"], "label": ["1", "2"]},
              "answerKey": "2"},
    "gpqa_diamond": {"Question": "p", "Correct Answer": "x\n", "Incorrect Answer 1": "a",
                     "Incorrect Answer 2": "b", "Incorrect Answer 3": "c", "Explanation": "e",
                     "High-level domain": "Physics"},
    "mmlu_pro": {"question_id": 70, "question": "p", "options": ["x", "y", "z", "N/A"],
                 "answer": "C", "answer_index": 2, "cot_content": "", "category": "law",
                 "src": "s"},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HUB_ROWS))
def test_rows_as_the_hub_has_them_become_problems(name, monkeypatch):
    import datasets

    benchmark = BENCHMARKS[name]

    def fake(repository, name=None, **_):
        assert (repository, name) == (benchmark.hub, benchmark.hub_config)
        return datasets.DatasetDict(
            {benchmark.split: datasets.Dataset.from_list([HUB_ROWS[benchmark.name]] * 2)}
        )

    monkeypatch.delenv("SRFT_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", fake)
    example = load_benchmark(benchmark)[0]
    assert example.answer and not example.demonstrations
    assert isinstance(example.prompt, str) and "\\boxed{}" in example.prompt
    expected = {"olympiad": "1, 2", "aime24": "204", "gsm8k": "7", "amc": "142"}
    assert example.answer == expected.get(name, example.answer)
    if name == "olympiad":
        assert example.prompt.startswith("c\n\np")
    assert "N/A" not in example.prompt
    subjects = {"olympiad": "Algebra", "math500": "Algebra", "gpqa_diamond": "Physics"}
    assert example.columns.get("family") == (subjects | {"mmlu_pro": "law"}).get(name)


def test_copies_of_hub_files_are_read_from_the_data_folder(tmp_path):
    folder = tmp_path / "benchmarks"
    (folder / "mmlu_pro" / "data").mkdir(parents=True)
    with (folder / "gpqa_diamond.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, HUB_ROWS["gpqa_diamond"])
        writer.writeheader()
        writer.writerow(HUB_ROWS["gpqa_diamond"])
    for split in ("test", "validation"):
        row = {**HUB_ROWS["mmlu_pro"], "question": split}
        (folder / "mmlu_pro" / "data" / f"{split}-00000-of-00001.jsonl").write_text(json.dumps(row))
    gpqa = load_benchmark(BENCHMARKS["gpqa_diamond"], tmp_path)
    mmlu = load_benchmark(BENCHMARKS["mmlu_pro"], tmp_path)
    assert len(gpqa) == len(mmlu) == 1 and mmlu[0].prompt.startswith("test")
    assert gpqa[0].columns["options"]["ABCD".index(gpqa[0].answer)] == "x"
    assert mmlu[0].columns["options"]["ABC".index(mmlu[0].answer)] == "z"
    assert source_of(BENCHMARKS["gpqa_diamond"], tmp_path).endswith("gpqa_diamond.csv")


MULTI_LINE = """A list that is no option:
1) first
2) second

Which code prints 3?

A) for i in range(2):
    print(i)
B) print(1)

   print(3)
C) 1. print(2)
   2. print(3)
D) none
   of these
"""


def test_options_over_several_lines_are_kept_whole_under_every_shuffle():
    options = [
        "for i in range(2):\n    print(i)", "print(1)\n\n   print(3)",
        "1. print(2)\n   2. print(3)", "none\n   of these",
    ]  # fmt: skip
    for seed in range(40):
        asked = shuffle_options(Example(MULTI_LINE, (), "B"), "letters", seed)
        assert sorted(asked.columns["options"]) == sorted(options)
        assert asked.columns["options"][LETTERS.index(asked.answer)] == options[1]
        assert asked.prompt.startswith(
            "A list that is no option:\n1) first\n2) second\n\nWhich code"
        )


@pytest.mark.parametrize("count", range(2, 11))
@pytest.mark.parametrize("dress", ["{}) {}", "{}. {}", "({}) {}", "{}: {}"])
@pytest.mark.parametrize("lines", [1, 3])
def test_no_option_is_lost_however_many_and_however_written(count, dress, lines):
    options = ["\n".join(f"option {i}, line {k}" for k in range(lines)) for i in range(count)]
    listed = "\n".join(dress.format(LETTERS[i], option) for i, option in enumerate(options))
    for i in range(count):
        asked = shuffle_options(Example(f"Which?\n\n{listed}", (), LETTERS[i]), "letters", 7)
        assert sorted(asked.columns["options"]) == sorted(options)
        assert asked.columns["options"][LETTERS.index(asked.answer)] == options[i]


@pytest.mark.parametrize("place", range(4))
def test_letters_are_mapped_before_fillings_are_left_out(place):
    options = np.array([*["x", "y", "z"][:place], "N/A", *["x", "y", "z"][place:], "N/A"])
    for letter, text in zip(LETTERS, options, strict=False):
        if text == "N/A":
            continue
        asked = shuffle_options(
            Example("Which?", (), letter, {"options": options, "answer_index": 9}), "mmlu_pro", 3
        )
        assert sorted(asked.columns["options"]) == ["x", "y", "z"]
        assert asked.columns["options"][LETTERS.index(asked.answer)] == text
        assert "answer_index" not in asked.columns


@pytest.mark.parametrize("name", ["gpqa_diamond", "mmlu_pro", "arc_c"])
def test_a_benchmarks_file_may_be_in_the_rl_communitys_schema(name, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    rows = [
        {
            "data_source": name,
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": MULTI_LINE}],
            "ability": "science",
            "reward_model": {"ground_truth": "B", "style": "rule"},
            "extra_info": {"index": i},
        }
        for i in range(3)
    ]
    path = tmp_path / BENCHMARKS[name].file
    path.parent.mkdir(parents=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    problems = load_benchmark(BENCHMARKS[name], tmp_path)
    assert len(problems) == 3 and problems[0].prompt[0]["content"] == "s"
    for problem in problems:
        right = problem.columns["options"][LETTERS.index(problem.answer)]
        assert right == "print(1)\n\n   print(3)"


@pytest.mark.parametrize("name", sorted(HUB_ROWS))
def test_a_copy_of_the_hubs_rows_is_read_whatever_the_file_usually_holds(name, tmp_path):
    path = (tmp_path / BENCHMARKS[name].file).with_suffix(".jsonl")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(HUB_ROWS[name]) + "\n")
    (problem,) = load_benchmark(BENCHMARKS[name], tmp_path)
    assert "\\boxed{}" in problem.prompt and problem.answer


def test_a_file_that_is_neither_is_refused_with_the_usual_forms_error(tmp_path):
    path = tmp_path / "benchmarks" / "aime24.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"aufgabe": "p", "antwort": "1"}) + "\n")
    with pytest.raises(DataError, match="unknown format"):
        load_benchmark(BENCHMARKS["aime24"], tmp_path)


def test_a_gated_dataset_says_how_to_be_let_in(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub.")

    monkeypatch.delenv("SRFT_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"Accept its terms at .*Idavidrein/gpqa.*hf auth login"):
        load_benchmark(BENCHMARKS["gpqa_diamond"])


def test_a_part_has_the_families_in_the_proportions_of_the_whole():
    examples = [Example(str(i), (), "1", {"family": "ab"[i % 4 == 0]}) for i in range(80)]
    part = select(examples, 20, 0)
    assert Counter(e.columns["family"] for e in part) == {"a": 15, "b": 5}
    assert {e.prompt for e in select(examples, 10, 0)} < {e.prompt for e in part}
