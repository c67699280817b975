"""Whole runs with tools and environments."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.environments.conftest import add, sums
from tests.rollout.fake_vllm import FakeServer

from srft import SRFTTrainer
from srft.analysis.responses import read_responses, tokenize
from srft.data.turns import tool_call
from srft.errors import ConfigError
from srft.model.loading import load_model, load_tokenizer
from srft.model.model_config import ModelConfig
from srft.runs.files import read_jsonl
from srft.trainer import collector as collector_module


class Counter:
    """Counts in its own way: `reset` sets it to the row's number."""

    def reset(self, number=0, **row):
        self.value, self.number = number, number
        return f" Begin at {number}."

    def count(self, a: int, b: int) -> int:
        """
        Counts on.

        Args:
            a: By how much.
            b: How often.
        """
        if a % 3 == 0:
            raise ValueError("not by threes")
        self.value += a * b
        return self.value

    def get_reward(self) -> float:
        return float(self.value % 7 / 6)


def rows(count):
    return [{**row, "number": n} for n, row in enumerate(sums(count))]


def logged(folder):
    timed = ("time/", "tokens_per_second", "total/seconds")
    found = read_jsonl(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in found]


def test_a_run_with_an_environment(tool_recipe, calls_at_random):
    told = []

    def seen(completions, environments, number, **columns):
        seen_there = [environment.number for environment in environments]
        told.extend(zip(completions, seen_there, number, strict=True))
        return [None] * len(completions)

    trainer = SRFTTrainer(
        args=tool_recipe(evaluation={"every_steps": 3, "n": 4, "temperature": 1.5}),
        reward_funcs=seen,
        train_dataset=rows(6),
        eval_dataset=rows(2),
        environment_factory=Counter,
    )
    result = trainer.train()
    metrics = logged(result.run_dir)
    assert all(0 < row["tools/calls"] <= 2 for row in metrics)
    assert any(0 < row["tools/failures"] < 1 for row in metrics)
    # The trainer's scores of what was sampled, on several turns in one sequence.
    gaps = [row["mismatch/abs/max"] for row in metrics if "mismatch/abs/max" in row]
    assert gaps and max(gaps) < 1e-4
    assert told and all(seen_there == number for _, seen_there, number in told)
    assert any(
        [m["role"] for m in turns][:3] == ["assistant", "tool", "assistant"] for turns, *_ in told
    )
    sample = read_jsonl(result.run_dir / "samples.jsonl")[-1]
    several = [r for r in sample["responses"] if None in r["entropy"]]
    assert several and all("<|im_start|>tool\n" in r["text"] for r in several)
    for response in several:
        given = [value is None for value in response["logprob"]]
        text = "".join(t for t, g in zip(response["tokens"], given, strict=True) if g)
        assert text.startswith("\n<|im_start|>tool\n") and text.endswith("<|im_start|>assistant\n")
    predicted = trainer.predict(rows(8))
    assert predicted.metrics["test_reward"] == trainer.predict(rows(8)).metrics["test_reward"]
    assert any("[count]" in p["completion"] for p in predicted.predictions)


def test_resume_is_bit_identical(tool_recipe, calls_at_random, tmp_path, monkeypatch):
    def train(name, resume=False):
        args = tool_recipe(run={"dir": str(tmp_path / name)})
        trainer = SRFTTrainer(args=args, train_dataset=rows(6), environment_factory=Counter)
        return trainer.train(resume_from_checkpoint=resume).run_dir

    whole = train("whole")
    original, calls = collector_module.collect, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(collector_module, "collect", dies)
        train("broken")
    broken = train("broken", resume=True)
    assert logged(whole) == logged(broken)
    assert read_jsonl(whole / "samples.jsonl") == read_jsonl(broken / "samples.jsonl")
    one, other = (load_file(folder / "model/model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def demonstrated(n):
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [tool_call("add", {"a": n, "b": 4})]},
        {"role": "tool", "name": "add", "content": str(n + 4)},
        {"role": "assistant", "content": f"The answer is {n + 4}."},
    ]
    return {**sums(n + 1)[n], "demonstration": turns}


def test_srft_learns_from_demonstrations_with_tools(tool_recipe):
    """The tokens of results are given, so that their log-probabilities stay where they are while those of
    the demonstrations' own rise."""
    data = [demonstrated(n) for n in range(4)]
    settings = {"steps": 5, "prompts_per_step": 4, "learning_rate": 1e-2}
    trainer = SRFTTrainer(
        args=tool_recipe(method="srft", train=settings, reward="math", rollout={"group_size": 2}),
        train_dataset=data,
        tools=[add],
    )
    result = trainer.train()
    metrics = logged(result.run_dir)
    assert metrics[-1]["logprob/demos"] > metrics[0]["logprob/demos"] + 0.5
    item = trainer.setup.train[0]
    own = sum(item.demonstration_masks[0])
    assert metrics[0]["demo/length_mean"] == pytest.approx(own, abs=2)
    assert own < len(item.demonstration_ids[0]) - 10
    assert metrics[0]["demo/reward_mean"] == 1.0
    first = read_jsonl(result.run_dir / "samples.jsonl")[0]["responses"][-1]
    assert first["kind"] == "demonstration" and None in first["loss"]
    (read, *_), _ = tokenize(
        read_responses([result.run_dir], kinds=["demonstration"]), trainer.tokenizer
    )
    assert read.own == tuple(
        token for token, loss in zip(read.ids, first["loss"], strict=True) if loss is not None
    )


