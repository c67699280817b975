"""From a model path to results.json and tables, with a made-up engine in place of a model."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest
from benchmarks.lab.tokenizer import build_tokenizer

from srft.data.data_config import DataConfig
from srft.errors import ConfigError, DataError, ModelError
from srft.evaluation import result_tables
from srft.evaluation import run as run_module
from srft.evaluation.compare import compare
from srft.evaluation.evaluation_config import EvaluationConfig
from srft.evaluation.open_model import (
    Loaded,
    find_model,
    open_weights,
    template_of,
    weights_digest,
)
from srft.evaluation.run import evaluate_model, load_results, write_tables
from srft.lab import IN_DISTRIBUTION
from srft.model.model_config import ModelConfig
from srft.types import Completion

from .conftest import FakeEngine


class LabEngine(FakeEngine):
    """Answers a digit from 0 to ``highest``, or a letter, at random."""

    def __init__(self, fail_after=None, highest=9):
        super().__init__(fail_after)
        self.highest = highest

    def _one(self, request, seed, params):
        text = f"#### {seed % (self.highest + 1)}"
        return Completion((1, 2, 3), (0.0,) * 3, text, "stop")


@pytest.fixture
def engine(monkeypatch):
    """``load`` gives this engine whatever the model is."""
    holder = {"engine": LabEngine()}

    @contextmanager
    def load(source, data, rollout=None, device=None, toolbox=None):
        yield Loaded(holder["engine"], build_tokenizer(), (1,), 256, "float32 on cpu")

    monkeypatch.setattr(run_module, "load", load)
    return holder


def evaluated(tmp_path, name="m", **settings):
    config = EvaluationConfig(**{"suites": ["lab"], "limit": 30, "n": 2, **settings})
    return evaluate_model(name, config, tmp_path / name, progress=False)


def test_everything_is_written_and_says_what_it_is(engine, tmp_path):
    found = evaluated(tmp_path)
    folder = tmp_path / "m"
    assert {p.name for p in folder.iterdir()} == {
        *("results.json", "tables.md", "tables.html", "samples"),
    }
    summary = load_results(folder)
    assert summary == json.loads(json.dumps(found.summary))
    lab = summary["benchmarks"]["lab"]
    assert lab["accuracy"] == pytest.approx(found.results["lab"].accuracy)
    assert set(lab["families"]) == set(IN_DISTRIBUTION)
    assert lab["departures"] == [
        *("30 of 600 problems", "2 samples of each problem instead of 1"),
    ]
    average = summary["averages"]["lab"]["accuracy"]
    parts = [summary["benchmarks"][n]["accuracy"] for n in ("lab", "lab_ood")]
    assert average == pytest.approx(sum(parts) / 2)


def test_a_part_cannot_be_mistaken_for_the_whole(engine, tmp_path):
    text = evaluated(tmp_path).markdown
    head = text.split("## ")[0]
    assert "**Not the full protocol**" in head and "30 of 600 problems" in head
    assert "limit 30" in head
    assert re.search(r"\| m \| \d+\.\d\\\* \[", text)
    whole = evaluated(tmp_path, "whole", limit=None, n=None).markdown
    assert "Not the full protocol" not in whole and "\\*" not in whole


def test_an_interrupted_evaluation_goes_on(engine, tmp_path):
    engine["engine"] = LabEngine(fail_after=70)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path)
    partial = load_results(tmp_path / "m")  # the first benchmark was done
    assert list(partial["benchmarks"]) == ["lab"]
    assert partial["notes"] == ["not finished when this was written: lab OOD"]
    engine["engine"] = second = LabEngine()
    found = evaluated(tmp_path)
    assert second.made == 120 - 70
    engine["engine"] = LabEngine()
    fresh = evaluated(tmp_path, "other")
    assert {n: r.problems for n, r in found.results.items()} == {
        n: r.problems for n, r in fresh.results.items()
    }


def test_a_second_call_adds_to_the_same_folder(engine, tmp_path):
    evaluated(tmp_path, suites=["lab_ood"])
    data = tmp_path / "own.jsonl"
    data.write_text('{"prompt": "2 + 2 =", "answer": "4"}\n' * 3)
    found = evaluate_model("m", EvaluationConfig(dataset=str(data)), tmp_path / "m", progress=False)
    assert list(found.summary["benchmarks"]) == ["lab_ood", "own"]
    assert list(found.results) == ["own"]


def test_what_is_said_of_the_first_results_stays_when_others_join_them(engine, tmp_path):
    """The second call's settings stood for all: the first one's system prompt and confidence were gone."""
    pirate = {"system_prompt": "You are a pirate.", "confidence": 0.5, "seed": 3, "limit": 6}
    evaluated(tmp_path, suites=["lab_ood"], n=None, **pirate)
    data = tmp_path / "own.jsonl"
    data.write_text('{"prompt": "2 + 2 =", "answer": "4"}\n' * 3)
    config = EvaluationConfig(dataset=str(data), limit=2)
    found = evaluate_model("m", config, tmp_path / "m", progress=False)
    first, second = (found.summary["benchmarks"][name] for name in ("lab_ood", "own"))
    assert first["departures"] == ["6 of 300 problems", "every system message replaced"]
    assert {key: first["made"][key] for key in pirate} == pirate
    assert (second["made"]["system_prompt"], second["made"]["confidence"]) == (None, 0.95)
    assert found.summary["sources"] == {"lab_ood": "lab", "own": str(data)}
    text = found.markdown
    assert "every system message replaced" in text.split("## ")[0]
    assert "with 50% (lab OOD), 95% (own) intervals" in text
    assert (
        "float32 on cpu, seed 3 (lab OOD), seed 0 (own), limit 6 (lab OOD), limit 2 (own)" in text
    )


def test_a_set_of_the_same_name_is_still_known_after_another_call(engine, tmp_path):
    for name in "ab":
        rows = [{"prompt": f"{name} {i} =", "answer": str(i)} for i in range(3)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    ask = [EvaluationConfig(dataset=str(tmp_path / name / "x.jsonl")) for name in "ab"]
    evaluate_model("m", ask[0], tmp_path / "m", progress=False)
    evaluated(tmp_path, suites=["lab_ood"])
    with pytest.raises(ConfigError, match="holds results of 'x' from"):
        evaluate_model("m", ask[1], tmp_path / "m", progress=False)


@pytest.mark.parametrize("suites", [["lab"], ["lab_ood"]])
def test_the_same_weights_under_another_setting_are_another_model(engine, tmp_path, suites):
    """The second call printed the first one's accuracies."""
    config = EvaluationConfig(suites=["lab"], limit=6)
    first = evaluate_model("m", config, tmp_path / "m", progress=False)
    assert first.summary["weights"] == "m@main", "what earlier versions wrote is gone on with"
    other = config.model_copy(update={"suites": suites})
    same = {"dtype": "float32", "attention": "padded"}
    evaluate_model("m", config, tmp_path / "m", model=ModelConfig(**same), progress=False)
    for changed in ({"rope_theta": 50.0}, {"max_position_embeddings": 99}, {"tokenizer": "other"}):
        with pytest.raises(ConfigError, match=f"another model.*{next(iter(changed))}="):
            asked = ModelConfig(**changed)
            evaluate_model("m", other, tmp_path / "m", model=asked, progress=False)
    (tmp_path / "m" / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"samples made under other settings.*rope_theta"):
        asked = ModelConfig(rope_theta=50.0)
        evaluate_model("m", config, tmp_path / "m", model=asked, progress=False)


