"""Real vLLM on the CPU: in this process, and two servers started by `srft serve`. `make test-vllm`."""

from __future__ import annotations

import importlib.util
import json
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tests.rollout.fake_vllm import perturb
from tests.rollout.serving import ServerProcess
from typer.testing import CliRunner

from srft.cli import app
from srft.environments.episodes import ToolEngine
from srft.environments.toolbox import Toolbox
from srft.errors import RolloutError
from srft.evaluation.sample import sample_texts
from srft.lab import base_model_path, lab_eval
from srft.model.adapters import add_lora
from srft.model.loading import load_model, load_tokenizer
from srft.model.model_config import LoraConfig, ModelConfig
from srft.rollout.check import check_weights
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.engine import build_engine
from srft.rollout.rollout_config import RolloutConfig
from srft.rollout.sampling import sampling_logprobs
from srft.trainer.api import SRFTTrainer
from srft.types import Example, RolloutRequest, SamplingParams

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    # A server's start on a busy machine is part of the test that waits for it.
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed; make test-vllm"
    ),
]

GREEDY = SamplingParams(temperature=0.0, max_tokens=48)
QUICK = {"check_every_s": 0.2, "connect_timeout_s": 5.0, "wait_s": 600.0}
VLLM = {"kv_cache_gb": 0.25, "max_model_len": 128}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig(path="lab"))


@pytest.fixture(scope="module")
def policy():
    """One model for the module, since engines are built for it; each test starts from its weights."""
    return load_model(ModelConfig(path="lab"))


@pytest.fixture(autouse=True)
def model(policy):
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    yield policy
    policy.load_state_dict(before)


@pytest.fixture(scope="module")
def requests(tokenizer):
    prompts = [tuple(tokenizer(row["prompt"])["input_ids"]) for row in lab_eval(2)[:12]]
    return [RolloutRequest(prompt, n=3, seed=1000 * k) for k, prompt in enumerate(prompts)]


@pytest.fixture(scope="module", autouse=True)
def servers(tmp_path_factory):
    """Started first of all, and looked for when a test needs them."""
    folder = tmp_path_factory.mktemp("servers")
    started = [ServerProcess(folder, VLLM), ServerProcess(folder, VLLM, lora={"rank": 4})]
    yield started
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def local(policy, tokenizer):
    states = random.getstate(), torch.get_rng_state(), torch.get_num_threads()
    config = RolloutConfig(engine="vllm", vllm=VLLM)
    engine = build_engine(policy, tokenizer, config)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert torch.get_num_threads() == states[2]
    yield engine
    engine.close()


def remote_config(servers, **settings):
    urls = [server.url for server in servers]
    return RolloutConfig(engine="vllm-server", servers=urls, server={**QUICK, **settings})


@pytest.fixture(scope="module")
def remote(policy, tokenizer, servers):
    engine = build_engine(policy, tokenizer, remote_config(servers))
    yield engine
    engine.close()


@pytest.fixture(params=["local", "remote"])
def engine(request):
    return request.getfixturevalue(request.param)


def tokens_of(groups):
    return [[c.token_ids for c in group] for group in groups]


def same_as_ours(engine, model, tokenizer, requests, params=GREEDY):
    ours = EmbeddedEngine(model, tokenizer).generate(requests, params)
    return tokens_of(engine.generate(requests, params)) == tokens_of(ours)


def test_after_an_update_greedy_outputs_are_those_of_the_new_weights(
    engine, model, tokenizer, requests
):
    engine.update_weights()
    before = tokens_of(engine.generate(requests, GREEDY))
    assert same_as_ours(engine, model, tokenizer, requests)
    perturb(model, 0.03)
    engine.update_weights()
    assert same_as_ours(engine, model, tokenizer, requests)
    assert tokens_of(engine.generate(requests, GREEDY)) != before


class Frames:
    """Stands for a chat template's frames around the results of tools."""

    def __init__(self, tokenizer):
        self.ids = tuple(tokenizer("=7")["input_ids"])

    def frame(self, results, tools):
        return results

    def frame_ids(self, results, ended):
        return self.ids


