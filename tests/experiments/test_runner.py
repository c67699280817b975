"""Runs are made once, resumed, shared, and fail alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tests.experiments.fakes import FakeRunner, write_run

from srft.errors import ConfigError
from srft.evaluation.open_model import find_model, weights_digest
from srft.experiments.arm_results import read_figures
from srft.experiments.experiment import Arm, Experiment, base_recipe
from srft.experiments.process import Outcome, recipe_digest, train_one
from srft.experiments.runner import plan_jobs, run_experiment
from srft.runs.files import read_jsonl
from srft.trainer.setup import build_methods

QUIET = Console(quiet=True)


def accuracy(job):
    return {"base": 0.2, "srft": 0.8, "grpo": 0.5}[job.arm] + 0.05 * job.seed


def run(experiment, out, settings, rule=accuracy, seeds=2, jobs=1):
    made: list[str] = []
    result = run_experiment(
        experiment, out, seeds, jobs, settings, QUIET, lambda: FakeRunner(rule, made)
    )
    return result, made


def test_what_is_finished_is_not_made_again(experiment, tmp_path, settings):
    _, made = run(experiment, tmp_path, settings)
    assert made == ["base/seed0", "srft/seed0", "grpo/seed0", "srft/seed1", "grpo/seed1"]
    result, made = run(experiment, tmp_path, settings, seeds=3)
    assert made == ["srft/seed2", "grpo/seed2"]
    assert [arm.seeds for arm in result.arms] == [1, 3, 3]


def test_a_failed_run_is_reported_and_stops_no_other(experiment, tmp_path, settings):
    def rule(job):
        return Outcome("failed", "no luck") if job.name == "grpo/seed0" else accuracy(job)

    result, made = run(experiment, tmp_path, settings, rule)
    assert len(made) == 5 and result.failed == {"grpo/seed0": "no luck"}
    assert {arm.name: arm.seeds for arm in result.arms} == {"base": 1, "srft": 2, "grpo": 1}
    assert "no luck" in (tmp_path / "small/tables.md").read_text()
    _, made = run(experiment, tmp_path, settings)
    assert made == ["grpo/seed0"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_the_machine_ends_all_at_once(experiment, tmp_path, settings, jobs):
    """No thread waits for a runner that another took away with its error, and nothing new begins."""
    made = []

    def rule(job):
        if len(made) == 3:
            raise OSError(28, "No space left on device")
        time.sleep(0.1)
        return 0.5

    with pytest.raises(OSError, match="No space"):
        run_experiment(
            experiment, tmp_path, 9, jobs, settings, QUIET, lambda: FakeRunner(rule, made)
        )
    assert 3 <= len(made) < 9


def test_the_same_run_of_another_experiment_is_copied(experiment, tmp_path, settings):
    run(experiment, tmp_path, settings)
    other = Experiment("other", "O", (Arm("srft", "srft"), Arm("sft", "sft")))
    result, made = run(other, tmp_path, settings, lambda job: 0.1)
    assert made == ["sft/seed0", "sft/seed1"]
    assert result.arms[0].accuracy["in"].mean == pytest.approx(0.825)


def test_runs_with_other_settings_are_not_mixed_in(experiment, tmp_path, settings):
    run(experiment, tmp_path, settings)
    with pytest.raises(ConfigError, match=r"train\.learning_rate"):
        run(experiment, tmp_path, [*settings, "train.learning_rate=0.5"])


def test_several_runners_work_side_by_side(experiment, tmp_path, settings):
    together = threading.Barrier(2, timeout=10)

    def rule(job):
        if job.arm != "base":
            together.wait()  # passes only while two runs are in hand
        return accuracy(job)

    result, made = run(experiment, tmp_path, settings, rule, jobs=2)
    assert len(made) == 5 and not result.failed


def test_a_signal_ends_the_work_and_the_same_command_goes_on(experiment, tmp_path, settings):
    def rule(job):
        if job.name == "grpo/seed0":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            return Outcome("stopped")
        return accuracy(job)

    result, made = run(experiment, tmp_path, settings, rule)
    assert result.stopped_by == "SIGTERM" and made[-1] == "grpo/seed0"
    assert result.missing == ["grpo/seed0", "srft/seed1", "grpo/seed1"]
    result, made = run(experiment, tmp_path, settings)
    assert made == ["grpo/seed0", "srft/seed1", "grpo/seed1"] and not result.missing


def test_a_finished_run_of_older_weights_is_refused(experiment, tmp_path, settings):
    run(experiment, tmp_path, settings, seeds=1)
    path = tmp_path / "small/srft/seed0/finished.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0" * 16}))
    with pytest.raises(ConfigError, match="base model's weights"):
        run(experiment, tmp_path, settings, seeds=1)


def test_two_commands_in_one_folder_are_refused(experiment, tmp_path, settings):
    def rule(job):
        with pytest.raises(ConfigError, match="in use"):
            run(experiment, tmp_path, settings)
        return accuracy(job)

    result, _ = run(experiment, tmp_path, settings, rule, seeds=1)
    assert not result.failed


def test_a_model_is_known_by_its_weights_wherever_it_stands(
    experiment, tmp_path, settings, tiny_model
):
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    here, there = (
        [
            job.digest
            for job in plan_jobs(experiment, base_recipe(experiment, given), tmp_path, 1, {})
        ]
        for given in (settings, [f"model.path={moved}", *settings[1:]])
    )
    assert settings[0].startswith("model.path=") and here == there


def test_jobs_stand_for_their_whole_recipe(experiment, tmp_path, settings):
    plan = plan_jobs(experiment, base_recipe(experiment, settings), tmp_path, 2, {})
    assert len({job.digest for job in plan}) == len(plan) == 5
    write_run(plan[0], 0.5)


@pytest.mark.parametrize(
    "kind",
    [
        "file",
        "list",
        "folder",
        "eval",
        "evals",
        "sets",
        "template",
        "dataset",
        "reward",
        "tool",
        "environment",
    ],
)
def test_an_edited_file_makes_another_job(experiment, tmp_path, settings, kind):
    data, code = tmp_path / "data" / "a.jsonl", tmp_path / "mine.py"
    data.parent.mkdir()
    given = {
        "file": f"data.train={data}",
        "list": f"data.train=[lab, {data}]",
        "folder": f"data.train={data.parent}",
        "eval": f"data.eval={data}",
        "evals": f"data.eval=[lab, {data}]",
        "sets": f"data.eval={{mine: {data}}}",
        "template": f"data.chat_template={data}",
        "dataset": f"evaluation.dataset={data}",
        "reward": f"reward={code}:judge",
        "tool": f"environment.tools={code}:add",
        "environment": f"environment.factory={{a: '{code}:World'}}",
    }[kind]

    def digest(text):
        data.write_text(text)
        code.write_text(text)
        return recipe_digest(base_recipe(experiment, [*settings, given]))

    first = digest("1")
    assert digest("2") != first and digest("1") == first


def test_digests_of_published_runs_stay(experiment, tmp_path, settings):
    """A recipe of lab data, or of one file, has what it had before other files counted."""
    data = tmp_path / "a.jsonl"
    data.write_text("{}")
    for given, whole in (("lab", "lab"), (str(data), hashlib.sha256(b"{}").hexdigest())):
        config = base_recipe(experiment, [*settings, f"data.train={given}"])
        values = yaml.safe_load(config.to_yaml())
        del values["run"], values["train"]["demonstrations_per_step"]
        values["switches"] = [m.switches.model_dump(mode="json") for m in build_methods(config)]
        values["weights"] = weights_digest(find_model(config.model.path, config.model))
        values["model"]["path"], values["data"]["train"] = values["weights"], whole
        text = json.dumps(values, sort_keys=True).encode()
        assert recipe_digest(config) == hashlib.sha256(text).hexdigest()[:16]


@pytest.mark.slow
def test_real_runs_train_finish_and_leave_no_checkpoints(experiment, tmp_path, settings):
    experiment = Experiment("real", "Real", (Arm("srft", "srft"), Arm("sft->rl", "grpo")))
    result = run_experiment(experiment, tmp_path, 1, 1, settings, QUIET)
    assert not result.failed and [arm.seeds for arm in result.arms] == [1, 1]
    folder = tmp_path / "real/srft/seed0"
    assert not (folder / "checkpoints").exists() and not (folder / "model").exists()
    assert (folder / "finished.json").is_file() and (folder / "log.txt").is_file()
    assert result.arms[0].sampled_tokens > 0 and result.arms[0].flops > 0
    # The same command with one seed more: what the finished runs chose by themselves is no other setting.
    chosen = (folder / "config.yaml").read_text()
    assert "auto" in base_recipe(experiment, settings).to_yaml() and "autocast: auto" not in chosen
    more = run_experiment(experiment, tmp_path, 2, 1, settings, QUIET)
    assert [arm.seeds for arm in more.arms] == [2, 2]
    assert (folder / "config.yaml").read_text() == chosen


@pytest.mark.slow
def test_a_run_stopped_before_its_end_goes_on_from_its_checkpoint(experiment, tmp_path, settings):
    plan = plan_jobs(experiment, base_recipe(experiment, settings), tmp_path, 1, {})
    job = next(job for job in plan if job.arm == "srft")
    assert train_one(job.config.to_yaml(), job.digest) is None
    whole = (job.folder / "metrics.jsonl").read_bytes()
    first = read_figures(job)
    (job.folder / "finished.json").unlink()
    assert train_one(job.config.to_yaml(), job.digest) is None
    assert (job.folder / "metrics.jsonl").read_bytes() == whole
    assert read_figures(job) == first
    assert "resumed after step 2" in (job.folder / "log.txt").read_text()


@pytest.mark.slow
def test_an_error_in_a_real_run_names_its_reason(tmp_path, settings):
    experiment = Experiment(
        "bad", "Bad", (Arm("srft", "srft", recipe={"data": {"max_prompt_tokens": 1}}),)
    )
    result = run_experiment(experiment, tmp_path, 1, 1, settings, QUIET)
    assert "DataError" in result.failed["srft/seed0"]
    assert "Traceback" in (tmp_path / "bad/srft/seed0/log.txt").read_text()


def test_the_greedy_evaluation_judges_each_set_as_the_one_at_the_end_does(recipe, tmp_path):
    (tmp_path / "mine.py").write_text("def ones(completions, **_): return [1.0] * len(completions)")
    config = recipe(
        method="sft",
        train={"steps": 1},
        reward=f"{tmp_path}/mine.py:ones",
        data={"limit": 8, "eval": {"own": "lab"}, "eval_limit": 3},
        evaluation={"suites": ["lab"], "limit": 4, "max_tokens": 8},
    )
    assert train_one(config.to_yaml(), "digest") is None
    last, greedy = (
        {r["name"]: r["accuracy"] for r in read_jsonl(tmp_path / "run" / name)}
        for name in ("evaluation.jsonl", "greedy.jsonl")
    )
    assert greedy == last and set(greedy.values()) == {0.0, 1.0}


ORPHAN = """
import multiprocessing, os, signal
from types import SimpleNamespace
from srft.experiments.process import ProcessRunner

if __name__ == "__main__":
    runner = ProcessRunner()
    config = SimpleNamespace(to_yaml=lambda: "nonsense: 1")
    assert runner.run(SimpleNamespace(config=config, digest="")).status == "failed"
    print("process", *(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_training_process_ends_when_its_parent_is_killed(tmp_path):
    script, said = tmp_path / "orphan.py", tmp_path / "said.txt"
    script.write_text(ORPHAN)
    with said.open("w") as output:  # a file: an orphan would hold a pipe open
        killed = subprocess.run([sys.executable, script], stdout=output, stderr=output, timeout=120)
    assert killed.returncode == -signal.SIGKILL, said.read_text()
    # Whatever others write about the end may come before or after it.
    pid = int(re.findall(r"^process (\d+)$", said.read_text(), re.MULTILINE)[0])
    deadline = time.monotonic() + 30
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = _alive(pid)
    if left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
