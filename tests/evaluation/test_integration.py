"""The whole path with a real (tiny, untrained) model, the embedded engine and the real scorer."""

from __future__ import annotations

import json
import shutil

import pytest
from tests.toys import lab_model, lab_tokenizer, save_lab_model

from srft.errors import ConfigError
from srft.evaluation.evaluate import evaluate
from srft.evaluation.evaluation_config import EvaluationConfig
from srft.evaluation.run import evaluate_model
from srft.evaluation.sample import sample_texts
from srft.rewards.scorer import Scorer
from srft.rollout.rollout_config import RolloutConfig
from srft.trainer.api import SRFTTrainer
from srft.types import Example, SamplingParams


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A run directory with an exported model and the recipe it was trained by."""
    run = tmp_path_factory.mktemp("run")
    save_lab_model(run / "model", "llama")
    (run / "config.yaml").write_text("data: {prompt_template: '{prompt} '}\n")
    return run


def test_the_embedded_engine_and_the_scorer_serve_evaluate(tmp_path):
    from srft.rollout.embedded import EmbeddedEngine

    tokenizer = lab_tokenizer()
    problems = [Example(f"a = {i} + 1 ; a ?", (), str(i + 1)) for i in range(8)]
    params = SamplingParams(temperature=1.0, max_tokens=12)
    with Scorer("exact") as scorer:
        engine = EmbeddedEngine(lab_model("llama"), tokenizer)
        path = tmp_path / "samples.jsonl"
        first = evaluate(engine, tokenizer, problems, scorer, params, 3, 0, path)
        again = evaluate(engine, tokenizer, problems, scorer, params, 3, 0, path)
        alone = evaluate(engine, tokenizer, problems[2:3], scorer, params, 1, 0)
    assert first.problems == again.problems and len(path.read_text().splitlines()) == 25
    assert alone.problems[0].samples[0] == first.problems[2].samples[0]
    assert first.statuses().keys() <= {"ok", "no_answer"}
    assert 0 < first.mean_tokens <= 12


def test_evaluate_model_reads_a_run_directory_and_writes_tables(model_dir, tmp_path):
    config = EvaluationConfig(suites=["lab"], limit=12, n=2, max_tokens=16)
    found = evaluate_model(model_dir, config, tmp_path, progress=False)
    summary = json.loads((tmp_path / "results.json").read_text())
    assert summary["path"] == str(model_dir / "model") and summary["device"].startswith("float32")
    assert set(found.results) == {"lab", "lab_ood"}
    assert "lab" in summary["averages"] and (tmp_path / "tables.html").is_file()
    assert "max_tokens 16 instead of 128" in found.markdown


@pytest.mark.parametrize("by", ["recipe", "option", "string"])
def test_what_ends_a_rollout_in_training_ends_a_response_here(model_dir, tmp_path, by):
    """rollout.stop and rollout.stop_token_ids of the recipe and of --rollout had no effect."""
    everything = tuple(range(len(lab_tokenizer())))
    rollout = {
        "recipe": None,
        "option": RolloutConfig(stop_token_ids=everything),
        "string": RolloutConfig(stop=("7",), stop_token_ids=()),
    }[by]
    run = tmp_path / "run"
    shutil.copytree(model_dir, run)
    recipe = {"data": {}, "model": {}, "rollout": {"stop_token_ids": list(everything)}}
    (run / "config.yaml").write_text(json.dumps(recipe if by != "option" else {}))
    config = EvaluationConfig(suites=["lab_ood"], limit=12, max_tokens=30)
    result = evaluate_model(run, config, tmp_path / "o", rollout=rollout, progress=False)
    found = result.results["lab_ood"]
    drawn = sample_texts(run, ["a = 1 + 1 ; a ?"] * 12, 2, rollout=rollout, max_tokens=30)
    lengths = {len(c.token_ids) for group in drawn for c in group}
    if by == "string":
        texts = [s.text for p in found.problems for s in p.samples]
        assert not any("7" in text for text in [*texts, *(c.text for g in drawn for c in g)])
        assert "responses end at '7'" in result.summary["benchmarks"]["lab_ood"]["departures"]
        assert max(lengths) > 1, "what is set replaces the recipe's"
    else:
        assert (found.mean_tokens, lengths) == (1.0, {1})


def test_limit_and_system_prompt_are_for_the_evaluation_data_of_training_too(recipe, tmp_path):
    """Both did nothing for data.eval."""
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content }} ; {% endfor %}")
    rows = [
        {"prompt": [{"role": "system", "content": "4"}, {"role": "user", "content": f"{i} + 1 ="}]}
        for i in range(9)
    ]
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(row | {"answer": "1"}) + "\n" for row in rows))
    data = {"eval": str(held), "chat_template": str(template)}

    def asked(**evaluation):
        trainer = SRFTTrainer(args=recipe(data=data, evaluation=evaluation))
        (found,) = trainer.setup.evaluation.values()
        decode = trainer.setup.policy.tokenizer.decode
        trainer.close()
        return [p.example.prompt for p in found.problems], decode(found.problems[0].prompt_ids)

    whole, first = asked()
    assert (len(whole), first.split()[0]) == (9, "4")
    part, first = asked(limit=2, system_prompt="7")
    assert first.split()[0] == "7" and [p[0]["content"] for p in part] == ["7", "7"]
    assert {p[1]["content"] for p in part} < {p[1]["content"] for p in whole}


def test_samples_are_seeded_honour_the_context_and_take_one_loading(model_dir, monkeypatch):
    from srft.evaluation import sample

    loads = []
    load = sample.load
    monkeypatch.setattr(sample, "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    prompts = ["a = 1 + 1 ; a ?", "a = 2 + 1 ; a ?"]
    first = sample_texts(model_dir, prompts, 3, temperature=1.0, max_tokens=10_000)
    again = sample_texts(model_dir, prompts[:1], 3, temperature=1.0, max_tokens=10_000)
    assert len(loads) == 2 and [len(group) for group in first] == [3, 3]
    assert all(len(c.token_ids) < 256 for group in first for c in group)
    assert [c.token_ids for c in first[0]] == [c.token_ids for c in again[0]]
    with pytest.raises(ConfigError, match="empty"):
        sample_texts(model_dir, ["  "])
    with pytest.raises(ConfigError, match="no room"):
        sample_texts(model_dir, ["1 " * 300])