def always_calls(ids, before, tools):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def add(a: int) -> int:
    """
    Adds four.

    Args:
        a: To what.
    """
    return a + 4


def test_responses_of_several_turns(engine, model, tokenizer, requests):
    engine.update_weights()
    asked = [replace(r, example=Example("x")) for r in requests]
    found = []
    for one in (engine, EmbeddedEngine(model, tokenizer)):
        tools = ToolEngine(one, Toolbox([add], {}), Frames(tokenizer), always_calls, (), 3)
        found.append(tools.generate(asked, replace(GREEDY, max_tokens=90)))
    theirs, ours = ([c for group in groups for c in group] for groups in found)
    assert [c.token_ids for c in theirs] == [c.token_ids for c in ours]
    assert [c.loss_mask for c in theirs] == [c.loss_mask for c in ours]
    assert any(c.episode.calls for c in ours) and any(c.loss_mask for c in ours)
    for one, other in zip(theirs, ours, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=48),
        SamplingParams(max_tokens=48, temperature=0.6),
        SamplingParams(max_tokens=48, temperature=1.3, top_p=0.9, top_k=20),
    ],
    ids=["plain", "cold", "truncated"],
)
def test_logprobs_are_those_of_the_distribution_sampled_from(engine, model, requests, params):
    engine.update_weights()
    assert largest_gap(engine, model, requests, params) < 1e-4


def largest_gap(engine, model, requests, params):
    """Between the engine's log-probabilities and the trainer's, in nats."""
    worst = 0.0
    for request, group in zip(requests, engine.generate(requests, params), strict=True):
        for completion in group:
            ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
            with torch.no_grad():
                logits = model.eval()(input_ids=ids).logits[0, len(request.prompt_ids) - 1 : -1]
            ours = sampling_logprobs(logits, params).gather(-1, ids[0, -len(logits) :, None])[:, 0]
            worst = max(worst, (ours - torch.tensor(completion.logprobs)).abs().max().item())
    return worst


def test_a_completion_depends_on_its_seed_alone(engine, requests):
    params = SamplingParams(max_tokens=48, temperature=1.5)
    together = engine.generate(requests, params)
    assert tokens_of(together) == tokens_of(engine.generate(requests, params))
    alone = RolloutRequest(requests[4].prompt_ids, n=1, seed=requests[4].seed + 2)
    assert engine.generate([alone], params)[0][0].token_ids == together[4][2].token_ids
    assert len({tuple(c.token_ids) for group in together for c in group}) > len(requests)


def test_responses_end_where_ours_do(engine, model, tokenizer, requests):
    engine.update_weights()
    plain = engine.generate(requests, GREEDY)
    assert {c.finish_reason for group in plain for c in group} == {"stop"}
    assert all(c.token_ids[-1] == tokenizer.eos_token_id for group in plain for c in group)
    assert not any("eos" in c.text for group in plain for c in group)
    marks = sorted({group[0].text[-1] for group in plain})[:2]
    token = tokenizer.convert_tokens_to_ids(marks[1])
    for changes in ({"stop": (marks[0],)}, {"stop_token_ids": (token,)}, {"max_tokens": 2}):
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 48, **changes})
        theirs = engine.generate(requests, params)
        ours = EmbeddedEngine(model, tokenizer).generate(requests, params)
        for mine, other in zip(ours, theirs, strict=True):
            for a, b in zip(mine, other, strict=True):
                assert (a.token_ids, a.text, a.finish_reason) == (
                    b.token_ids,
                    b.text,
                    b.finish_reason,
                )
        assert tokens_of(theirs) != tokens_of(plain)


def test_completions_are_handed_out_as_they_finish_and_once(engine, requests):
    params = SamplingParams(max_tokens=48, temperature=1.5)
    order, seen = [], Counter()

    def note(r, i, completion):
        order.append(len(completion.token_ids))
        seen.update([(r, i)])

    groups = engine.generate(requests, params, note)
    assert seen == Counter((r, i) for r, g in enumerate(groups) for i in range(len(g)))
    half = len(order) // 2
    if type(engine).__name__ == "VLLMEngine":  # servers on a busy machine answer in any order
        assert sum(order[:half]) < sum(order[half:]), "short ones come first"

    def fail(r, i, completion):
        raise ValueError("the verifier broke")

    with pytest.raises(ValueError, match="the verifier broke"):
        engine.generate(requests, params, fail)
    assert tokens_of(engine.generate(requests, params)) == tokens_of(groups)


