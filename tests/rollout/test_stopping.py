"""Stop tokens and stop strings, in both engines."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch

from srft.errors import RolloutError
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.generate import GenerateEngine
from srft.rollout.response_end import MAY_END_STRING, STOP_TOKEN, StopRule, StopRules
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams


def rule(tokenizer, *stop, end_ids=(), stop_token_ids=()):
    params = SamplingParams(stop=stop, stop_token_ids=stop_token_ids)
    return StopRule(tokenizer, params, tuple(end_ids), len(tokenizer) + 5, torch.device("cpu"))


def parrot(llama, tokenizer, text):
    """The model made to say ``text`` (no character twice) after its first character."""
    ids = tokenizer(text)["input_ids"]
    assert len(set(ids)) == len(ids)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.zero_()
        for norm in (m for m in llama.modules() if "RMSNorm" in type(m).__name__):
            norm.weight.fill_(1.0)
        for at, (this, following) in enumerate(pairwise(ids)):
            llama.model.embed_tokens.weight[this, at] = 1.0
            llama.lm_head.weight[following, at] = 30.0
    return ids


@pytest.mark.parametrize("kind", [EmbeddedEngine, GenerateEngine])
@pytest.mark.parametrize("stop", ["c-d", "-d", "d", "hell", "llo"])
def test_a_stop_string_that_spans_tokens_ends_the_response(llama, tokenizer, kind, stop):
    said = "abc-dhello zyx"
    ids = parrot(llama, tokenizer, said)
    assert len(ids) == len(said) - 2
    engine = kind(llama, tokenizer, RolloutConfig(check=False))
    params = SamplingParams(max_tokens=len(ids) - 1, stop=("never", stop))
    ((completion,),) = engine.generate([RolloutRequest((ids[0],), 1, 0)], params)
    assert completion.finish_reason == "stop"
    assert completion.text == said[1 : said.index(stop)]
    kept = tokenizer.decode(completion.token_ids)
    assert kept.startswith(completion.text + stop) or kept == completion.text + stop
    assert len(completion.token_ids) == len(completion.logprobs)


@pytest.mark.parametrize("kind", [EmbeddedEngine, GenerateEngine])
@pytest.mark.parametrize(
    ("stop", "text"),
    [("<pad>", "bc"), ("<pad>de", "bc"), ("c<pad>", "b"), ("fg", "bcde"), ("<pa", "bc")],
)
def test_a_stop_string_may_be_or_hold_a_special_token(llama, tokenizer, kind, stop, text):
    ids = parrot(llama, tokenizer, "abc<pad>defghi")
    engine = kind(llama, tokenizer, RolloutConfig(check=False))
    params = SamplingParams(max_tokens=len(ids) - 1, stop=(stop,))
    ((completion,),) = engine.generate([RolloutRequest((ids[0],), 1, 0)], params)
    assert (completion.text, completion.finish_reason) == (text, "stop")
    assert tokenizer.decode(completion.token_ids).endswith(stop if stop != "<pa" else "<pad>")


@pytest.mark.parametrize("kind", [EmbeddedEngine, GenerateEngine])
def test_stop_tokens_end_the_response_and_stay_out_of_the_text(llama, tokenizer, kind):
    ids = parrot(llama, tokenizer, "abcdef")
    engine = kind(llama, tokenizer, RolloutConfig(check=False))
    params = SamplingParams(max_tokens=5, stop_token_ids=(ids[3],))
    ((completion,),) = engine.generate([RolloutRequest((ids[0],), 1, 0)], params)
    assert completion.token_ids == tuple(ids[1:4])
    assert (completion.text, completion.finish_reason) == ("bc", "stop")


def test_the_fallback_engine_samples_the_same_rollouts(model, tokenizer):
    requests = [RolloutRequest((5, 6, 7), 4, 0), RolloutRequest((9, 8, 7, 6, 5, 4, 3), 4, 50)]
    stops = tuple(range(2, 20))
    params = SamplingParams(max_tokens=15, temperature=0.9, stop=("e",), stop_token_ids=stops)
    ours = EmbeddedEngine(model, tokenizer, RolloutConfig()).generate(requests, params)
    theirs = GenerateEngine(model, tokenizer, RolloutConfig(max_rows=5)).generate(requests, params)
    for a, b in zip(chain.from_iterable(ours), chain.from_iterable(theirs), strict=True):
        assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(9))},
        {"bad_words_ids": [[7]]},
        {"do_sample": True, "top_k": 2, "temperature": 0.1},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_generation_settings_of_a_model_do_not_change_what_is_sampled(model, tokenizer, setting):
    requests = [RolloutRequest((5, 6, 7), 3, 0)]
    params = SamplingParams(max_tokens=12)
    engine = GenerateEngine(model, tokenizer, RolloutConfig())
    expected = engine.generate(requests, params)
    own = model.generation_config
    model.generation_config = copy.deepcopy(own)
    model.generation_config.update(**setting)
    changed = model.generation_config
    try:
        assert engine.generate(requests, params) == expected
        assert model.generation_config is changed
    finally:
        model.generation_config = own


def test_only_tokens_that_can_complete_a_stop_string_are_looked_at(tokenizer):
    table = rule(tokenizer, "shell", end_ids=(1,)).table.tolist()
    vocabulary = tokenizer.get_vocab()
    marked = {t for t, i in vocabulary.items() if table[i] == MAY_END_STRING and t.isascii()}
    assert marked == {"l", "ll"}
    assert table[1] == STOP_TOKEN


def test_the_text_is_cut_before_the_first_of_several_stop_strings(tokenizer):
    ids = tokenizer("xx hello")["input_ids"]
    assert rule(tokenizer, "llo", "he").text(ids, ended_by_token=False) == "xx "


def test_padded_vocabulary_entries_without_text_are_no_stop_tokens(tokenizer):
    table = rule(tokenizer, "x", end_ids=(1,)).table
    assert table[len(tokenizer) :].eq(0).all()


def test_a_rule_is_kept_for_the_strings_ids_and_ends_that_it_is_for(llama, tokenizer):
    rules = StopRules(tokenizer)

    def get(stop=(), ids=(), vocabulary=40):
        params = SamplingParams(stop=stop, stop_token_ids=ids)
        return rules.get(llama, params, vocabulary, torch.device("cpu"))

    asked = [{}, {"stop": ("a",)}, {"ids": (5,)}, {"ids": (6,)}, {"vocabulary": 41}]
    found = [get(**one) for one in asked]
    assert len(set(map(id, found))) == len(found)
    assert [bool(one.table[5] == STOP_TOKEN) for one in found[2:4]] == [True, False]
    llama.generation_config.eos_token_id = 7
    assert get().table[7] == STOP_TOKEN != found[0].table[7]
    assert get() is get()


@pytest.mark.parametrize("kind", [EmbeddedEngine, GenerateEngine])
@pytest.mark.parametrize("max_rows", [64, 2])
def test_a_request_s_own_limit_cuts_what_it_would_have_got(llama, tokenizer, kind, max_rows):
    limits = [3, None, 1, 9, 40]
    requests = [RolloutRequest((5 + k, 9), n=2, seed=10 * k) for k in range(len(limits))]
    params = SamplingParams(max_tokens=12)
    engine = kind(llama, tokenizer, RolloutConfig(max_rows=max_rows))
    free = engine.generate(requests, params)
    limited = [replace(r, max_tokens=limit) for r, limit in zip(requests, limits, strict=True)]
    for limit, whole, cut in zip(limits, free, engine.generate(limited, params), strict=True):
        for one, other in zip(whole, cut, strict=True):
            assert other.token_ids == one.token_ids[:limit]
            short = limit is not None and limit <= len(one.token_ids) - (
                one.finish_reason == "stop"
            )
            assert other.finish_reason == ("length" if short else one.finish_reason)


def test_a_request_s_own_limit_may_be_all_that_fits(llama, tokenizer):
    """The window holds the prompt and what this request may get, though not ``max_tokens``."""
    window = llama.config.max_position_embeddings
    request = RolloutRequest((5,) * (window - 2), n=1, seed=0, max_tokens=2)
    params = SamplingParams(max_tokens=50)
    ((completion,),) = EmbeddedEngine(llama, tokenizer).generate([request], params)
    assert 1 <= len(completion.token_ids) <= 2
    with pytest.raises(RolloutError, match="max_tokens=3"):
        EmbeddedEngine(llama, tokenizer).generate([replace(request, max_tokens=3)], params)