def test_a_dataset_is_evaluated_with_the_reward_given(engine, tmp_path):
    from srft.rewards.reward_config import RewardConfig

    data = tmp_path / "own.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i)}) + "\n" for i in range(10))
    )
    config = EvaluationConfig(dataset=str(data), n=4)
    reward = RewardConfig.model_validate("exact")
    found = evaluate_model("m", config, tmp_path / "m", reward=reward, progress=False)
    assert found.results["own"].settings["reward"]["rewards"][0]["name"] == "exact"
    assert 0 < found.results["own"].pass_at(4) < 1
    assert found.summary["benchmarks"]["own"]["departures"] == []


def test_max_tokens_are_lowered_to_the_context_and_this_is_said(engine, tmp_path):
    data = tmp_path / "own.jsonl"
    data.write_text('{"prompt": "2 + 2 =", "answer": "4"}\n')
    config = EvaluationConfig(dataset=str(data), max_tokens=1000)
    result = evaluate_model("m", config, tmp_path / "m", progress=False).results["own"]
    assert 200 < result.settings["max_tokens"] < 256


def test_nothing_to_evaluate_on_is_said_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        evaluate_model("no/model", EvaluationConfig(), tmp_path)
    with pytest.raises(ValueError, match="did you mean 'math5'"):
        EvaluationConfig(suites=["maths5"])
    with pytest.raises(ValueError, match="not both"):
        EvaluationConfig(suites=["lab"], dataset="x")


def test_a_row_without_an_answer_is_named_before_a_model_is_loaded(tmp_path):
    data = tmp_path / "own.jsonl"
    data.write_text('{"prompt": "a", "answer": "4"}\n{"prompt": "b", "answer": null}\n')
    with pytest.raises(DataError, match=r"own\.jsonl:2: has no answer"):
        evaluate_model("no/model", EvaluationConfig(dataset=str(data)), tmp_path)


