"""Servers that die, hang and forget: nothing is lost, nothing counted twice, nothing stale trained on.
The servers are stand-ins (fake_vllm.py); test_vllm.py asks real ones."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from benchmarks.lab.tokenizer import build_tokenizer
from tests.rollout.fake_vllm import FakeServer, perturb
from tests.toys import lab_model

from srft.config import parse_config
from srft.errors import ConfigError, RolloutError
from srft.model.adapters import add_lora
from srft.model.model_config import LoraConfig
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.engine import build_engine
from srft.rollout.response_end import StopRule
from srft.rollout.rollout_config import RolloutConfig, ServerConfig
from srft.rollout.transfer import NCCLTransfer
from srft.rollout.vllm_wire import completion_of, sampling_fields
from srft.types import RolloutRequest, SamplingParams

PARAMS = SamplingParams(max_tokens=12)
QUICK = {"check_every_s": 0.05, "wait_s": 60.0, "timeout_s": 60.0, "connect_timeout_s": 20.0}


@pytest.fixture
def model():
    return lab_model()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def servers(model, tokenizer):
    started = [FakeServer(model, tokenizer) for _ in range(2)]
    yield started
    for server in started:
        server.stop()


@pytest.fixture
def connect(model, tokenizer, tmp_path):
    engines = []

    def build(servers, check=True, **settings):
        server = {**QUICK, "shared_memory": str(tmp_path), **settings}
        config = RolloutConfig(
            engine="vllm-server", servers=[s.url for s in servers], server=server, check=check
        )
        engines.append(build_engine(model, tokenizer, config))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()
    assert not list(tmp_path.iterdir()), "weights were left in shared memory"


@pytest.fixture
def requests():
    return [RolloutRequest((5 + k, 7, 9, 11), n=4, seed=1000 * k) for k in range(8)]


def tokens_of(groups):
    return [[c.token_ids for c in group] for group in groups]


def expected(model, tokenizer, requests):
    return tokens_of(EmbeddedEngine(model, tokenizer).generate(requests, PARAMS))


def generate(engine, requests):
    """The completions, after checking that each was handed out exactly once."""
    seen = Counter()
    groups = engine.generate(requests, PARAMS, lambda r, i, c: seen.update([(r, i)]))
    assert seen == Counter((r, i) for r, request in enumerate(requests) for i in range(request.n))
    return tokens_of(groups)


def test_requests_are_shared_out_and_follow_every_update(
    model, tokenizer, servers, connect, requests
):
    engine = connect(servers)
    before = generate(engine, requests)
    assert before == expected(model, tokenizer, requests)
    assert all(sum(server.asked.values()) >= 8 for server in servers)
    perturb(model)
    engine.update_weights()
    after = generate(engine, requests)
    assert after == expected(model, tokenizer, requests)
    assert after != before


def test_a_server_that_dies_amid_a_step_is_replaced_by_the_other(
    model, tokenizer, servers, connect, requests
):
    engine = connect(servers)
    servers[0].dies_after = 3
    assert generate(engine, requests) == expected(model, tokenizer, requests)
    assert not engine.servers[0].up
    perturb(model)
    engine.update_weights()  # one is enough
    assert generate(engine, requests) == expected(model, tokenizer, requests)


def test_a_server_that_comes_back_gets_the_present_weights_before_it_is_asked(
    model, tokenizer, servers, connect, requests
):
    engine = connect(servers)
    perturb(model)
    engine.update_weights()
    servers[0].stop()
    servers[1].hang = 0.05  # so that there is work left when the other is back
    threading.Timer(0.2, servers[0].start).start()
    assert generate(engine, requests * 4) == expected(model, tokenizer, requests * 4)
    assert servers[0].version == engine.version == servers[1].version
    assert engine.servers[0].up


def test_a_server_that_was_restarted_unnoticed_is_not_believed(
    model, tokenizer, servers, connect, requests
):
    engine = connect(servers)
    perturb(model)
    engine.update_weights()
    servers[0].restart()  # well, but with the weights it was started with
    assert engine.servers[0].up
    assert generate(engine, requests) == expected(model, tokenizer, requests)


def test_the_only_server_may_be_away_for_a_while(model, tokenizer, servers, connect, requests):
    engine = connect(servers[:1])
    servers[0].dies_after = 2
    back = threading.Thread(target=lambda: (servers[0].stopped.wait(), servers[0].start()))
    back.start()
    assert generate(engine, requests) == expected(model, tokenizer, requests)
    back.join()


def test_a_slow_server_is_dropped_and_its_late_answers_are_not_counted(
    model, tokenizer, servers, connect, requests
):
    few = requests[:2]
    engine = connect(servers)
    # The other one is waited for longer, on a busy machine too.
    engine.servers[0].config = engine.config.server.model_copy(update={"timeout_s": 2.0})
    servers[0].hang = 4.0
    assert generate(engine, few) == expected(model, tokenizer, few)
    assert "within 2 s" in engine.servers[0].reason
    time.sleep(2.5)  # the late answers come now
    servers[0].hang = 0.0
    assert generate(engine, few) == expected(model, tokenizer, few)


def test_broken_connections_are_tried_again_but_not_for_ever(servers, connect, requests):
    engine = connect(servers[:1], attempts=3)
    servers[0].failures = 2
    generate(engine, requests[:1])
    servers[0].failures = 1000
    with pytest.raises(RolloutError, match="tried 3 times"):
        generate(engine, requests[:1])


def test_with_no_server_left_the_run_ends_and_says_why(servers, connect, requests):
    engine = connect(servers, wait_s=0.3)
    for server in servers:
        server.stop()
    with pytest.raises(RolloutError, match=r"no vLLM server .* for 0.3 s .*srft serve"):
        generate(engine, requests)
    with pytest.raises(RolloutError, match="no vLLM server"):
        engine.update_weights()


@pytest.fixture
def adapted(model):
    pytest.importorskip("peft")
    add_lora(model, LoraConfig(rank=2))
    move_adapters(model, 1)
    return model


def move_adapters(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def test_adapters_travel_alone_to_servers_that_apply_them(adapted, tokenizer, connect, requests):
    servers = [FakeServer(lab_model(), tokenizer, rank=8) for _ in range(2)]
    engine = connect(servers)
    before = generate(engine, requests)
    assert before == expected(adapted, tokenizer, requests)
    base = [server.received["whole"] for server in servers]
    move_adapters(adapted, 2)
    engine.update_weights()
    assert generate(engine, requests) == expected(adapted, tokenizer, requests) != before
    assert [server.received["whole"] for server in servers] == base, "the base travels once"
    assert all(
        0 < 5 * server.received["adapter"] / 2 < b for server, b in zip(servers, base, strict=True)
    )
    # Restarted unnoticed: it has neither the base of the run nor its adapters.
    move_adapters(adapted, 3)
    engine.update_weights()
    servers[0].restart()
    assert generate(engine, requests) == expected(adapted, tokenizer, requests)
    assert servers[0].received["whole"] == 2 * base[0]
    # A second run, whose servers hold what the first has left.
    assert generate(connect(servers), requests) == expected(adapted, tokenizer, requests)
    for server in servers:
        server.stop()


@pytest.mark.parametrize("ranks", [(0, 0), (8, 0), (1, 1)])
def test_adapters_are_added_to_the_weights_where_a_server_cannot_apply_them(
    ranks, adapted, tokenizer, connect, requests
):
    servers = [FakeServer(lab_model(), tokenizer, rank=rank) for rank in ranks]
    assert generate(connect(servers), requests) == expected(adapted, tokenizer, requests)
    assert all(server.received["whole"] and not server.received["adapter"] for server in servers)
    for server in servers:
        server.stop()


def test_a_request_that_the_server_refuses_is_not_sent_to_others(servers, connect, requests):
    engine = connect(servers)
    for server in servers:
        server.refuse = True
    with pytest.raises(RolloutError, match=r"refuses a request.*too long"):
        generate(engine, requests)


def test_a_failing_callback_ends_the_call_and_the_next_one_is_whole(
    model, tokenizer, servers, connect, requests
):
    engine = connect(servers)

    def fail(r, i, completion):
        raise ValueError("the verifier broke")

    with pytest.raises(ValueError, match="the verifier broke"):
        engine.generate(requests, PARAMS, fail)
    assert generate(engine, requests) == expected(model, tokenizer, requests)


def test_a_server_with_other_weights_is_refused_at_the_start(model, servers, connect):
    perturb(model)
    servers[1].deaf = True  # says yes to the update and keeps its own
    with pytest.raises(RolloutError, match=rf"{servers[1].url} does not sample from the trainer's"):
        connect(servers)


def test_an_update_left_open_by_a_killed_trainer_is_taken_over(
    model, tokenizer, servers, connect, requests
):
    servers[0].updating = True
    perturb(model)
    engine = connect(servers[:1])
    assert generate(engine, requests) == expected(model, tokenizer, requests)


def test_an_update_that_cannot_start_says_why(servers, connect):
    servers[0].broken = True
    with pytest.raises(
        RolloutError, match=r"start_weight_update: status 500: .*in the worker.*; then"
    ):
        connect(servers[:1], wait_s=0.3, check_every_s=0.05)


def test_closing_closes_the_connections(servers, connect):
    engine = connect(servers)
    engine.close()
    assert all(server.http.is_closed for server in engine.servers)


def test_a_server_of_another_kind_is_told_from_one_that_is_away(servers, connect, monkeypatch):
    from srft.rollout.client import Server, ServerFailure

    def call(self, method, path, body=None, timeout=None):
        if path == "/weight_info":
            raise ServerFailure("/weight_info: status 404: Not Found", 404)

    monkeypatch.setattr(Server, "call", call)
    with pytest.raises(RolloutError, match="no calls for receiving weights; start servers with"):
        connect(servers)


def test_servers_and_engine_have_to_agree_in_the_recipe():
    for rollout, message in (
        ({"engine": "vllm-server"}, "servers is empty"),
        ({"servers": ["http://a:1"]}, "set it to vllm-server"),
        ({"engine": "vllm-server", "servers": ["a:1"]}, "not an address"),
        ({"engine": "vllm-server", "servers": ["http://a:1", "http://a:1/"]}, "twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config({"rollout": rollout})


def test_nccl_without_a_gpu_is_refused(servers, connect):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="not on a GPU"):
        connect(servers, transfer="nccl")


def test_under_torchrun_one_vllm_cannot_span_several_gpus(model, monkeypatch):
    monkeypatch.setattr("srft.rollout.vllm_local._several_processes", lambda: True)
    config = RolloutConfig(engine="vllm", vllm={"tensor_parallel_size": 2})
    with pytest.raises(ConfigError, match="tensor_parallel_size: under torchrun"):
        build_engine(model, build_tokenizer(), config)


def test_what_was_kept_of_a_prompt_is_forgotten_with_every_update(
    model, servers, connect, requests
):
    engine = connect(servers)
    for _ in range(3):
        generate(engine, requests)
        perturb(model)
        engine.update_weights()
    generate(engine, requests)
    assert all(server.prefixes for server in servers)
    assert [server.stale for server in servers] == [0, 0]


def test_after_a_broadcast_every_server_forgets_what_it_kept_of_prompts():
    """Of NCCL, which needs GPUs, what is said to the servers: the broadcast itself is left out."""
    said = []

    class Said:
        def __init__(self, name):
            self.name = name

        def call(self, method, path, body=None, timeout=None):
            said.append((self.name, path, body))

    servers = [Said("a"), Said("b")]
    transfer = NCCLTransfer(ServerConfig(), lambda: iter(()), sender=True)
    transfer.members = servers
    transfer.engine = SimpleNamespace(send_weights=lambda: said.append("broadcast"))
    transfer.send(servers, "v7")
    assert said[0] == "broadcast"
    for name in "ab":
        assert [entry[1:] for entry in said[1:] if entry[0] == name] == [
            ("/update_weight_version", {"new_version": "v7"}),
            ("/reset_prefix_cache", None),
        ]


@pytest.mark.parametrize("met", [[], ["a"]])
def test_all_ranks_gather_the_weights_equally_often_for_a_broadcast(monkeypatch, met):
    """The sender needs names and shapes before its first broadcast, and again where servers change."""
    server = SimpleNamespace(call=lambda *_: None, url="a")
    rounds = [[server] if met else [], [server], [server, server]]
    passes = {True: [], False: []}

    def connect(self, servers):
        self.engine = SimpleNamespace(send_weights=lambda: list(self.weights()))
        assert self.described == [("w", torch.float32, (2,))]

    monkeypatch.setattr(NCCLTransfer, "_connect", connect)
    for sender, seen in passes.items():

        def weights(seen=seen):
            seen[-1] += 1
            yield "w", torch.zeros(2)

        transfer = NCCLTransfer(ServerConfig(), weights, sender)
        for servers in rounds:
            seen.append(0)
            transfer.send(servers, "v")
    assert passes[True] == passes[False] == [2, 1, 1]


def test_which_tokens_end_a_response_is_said_by_us_alone(model, tokenizer):
    """vLLM would end at the end token of its own reading of the model's folder as well."""
    params = SamplingParams(
        temperature=0.5, top_p=0.9, top_k=7, max_tokens=5, stop=("x", ""), stop_token_ids=(3,)
    )
    fields = sampling_fields(RolloutRequest((1,), 3, 9), 2, params, model, tokenizer)
    assert fields == {
        "n": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 11, "max_tokens": 5,
        "stop": ["x"], "stop_token_ids": sorted({3, tokenizer.eos_token_id}), "ignore_eos": True,
        "logprobs": 0, "detokenize": True, "skip_special_tokens": False,
    }  # fmt: skip
    short = sampling_fields(
        RolloutRequest((1,), 1, 1, 4), 0, SamplingParams(max_tokens=5), model, tokenizer
    )
    assert not short["detokenize"] and short["max_tokens"] == 4


def test_a_stop_string_ends_the_text_within_the_last_token_a_stop_token_before_it(tokenizer):
    (number, word) = tokenizer("3 has")["input_ids"]
    params = SamplingParams(stop=("s",), stop_token_ids=(word,))
    rule = StopRule(tokenizer, params, (), len(tokenizer), torch.device("cpu"))

    def text(stop_reason):
        ids, logprobs = [number, word], [-0.5, -0.25]
        return completion_of(ids, logprobs, "stop", stop_reason, rule, (0, 0)).text

    assert text("s") == tokenizer.decode([number, word]).removesuffix("s")
    assert text(word) == text(None) == tokenizer.decode([number])
