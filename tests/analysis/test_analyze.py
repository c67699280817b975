"""The whole analysis on tiny models: files, tables, and the figures that must come out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from srft.analysis.analyze import _named, analyze
from srft.analysis.dynamics import ProbabilitySpace, distance
from srft.analysis.responses import read_responses, tokenize
from srft.analysis.show_analysis import render
from srft.data.data_config import DataConfig
from srft.errors import CheckpointError, ConfigError, DataError, ModelError
from srft.evaluation.open_model import Source, checkpoints_of, find_model, open_weights
from srft.model.model_config import ModelConfig

PROMPT = "a = 3 + 4 ; a ?"
RESPONSES = ("a = 3 + 4 = 7 ; 7", "7", "a = 3 + 4 = 8 ; b = 8 * 2 = 6")


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sample(step: int = 1) -> dict:
    return {
        "step": step,
        "prompt": PROMPT,
        "answer": "7",
        "source": "x:1",
        "responses": [
            {"kind": "demonstration", "text": RESPONSES[0], "reward": 1.0, "correct": True},
            {"kind": "rollout", "text": RESPONSES[1], "reward": 1.0, "correct": True},
            {
                "kind": "rollout",
                "text": RESPONSES[2],
                "reward": 0.0,
                "correct": False,
                "truncated": True,
            },
        ],
    }


@pytest.fixture
def run(tmp_path, folders) -> Path:
    """A run from ``base`` with two checkpoints: the base itself and ``other``."""
    from safetensors.torch import load_file, save_file

    path = tmp_path / "run"
    path.mkdir()
    config = {
        "method": "srft",
        "model": {"path": str(folders["base"])},
        "train": {"steps": 20, "seed": 0},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = [
        {
            "step": s,
            "reward/accuracy": s / 20,
            "loss": 1.0,
            "total/rollout_tokens": 100.0 * s,
            "total/trained_tokens": 300.0 * s,
            "total/seconds": 2.0 * s,
        }
        for s in range(1, 21)
    ]
    write(path / "metrics.jsonl", metrics)
    write(path / "samples.jsonl", [sample(), sample(2)])
    for step, name in ((10, "base"), (20, "other")):
        folder = path / "checkpoints" / f"step_{step:06d}" / "weights"
        folder.mkdir(parents=True)
        save_file(load_file(folders[name] / "model.safetensors"), folder / "model.safetensors")
    return path


def test_everything_at_once(tmp_path, folders, run):
    models = [str(folders[name]) for name in ("base", "other", "base")]
    said: list[str] = []
    result = analyze(models, run, tmp_path / "out", runs=[run], progress=said.append)
    assert result.models == ("base", "other", "base (2)")
    assert result.responses == {"demonstration": 2, "rollout": 4}
    assert {(s.model, s.kind) for s in result.shifts} == {
        (m, k) for m in ("other", "base (2)") for k in ("demonstration", "rollout")
    }
    for shift in result.shifts:
        assert shift.base == "base"
        zero = shift.model == "base (2)"
        for name in ("absolute_change", "kl_forward", "kl_backward", "jsd", "tv", "top_changed"):
            assert (shift.means[name].value == 0) == zero, name
    points = result.dynamics.trajectories[0].points
    assert [p.step for p in points] == [0, 10, 20]
    assert points[1].distances["base"] == 0
    assert points[2].distances["other"] == 0
    assert points[2].distances["base"] == pytest.approx(points[0].distances["other"])
    assert [p.name for p in result.files] == ["analysis.json", "analysis.html"]
    data = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert data["shifts"][0]["changed"]["0.1"]["value"] == result.shifts[0].changed[0.1].value
    assert "NaN" not in (tmp_path / "out" / "analysis.json").read_text()
    console = Console(file=io.StringIO(), width=200)
    console.print(render(result))
    text = console.file.getvalue()
    for words in (
        "Token shift on 2 demonstrations",
        "Distances in probability space",
        "demo",
    ):
        assert words in text
    assert said


def test_the_base_alone_has_gradients_and_no_shift(tmp_path, folders):
    data = write(tmp_path / "d.jsonl", [{"prompt": PROMPT, "response": RESPONSES[0]}])
    result = analyze([str(folders["base"])], data, tmp_path / "out")
    assert result.shifts == ()
    assert result.gradient is not None
    assert (tmp_path / "out" / "analysis.html").exists()


def test_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one model"):
        analyze([], "x.jsonl", tmp_path)


# Responses.


def test_a_sample_without_an_end_is_not_given_one(run, tokenizer):
    done, _ = tokenize(read_responses(run, limit=None), tokenizer)
    ends = [t.ids[-1] == tokenizer.eos_token_id for t in done[:3]]
    assert ends == [True, True, False]
    assert tokenizer.decode(done[0].ids[:-1]) == RESPONSES[0]


def test_prompts_of_samples_are_taken_as_they_stand(run, tokenizer):
    done, notes = tokenize(read_responses(run), tokenizer)
    assert tokenizer.decode(done[0].prompt_ids) == PROMPT
    assert notes == []


def test_token_ids_of_a_sample_are_used_where_it_has_them(tmp_path, tokenizer):
    row = sample()
    row["prompt_ids"] = [7, 8]
    row["responses"] = [{**row["responses"][0], "token_ids": [9, 10, 1]}]
    done, notes = tokenize(read_responses(write(tmp_path / "samples.jsonl", [row])), tokenizer)
    assert (done[0].prompt_ids, done[0].ids, notes) == ((7, 8), (9, 10, 1), [])


def test_what_training_left_out_is_scored_and_what_a_tool_wrote_is_not(tmp_path, tokenizer):
    """The samples of an HPT run, whose gate leaves responses out, ended in a traceback."""
    row = sample() | {"prompt_ids": [7, 8]}
    figures = [
        {"logprob": [-1.0, -1.0, -1.0], "loss": [None, None, None]},
        {"logprob": [-1.0, None, -1.0], "loss": [0.5, None, 0.5]},
        {"logprob": [None, None, -1.0], "loss": [None, None, 0.5]},
    ]
    made = zip(row["responses"], figures, strict=True)
    row["responses"] = [one | two | {"token_ids": [9, 10, 1]} for one, two in made]
    found = read_responses(write(tmp_path / "samples.jsonl", [row]))
    assert [t.own for t in tokenize(found, tokenizer)[0]] == [(9, 10, 1), (9, 1), (1,)]
    cut, notes = tokenize(found, tokenizer, max_tokens=2)
    assert [t.own for t in cut] == [(9, 10), (9,)]
    assert "1 responses without a token of the model's own were left out." in notes
    with pytest.raises(DataError, match="every response is empty"):
        tokenize(found[2:], tokenizer, max_tokens=2)


@pytest.mark.parametrize("base", ["run", "base"])
def test_prompts_are_in_the_format_of_the_base(tmp_path, folders, run, monkeypatch, base):
    """The recipe beside a base was not read: its prompts had the default format."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"data": {"prompt_template": "Q {prompt}"}, "rollout": {}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    asked = []
    monkeypatch.setattr(
        "srft.analysis.analyze.tokenize",
        lambda responses, tokenizer, data, most: (
            asked.append(data.prompt_template) or tokenize(responses, tokenizer, data, most)
        ),
    )
    data = write(tmp_path / "d.jsonl", [{"prompt": PROMPT, "response": RESPONSES[0]}])
    models = [str(run), str(folders["base"])][:: 1 if base == "run" else -1]
    result = analyze(models, data, tmp_path / "out")
    (note,) = result.notes
    other = result.models[1]
    assert f"the recipe of {other} has another" in note
    own = DataConfig(prompt_template="A {prompt}")
    assert analyze(models, data, tmp_path / "out", data_config=own).notes == ()
    first = "Q {prompt}" if base == "run" else DataConfig().prompt_template
    assert asked == [first, "A {prompt}"]