def test_an_adapter_is_sampled_with_its_model(engine, model, tokenizer, requests, monkeypatch):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    engine.update_weights()
    before = tokens_of(engine.generate(requests, GREEDY))
    adapted = peft.get_peft_model(model, config)
    try:
        if hasattr(engine, "transfer"):
            from srft.rollout.vllm_weights import named_weights

            monkeypatch.setattr(engine.transfer, "weights", lambda: named_weights(adapted))
        monkeypatch.setattr(engine, "model", adapted)
        engine.update_weights()
        assert same_as_ours(engine, adapted, tokenizer, requests)
        assert tokens_of(engine.generate(requests, GREEDY)) != before
    finally:
        adapted.unload()


def test_other_weights_than_the_trainers_are_refused(engine, model, tokenizer):
    engine.update_weights()
    (_, generate), *_ = engine.parts()
    sampling, where = SamplingParams(temperature=0.8), "this engine"
    check_weights(model, tokenizer, generate, sampling, exact=True, where=where)
    perturb(model, 0.002)  # as much as a few steps of training
    with pytest.raises(RolloutError, match="does not sample from the trainer's weights"):
        check_weights(model, tokenizer, generate, sampling, exact=True, where=where)


def test_a_head_that_was_not_renewed_is_found(local, model, tokenizer, monkeypatch):
    """A tied head is packed apart on the CPU: parameters alone leave the old one in place."""
    monkeypatch.setattr(
        "srft.rollout.vllm_local.named_weights", lambda model, dtype: model.named_parameters()
    )
    perturb(model)
    local.update_weights()
    (_, generate), *_ = local.parts()
    with pytest.raises(RolloutError, match="does not sample"):
        check_weights(model, tokenizer, generate, SamplingParams(), exact=True, where="x")


def test_it_sleeps_between_calls_and_wakes_with_the_present_weights(
    local, model, tokenizer, requests, monkeypatch
):
    """The order of calls is tested on vLLM's own scheduler; on a CPU its worker keeps the memory."""
    monkeypatch.setattr(local, "sleeps", True)
    sleeping = local.llm.llm_engine.is_sleeping
    local.update_weights()
    assert same_as_ours(local, model, tokenizer, requests) and sleeping()
    assert same_as_ours(local, model, tokenizer, requests) and sleeping()  # evaluation, say
    perturb(model)
    local.update_weights()
    assert sleeping(), "the cache stays away until it is needed"
    assert same_as_ours(local, model, tokenizer, requests) and sleeping()
    monkeypatch.setattr(local, "sleeps", False)
    assert same_as_ours(local, model, tokenizer, requests) and not sleeping()


def test_a_server_that_hangs_is_dropped_and_comes_back(remote, servers, model, tokenizer, requests):
    remote.update_weights()
    patient = remote.servers[0].config
    remote.servers[0].config = patient.model_copy(update={"timeout_s": 6.0})
    servers[0].signal(signal.SIGSTOP)
    try:
        assert same_as_ours(remote, model, tokenizer, requests)
        assert not remote.servers[0].up and "6 s" in remote.servers[0].reason
    finally:
        servers[0].signal(signal.SIGCONT)
        remote.servers[0].config = patient
    perturb(model)
    remote.update_weights()
    assert remote.servers[0].up
    assert same_as_ours(remote, model, tokenizer, requests)


