"""The gradient at the logits against autograd through the whole softmax."""

from __future__ import annotations

import pytest
import torch

from srft.analysis.gradient import gradient_view, logit_gradient
from srft.analysis.responses import Response, TokenizedResponse
from srft.evaluation.open_model import find_model, open_weights
from srft.objective.methods import get_method


def test_log_probability_and_entropy_gradients_are_those_of_autograd():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(6, 9, generator=draw, dtype=torch.float64, requires_grad=True)
    target = torch.randint(9, (6,), generator=draw)
    g, h = (
        torch.randn(6, generator=draw, dtype=torch.float64),
        torch.randn(6, generator=draw, dtype=torch.float64),
    )
    logp = z.log_softmax(1)
    entropy = -(logp.exp() * logp).sum(1)
    (g * logp.gather(1, target[:, None])[:, 0] + h * entropy).sum().backward()
    torch.testing.assert_close(logit_gradient(logp.detach(), target, g, h), z.grad)


def test_sft_by_hand_on_four_tokens():
    """-log p(y): the gradient is p minus one-hot (Eq. 4)."""
    p = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64)
    found = logit_gradient(p.log(), torch.tensor([1]), torch.tensor([-1.0]), torch.tensor([0.0]))
    torch.testing.assert_close(
        found, torch.tensor([[0.5, -0.75, 0.125, 0.125]], dtype=torch.float64)
    )


@pytest.fixture(scope="module")
def model(folders):
    return open_weights(find_model(folders["base"]))


def group(prompt: int, *members: tuple[str, float]) -> list[TokenizedResponse]:
    return [
        TokenizedResponse(
            Response("", "", kind, "here", prompt, reward, reward > 0.5),
            (5 + prompt, 9),
            (11, 12 + i, 13),
        )
        for i, (kind, reward) in enumerate(members)
    ]


def test_terms_touch_their_own_tokens_and_rl_needs_an_advantage(model):
    """The second prompt's rewards are all equal: no advantage, so RL moves nothing there."""
    batch = [
        *group(0, ("demonstration", 1.0), ("rollout", 0.0), ("rollout", 1.0)),
        *group(1, ("demonstration", 1.0), ("rollout", 1.0), ("rollout", 1.0)),
    ]
    view = gradient_view(model, "base", get_method("srft"), batch)
    terms = {t.term: t for t in view.terms}
    sft = next(t for t in view.terms if t.source == "sft")
    rollout = terms["rollout"]
    assert (sft.tokens, rollout.tokens) == (6, 12)
    smallest = {name: t.touched[0] for name, t in terms.items()}
    assert smallest[sft.term].positions == 1.0
    assert smallest["rollout"].positions == pytest.approx(0.5)
    for term in view.terms:
        shares = [(t.positions, t.vocabulary, t.union) for t in term.touched]
        assert shares == sorted(shares, reverse=True)
        for positions, vocabulary, union in shares:
            assert 0 <= vocabulary <= union <= 1
            assert positions >= vocabulary


@pytest.mark.parametrize("name", ["grpo", "rloo", "prefix-rft"])
def test_a_demonstration_is_no_member_of_the_group_where_training_collects_none(model, name):
    """All rollouts wrong: in training every advantage is 0, whatever the demonstration's reward."""
    batch = group(0, ("demonstration", 1.0), ("rollout", 0.0), ("rollout", 0.0))
    view = gradient_view(model, "base", get_method(name), batch)
    (term,) = view.terms
    assert (view.sequences, term.tokens, term.size) == (2, 6, 0.0)


def test_what_the_gate_of_hpt_leaves_out_is_not_counted(model):
    """A prompt with a right rollout trains its rollouts, one without its demonstration."""
    batch = [
        *group(0, ("demonstration", 1.0), ("rollout", 0.0), ("rollout", 1.0)),
        *group(1, ("demonstration", 1.0), ("rollout", 0.0), ("rollout", 0.0)),
    ]
    view = gradient_view(model, "base", get_method("hpt"), batch)
    tokens = {t.term: t.tokens for t in view.terms}
    assert (view.sequences, tokens["demo_sft"], tokens["rollout"]) == (3, 3, 6)
    # The token at which they differ is that of the sequence that was kept.
    alone = gradient_view(model, "base", get_method("hpt"), [batch[3], batch[1], batch[2]])
    assert [t.size for t in view.terms] == pytest.approx([t.size for t in alone.terms])


def test_the_size_of_sft_is_twice_the_weight_times_what_is_missing(model):
    """sum_v |p_v - 1[v = y]| = 2 (1 - p_y)."""
    from srft.analysis.distributions import token_logprobs

    batch = group(0, ("demonstration", 1.0))
    view = gradient_view(model, "base", get_method("sft"), batch)
    p = torch.tensor(token_logprobs(model, batch)).exp()
    assert view.terms[0].size == pytest.approx(float((2 * (1 - p)).mean()), rel=1e-6)


@pytest.mark.parametrize("name", ["srft", "grpo"])
def test_a_term_without_tokens_is_all_zeros(model, name):
    view = gradient_view(model, "base", get_method(name), group(0, ("demonstration", 1.0)))
    rollout = next(t for t in view.terms if t.term == "rollout")
    assert rollout.tokens == 0
    assert all(t.positions == t.union == 0 for t in rollout.touched)
