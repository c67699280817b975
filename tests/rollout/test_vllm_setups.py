"""Real vLLM with the paper's rotary base and window, over two processes, and in each process of torchrun."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from tests.rollout.fake_vllm import perturb
from tests.rollout.serving import ServerProcess

from srft.lab import base_model_path
from srft.model.loading import load_model, load_tokenizer
from srft.model.model_config import ModelConfig
from srft.rollout.check import gaps
from srft.rollout.engine import build_engine
from srft.rollout.rollout_config import RolloutConfig
from srft.runs.files import read_jsonl
from srft.trainer.api import SRFTTrainer
from srft.types import RolloutRequest, SamplingParams

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed; make test-vllm"
    ),
]

PAPER = {"rope_theta": 40_000.0, "max_position_embeddings": 16_384}
VLLM = {"kv_cache_gb": 0.25, "max_model_len": 2048}
TWO = {**VLLM, "tensor_parallel_size": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig(path="lab"))


@pytest.fixture(scope="module")
def policy():
    return load_model(ModelConfig(path="lab", **PAPER)).eval()


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    """Started first of all, and looked for when a test needs it."""
    started = ServerProcess(tmp_path_factory.mktemp("server"), TWO, **PAPER)
    yield started
    started.kill()


@pytest.fixture(scope="module", params=["one process", "two processes", "server of two processes"])
def engine(request, policy, tokenizer, server):
    config = {"engine": "vllm", "vllm": VLLM if request.param == "one process" else TWO}
    if request.param.startswith("server"):
        config = {"engine": "vllm-server", "servers": [server.url]}
    built = build_engine(policy, tokenizer, RolloutConfig(**config))
    yield built
    built.close()


def test_the_papers_rotary_base_and_window_are_vllms_too(engine, policy):
    """Also after an update, and far beyond the window of 256 tokens that the model's folder has."""
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 74, (n,), generator=random).tolist() for n in (5, 200, 1500)]
    requests = [RolloutRequest(tuple(prompt), n=3, seed=50 * k) for k, prompt in enumerate(prompts)]
    params = SamplingParams(max_tokens=24)
    former = load_model(ModelConfig(path="lab")).eval()
    for _ in range(2):
        groups = engine.generate(requests, params)
        assert gaps(policy, requests, groups, params).max() < 1e-3
        former.load_state_dict(policy.state_dict())
        assert gaps(former, requests, groups, params).mean() > 0.1, "the base makes a difference"
        perturb(policy)
        engine.update_weights()


def test_a_vllm_in_each_process_of_torchrun_trains_as_one(recipe, tmp_path):
    def config(name):
        return recipe(
            model={"path": str(base_model_path())},
            data={"limit": 40, "eval": "lab", "eval_limit": 10},
            rollout={"max_tokens": 32, "engine": "vllm", "vllm": {"kv_cache_gb": 0.25}},
            train={"steps": 3},
            run={"dir": str(tmp_path / name)},
        )

    path = tmp_path / "recipe.yaml"
    path.write_text(config("two").to_yaml())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*torchrun, "--standalone", "-m", "srft", "train", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    SRFTTrainer(args=config("one")).train()
    one, two = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["mismatch/abs/max"] < 1e-3
        for key in ("reward/mean", "rollout/tokens", "loss", "train/gradient_norm"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3), (key, ours["step"])