def test_an_environment_that_owns_the_data(tool_recipe, calls_at_random):
    args = tool_recipe(train={"steps": 1})
    result = SRFTTrainer(args=args, environment_factory=Counter).train()
    (row,) = logged(result.run_dir)
    assert row["tools/calls"] > 0
    routed = [{"environment": name, "number": n} for n, name in enumerate(["a", "b", "a"])]
    factories = {"a": Counter, "b": Counter}
    args = tool_recipe(
        train={"steps": 1, "prompts_per_step": 3}, run={"dir": f"{args.run.dir}-routed"}
    )
    trainer = SRFTTrainer(args=args, train_dataset=routed, environment_factory=factories)
    assert trainer.train().step == 1


def test_as_a_recipe_names_them(tool_recipe, calls_at_random):
    settings = {"factory": f"{__file__}:Counter", "tools": [f"{__file__}:add"]}
    args = tool_recipe(environment=settings, train={"steps": 1})
    result = SRFTTrainer(args=args, train_dataset=rows(4)).train()
    assert logged(result.run_dir)[0]["tools/calls"] > 0
    assert json.loads(json.dumps(settings))["tools"] == [*args.environment.tools]


def test_a_grpo_config(model_path, tokenizer, calls_at_random, tmp_path):
    trl = pytest.importorskip("trl")
    settings = {"output_dir": str(tmp_path / "out"), "use_cpu": True, "bf16": False, "max_steps": 1}
    args = trl.GRPOConfig(
        **settings, per_device_train_batch_size=4, num_generations=4, max_completion_length=90,
        max_tool_calling_iterations=1, report_to="none",
    )  # fmt: skip
    trainer = SRFTTrainer(
        model=str(model_path), args=args, train_dataset=rows(4), environment_factory=Counter
    )
    assert trainer.args.environment.max_turns == 2 and trainer.args.environment.timeout_s is None
    assert trainer.args.data.max_prompt_tokens is None
    metrics = logged(trainer.train().run_dir)
    assert metrics[0]["tools/calls"] <= 1


def test_what_cannot_be_is_refused(tool_recipe, tiny_model):
    given = {"train_dataset": rows(4), "environment_factory": Counter}
    with pytest.raises(ConfigError, match="begins rollouts with part of a demonstration"):
        SRFTTrainer(args=tool_recipe(method="uft"), **given)
    with pytest.raises(ConfigError, match="name a template that knows tools"):
        SRFTTrainer(args=tool_recipe(model={"path": str(tiny_model)}), **given)


def test_rollouts_made_ahead_on_servers(tool_recipe, calls_at_random, model_path, tmp_path):
    config = ModelConfig(path=str(model_path))
    server = FakeServer(load_model(config), load_tokenizer(config))
    try:
        rollout = {"engine": "vllm-server", "servers": [server.url], "ahead": 1}
        rollout["server"] = {"check_every_s": 0.05, "wait_s": 60, "shared_memory": str(tmp_path)}
        args = tool_recipe(rollout=rollout, run={"checkpoint_every": 0})
        trainer = SRFTTrainer(args=args, train_dataset=rows(6), environment_factory=Counter)
        metrics = logged(trainer.train().run_dir)
    finally:
        server.stop()
    assert len(metrics) == 3 and any(row["tools/calls"] > 0 for row in metrics)


def test_data_check_offers_the_tools_and_makes_the_calls_of_demonstrations(
    model_path, tmp_path, capsys
):
    from srft.cli import main

    (tmp_path / "game.py").write_text(
        "class Game:\n"
        "    def reset(self, **row):\n"
        "        self.found = False\n"
        "    def open_door(self, number: int) -> str:\n"
        '        """\n        Opens a door.\n\n        Args:\n            number: Which.\n        """\n'
        "        self.found = number == 4\n"
        "        return 'done'\n"
        "    def get_reward(self) -> float:\n"
        "        return float(self.found)\n"
    )
    demonstrations = [
        [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [tool_call("open_door", {"number": n})],
            },
            {"role": "tool", "name": "open_door", "content": "done"},
            {"role": "assistant", "content": "There."},
        ]
        for n in (4, 5)
    ]
    lines = [
        json.dumps({"prompt": [{"role": "user", "content": "Which?"}], "demonstration": demo})
        for demo in demonstrations
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    overrides = [
        f"model.path={model_path}",
        f"data.train={tmp_path / 't.jsonl'}",
        f"environment.factory={tmp_path / 'game.py'}:Game",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", *overrides])
    out = capsys.readouterr().out
    assert stopped.value.code == 0, out
    assert "demonstrations that fail their verifier, of 2: 1" in out and "t.jsonl:2" in out
    assert "open_door" in out  # as the prompt offers it
