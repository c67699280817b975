"""Divergences over the vocabulary: against TRL's functions, in float64, whatever the cut."""

import pytest
import torch

from srft.errors import ModelError
from srft.model import divergence as module
from srft.model.divergence import Logits, divergence

T, D, V = 7, 5, 11


def heads(seed=0, vocabulary=V, **more):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Logits(normal(T, D), normal(vocabulary, D), normal(vocabulary), **more)


def raw(head):
    return head.hidden_TD @ head.weight_VD.t() + head.bias_V


def with_gradient(function, policy):
    hidden = policy.hidden_TD.clone().requires_grad_()
    weight = policy.weight_VD.clone().requires_grad_()
    value_T = function(Logits(hidden, weight, policy.bias_V))
    (value_T * torch.arange(1, T + 1)).sum().backward()
    return value_T.detach(), hidden.grad, weight.grad


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_values_and_gradients_are_those_of_trl_s_gkd(beta):
    trl = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="TRL is not installed")
    policy, teacher = heads(0), heads(1)

    def peer(policy):
        rows = [
            trl.GKDTrainer.generalized_jsd_loss(
                raw(policy)[t][None, None], raw(teacher)[t][None, None], beta=beta, reduction="sum"
            )
            for t in range(T)
        ]
        return torch.stack(rows)

    found = with_gradient(lambda p: divergence(p, teacher, beta), policy)
    same(found, with_gradient(peer, policy))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("top_k", [1, 4, V])
def test_the_likeliest_tokens_and_a_bucket_are_those_of_trl_s_self_distillation(beta, top_k):
    trl = pytest.importorskip("trl.experimental.sdpo.loss_utils", reason="TRL is not installed")
    policy, teacher = heads(2), heads(3)

    def peer(policy):
        if top_k == V:  # no bucket: nothing is left
            return trl.compute_full_logit_self_distillation_loss(
                raw(policy), raw(teacher), distillation_alpha=beta
            )
        return trl.compute_topk_self_distillation_loss(
            raw(policy), raw(teacher), distillation_topk=top_k, distillation_alpha=beta,
            distillation_add_tail=True,
        )  # fmt: skip

    found = with_gradient(lambda p: divergence(p, teacher, beta, top_k), policy)
    same(found, with_gradient(peer, policy))


def test_the_cut_into_pieces_changes_nothing(monkeypatch):
    policy, teacher = heads(4), heads(5)
    whole = with_gradient(lambda p: divergence(p, teacher, 0.5), policy)
    monkeypatch.setattr(module, "_CPU_PIECE", 2 * V)
    same(with_gradient(lambda p: divergence(p, teacher, 0.5), policy), whole)


def test_scale_cap_and_temperature_are_applied_before_the_softmax():
    policy = heads(6, softcap=3.0, logit_scale=0.5, temperature=0.7)
    z = 3.0 * torch.tanh(0.5 * raw(policy) / 3.0) / 0.7
    torch.testing.assert_close(policy.logprob(policy.hidden_TD), torch.log_softmax(z, -1))


def test_the_teacher_gets_no_gradient_and_no_tokens_are_no_divergence():
    policy, teacher = heads(7), heads(8)
    weight = teacher.weight_VD.clone().requires_grad_()
    hidden = policy.hidden_TD.clone().requires_grad_()
    teacher = Logits(teacher.hidden_TD, weight, teacher.bias_V)
    divergence(Logits(hidden, policy.weight_VD, policy.bias_V), teacher, 1.0).sum().backward()
    assert weight.grad is None and hidden.grad is not None
    empty = Logits(hidden[:0], policy.weight_VD, policy.bias_V)
    nothing = divergence(empty, Logits(teacher.hidden_TD[:0], weight, teacher.bias_V), 0.5)
    assert nothing.shape == (0,) and nothing.requires_grad


def test_a_teacher_of_another_vocabulary_is_refused():
    with pytest.raises(ModelError, match="12 tokens, the policy's 11"):
        divergence(heads(0), heads(1, vocabulary=12), 1.0)
