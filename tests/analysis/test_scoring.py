"""Token shift against numbers worked by hand and against a naive computation in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from srft.analysis.distributions import (
    compare,
    distribution_shift,
    hidden_states,
    logits,
    token_logprobs,
)
from srft.analysis.responses import Response, TokenizedResponse
from srft.errors import ModelError
from srft.model.output_head import output_head


def tokenized(
    prompt: tuple[int, ...], ids: tuple[int, ...], kind: str = "rollout", **more
) -> TokenizedResponse:
    return TokenizedResponse(
        Response("", "", kind, "here", more.pop("group", 0), **more), prompt, ids
    )


@pytest.fixture(scope="module")
def models(folders):
    from srft.evaluation.open_model import find_model, open_weights

    return {name: open_weights(find_model(path)) for name, path in folders.items()}


@pytest.fixture(scope="module")
def batch():
    draw = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 60, (n,), generator=draw).tolist())

    return [tokenized(ids(p), ids(r)) for p, r in ((3, 5), (1, 9), (7, 1), (4, 20))]


def test_four_tokens_by_hand():
    """P = (1/2, 1/4, 1/8, 1/8), Q uniform, the token taken is the second."""
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64)
    q = torch.full((1, 4), 0.25, dtype=torch.float64)
    figures = distribution_shift(p.log() + 3.0, q.log(), torch.tensor([1]))
    ln2 = math.log(2)
    m = [0.375, 0.25, 0.1875, 0.1875]
    to_m = sum(a * math.log(a / b) for a, b in zip([0.5, 0.25, 0.125, 0.125], m, strict=True))
    q_to_m = sum(0.25 * math.log(0.25 / b) for b in m)
    expected = {
        "logprob_before_T": -2 * ln2,
        "logprob_after_T": -2 * ln2,
        "entropy_before_T": 1.75 * ln2,
        "entropy_after_T": 2 * ln2,
        "kl_forward_T": 0.25 * ln2,  # log 4 - H(P)
        "kl_backward_T": 0.25 * ln2,  # mean of log(1/4 / p): (-1 + 0 + 1 + 1) / 4 * log 2
        "jsd_T": (to_m + q_to_m) / 2,
        "tv_T": 0.25,
    }
    for name, value in expected.items():
        assert figures[name].item() == pytest.approx(value, abs=1e-12), name
    assert figures["rank_before_T"].item() == 2
    assert figures["rank_after_T"].item() == 1  # ties count in its favour
    assert not figures["top_changed_T"].item()


def test_disjoint_distributions_reach_the_bounds():
    far = 1e4
    before = torch.tensor([[far, 0.0, 0.0, 0.0]], dtype=torch.float64)
    after = torch.tensor([[0.0, 0.0, 0.0, far]], dtype=torch.float64)
    figures = distribution_shift(before, after, torch.tensor([3]))
    assert figures["jsd_T"].item() == pytest.approx(math.log(2))
    assert figures["tv_T"].item() == pytest.approx(1.0)
    assert figures["kl_forward_T"].item() == pytest.approx(far)
    assert figures["top_changed_T"].item()
    assert figures["rank_before_T"].item() == 2


def test_tokens_that_cannot_happen_give_no_nan():
    """A model may mask tokens with minus infinity."""
    z = torch.tensor([[0.0, 1.0, -torch.inf]], dtype=torch.float64)
    figures = distribution_shift(z, z, torch.tensor([0]))
    for name in ("kl_forward_T", "kl_backward_T", "jsd_T", "tv_T"):
        assert figures[name].item() == 0.0
    assert math.isfinite(figures["entropy_before_T"].item())


def test_a_model_against_itself_is_exactly_zero(models, batch):
    shift = compare(models["base"], models["base"], batch)
    for name in ("kl_forward_T", "kl_backward_T", "jsd_T", "tv_T", "change_T"):
        assert not getattr(shift, name).any(), name
    assert (shift.rank_before_T == shift.rank_after_T).all()
    assert not shift.top_changed_T.any()


@pytest.mark.parametrize("pair", [("base", "other"), ("other", "untied")])
def test_figures_agree_with_a_naive_computation(models, batch, pair):
    """One sequence at a time through the whole model, plain formulas in float64."""
    before, after = (models[name] for name in pair)
    shift = compare(before, after, batch)
    at = 0
    for row, response in enumerate(batch):
        ids = torch.tensor([[*response.prompt_ids, *response.ids]])
        with torch.no_grad():
            p, q = (
                m(input_ids=ids)
                .logits[0, len(response.prompt_ids) - 1 : -1]
                .double()
                .softmax(1)
                .numpy()
                for m in (before, after)
            )
        n = len(response.ids)
        taken = (np.arange(n), list(response.ids))
        m = (p + q) / 2
        here = slice(at, at + n)
        close = {"rtol": 2e-4, "atol": 1e-7}
        np.testing.assert_allclose(np.exp(shift.logprob_before_T[here]), p[taken], **close)
        np.testing.assert_allclose(shift.change_T[here], q[taken] - p[taken], **close)
        np.testing.assert_allclose(shift.entropy_after_T[here], -(q * np.log(q)).sum(1), **close)
        np.testing.assert_allclose(shift.kl_forward_T[here], (p * np.log(p / q)).sum(1), **close)
        np.testing.assert_allclose(shift.kl_backward_T[here], (q * np.log(q / p)).sum(1), **close)
        jsd = ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2
        np.testing.assert_allclose(shift.jsd_T[here], jsd, **close)
        np.testing.assert_allclose(shift.tv_T[here], np.abs(p - q).sum(1) / 2, **close)
        rank = 1 + (p > p[taken][:, None]).sum(1)
        assert (shift.rank_before_T[here] == rank).all()
        assert (shift.top_changed_T[here] == (p.argmax(1) != q.argmax(1))).all()
        assert (shift.sequence_T[here] == row).all()
        assert (shift.token_T[here] == response.ids).all()
        assert (shift.position_T[here] == np.arange(n)).all()
        at += n
    assert at == len(shift.token_T)


def test_the_way_responses_are_batched_changes_nothing(models, batch):
    alone = dict(hidden_states(models["base"], batch, budget=1))
    together = dict(hidden_states(models["base"], batch, budget=10_000))
    assert alone.keys() == together.keys() == {0, 1, 2, 3}
    for row, hidden in alone.items():
        torch.testing.assert_close(hidden, together[row], rtol=1e-4, atol=1e-5)


def test_tiles_of_one_token_give_the_same_figures(models, batch, monkeypatch):
    whole = compare(models["base"], models["other"], batch)
    monkeypatch.setattr("srft.analysis.distributions._TILE", 1)
    tiled = compare(models["base"], models["other"], batch)
    np.testing.assert_allclose(whole.jsd_T, tiled.jsd_T, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(whole.logprob_after_T, tiled.logprob_after_T, rtol=1e-5, atol=1e-9)


def test_token_logprobs_are_those_of_the_comparison(models, batch):
    shift = compare(models["base"], models["other"], batch)
    np.testing.assert_allclose(
        token_logprobs(models["other"], batch), shift.logprob_after_T, rtol=1e-6, atol=1e-9
    )


def test_the_head_gives_the_models_own_logits(models, batch):
    for model in models.values():
        _, hidden = next(iter(hidden_states(model, batch[:1])))
        ids = torch.tensor([[*batch[0].prompt_ids, *batch[0].ids]])
        with torch.no_grad():
            own = model(input_ids=ids).logits[0, len(batch[0].prompt_ids) - 1 : -1]
        torch.testing.assert_close(
            logits(output_head(model), hidden).float(), own, rtol=1e-4, atol=1e-5
        )


def test_tokens_of_another_vocabulary_are_refused(models):
    with pytest.raises(ModelError, match="outside the model's vocabulary"):
        compare(models["base"], models["other"], [tokenized((1,), (10_000,))])


def test_models_of_different_vocabularies_are_refused(models, batch):
    from transformers import LlamaConfig, LlamaForCausalLM

    size = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(ModelError, match="vocabular"):
        compare(models["base"], LlamaForCausalLM(LlamaConfig(vocab_size=70, **size)), batch)


def test_what_a_tool_wrote_is_read_but_not_scored(models):
    """Every figure of the other tokens is as without a mask, and the gradient has them alone."""
    from srft.analysis.gradient import gradient_view
    from srft.objective.methods import get_method

    ids, mask = (5, 6, 7, 8, 9, 10), (True, True, False, False, True, True)
    whole = [tokenized((3, 4), ids), tokenized((3, 4), ids[::-1])]
    masked = [replace(response, mask=mask) for response in whole]
    keep = np.array(mask * 2)
    one, other = (
        compare(models["base"], models["other"], responses) for responses in (whole, masked)
    )
    for name, array in one.rows(keep).__dict__.items():
        if name != "position_T":  # counts the tokens that are scored
            np.testing.assert_array_equal(array, getattr(other, name), err_msg=name)
    np.testing.assert_array_equal(
        token_logprobs(models["base"], whole)[keep], token_logprobs(models["base"], masked)
    )
    view = gradient_view(models["base"], "base", get_method("grpo"), masked)
    assert view.terms[0].tokens == keep.sum()
