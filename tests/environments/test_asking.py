"""Tools where a model is asked: ``srft eval``, ``sample`` and ``data demonstrate``."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import yaml
from tests.environments.conftest import add, numbers, sums

from srft.cli import main
from srft.data.reading import load_examples
from srft.errors import ConfigError
from srft.evaluation.demonstrate import demonstrate
from srft.evaluation.evaluation_config import EvaluationConfig
from srft.evaluation.open_model import environment_of, find_model
from srft.evaluation.run import evaluate_model
from srft.runs.files import read_jsonl
from srft.trainer.api import SRFTTrainer

SETTINGS = {"evaluation": {"every_steps": 0, "at_start": False}, "train": {"steps": 1}}
GAME = """
class Game:
    def reset(self, **row):
        self.total = 0

    def add(self, a: int, b: int) -> str:
        '''
        Adds two numbers.

        Args:
            a: The first.
            b: The second.
        '''
        self.total += 1
        return str(a + b)

    def get_reward(self) -> float:
        return float(self.total > 0)
"""


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sums(3)))
    return path


@pytest.fixture
def adds(monkeypatch):
    """A model that adds the two numbers of the question: it asks the tool, then says its answer."""

    class Adds:
        asked: ClassVar[list] = []

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def generate(self, requests, params, on_completion=None):
            from srft.types import Completion

            found = []
            for r, request in enumerate(requests):
                seen = self.tokenizer.decode(request.prompt_ids)
                self.asked.append(seen)
                _, _, asked = seen.rpartition("user\n")
                if "tool\n" in asked:
                    said = f"The answer is {numbers(asked.rpartition('tool')[2])[0]}."
                elif "Tools:" in seen:
                    a, b = numbers(asked)[:2]
                    call = {"name": "add", "arguments": {"a": int(a), "b": int(b)}}
                    said = f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
                else:
                    said = "I do not know."
                ids = tuple(self.tokenizer(f"{said}<|im_end|>").input_ids)
                one = Completion(ids, (-0.1,) * len(ids), said, "stop")
                found.append([one] * request.n)
                for i in range(request.n):
                    if on_completion:
                        on_completion(r, i, one)
            return found

        def update_weights(self): ...
        def close(self): ...

    build = lambda model, tokenizer, *rest: Adds(tokenizer)  # noqa: E731
    monkeypatch.setattr("srft.rollout.engine.build_engine", build)
    return Adds.asked


@pytest.fixture
def run_with(tool_recipe, rows):
    """``run_with(**environment)``: the folder of a run as ``srft train`` leaves it."""

    def build(**environment):
        args = tool_recipe(
            **SETTINGS, environment=environment, data={"train": str(rows)}, reward="math"
        )
        return SRFTTrainer(args=args).train().run_dir

    return build


def asked_about(rows, **settings):
    return EvaluationConfig(dataset=str(rows), max_tokens=200, **settings)


def called(code, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == code


def test_a_run_with_tools_is_evaluated_with_them(run_with, rows, tmp_path, adds, capsys):
    run = run_with(tools=[f"{__file__}:add"])
    for place in (run, run / "model"):
        adds.clear()
        out = tmp_path / f"of-{place.name}"
        result = evaluate_model(place, asked_about(rows), out, progress=False)
        assert result.results["sums"].accuracy == 1.0 and "Adds two numbers" in adds[0]
        (first, *_) = [row for row in read_jsonl(out / "samples/sums.jsonl") if "id" in row]
        assert first["text"].startswith("[call] add(") and "[add] " in first["text"]
    # Samples made with tools are not mixed with those made without.
    without = ["--setting", "environment.tools=[]", "--max-tokens", "200"]
    command = ["eval", str(run), "--dataset", str(rows), *without]
    called(2, *command, "--out", str(out))
    assert "under other settings" in " ".join(capsys.readouterr().err.split())
    called(0, *command, "--out", str(tmp_path / "without"), "--json")
    assert json.loads(capsys.readouterr().out)["benchmarks"]["sums"]["accuracy"] == 0.0
    called(0, "sample", str(run), "What is 20 + 4?", "--max-tokens", "200")
    said = capsys.readouterr().out
    assert "[call] add({'a': 20, 'b': 4})" in said and "The answer is 24." in said


def test_an_environment_s_own_reward_judges_data(run_with, rows, tmp_path, adds):
    game = tmp_path / "game.py"
    game.write_text(GAME)
    run = run_with(factory=f"{game}:Game")
    # Rows without an answer, which math could not judge.
    bare = tmp_path / "bare.jsonl"
    bare.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in sums(3)))
    result = evaluate_model(run, asked_about(bare), tmp_path / "own", progress=False)
    (first, *_) = result.results["bare"].problems
    assert dict(first.samples[0].parts) == {"Game": 1.0}
    lab = EvaluationConfig(suites=["lab_ood"], limit=1, max_tokens=40)
    (problem,) = (
        evaluate_model(run, lab, tmp_path / "lab", progress=False).results["lab_ood"].problems
    )
    assert "Game" not in problem.samples[0].parts, "a benchmark has its own verifier"


def test_tools_given_in_python_have_to_be_named(tool_recipe, rows, tmp_path, adds):
    args = tool_recipe(**SETTINGS, reward="math")
    run = SRFTTrainer(args=args, train_dataset=sums(2), tools=[add]).train().run_dir
    with pytest.raises(ConfigError, match=r"given in Python \(add\)"):
        evaluate_model(run, asked_about(rows), tmp_path / "out", progress=False)
    named = environment_of(find_model(str(args.model.path))).model_copy(
        update={"tools": (f"{__file__}:add",)}
    )
    found = evaluate_model(
        run, asked_about(rows), tmp_path / "out", environment=named, progress=False
    )
    assert found.results["sums"].accuracy == 1.0


def test_the_recipe_s_own_dataset_is_asked_with_tools(tool_recipe, rows, calls_at_random):
    evaluation = {"dataset": str(rows), "every_steps": 0, "at_start": False}
    args = tool_recipe(train={"steps": 1}, evaluation=evaluation, reward="math")
    trainer = SRFTTrainer(args=args, train_dataset=sums(2), tools=[add])
    (problem, *_) = trainer.setup.evaluation["sums"].problems
    assert "Adds two numbers" in trainer.tokenizer.decode(problem.prompt_ids)
    trainer.close()


def test_demonstrations_with_calls_are_made_and_learned(tool_recipe, rows, tmp_path, adds):
    config = tool_recipe(
        environment={"tools": [f"{__file__}:add"]}, data={"train": str(rows)}, reward="math"
    )
    found = demonstrate(config, tmp_path / "made", n=2)
    assert (found.solved, found.kept) == (3, 3), "two samples that are alike are kept once"
    again = demonstrate(config, tmp_path / "made", n=2, keep=2)
    assert again.kept == 3, "read back from the journal"
    turns = load_examples(str(found.file))[1].demonstrations[0].messages
    assert [turn["role"] for turn in turns] == ["assistant", "tool", "assistant"]
    data = yaml.safe_load(yaml.safe_dump({"train": str(found.file)}))
    trainer = SRFTTrainer(
        args=tool_recipe(
            method="sft", environment={"tools": [f"{__file__}:add"]}, data=data, reward="math"
        )
    )
    assert all(len(scores) == 1 and scores[0].correct for scores in trainer.setup.demo_scores)
    (ids,), (mask,) = (
        getattr(trainer.setup.train[1], f"demonstration_{name}") for name in ("ids", "masks")
    )
    own = [token for token, trained in zip(ids, mask, strict=True) if trained]
    assert '"a": 1, "b": 4' in trainer.tokenizer.decode(own)
    trainer.close()
