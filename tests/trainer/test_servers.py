"""Training with rollouts by servers: as with the embedded engine, and one step ahead of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from srft.config import parse_config
from srft.errors import ConfigError
from srft.trainer.api import SRFTTrainer
from srft.trainer.setup import build_methods


def lines(config):
    """metrics.jsonl without clocks."""
    with Path(config.run.dir, "metrics.jsonl").open() as file:
        found = [json.loads(line) for line in file]
    clocks = ("time/", "total/seconds", "tokens_per_second", "reward/seconds", "memory/")
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in found]


def test_training_by_servers_is_training_by_the_embedded_engine(by_servers, recipe, tmp_path):
    config = by_servers(train={"steps": 3})
    SRFTTrainer(args=config).train()
    own = recipe(run={"dir": str(tmp_path / "own")}, train={"steps": 3})
    SRFTTrainer(args=own).train()
    assert len(lines(config)) == 3
    for by_server, embedded in zip(lines(config), lines(own), strict=True):
        assert by_server["loss"] == pytest.approx(embedded["loss"], abs=1e-4)
        assert by_server["rollout/tokens"] == embedded["rollout/tokens"]


def test_a_step_ahead_is_one_update_old_and_never_more(by_servers):
    config = by_servers(ahead=1, run={"checkpoint_every": 3}, train={"steps": 5})
    SRFTTrainer(args=config).train()
    gaps = [line["mismatch/abs/max"] for line in lines(config)]
    # Fresh: the first step, and the first after a checkpoint.
    fresh = [gap < 1e-4 for gap in gaps]
    assert fresh == [True, False, False, True, False]
    weights = [line["mismatch/weight/max"] for line in lines(config)]
    assert all((w > 1 + 1e-4) != f for w, f in zip(weights, fresh, strict=True))
    assert max(weights) <= 2.0


def test_without_updates_a_run_ahead_trains_on_the_same_rollouts(by_servers, tmp_path):
    still = {"train": {"learning_rate": 1e-30, "steps": 3}}
    configs = [
        by_servers(ahead=ahead, run={"dir": str(tmp_path / str(ahead))}, **still)
        for ahead in (0, 1)
    ]
    for config in configs:
        SRFTTrainer(args=config).train()
    for plain, ahead in zip(*map(lines, configs), strict=True):
        for key in ("rollout/entropy", "rollout/tokens", "demo/length_mean", "reward/mean"):
            assert plain[key] == ahead[key]
        assert plain["loss"] == pytest.approx(ahead["loss"], rel=1e-5)


def test_a_killed_run_that_is_ahead_resumes_as_if_it_had_not_been(
    by_servers, tmp_path, monkeypatch
):
    steps = {"train": {"steps": 4}}
    whole = by_servers(ahead=1, run={"dir": str(tmp_path / "whole")}, **steps)
    SRFTTrainer(args=whole).train()
    killed = by_servers(ahead=1, run={"dir": str(tmp_path / "killed")}, **steps)
    log = SRFTTrainer._log

    def die(trainer, metrics):
        log(trainer, metrics)
        if metrics["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SRFTTrainer, "_log", die)
        with pytest.raises(KeyboardInterrupt):
            SRFTTrainer(args=killed).train()
    SRFTTrainer(args=killed).train(resume_from_checkpoint=True)
    assert lines(killed) == lines(whole)


def test_a_stopped_run_goes_on_with_the_prompts_it_had_drawn_ahead(by_servers, monkeypatch):
    config = by_servers(ahead=1, run={"checkpoint_every": 0}, train={"steps": 4})
    seen = []
    log = SRFTTrainer._log

    def stop(trainer, metrics):
        log(trainer, metrics)
        seen.append(trainer.collector.position()["position"])
        if metrics["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SRFTTrainer, "_log", stop)
        assert SRFTTrainer(args=config).train().stopped_by == "SIGTERM"
    assert seen == [4, 8], "prompts count once their step has been handed out"
    again = SRFTTrainer(args=config)
    assert again.train(resume_from_checkpoint=True).step == 4
    assert again.sampler.state_dict()["position"] == 16


def test_a_failure_ahead_is_raised_where_the_step_is_wanted(by_servers, servers, monkeypatch):
    from srft.errors import RolloutError

    config = by_servers(ahead=1, rollout={"server": {"check_every_s": 0.05, "wait_s": 0.3}})
    log = SRFTTrainer._log

    def cut(trainer, metrics):
        log(trainer, metrics)
        for server in servers:
            server.stop()

    monkeypatch.setattr(SRFTTrainer, "_log", cut)
    with pytest.raises(RolloutError, match="no vLLM server"):
        SRFTTrainer(args=config).train()


def test_a_step_ahead_is_corrected_unless_the_recipe_says_otherwise():
    rollout = {"engine": "vllm-server", "servers": ["http://a:1"], "ahead": 1}
    stages = [{"method": "sft", "steps": 1}, {"method": "grpo", "steps": 1}]
    sft, grpo = build_methods(parse_config({"rollout": rollout, "stages": stages}))
    assert sft.switches.importance_cap is None and grpo.switches.importance_cap == 2.0
    own = {"rollout": rollout, "objective": {"importance_cap": None}}
    assert build_methods(parse_config(own))[0].switches.importance_cap is None
    with pytest.raises(ConfigError, match="cannot sample while the model is"):
        parse_config({"rollout": {"ahead": 1}})