def test_settings_of_the_model_reach_references_and_checkpoints(tmp_path, folders, run):
    """The run's first checkpoint is the base, and the reference is its second."""
    result = analyze(
        [str(folders["base"])], run, tmp_path / "out", runs=[run],
        references=[str(folders["other"])], model_options={"rope_theta": 50.0},
    )  # fmt: skip
    _, first, last = result.dynamics.trajectories[0].points
    assert (first.distances["base"], last.distances["other"]) == (0, 0)


def test_responses_of_a_file_may_be_lists_with_kinds(tmp_path):
    rows = [
        {"prompt": PROMPT, "responses": list(RESPONSES), "kind": "base"},
        {"prompt": PROMPT, "completion": "7", "kind": "tuned"},
    ]
    found = read_responses(write(tmp_path / "r.jsonl", rows))
    assert [r.kind for r in found] == ["base"] * 3 + ["tuned"]
    assert [r.group for r in found] == [0, 0, 0, 1]
    assert [r.kind for r in read_responses(tmp_path / "r.jsonl", kinds=["tuned"])] == ["tuned"]


def test_demonstrations_of_training_data_are_responses(tmp_path):
    rows = [{"prompt": PROMPT, "demonstration": RESPONSES[0], "answer": "7"}]
    found = read_responses(write(tmp_path / "train.jsonl", rows))
    assert [(r.kind, r.text, r.answer) for r in found] == [("demonstration", RESPONSES[0], "7")]