def test_a_server_killed_amid_a_step_loses_nothing(remote, servers, model, tokenizer, requests):
    perturb(model)
    remote.update_weights()
    params = SamplingParams(max_tokens=100, temperature=1.5)
    many = [RolloutRequest(r.prompt_ids, n=8, seed=r.seed) for r in requests * 3]
    whole, first = remote.generate(many, params), threading.Event()
    killer = threading.Thread(target=lambda: (first.wait(), servers[0].kill()))
    killer.start()
    seen = Counter()

    def note(r, i, completion):
        first.set()
        seen.update([(r, i)])

    assert tokens_of(remote.generate(many, params, note)) == tokens_of(whole)
    killer.join()
    assert set(seen.values()) == {1} and len(seen) == 8 * len(many)
    assert not remote.servers[0].up
    servers[0].start()  # which takes a while: the test after the next ones looks at it


@pytest.mark.parametrize("kind", ["vllm", "vllm-server"])
def test_training_evaluates_and_exports(kind, recipe, servers):
    config = recipe(
        model={"path": str(base_model_path())},
        data={"limit": 40, "eval": "lab", "eval_limit": 20},
        rollout={"max_tokens": 48, "engine": kind, "vllm": VLLM, "server": QUICK}
        | ({"servers": [server.url for server in servers]} if kind == "vllm-server" else {}),
        train={"steps": 2},
    )
    result = SRFTTrainer(args=config).train()
    assert result.step == 2 and len(result.evaluations) == 1
    # The second step's rollouts are by the weights after the first.
    assert result.metrics["mismatch/abs/max"] < 1e-3
    rollout = config.rollout.model_copy(update={"check": True})
    ((answer,),) = sample_texts(result.model_dir, [lab_eval(1)[0]["prompt"]], 1, rollout=rollout)
    assert answer.text


def test_a_server_that_was_restarted_comes_back_with_the_present_weights(
    remote, servers, model, tokenizer, requests
):
    perturb(model)
    remote.update_weights()
    deadline = time.monotonic() + 600
    while not remote.servers[0].up and time.monotonic() < deadline:
        assert same_as_ours(remote, model, tokenizer, requests)
        time.sleep(1)
    for part in remote.servers:
        alone = remote.generate_on([part], requests, GREEDY)
        assert tokens_of(alone) == tokens_of(
            EmbeddedEngine(model, tokenizer).generate(requests, GREEDY)
        )


def test_a_server_with_another_rotary_base_than_the_policy_is_refused(servers, tokenizer):
    changed = load_model(ModelConfig(path="lab", rope_theta=40_000.0))
    with pytest.raises(RolloutError, match="does not sample from the trainer's weights"):
        build_engine(changed, tokenizer, remote_config(servers))


def test_the_command_evaluates_by_servers(servers, tmp_path):
    def result(name, *engine):
        command = ["eval", "lab", "--limit", "12", "--temperature", "0", "--json"]
        ran = CliRunner().invoke(app, [*command, "--out", str(tmp_path / name), *engine])
        assert ran.exit_code == 0, ran.output
        return {
            name: (found["problems"], found["mean_tokens"])
            for name, found in json.loads(ran.stdout)["benchmarks"].items()
        }

    urls = ",".join(server.url for server in servers)
    theirs = result("theirs", "--engine", "vllm-server", "--rollout", f"servers=[{urls}]")
    assert theirs == result("ours", "--engine", "embedded")


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_adapters_travel_alone_where_vllm_applies_them(kind, servers, tokenizer, requests):
    """The same log-probabilities as with whole weights, for a few of their bytes. Stands last: a second
    engine in this process, once closed, leaves the first without its groups."""
    model = load_model(ModelConfig(path="lab"))
    add_lora(model, LoraConfig(rank=4))
    local = RolloutConfig(engine="vllm", vllm=VLLM)
    config = local if kind == "local" else remote_config(servers[1:])
    engine = build_engine(model, tokenizer, config)
    try:
        file = engine.file if kind == "local" else engine.transfer.file
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.data.normal_(0, 0.1, generator=generator)
            engine.update_weights()
            assert same_as_ours(engine, model, tokenizer, requests)
            cold = SamplingParams(max_tokens=48, temperature=0.6)
            assert largest_gap(engine, model, requests, cold) < 1e-4
        sent = sum(f.stat().st_size for f in (file.folder / "adapter").iterdir())
        assert sent < 0.1 * sum(p.numel() * p.element_size() for p in model.parameters())
    finally:
        engine.close()
