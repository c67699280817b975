"""What the embedded engine samples: equal to transformers', to the model, and to itself."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from srft.errors import RolloutError
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams

LENGTHS = (9, 3, 14, 1, 6)


def prompts_of(lengths, vocabulary, seed=3):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(2, vocabulary, (n,), generator=generator)  # noqa: E731
    return [tuple(draw(n).tolist()) for n in lengths]


def requests_of(tokenizer, n=2, lengths=LENGTHS):
    prompts = prompts_of(lengths, len(tokenizer))
    return [RolloutRequest(p, n=n, seed=1000 * k) for k, p in enumerate(prompts)]


def engine_of(model, tokenizer, **config):
    return EmbeddedEngine(model, tokenizer, RolloutConfig(**config))


def tokens_of(groups):
    return [[c.token_ids for c in group] for group in groups]


def greedy_reference(model, prompt, max_tokens, eos):
    ids = torch.tensor([prompt])
    out = model.eval().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=eos,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("max_rows", [64, 3])
def test_greedy_equals_generate_token_for_token_with_early_ends(model, tokenizer, max_rows):
    requests = requests_of(tokenizer, n=1)
    free = [greedy_reference(model, r.prompt_ids, 20, None) for r in requests]
    # A token some rows meet early makes a stop token that ends rows at different steps.
    eos = [free[0][4], free[1][9], tokenizer.eos_token_id]
    expected = [greedy_reference(model, r.prompt_ids, 20, eos) for r in requests]
    assert len({len(e) for e in expected}) > 1
    model.generation_config.eos_token_id = eos
    engine = engine_of(model, tokenizer, max_rows=max_rows)
    groups = engine.generate(requests, SamplingParams(temperature=0.0, max_tokens=20))
    for (completion,), tokens in zip(groups, expected, strict=True):
        assert completion.token_ids == tokens
        stopped = tokens[-1] in eos
        assert completion.finish_reason == ("stop" if stopped else "length")


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=24),
        SamplingParams(max_tokens=24, temperature=0.6),
        SamplingParams(max_tokens=24, temperature=1.3, top_k=20, top_p=0.9),
    ],
    ids=["plain", "cold", "truncated"],
)
def test_logprobs_equal_teacher_forcing(model, tokenizer, params):
    requests = requests_of(tokenizer, n=3)
    groups = engine_of(model, tokenizer, max_rows=4).generate(requests, params)
    model.eval()
    for request, group in zip(requests, groups, strict=True):
        for completion in group:
            ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(request.prompt_ids) - 1 : -1].float()
            logits = logits / params.temperature
            if params.top_k:
                kth = logits.topk(params.top_k).values[:, -1:]
                logits = logits.masked_fill(logits < kth, -torch.inf)
            if params.top_p < 1.0:
                for row in logits:
                    order = row.argsort(descending=True)
                    mass = row[order].softmax(-1).cumsum(-1)
                    first_out = int((mass < params.top_p - 1e-6).sum()) + 1
                    row[order[first_out:]] = -torch.inf
            expected = logits.log_softmax(-1).gather(-1, ids[0, -len(logits) :, None])[:, 0]
            actual = torch.tensor(completion.logprobs)
            assert torch.allclose(actual, expected, atol=1e-5)


def test_a_rollout_does_not_depend_on_what_else_is_in_the_batch(model, tokenizer):
    params = SamplingParams(max_tokens=20)
    requests = requests_of(tokenizer, n=4)
    engine = engine_of(model, tokenizer, max_rows=64)
    together = engine.generate(requests, params)
    narrow = engine_of(model, tokenizer, max_rows=3, prefill_tokens=16).generate(requests, params)
    alone = [engine.generate([r], params)[0] for r in requests]
    assert tokens_of(together) == tokens_of(narrow) == tokens_of(alone)
    one = RolloutRequest(requests[2].prompt_ids, n=1, seed=requests[2].seed + 3)
    assert engine.generate([one], params)[0][0].token_ids == together[2][3].token_ids
    for a, b in zip(chain.from_iterable(together), chain.from_iterable(narrow), strict=True):
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5)


def test_the_same_call_twice_is_bit_identical(llama, tokenizer):
    params = SamplingParams(max_tokens=20)
    engine = engine_of(llama, tokenizer, max_rows=5)
    first = engine.generate(requests_of(tokenizer, n=4), params)
    # Another call in between leaves other numbers in the cache.
    engine.generate(requests_of(tokenizer, n=2, lengths=(11, 2)), params)
    assert engine.generate(requests_of(tokenizer, n=4), params) == first
    assert (
        engine_of(llama, tokenizer, max_rows=5).generate(requests_of(tokenizer, n=4), params)
        == first
    )


def test_what_was_called_before_changes_nothing_to_the_bit(llama, tokenizer):
    used = engine_of(llama, tokenizer, max_rows=40)
    used.generate(requests_of(tokenizer, n=6, lengths=(30, 17)), SamplingParams(max_tokens=33))
    fresh = engine_of(llama, tokenizer, max_rows=40)
    params = SamplingParams(max_tokens=21)
    requests = requests_of(tokenizer, n=5, lengths=(7, 4, 11))
    assert used.generate(requests, params) == fresh.generate(requests, params)


def test_an_adapter_is_sampled_with_its_model(llama, tokenizer):
    peft = pytest.importorskip("peft")
    params = SamplingParams(max_tokens=12)
    plain = engine_of(llama, tokenizer).generate(requests_of(tokenizer), params)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(llama, config)
    groups = engine_of(adapted, tokenizer).generate(requests_of(tokenizer), params)
    assert groups != plain
    for request, group in zip(requests_of(tokenizer), groups, strict=True):
        for completion in group:
            ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
            with torch.no_grad():
                logits = adapted.eval()(input_ids=ids).logits[0]
            length = len(completion.token_ids)
            expected = logits[-length - 1 : -1].log_softmax(-1).gather(-1, ids[0, -length:, None])
            assert torch.allclose(torch.tensor(completion.logprobs), expected[:, 0], atol=1e-5)


def test_samples_follow_the_models_distribution(tokenizer, llama):
    from scipy import stats

    (prompt,) = prompts_of((5,), len(tokenizer))
    params = SamplingParams(max_tokens=1, top_k=6)
    (group,) = engine_of(llama, tokenizer).generate([RolloutRequest(prompt, 4000, 11)], params)
    with torch.no_grad():
        logits = llama.eval()(torch.tensor([prompt])).logits[0, -1]
    top = logits.topk(6)
    counts = [sum(c.token_ids[0] == t for c in group) for t in top.indices.tolist()]
    assert sum(counts) == 4000
    expected = top.values.double().softmax(-1).numpy() * 4000
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_each_prompt_is_run_once_whatever_its_group_and_the_rows(llama, tokenizer):
    engine = engine_of(llama, tokenizer, max_rows=3)
    seen = []
    handle = llama.model.embed_tokens.register_forward_hook(
        lambda _module, arguments, _out: seen.append(tuple(arguments[0].shape))
    )
    engine.generate(requests_of(tokenizer, n=7), SamplingParams(max_tokens=5))
    handle.remove()
    assert [shape for shape in seen if shape[1] > 1] == [(len(LENGTHS), max(LENGTHS))]


def test_finished_rows_leave_the_batch_and_waiting_ones_take_their_place(llama, tokenizer):
    llama.generation_config.eos_token_id = list(range(2, 60))
    engine = engine_of(llama, tokenizer, max_rows=16)
    rows = []
    handle = llama.model.embed_tokens.register_forward_hook(
        lambda _module, arguments, _out: rows.append(arguments[0].shape[0])
    )
    groups = engine.generate(requests_of(tokenizer, n=40), SamplingParams(max_tokens=30))
    handle.remove()
    decoded = sum(len(c.token_ids) for g in groups for c in g) - 200  # first tokens: from prefill
    assert sum(rows[1:]) == decoded
    assert max(rows[1:]) == 16


def test_one_token_one_rollout_and_no_rollouts(llama, tokenizer):
    engine = engine_of(llama, tokenizer)
    (prompt,) = prompts_of((5,), len(tokenizer))
    requests = [RolloutRequest(prompt, 1, 0), RolloutRequest(prompt, 0, 5)]
    groups = engine.generate(requests, SamplingParams(max_tokens=1))
    assert [len(g) for g in groups] == [1, 0]
    assert len(groups[0][0].token_ids) == len(groups[0][0].logprobs) == 1
    assert engine.generate([], SamplingParams()) == []


def test_on_completion_sees_every_rollout_once_as_it_ends(llama, tokenizer):
    llama.generation_config.eos_token_id = list(range(2, 40))
    seen = {}
    order = []

    def note(request, sample, completion):
        assert (request, sample) not in seen
        seen[request, sample] = completion
        order.append(len(completion.token_ids))

    groups = engine_of(llama, tokenizer).generate(
        requests_of(tokenizer, n=8), SamplingParams(max_tokens=30), note
    )
    assert seen == {(r, i): c for r, g in enumerate(groups) for i, c in enumerate(g)}
    assert order == sorted(order)


def test_new_weights_are_sampled_from_at_once(llama, tokenizer):
    engine = engine_of(llama, tokenizer)
    params = SamplingParams(max_tokens=10)
    before = engine.generate(requests_of(tokenizer), params)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.mul_(1.3)
    engine.update_weights()
    after = engine.generate(requests_of(tokenizer), params)
    fresh = engine_of(llama, tokenizer).generate(requests_of(tokenizer), params)
    assert before != after == fresh


def test_prompt_and_response_that_exceed_the_context_are_refused(llama, tokenizer):
    engine = engine_of(llama, tokenizer)
    requests = [RolloutRequest((5, 6), 1, 0), RolloutRequest((5,) * 50, 1, 0)]
    with pytest.raises(RolloutError, match=r"request 1: prompt of 50 tokens .* window of 64"):
        engine.generate(requests, SamplingParams(max_tokens=20))


@pytest.mark.parametrize(
    "request_, message",
    [
        (RolloutRequest((), 1, 0), "empty prompt"),
        (RolloutRequest((5, 9999), 1, 0), "outside the model's vocabulary"),
        (RolloutRequest((5,), -1, 0), "asks for -1"),
    ],
)
def test_requests_that_make_no_sense_are_refused(llama, tokenizer, request_, message):
    with pytest.raises(RolloutError, match=message):
        engine_of(llama, tokenizer).generate([request_], SamplingParams(max_tokens=4))


def test_a_cache_budget_limits_the_rows_and_changes_nothing_else(llama, tokenizer):
    params = SamplingParams(max_tokens=20)
    requests = requests_of(tokenizer, n=3)
    engine = engine_of(llama, tokenizer, cache_tokens=160)
    groups = engine.generate(requests, params)
    assert engine._cache.rows * engine._cache.slots <= 160
    assert tokens_of(groups) == tokens_of(engine_of(llama, tokenizer).generate(requests, params))
    with pytest.raises(RolloutError, match="raise cache_tokens"):
        engine_of(llama, tokenizer, cache_tokens=30).generate(requests, params)


def test_diverged_weights_are_an_error_not_a_rollout(llama, tokenizer):
    engine = engine_of(llama, tokenizer)
    with torch.no_grad():
        llama.lm_head.weight[3] = torch.nan
    with pytest.raises(RolloutError, match="not finite"):
        engine.generate(requests_of(tokenizer), SamplingParams(max_tokens=4))


def test_half_precision_models_are_sampled(llama, tokenizer):
    engine = engine_of(llama.bfloat16(), tokenizer)
    groups = engine.generate(requests_of(tokenizer), SamplingParams(max_tokens=6))
    assert all(len(c.token_ids) > 0 for g in groups for c in g)