def test_the_limit_draws_whole_prompts_of_each_kind_and_repeats_itself(tmp_path):
    rows = [sample(step) for step in range(30)]
    path = write(tmp_path / "samples.jsonl", rows)
    found = read_responses(path, limit=8, seed=3)
    assert [r.kind for r in found].count("rollout") == 8
    assert [r.kind for r in found].count("demonstration") == 8
    assert found == read_responses(path, limit=8, seed=3)
    assert found != read_responses(path, limit=8, seed=4)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a"', "r.jsonl:2: not a JSON object"),
        ("[1]", "r.jsonl:2: not a JSON object"),
        ('{"prompt": "a", "response": 3}', "r.jsonl:2: `response` holds int"),
        ('{"response": "b"}', "r.jsonl:2: no `prompt`"),
        ('{"prompt": "a"}', "r.jsonl:2: no `response`"),
    ],
)
def test_bad_rows_are_named(tmp_path, line, words):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=words):
        read_responses(path)


def test_nothing_to_score_is_refused(run, tokenizer):
    with pytest.raises(DataError, match="no response of kind poem"):
        read_responses(run, kinds=["poem"])
    empty = [r for r in read_responses(run)][:1]
    with pytest.raises(DataError, match="every response is empty"):
        tokenize([type(empty[0])("p", "  ", "rollout", "x", 0)], tokenizer)


def test_long_responses_are_cut_and_unknown_words_counted(tmp_path, tokenizer):
    rows = [
        {"prompt": PROMPT, "response": " ".join(["7"] * 50)},
        {"prompt": PROMPT, "response": "zebra"},
    ]
    done, notes = tokenize(
        read_responses(write(tmp_path / "r.jsonl", rows)), tokenizer, max_tokens=20
    )
    assert [len(t.ids) for t in done] == [20, 2]
    assert any("1 of 2 responses were cut at 20" in note for note in notes)
    assert any("unknown to the tokenizer" in note for note in notes)


# Models.


def test_a_run_stands_for_its_newest_checkpoint_or_its_export(run, folders):
    assert find_model(run).name == "run@20"
    assert [step for step, _ in checkpoints_of(run)] == [10, 20]
    (run / "model").mkdir()
    for file in folders["other"].iterdir():
        (run / "model" / file.name).write_bytes(file.read_bytes())
    assert find_model(run).weights is None
    assert find_model(run).config.path == str(run / "model")


def test_a_run_without_a_model_and_a_checkpoint_without_a_run_are_refused(tmp_path, run):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("method: srft\n")
    with pytest.raises(ModelError, match="neither an exported model"):
        find_model(empty)
    (run / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        find_model(run / "checkpoints" / "step_000010")


def test_a_checkpoint_of_another_model_is_refused(run, folders):
    from safetensors.torch import save_file

    folder = run / "checkpoints" / "step_000010"
    import torch

    save_file({"strange.weight": torch.zeros(2)}, folder / "weights" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"strange\.weight"):
        open_weights(find_model(folder))


# Dynamics.


def test_distances_are_root_mean_squares():
    p, q = np.array([0.1, 0.5, 0.9, 0.2]), np.array([0.1, 0.1, 0.9, 0.5])
    assert distance(p, q) == pytest.approx(0.25)
    demo = np.array([True, True, False, False])
    space = ProbabilitySpace({"base": q}, demo)
    assert space.distances(p) == {
        "base": pytest.approx(0.25),
        "demonstrations": pytest.approx(np.sqrt((0.9**2 + 0.5**2) / 2)),
    }
    assert set(ProbabilitySpace({"base": q}, ~demo & demo).references) == {"base"}
    ones = space.references["demonstrations"]
    assert space.distances(ones, of="demonstrations") == {
        "base": space.distances(q)["demonstrations"],  # the same both ways
        "demonstrations": 0.0,
    }


def test_runs_of_one_name_take_the_folder_above_along(tmp_path):
    config = ModelConfig(path="x")
    sources = [
        Source("base", config),
        Source("seed0", config, run=tmp_path / "sft" / "seed0"),
        Source("seed0", config, run=tmp_path / "srft" / "seed0"),
        Source("seed1", config, run=tmp_path / "srft" / "seed1"),
        Source("base", config),
    ]
    names = [source.name for source in _named(sources)]
    assert names == ["base", "sft/seed0", "srft/seed0", "seed1", "base (2)"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"instruction": "Add", "input": "1 and 2", "output": "3"}, None),
        ({"prompt": [{"role": "user", "content": "1 + 2"}],
          "completion": [{"role": "assistant", "content": "3"}]}, None),
        ({"problem": "1 + 2", "output": "3"}, {"prompt": "problem", "demonstration": "output"}),
        ({"question": "1 + 2", "response": "3"}, {"prompt": "question", "demonstration": "response"}),
    ],
)  # fmt: skip
def test_training_data_in_every_form_is_read_as_training_reads_it(tmp_path, row, columns):
    (found,) = read_responses(write(tmp_path / "train.jsonl", [row]), columns=columns)
    assert (found.kind, found.text, found.rendered) == ("demonstration", "3", False)