def test_the_bars_write_to_stderr_only(engine, tmp_path, capsys):
    config = EvaluationConfig(suites=["lab_ood"], limit=9)
    evaluate_model("m", config, tmp_path / "m")
    out, err = capsys.readouterr()
    assert out == "" and "lab OOD" in err and "9/9" in err


class _Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta",):
            self.open.append(tag)
        names = {name for name, _ in attrs}
        assert not names & {"src", "href"}, "the page must need nothing else"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data)


def paper_results(label="ours", **marks):
    found = {
        "accuracy": 0.5, "interval": [0.4, 0.6], "sampling_interval": None, "n": 1,
        "problems_evaluated": 500, "problems_in_set": 500, "pass_at_n": 0.5, "majority_at_n": 0.5,
        "mean_tokens": 900.0, "truncated_share": 0.1, "unscorable_share": 0.0, "families": {},
        "departures": [], **marks,
    }  # fmt: skip
    return {
        "model": label, "settings": {"seed": 0, "confidence": 0.95}, "averages": {},
        "benchmarks": {"math500": found},
    }  # fmt: skip


def test_the_papers_rows_stand_beside_ours_marked_as_quoted():
    text = result_tables.markdown([paper_results()])
    head = next(line for line in text.splitlines() if line.startswith("| model"))
    assert head == (
        "| model | AIME24 avg@32 | AMC avg@32 | MATH500 pass@1 | Minerva pass@1 | Olympiad pass@1 "
        "| avg | ARC-C pass@1 | GPQA-D pass@1 | MMLU-Pro pass@1 | avg |"
    )
    assert "| *SRFT, Qwen2.5-Math-7B (paper, Table 2)* | *35.3* | *74.3* | *89.8* |" in text
    assert "| ours | - | - | 50.0 [40.0, 60.0] |" in text
    assert "quoted" in text


def test_html_is_whole_self_contained_and_escaped():
    page = result_tables.html_page([paper_results("<b>&", departures=["30 of 500 problems"])])
    checker = _Checker()
    checker.feed(page.removeprefix("<!doctype html>"))
    assert checker.open == []
    assert "<b>&" in "".join(checker.cells) and "<b>&" not in page
    assert 'class="quoted"' in page and "50.0*" in page


def test_parts_of_two_benchmarks_with_one_name_stay_apart():
    part = {"accuracy": 0.25, "interval": [0.1, 0.4], "problems": 8}
    found = paper_results(families={"Algebra": part})
    found["benchmarks"]["olympiad"] = found["benchmarks"]["math500"] | {
        "families": {"Algebra": part | {"accuracy": 0.75}}
    }
    text = result_tables.markdown([found, paper_results("other")])
    assert "## MATH500 by part" in text and "## Olympiad by part" in text
    assert "| Algebra | 8 | 25.0 [10.0, 40.0] | - |" in text
    assert "| Algebra | 8 | 75.0 [10.0, 40.0] | - |" in text


def test_the_compare_command_pairs_each_with_the_first_and_prints_json(tmp_path, capsys):
    from srft.cli import main

    for name, right in (("a", 3), ("b", 2), ("c", 0)):
        found = paper_results(name) | {"format": 1}
        problems = {str(i): {"n": 1, "correct": int(i < right)} for i in range(4)}
        found["benchmarks"]["math500"]["problems"] = problems
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    folders = [str(tmp_path / name) for name in "abc"]
    with pytest.raises(SystemExit):
        main(["compare", *folders, "--json", "--out", str(tmp_path / "all")])
    pairs = json.loads(capsys.readouterr().out)
    assert [(p["a"], p["b"]) for p in pairs] == [("a", "b"), ("a", "c")]
    differences = [p["benchmarks"]["math500"]["difference"]["interval"] for p in pairs]
    assert [d["estimate"] for d in differences] == [0.25, 0.75]
    assert "| c |" in (tmp_path / "all" / "tables.md").read_text()


