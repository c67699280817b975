"""Demonstrations that a model made: right ones alone, in a file that training reads."""

from __future__ import annotations

import json

import pytest

from srft.config import parse_config
from srft.data.reading import as_examples, load_examples
from srft.errors import ConfigError, DataError
from srft.evaluation import demonstrate as module
from srft.evaluation.demonstrate import demonstrate
from srft.rewards.scorer import Scorer
from srft.trainer.api import SRFTTrainer


@pytest.fixture
def config(tmp_path):
    return parse_config(
        {
            "model": {"path": "lab"},
            "data": {"train": "lab", "limit": 12},
            "reward": "exact",
            "rollout": {"max_tokens": 64},
            "run": {"dir": str(tmp_path / "run"), "live": "never"},
        }
    )


def test_what_is_kept_is_right_and_is_trained_on(config, tmp_path, monkeypatch):
    write, held = module.write_whole, []

    def written(path, content):
        held.append((path.parent / ".lock").exists())
        write(path, content)

    monkeypatch.setattr(module, "write_whole", written)
    found = demonstrate(config, tmp_path / "out", n=3, keep=2, temperature=1.0)
    assert held == [True], "the folder is held until all is written"
    examples = load_examples(str(found.file))
    asked = {e.prompt: e for e in load_examples("lab", limit=12, seed=config.data.seed)}
    assert 0 < found.solved == len(examples) < found.prompts == 12, "the test sees both kinds"
    assert found.kept == sum(len(e.demonstrations) for e in examples)
    with Scorer("exact") as scorer:
        for example in examples:
            assert 1 <= len(example.demonstrations) == len(set(example.demonstrations)) <= 2
            scores = scorer.score([example] * len(example.demonstrations), example.demonstrations)
            assert all(score.correct for score in scores)
            assert example.answer == asked[example.prompt].answer
            assert example.columns["family"] == asked[example.prompt].columns["family"]
    data = config.data.model_copy(update={"train": str(found.file), "limit": None})
    train = config.train.model_copy(update={"steps": 1, "prompts_per_step": 2})
    trainer = SRFTTrainer(args=config.model_copy(update={"data": data, "train": train}))
    assert len(trainer.setup.train) == found.solved
    assert all(len(scores) for scores in trainer.setup.demo_scores), "none fails its verifier"
    trainer.close()


def test_it_goes_on_where_it_stopped_and_with_more_samples(config, tmp_path, monkeypatch):
    whole = demonstrate(config, tmp_path / "whole", n=3, temperature=1.0, all_rows=True)
    assert len(load_examples(str(whole.file))) == whole.prompts == 12

    def stop(done, total):
        if done >= 6:
            raise KeyboardInterrupt

    monkeypatch.setattr("srft.evaluation.evaluate.MOST_AT_ONCE", 4)
    with pytest.raises(KeyboardInterrupt):
        demonstrate(config, tmp_path / "parts", n=2, temperature=1.0, progress=stop)
    samples = tmp_path / "parts/samples.jsonl"
    before = samples.read_text().splitlines()
    assert 1 < len(before) < 1 + 24
    asked = []
    again = demonstrate(
        config, tmp_path / "parts", n=3, temperature=1.0, all_rows=True,
        progress=lambda done, total: asked.append(done),
    )  # fmt: skip
    assert asked[0] == len(before) - 1, "what was judged is not drawn again"
    assert samples.read_text().splitlines()[: len(before)] == before
    assert again.file.read_bytes() == whole.file.read_bytes(), "as if it had never stopped"
    with pytest.raises(ConfigError, match="temperature"):
        demonstrate(config, tmp_path / "parts", n=3, temperature=0.5)
    turned = config.model.model_copy(update={"rope_theta": 50.0})
    with pytest.raises(ConfigError, match="rope_theta"):
        asked = config.model_copy(update={"model": turned})
        demonstrate(asked, tmp_path / "parts", n=3, temperature=1.0)


def test_samples_that_were_cut_are_not_kept_and_nothing_right_is_an_error(config, tmp_path):
    short = config.rollout.model_copy(update={"max_tokens": 2})
    with pytest.raises(DataError, match="none of 12 samples is right: `srft sample` shows"):
        demonstrate(config.model_copy(update={"rollout": short}), tmp_path / "out", n=1)
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 13, "what was judged is there to be looked at"
    with pytest.raises(ConfigError, match=r"model\.path: not set; name whom to ask"):
        demonstrate(parse_config({"data": {"train": "lab", "limit": 2}}), tmp_path / "no")


def test_conversations_and_problems_of_reasoning_gym_come_back_as_they_were(tmp_path):
    pytest.importorskip("reasoning_gym")
    source = "reasoning-gym:chain_sum+leg_counting?size=6&seed=1"
    gym = load_examples(source)
    talk = module.Example(
        ({"role": "system", "content": "S"}, {"role": "user", "content": "1 + 1"}), (), "2"
    )
    (tmp_path / "gym.parquet").write_bytes(
        module._parquet([module._row(e, [f"The answer is {e.answer}."], {}, False) for e in gym])
    )
    (tmp_path / "talk.parquet").write_bytes(module._parquet([module._row(talk, ["2"], {}, False)]))
    again = load_examples(str(tmp_path / "gym.parquet"))
    for one, other in zip(gym, again, strict=True):
        assert (one.prompt, one.answer) == (other.prompt, other.answer)
        assert one.columns["reasoning_gym"] == other.columns["reasoning_gym"]
    with Scorer("reasoning-gym") as scorer:
        assert all(s.correct for s in scorer.score(again, [e.demonstrations[0] for e in again]))
    (back,) = load_examples(str(tmp_path / "talk.parquet"))
    assert back.prompt == talk.prompt and back.demonstrations == ("2",)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"prompt": "problem", "answer": "final"},
        {"prompt": "task.text", "demonstration": "task.steps", "answer": "reward_model.ground_truth",
         "system": "tone"},
    ],
)  # fmt: skip
def test_the_recipe_reads_its_own_demonstrations_with_all_answers(columns, tmp_path):
    row = {"problem": "How many?", "final": ["70", "seventy"], "level": 3, "demonstrations": ["x"]}
    if "system" in columns:
        task = {"text": "How many?", "steps": "x", "kind": "easy"}
        row = {"task": task, "reward_model": {"ground_truth": ["70", "seventy"]}, "tone": "Short."}
    elif not columns:
        row = {"prompt": row["problem"], "answer": row["final"], "level": 3}
    second = {**row, **{k: "71" for k in ("answer", "final") if k in row}}
    examples = as_examples([row, second], columns=columns)
    assert examples[0].other_answers == ("seventy",)
    rows = [module._row(e, ["70, as", "70."], columns, True) for e in examples]
    (tmp_path / "made.parquet").write_bytes(module._parquet(rows))
    again = load_examples(str(tmp_path / "made.parquet"), columns=columns)
    for one, other in zip(examples, again, strict=True):
        assert (one.prompt, one.answer, one.other_answers) == (
            other.prompt, other.answer, other.other_answers
        )  # fmt: skip
        assert other.demonstrations == ("70, as", "70.")
        assert one.columns.get("level") == other.columns.get("level")
