"""What is handed over in Python: names of sources, splits, columns, and what goes wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from srft import SRFTConfig, SRFTTrainer
from srft.data.reading import as_examples, load_splits
from srft.environments.toolbox import Toolbox
from srft.errors import ConfigError, DataError, RewardError
from srft.lab import lab_train
from srft.runs.files import read_jsonl
from srft.trainer.given import NO_PROMPT, Given

ROWS = [dict(row) for row in lab_train(16)]
ASKED = [{"prompt": row["prompt"], "answer": row["answer"]} for row in ROWS]


@pytest.fixture
def trainer(tiny_model, tmp_path):
    """A trainer of two quick steps, of data and rewards that are given."""

    def made(rows=ROWS, evaluation=None, reward="exact", **sections) -> SRFTTrainer:
        number = sum(1 for _ in tmp_path.glob("run*"))
        values = {
            "model": {"path": str(tiny_model)},
            "rollout": {"group_size": 2, "max_tokens": 12},
            "train": {"steps": 2, "prompts_per_step": 2},
            "run": {"dir": str(tmp_path / f"run{number}"), "live": "never", "samples_every": 1},
        }
        return SRFTTrainer(
            args={**values, **sections},
            train_dataset=rows,
            eval_dataset=evaluation,
            reward_funcs=reward,
        )

    return made


def file(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_args_data_says_of_given_rows_what_is_held_out(trainer, tmp_path):
    names = str(file(tmp_path / "five.jsonl", ROWS[:5]))
    made = trainer(ROWS[5:], data={"eval": names})
    assert {name: len(part.problems) for name, part in made.setup.evaluation.items()} == {"five": 5}
    made = trainer(data={"eval_fraction": 0.25})
    (held,) = made.setup.evaluation.values()
    assert (len(held.problems), len(made.setup.train)) == (4, 12)
    asked = {item.example.prompt for item in made.setup.train}
    assert asked.isdisjoint(problem.example.prompt for problem in held.problems)
    with pytest.raises(ConfigError, match="eval_dataset is given"):
        trainer(ROWS[5:], ROWS[:5], data={"eval": names})


@pytest.mark.parametrize("kind", [str, Path])
def test_a_name_is_read_as_the_recipe_says_and_evaluated_on_its_test_split(trainer, tmp_path, kind):
    file(tmp_path / "d" / "train.jsonl", ROWS[:10])
    file(tmp_path / "d" / "test.jsonl", ROWS[10:13])
    place = kind(tmp_path / "d")
    made = trainer(place, {"own": place}, data={"split": "train"})
    assert [item.example.prompt for item in made.setup.train] == [r["prompt"] for r in ROWS[:10]]
    (own,) = made.setup.evaluation.values()
    assert [problem.example.prompt for problem in own.problems] == [
        row["prompt"] for row in ROWS[10:13]
    ]
    made.evaluate()
    assert len(made.predict(place).predictions) == 3
    assert made.args.data.train == str(tmp_path / "d")  # so does the record of the run


def test_frames_and_mappings(trainer, tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([{**row, "note": n or None} for n, row in enumerate(ASKED)])
    made = trainer(frame, {"a": frame[:2], "b": ASKED[:3]}, method="grpo")
    sizes = {name: len(part.problems) for name, part in made.setup.evaluation.items()}
    assert sizes == {"a": 2, "b": 3} and len(made.setup.train) == 16
    notes = [item.example.columns["note"] for item in made.setup.train]
    assert notes[0] is None and notes[1] == 1  # it was not a number, NaN
    columns = {"prompt": [row["prompt"] for row in ASKED], "answer": ["1"] * 16}
    with pytest.raises(DataError, match="one mapping with the keys prompt, answer"):
        trainer(columns, method="grpo")
    with pytest.raises(DataError, match="no rows"):
        trainer(ASKED, {"a": ASKED, "b": []})


def test_evaluation_rows_are_looked_at_before_training(trainer, tmp_path):
    with pytest.raises(DataError, match=r"evaluation data eval: 2 of 3 rows have no answer, row 2"):
        trainer(evaluation=[ROWS[0], *({"prompt": str(n)} for n in (1, 2))])

    def hinted(completions, hint, **columns):
        return [1.0] * len(completions)

    rows = [{**row, "hint": "h"} for row in ASKED]
    with pytest.raises(
        RewardError, match=r"evaluation data eval: reward function hinted needs hint"
    ):
        trainer(rows, ASKED[:2], hinted, method="grpo")
    with pytest.raises(RewardError, match=r"training data: reward function hinted needs hint"):
        trainer(ASKED, rows[:2], hinted, method="grpo")


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
def test_a_column_that_some_rows_have_is_none_for_the_others(trainer, tmp_path, kind):
    seen = []

    def judge(completions, hint, answer, **columns):
        seen.extend(zip(hint, answer, strict=True))
        return [float(len(text) % 2) for text in completions]

    rows = [{"prompt": f"a = {n} ; a ?"} for n in range(4)]
    rows[0] |= {"hint": "x", "answer": "3"}
    sizes = {"steps": 4, "prompts_per_step": 1}
    trainer(kind(rows), None, judge, method="grpo", train=sizes).train()
    assert set(seen) == {(None, None), ("x", "3")}


def test_every_completion_has_lists_of_its_own(trainer):
    seen = []

    def uses_up(completions, tests, **columns):
        seen.extend(len(cases["a"]) for cases in tests)
        for cases in tests:
            cases["a"].clear()
        return [float(len(text) % 3) for text in completions]

    rows = [{**row, "tests": {"a": [1, 2, 3]}} for row in ASKED[:2]]
    trainer(rows, None, uses_up, method="grpo").train()
    assert len(seen) == 8 and set(seen) == {3}


def test_demonstrations_that_no_method_reads_are_not_judged(trainer, tmp_path):
    asked = []

    def short(completions, **columns):
        asked.extend(completions)
        return [-float(abs(20 - len(text))) for text in completions]

    rows = [{"prompt": f"POST: {n} TL;DR:", "completion": " a summary"} for n in range(8)]
    made = trainer(rows, None, short, method="grpo")
    assert not asked
    made.train()
    with pytest.raises(DataError, match="8 of 8 demonstrations"):
        trainer(rows, None, short)


def test_sft_takes_pairs_of_prompt_and_completion_without_answers(trainer, tmp_path):
    rows = [{"prompt": f"{n} + 1", "completion": f"#### {n + 1}"} for n in range(4)]
    sections = {"method": "sft", "train": {"steps": 2, "prompts_per_step": 2}}
    made = trainer(rows, None, None, **sections)
    assert any("unverified" in note for note in made.setup.notes)
    result = made.train()
    assert read_jsonl(result.run_dir / "metrics.jsonl")[-1]["train/tokens"] > 0
    with pytest.raises(DataError, match="evaluation data eval: 2 of 2 rows have no answer"):
        trainer(rows, rows[:2], None, **sections)


def test_recipes_take_paths_and_refuse_what_would_be_ignored(tmp_path):
    config = SRFTConfig(
        model={"path": tmp_path},
        run={"dir": tmp_path},
        data={"train": [tmp_path / "a", "b"], "eval": {"x": tmp_path}},
    )
    assert config.model.path == config.run.dir == str(tmp_path)
    assert config.data.train == [str(tmp_path / "a"), "b"]
    assert config.data.eval == {"x": str(tmp_path)}
    for given in ({"method": "grpo"}, "recipe.yaml"):
        with pytest.raises(ConfigError, match="takes its sections by name"):
            SRFTConfig(given)  # it was taken for a name, and what it holds ignored
    with pytest.raises(ConfigError, match="float16 is for evaluation only"):
        SRFTTrainer(args={"model": {"path": "lab", "dtype": "float16"}, "run": {"dir": tmp_path}})


def test_rows_that_are_left_out_are_told_apart_by_more_than_their_number(trainer):
    parts = [as_examples(ROWS[i : i + 3]) for i in (0, 3, 6)]
    bad = as_examples([{**ROWS[1], "prompt": "z = 1 ; z ?", "answer": "}{"}])
    rows = [*parts[0], *parts[1], *parts[2]]
    rows[1] = replace(bad[0], source=rows[4].source)  # each list has a row 2
    made = trainer(rows, None, "math", method="grpo", data={"invalid_rows": "drop"})
    assert any("1 of 9 answers do not verify" in note for note in made.setup.notes)
    assert len(made.setup.train) == 8


class Room:
    """An environment without tools."""

    def reset(self, **row):
        return None


NAMED = {"indoor": Room, "outdoor": Room}
CHAT = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}]


@pytest.mark.parametrize("kind", [list, Dataset.from_list])
@pytest.mark.parametrize("factories", [None, {}, {None: Room}, NAMED])
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": "3 + 4?", "demonstration": "7"}, {}),
        ({"question": "3 + 4?", "answer": "7 #### 7"}, {}),
        ({"messages": CHAT}, {}),
        ({"problem": "3 + 4?", "cot": "7"}, {"prompt": "problem", "demonstration": "cot"}),
    ],
)
def test_rows_that_name_an_environment_keep_their_prompt(kind, factories, row, columns):
    toolbox = None if factories is None else Toolbox([], factories)
    config = SRFTConfig(data={"columns": columns})
    rows = kind([{**row, "environment": "indoor"}] * 2)
    read = Given(train=rows).read(config, toolbox).train
    expected = as_examples([row] * 2, columns=columns)
    assert [(e.prompt, e.demonstrations, e.answer) for e in read] == [
        (e.prompt, e.demonstrations, e.answer) for e in expected
    ]
    assert [e.columns["environment"] for e in read] == ["indoor"] * 2


def test_rows_without_a_prompt_are_an_environments_where_there_is_one():
    rows = [{"environment": name, "number": 3, "answer": "3"} for name in NAMED]
    read = Given(train=rows).read(SRFTConfig(), Toolbox([], NAMED)).train
    assert [(e.prompt, e.columns) for e in read] == [(NO_PROMPT, row) for row in rows]
    few = Given(train=rows).read(SRFTConfig(data={"limit": 1}), Toolbox([], NAMED)).train
    assert len(few) == 1
    for toolbox in (None, Toolbox([], {})):
        with pytest.raises(DataError, match="unknown format"):
            Given(train=rows).read(SRFTConfig(), toolbox)
    with pytest.raises(DataError, match="row 1: has no `prompt`"):  # one row has one: it is asked
        Given(train=[*rows, {"environment": "indoor", "prompt": "3 + 4?"}]).read(
            SRFTConfig(), Toolbox([], NAMED)
        )


def test_evaluation_columns_are_those_of_a_recipe(tmp_path):
    rows, held = (
        [{"problem": "p", "answer": "1"}],
        [{"prompt": "q", "problem": "17", "answer": "2"}],
    )
    files = [
        str(file(tmp_path / name, part)) for name, part in (("a.jsonl", rows), ("b.jsonl", held))
    ]
    source = dict(zip(("train", "eval"), files, strict=True))
    for own, asked in ((None, "17"), ({}, "q"), ({"prompt": "answer"}, "2")):
        columns = {"columns": {"prompt": "problem"}, "eval_columns": own}
        given = Given(train=rows, evaluation=held).read(SRFTConfig(data=columns))
        read = load_splits(SRFTConfig(data={**columns, **source}).data)
        assert (
            [e.prompt for e in given.eval["eval"]] == [e.prompt for e in read.eval["b"]] == [asked]
        )