def test_tables_of_several_models_stand_in_one_file(tmp_path):
    write_tables([paper_results("one"), paper_results("two", n=4)], tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "MATH500 pass@1 / avg@4" in text and "| one |" in text and "| two |" in text


def test_foreign_results_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_results(tmp_path)
    (tmp_path / "results.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="not a results"):
        load_results(tmp_path)


def test_compare_pairs_problems_by_what_they_are(engine, tmp_path):
    engine["engine"] = LabEngine(highest=9)
    a = evaluated(tmp_path, "a")
    engine["engine"] = LabEngine(highest=0)
    b = evaluated(tmp_path, "b", limit=60)
    table = compare(a.summary, b.summary)
    row = table.rows[0]
    assert row.difference.problems == 30 and row.left_out == 30
    scores = {p.id: p.score for p in b.results["lab"].problems}
    expected = [p.score - scores[p.id] for p in a.results["lab"].problems]
    assert row.difference.interval.estimate == pytest.approx(sum(expected) / 30)
    assert "(30 left out)" in table.markdown() and "| average |" in table.markdown()
    same = compare(a.results["lab"], b.results["lab"]).rows[0]
    assert same.difference == row.difference


def test_compare_refuses_what_has_nothing_in_common(engine, tmp_path):
    a, b = evaluated(tmp_path, "a"), evaluated(tmp_path, "b", seed=1)
    c = evaluated(tmp_path, "c", system_prompt="Be brief.")
    with pytest.raises(DataError, match=r"share no problem. With other seeds"):
        compare(a.summary, b.summary)
    with pytest.raises(DataError, match=r"share no problem. With other seeds"):
        compare(a.results["lab"], b.results["lab"])
    words = r"share no problem. Their system prompts differ \(the data's own and 'Be brief.'\)"
    with pytest.raises(DataError, match=words):
        compare(a.summary, c.summary)
    with pytest.raises(DataError, match="nothing to compare"):
        compare(a.results["lab"], a.results["lab_ood"])


def test_a_run_directory_stands_for_its_model_and_its_recipe(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(
        "{data: {prompt_template: 'Q: {prompt} A:', train: x}, model: {}, rollout: {}}"
    )
    source = find_model(tmp_path)
    assert source.place == str(tmp_path / "model")
    assert template_of(source) == DataConfig(prompt_template="Q: {prompt} A:")
    assert find_model("org/name").place == "org/name"
    assert template_of(find_model("org/name")) == DataConfig()
    assert template_of(find_model(tmp_path / "model")) == template_of(source)
    (tmp_path / "config.yaml").write_text(
        "{data: {prompt_template: 'no place'}, model: {}, rollout: {}}"
    )
    with pytest.raises(ModelError, match=r"config\.yaml"):
        template_of(source)


def test_lab_stands_for_the_base_model_with_its_own_weights(monkeypatch, tmp_path):
    import srft.lab

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(srft.lab, "base_model_path", lambda: tmp_path / "base")
    assert find_model("lab").place == str(tmp_path / "base")


def test_a_folder_lab_without_a_model_is_not_taken_for_the_base_model(monkeypatch, tmp_path):
    """`srft lab` writes into a folder ``lab`` by default: every later use of the base model met it."""
    from srft.config import parse_config
    from srft.experiments.process import recipe_digest
    from srft.lab import base_model_path
    from srft.model.loading import load_tokenizer, resolved_config

    monkeypatch.chdir(tmp_path)
    recipe = parse_config({"model": {"path": "lab"}, "data": {"train": "lab"}, "method": "srft"})
    before = recipe_digest(recipe)
    (tmp_path / "lab" / "table2").mkdir(parents=True)
    assert find_model("lab").place == str(base_model_path())
    assert recipe_digest(recipe) == before
    assert resolved_config(recipe.model)[0] == str(base_model_path())
    assert load_tokenizer(recipe.model).name_or_path == str(base_model_path())
    (tmp_path / "lab" / "config.yaml").write_text("method: srft")  # now it is a run
    with pytest.raises(ModelError, match="neither an exported model"):
        find_model("lab")
    (tmp_path / "lab" / "config.json").write_text("{}")  # and now a model
    assert find_model("lab").place == "lab"


def test_weights_digest_changes_with_any_weights(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(3_000_000))
    (tmp_path / "config.json").write_text("{}")
    first = weights_digest(find_model(tmp_path))
    assert first == weights_digest(find_model(tmp_path)) and len(first) == 16
    file.write_bytes(bytes([1]) * 3_000_000)
    assert weights_digest(find_model(tmp_path)) != first
    assert weights_digest(find_model("org/name")) == "org/name@main"


def test_a_checkpoint_is_evaluated_with_its_own_weights(recipe):
    """What is answered greedily is what the trained model answers, not what its base does."""
    from safetensors.torch import load_file

    from srft.trainer.api import SRFTTrainer

    result = SRFTTrainer(args=recipe(train={"learning_rate": 0.05})).train()
    last = sorted(result.run_dir.glob("checkpoints/step_*"))[-1]
    base, exported = find_model(recipe().model.path), find_model(result.run_dir)
    checkpoint = find_model(last)
    assert checkpoint.weights == last / "weights"
    assert len({weights_digest(s) for s in (base, exported, checkpoint)}) == 3
    trained = {k: v for f in checkpoint.weights.iterdir() for k, v in load_file(f).items()}
    loaded = open_weights(checkpoint).state_dict()
    assert all((loaded[name] == tensor).all() for name, tensor in trained.items())
    same = open_weights(base).state_dict()
    assert any((same[name] != tensor).any() for name, tensor in trained.items())
