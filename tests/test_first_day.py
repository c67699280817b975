"""What a new user types, with defaults, one command after the other in one folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from srft import cli_options
from srft.cli_options import show_tables
from srft.config import load_config
from srft.errors import ConfigError
from srft.runs.files import read_jsonl

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
QUICK = [
    *("model.path=lab", "data.train=lab", "data.limit=20", "reward=exact"),
    *("rollout.max_tokens=12", "rollout.group_size=2", "train.prompts_per_step=2"),
]


def rewards(text: str, *overrides: str, tmp_path: Path) -> dict:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    found = load_config(path, overrides).reward
    return {
        "names": [spec.label for spec in found.rewards],
        "case_sensitive": found.rewards[0].case_sensitive,
        **found.model_dump(include={"timeout_s", "failed_demonstrations"}),
    }


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("reward: exact", ["reward.timeout_s=9"], {"names": ["exact"], "timeout_s": 9.0}),
        ("reward: exact", ["reward={timeout_s: 9}"], {"names": ["exact"], "timeout_s": 9.0}),
        ("reward: [exact, format]", ["reward.timeout_s=9"], {"names": ["exact", "format"]}),
        ("reward: [exact, format]", ["reward.rewards.1.name=choice"], {"names": ["exact", "choice"]}),
        ("reward: exact", ["reward.case_sensitive=true"], {"names": ["exact"], "case_sensitive": True}),
        ("reward: {name: numeric, tolerance: 0.1}", ["reward={name: exact}"], {"names": ["exact"]}),
        ("{}", ["reward=format", "reward.failed_demonstrations=keep"],
         {"names": ["format"], "failed_demonstrations": "keep"}),
        ("{}", ["reward.failed_demonstrations=keep", "reward=format"],
         {"names": ["format"], "failed_demonstrations": "keep"}),
    ],
)  # fmt: skip
def test_a_setting_beside_a_reward_leaves_it_in_place(text, overrides, expected, tmp_path):
    """It was replaced by math, without a word."""
    found = rewards(text, *overrides, tmp_path=tmp_path)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_keeps_its_rewards_when_a_limit_is_set(recipe):
    plain, changed = load_config(recipe), load_config(recipe, ["reward.workers=3"])
    assert changed.reward.rewards == plain.reward.rewards and changed.reward.workers == 3


def test_settings_inside_lists_and_whole_mappings(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "stages: [{method: sft, steps: 5}, {method: grpo, steps: 6}]\ndata: {eval: {a: x, b: y}}"
    )
    for written in ("stages.1.steps=1", "stages[1].steps=1"):
        config = load_config(path, [written, "data.eval={c: z}", "rollout={group_size: 4}"])
        assert [stage.steps for stage in config.stages] == [5, 1]
        assert config.data.eval == {"c": "z"}  # a and b were evaluated as well
    for place in ("7", "x", "²", "-1"):
        with pytest.raises(ConfigError, match=re.escape(f"override 'stages.{place}.steps=1'")):
            load_config(path, [f"stages.{place}.steps=1"])
    with pytest.raises(ConfigError, match=r"data.train is 'lab', which has no parts"):
        load_config(None, ["data.train=lab", "data.train.a=b"])


SECTIONS = """
data: {train: lab, eval: {a: lab}, columns: {prompt: q, answer: a}, chat_template_kwargs: {x: 1}}
rollout: {vllm: {options: {a: 1}, dtype: bfloat16}}
environment: {factory: {a: "x.py:A"}}
alarms: {no-reward: {steps: 30, action: stop}}
reward: [{name: numeric, tolerance: 0.5}]
stages: [{method: srft, steps: 5, objective: {clip_low: 0.1, weight_sft: 2}}]
"""


@pytest.mark.parametrize(
    ("override", "place", "expected"),
    [
        ("data={eval: {b: x}}", "data.eval", {"b": "x"}),
        ("data={columns: {prompt: p}}", "data.columns", {"prompt": "p"}),
        ("data={chat_template_kwargs: {y: 2}}", "data.chat_template_kwargs", {"y": 2}),
        ("rollout={vllm: {options: {b: 2}}}", "rollout.vllm.options", {"b": 2}),
        ("rollout={vllm: {options: {b: 2}}}", "rollout.vllm.dtype", "bfloat16"),
        ("environment={factory: {b: 'y.py:B'}}", "environment.factory", {"b": "y.py:B"}),
        ("alarms.no-reward={steps: 10}", "alarms.no-reward.action", "stop"),
        ("alarms={no-reward: {steps: 10}}", "alarms.no-reward.action", "stop"),
        ("alarms={no-reward: {steps: 10}}", "alarms.no-reward.steps", 10),
        ("stages.0.objective={clip_low: 0.3}", "stages.0.objective.weight_sft", 2.0),
        ("stages.0={steps: 7}", "stages.0.objective.weight_sft", 2.0),
        ("stages.0={objective: {clip_low: 0.3}}", "stages.0.objective.clip_low", 0.3),
        ("reward.rewards.0={weight: 2}", "reward.rewards.0.tolerance", 0.5),
    ],
)
def test_a_section_is_changed_and_any_other_mapping_replaced(tmp_path, override, place, expected):
    """How deep the mapping stood decided it, and so did lists and alarms."""
    path = tmp_path / "r.yaml"
    path.write_text(SECTIONS)
    found = load_config(path, [override])
    for part in place.split("."):
        if isinstance(found, list):
            found = found[int(part)]
        else:
            found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == expected


def test_resume_goes_on_with_the_run_that_is_meant_or_asks(srft, tmp_path):
    code, said = srft("train", *QUICK, "train.steps=2", "--resume")
    assert code == 2 and "--resume: which run?" in said and not (tmp_path / "runs").exists()
    assert srft("train", *QUICK, "train.steps=2", "run.checkpoint_every=1")[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    code, said = srft("train", *QUICK, "train.steps=3", "--resume")
    assert code == 2 and f"run.dir=runs/{run.name} (the newest one here)" in said
    moved = run.rename(tmp_path / "moved")
    code, said = srft("train", str(moved / "config.yaml"), "train.steps=3", "--resume")
    assert code == 0 and "resumed after step 2" in said
    assert [row["step"] for row in read_jsonl(moved / "metrics.jsonl")] == [1, 2, 3]
    assert not list((tmp_path / "runs").iterdir())


def test_a_quickstart_that_is_stopped_says_how_it_goes_on(tmp_path):
    command = [sys.executable, "-m", "srft", "quickstart", "train.steps=500", *QUICK[4:]]
    command += ["data.eval_limit=4", "evaluation.at_start=false"]
    environment = {**os.environ, "COLUMNS": "60"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        lines = iter(running.stdout.readline, "")
        assert any(line.startswith("step ") for line in lines)
        running.send_signal(signal.SIGINT)
        said = "".join(lines)
        assert running.wait(120) == 130
    (proposed,) = re.findall(r"continue with: srft (train \S+ --resume)$", said, re.MULTILINE)
    dry = [sys.executable, "-m", "srft", *proposed.split(), "--dry-run"]
    done = subprocess.run(dry, cwd=tmp_path, capture_output=True, text=True)
    assert yaml.safe_load(done.stdout)["run"]["dir"] == str(Path(proposed.split()[1]).parent)


def questions(path: Path, **columns: int) -> str:
    rows = [{"prompt": text, "answer": "1", **columns} for text in ("a = 1 ; a ?", "b = 1 ; b ?")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_eval_does_not_show_what_a_function_said_before_it_was_edited(srft, tmp_path):
    file = questions(tmp_path / "q.jsonl", key=0)
    score = "def score(completions, key, **_): return [{} * float(k) for k in key]\n"
    ask = ["eval", "lab", "--dataset", file, "--reward", "r.py:score", "--max-tokens", "2"]

    def accuracy() -> float:
        return json.loads((tmp_path / "e" / "results.json").read_text())["benchmarks"]["q"][
            "accuracy"
        ]

    (tmp_path / "r.py").write_text(score.format(1))
    assert srft(*ask, "--out", "e")[0] == 0 and accuracy() == 0.0
    questions(tmp_path / "q.jsonl", key=1)  # a column that the function reads
    assert srft(*ask, "--out", "e")[0] == 0 and accuracy() == 1.0
    (tmp_path / "r.py").write_text(score.format(0))
    code, said = srft(*ask, "--out", "e")
    assert code == 2 and "other settings (functions: " in said


def test_a_first_try_that_judged_nothing_does_not_bind_the_second(srft, tmp_path):
    file = questions(tmp_path / "q.jsonl")
    (tmp_path / "r.py").write_text("def bad(completions, **_): raise ValueError('no')\n")
    ask = ["eval", "lab", "--dataset", file, "--max-tokens", "2", "--out", "e"]
    assert srft(*ask, "--reward", "r.py:bad")[0] == 5
    assert srft(*ask, "--reward", "exact")[0] == 0
    demonstrate = ["data", "demonstrate", *QUICK, "data.limit=2", "--out", "d"]
    code, said = srft(*demonstrate, "rollout.max_tokens=512")
    assert code != 0 and "max_tokens" in said
    code, said = srft(*demonstrate, "rollout.max_tokens=24")
    assert "other settings" not in said and "Creating parquet" not in said


def test_a_larger_limit_goes_on_where_the_models_window_is_the_limit(srft, tmp_path):
    rows = [{"prompt": f"a = {'1 + ' * n}1 ; a ?", "answer": str(n)} for n in range(1, 30)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask = ["eval", "lab", "--dataset", "q.jsonl", "--reward", "exact", "--out", "e"]
    for limit in ("2", "6"):
        code, said = srft(*ask, "--limit", limit, "--max-tokens", "500")
        assert code == 0, said
    settings = read_jsonl(tmp_path / "e" / "samples" / "q.jsonl")[0]["settings"]
    assert settings["max_tokens"] < 500


def test_data_check_says_what_it_needs_and_takes_pairs_without_answers(srft, tmp_path):
    rows = [{"instruction": f"{n} + 1", "input": "", "output": str(n + 1)} for n in range(8)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    code, said = srft("data", "check", "data.train=alpaca.json")
    assert code == 2 and "model.path: not set" in said
    code, said = srft("data", "check", "data.train=alpaca.json", "model.path=lab", "method=sft")
    assert code == 0 and "unverified" in said
    code, said = srft("data", "check", "data.train=alpaca.json", "model.path=lab")
    assert code == 3 and "answers that do not verify, of 8: 8" in said


def test_questions_have_the_arms_that_are_asked_for_before_any_is_trained(srft):
    arms = ("lab", "questions", "--only", "1", "--only", "2", "--arm", "c_SFT 50")
    code, said = srft(*arms)
    assert code == 2 and "c_SFT 50" in said and "finished" not in said


def test_sample_shows_as_many_problems_as_are_asked_for(srft):
    code, said = srft("sample", "lab", "--lab", "20", "--max-tokens", "2")
    assert code == 0 and len(re.findall(r"\(right: ", said)) == 20


def test_no_cell_of_a_table_is_cut_and_text_is_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(cli_options, "console", Console(width=60))
    name = "runs/srft-20261130-024402"
    show_tables(
        f"| model | a | b |\n|---|---|---|\n| x | 1 | {'w' * 30} |\n| {name} | {'v' * 30} | 2 |\n\n"
        "Details of what is said at length, and more of it than fits into one line of a terminal.\n"
    )
    said = capsys.readouterr().out
    assert "…" not in said and name in said
    assert max(len(line.rstrip()) for line in said.splitlines() if "Details" in line) <= 60
