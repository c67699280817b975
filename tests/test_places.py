"""Folders and files that are already there, that have odd names, or that changed between two commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from srft.config import load_config
from srft.errors import ConfigError, RewardError
from srft.evaluation.open_model import find_model, template_of
from srft.lab import base_model_path, lab_train
from srft.paths import at_home, local_path
from srft.rewards.scorer import Scorer
from srft.runs.files import read_jsonl
from srft.runs.run_dir import RunDir
from srft.trainer.checkpoint import list_checkpoints
from srft.types import Example

ROWS = [dict(row) for row in lab_train(60) if row["family"] == "chain"][:6]
QUICK = [
    *("model.path=lab", "train.steps=2", "train.prompts_per_step=2", "rollout.group_size=2"),
    *("rollout.max_tokens=12", "run.live=never", "reward=exact"),
]


def write(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def rows(tmp_path) -> Path:
    return write(tmp_path / "t.jsonl")


def train(srft, *settings: str) -> tuple[int, str]:
    return srft("train", *QUICK, "data.train=t.jsonl", *settings)


@pytest.mark.parametrize("name", ["samples.jsonl", "evaluation.jsonl", "model", "config.yaml"])
def test_a_run_does_not_write_over_what_is_not_its_own(srft, tmp_path, name):
    place = tmp_path / "d" / name
    if name == "model":
        shutil.copytree(base_model_path(), place)
        settings = ["model.path=d/model"]
    else:
        write(place)
        settings = ["data.train=d/samples.jsonl"] if name == "samples.jsonl" else []
    before = {p: p.read_bytes() for p in (tmp_path / "d").rglob("*") if p.is_file()}
    code, said = train(srft, *settings, "run.dir=d")
    assert code == 2 and f"is no run and holds {name}" in said
    assert {p: p.read_bytes() for p in (tmp_path / "d").rglob("*") if p.is_file()} == before


def test_sets_of_one_name_are_refused(srft):
    code, said = train(
        srft, "data.eval={lab: t.jsonl}", "evaluation.suites=[lab]", "evaluation.limit=5"
    )
    assert code == 2 and "name a set 'lab' each" in said


def test_copies_of_checkpoints_and_those_of_an_earlier_run_are_told_apart(srft, tmp_path):
    every = ("run.checkpoint_every=1", "run.dir=k", "run.export=false")
    assert train(srft, *every)[0] == 0
    run = RunDir(tmp_path / "k")
    shutil.copytree(run.checkpoints / "step_000001", run.checkpoints / "step_000001_good")
    assert [p.name for p in list_checkpoints(run.checkpoints)] == ["step_000001", "step_000002"]
    assert find_model(tmp_path / "k").name == "k@2"
    assert find_model(run.checkpoints / "step_000001_good").name == "k@000001_good"
    code, said = train(srft, *every, "train.steps=3", "--resume")
    assert code == 0 and "resumed after step 2" in said
    run.metrics.unlink()
    code, said = train(srft, *every, "method=grpo")
    assert code == 2 and "already holds a run" in said


def test_checkpoints_on_another_disk_are_found_by_their_run(srft, tmp_path):
    assert train(srft, "run.dir=k", "run.export=false")[0] == 0
    run = RunDir(tmp_path / "k")
    run.checkpoints.rename(tmp_path / "scratch")
    run.checkpoints.symlink_to(tmp_path / "scratch")
    code, said = srft("sample", "k", "a = 1 ; a ?", "--max-tokens", "2")
    assert code == 0, said


def test_a_resumed_run_says_that_rows_were_edited(srft, tmp_path):
    assert train(srft, "run.dir=k")[0] == 0
    write(tmp_path / "t.jsonl", [{**row, "prompt": "x" + row["prompt"][1:]} for row in ROWS])
    code, _ = train(srft, "run.dir=k", "train.steps=3", "--resume")
    assert code == 0
    notes = [event["message"] for event in read_jsonl(tmp_path / "k" / "events.jsonl")]
    assert any("training data: rows that were edited since" in note for note in notes)


def test_what_stands_in_an_override_is_kept(tmp_path):
    config = load_config(
        None,
        [
            "data.system_prompt=Answer as rule #1 says",
            "run.dir=#2",
            "data.prompt_template=### Solve ${prompt}$:",
            "data.eval={on: lab, 2026-11-30: lab}",
        ],
    )
    assert config.data.system_prompt == "Answer as rule #1 says" and config.run.dir == "#2"
    assert config.data.prompt_template == "### Solve ${prompt}$:"
    assert config.data.eval == {"on": "lab", "2026-11-30": "lab"}
    assert load_config(None, ["train.learning_rate=1e-6"]).train.learning_rate == 1e-6
    path = tmp_path / "r.yaml"
    path.write_text("reward: {name: exact, weight: 1e-3}\nrun: {dir: 2026-11-30}\n"
                    "data: {eval: {no: lab}, prompt_template: '${prompt}'}")  # fmt: skip
    config = load_config(path, ["reward.correct_threshold=0"])
    assert config.reward.rewards[0].weight == 1e-3 and config.run.dir == "2026-11-30"
    assert list(config.data.eval) == ["no"]
    assert load_config(None, []).to_yaml() == load_config(None).to_yaml()
    path.write_text("a: &a {steps: 3}\n")
    with pytest.raises(ConfigError, match="a: unknown key"):
        load_config(path)


def test_an_empty_family_is_none(srft, tmp_path):
    write(tmp_path / "fam.jsonl", [{**row, "family": ""} for row in ROWS])
    code, said = train(srft, "data.eval=fam.jsonl", "evaluation.every_steps=1", "run.dir=f")
    assert code == 0, said
    metrics = read_jsonl(tmp_path / "f" / "evaluation.jsonl")[-1]
    assert metrics["by_family"] == {} and metrics["n_problems"] == 6


def test_a_data_folder_may_hold_the_runs_that_were_trained_on_it(srft, tmp_path, monkeypatch):
    write(tmp_path / "df" / "mine.jsonl")
    monkeypatch.chdir(tmp_path / "df")
    for step in ("2", "3"):
        code, said = srft("train", *QUICK, "data.train=.", f"train.steps={step}")
        assert code == 0, said
    assert (
        srft("eval", "lab", "--dataset", "mine.jsonl", "--reward", "exact", "--max-tokens", "2")[0]
        == 0
    )
    code, said = srft("data", "check", "data.train=.", *QUICK)
    assert code in (0, 3) and "6 of 6" in said


def test_reward_files_import_their_neighbours_and_fail_with_a_sentence(srft, tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("X = 1.0\n")
    (tmp_path / "mine_r.py").write_text(
        "import neighbour_of_mine as n\n"
        "def score(completions, **_): return [n.X] * len(completions)\n"
        "def leaves(completions, **_): raise SystemExit(3)\n"
        "def huge(completions, **_): return [10**400] * len(completions)\n"
    )
    command = [Path(sys.executable).parent / "srft", "train", *QUICK, "data.train=t.jsonl"]
    command = [*command, "reward=mine_r.py:score", "run.dir=own"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, words in (("leaves", "SystemExit"), ("huge", "finite")):
        with Scorer(f"mine_r.py:{name}") as scorer, pytest.raises(RewardError, match=words):
            scorer.score([Example("q", answer="1")], ["a"])


def test_a_run_goes_on_where_nobody_reads_its_output(srft, tmp_path):
    command = [sys.executable, "-m", "srft", "train", *QUICK, "data.train=t.jsonl", "run.dir=p"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.wait(120) == 0, running.stderr.read().decode()
    assert (tmp_path / "p" / "model" / "config.json").is_file()


def test_another_programs_config_beside_a_model_is_left_alone(tmp_path):
    shutil.copytree(base_model_path(), tmp_path / "pr" / "m")
    for text in ("environment: production", "environment: {name: prod}", "- a\n- b", "a: ["):
        (tmp_path / "pr" / "config.yaml").write_text(text)
        assert template_of(find_model(tmp_path / "pr" / "m")) == template_of(find_model("lab"))


def test_tildes(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/x") == tmp_path / "x" and local_path("~old.jsonl") == Path("~old.jsonl")
    assert at_home("--out=~/x") == f"--out={tmp_path}/x" and at_home("~/x") == f"{tmp_path}/x"
    for kept in ("--out=x~/y", "data.train=~/x", "a ~/b", "~x", "--reward=~"):
        assert at_home(kept) == kept


def test_results_of_another_model_or_set_are_not_written_over(srft, tmp_path):
    for name, part in (("A", ROWS[:3]), ("B", ROWS[3:])):
        write(tmp_path / name / "test.jsonl", part)
    ask = ("--reward", "exact", "--max-tokens", "2")
    assert srft("eval", "lab", "--dataset", "A/test.jsonl", *ask)[0] == 0
    code, said = srft("eval", "lab", "--dataset", "B/test.jsonl", *ask)
    assert code == 2 and "holds results of 'test' from A/test.jsonl" in said
    assert srft("eval", "lab", "--dataset", "./A/test.jsonl", *ask)[0] == 0
    other = tmp_path / "y" / "lab"
    shutil.copytree(base_model_path(), other)
    weights = other / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2 + 10] ^= 1
    weights.write_bytes(bytes(raw))
    code, said = srft("eval", "y/lab", "--dataset", "A/test.jsonl", *ask)
    assert code == 2 and ("another model" in said or "other settings" in said)


def test_demonstrations_are_asked_for_where_training_would_read_the_prompt(srft, tmp_path):
    write(tmp_path / "long.jsonl", [*ROWS, {**ROWS[0], "prompt": "a = 1 ; " * 2000 + "a ?"}])
    _, said = srft(
        "data", "demonstrate", "model.path=lab", "data.train=long.jsonl", "reward=exact",
        "rollout.max_tokens=40", "--out", "dl", "--n", "8",
    )  # fmt: skip
    assert "exceeds" not in said and ("of 6 prompts" in said or "none of 48" in said)


def test_brackets_in_the_folder_of_an_experiment(srft, tmp_path):
    folder = "o [red]x[/y]"
    sizes = ["train.steps=1", "train.prompts_per_step=1", "data.limit=4", "data.eval_limit=8"]
    run = [sys.executable, "-m", "srft", "lab", "table1", "--seeds", "1", "--arm", "base"]
    run += ["--reference", "base", *sizes, "--out", folder]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0 and f"tables: {folder}/table1" in done.stdout, done.stderr


def test_the_recipe_of_a_run_is_plain_yaml(srft, tmp_path):
    assert train(srft, "run.dir=k", "data.prompt_template=Q ${prompt}$")[0] == 0
    written = yaml.safe_load((tmp_path / "k" / "config.yaml").read_text())
    assert written["data"]["prompt_template"] == "Q ${prompt}$"
    assert load_config(tmp_path / "k" / "config.yaml").data.prompt_template.startswith("Q ${")
