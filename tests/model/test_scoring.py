"""``score`` is the log-softmax of the model's own logits, for every kind of output head."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch

from srft.data.packing import pack
from srft.errors import ModelError
from srft.model.model_config import ModelConfig
from srft.model.output_head import output_head
from srft.model.packed_attention import packs, use_packed_attention
from srft.model.policy import Policy
from srft.model.scoring import score
from srft.model.scoring_check import _check_causal_at, check_scoring, telling

FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "cohere", "granite", "phi"]
LENGTHS = ((3, 30), (1, 1), (8, 9), (2, 4))


class TokenizerOf61:
    def __len__(self) -> int:
        return 61


def own_scores(model, batch, temperature=1.0):
    """Sequence by sequence through the whole model and log-softmax over all logits."""
    bounds = batch.cu_seqlens.tolist()
    logprobs, entropies = [], []
    for s, (start, stop) in enumerate(pairwise(bounds)):
        logits = model(input_ids=batch.input_ids_N[None, start:stop]).logits[0] / temperature
        response = int(batch.index.sequences.length_S[s])
        logp = logits.log_softmax(-1)[-response - 1 : -1]
        target = batch.input_ids_N[stop - response : stop]
        logprobs.append(logp.gather(1, target[:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies)


@pytest.mark.parametrize("packed_rows", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_models_own_logits(
    family, packed_rows, make_model, make_sequences
) -> None:
    model = make_model(family).eval()
    theirs_model = copy.deepcopy(model)
    if packed_rows:
        use_packed_attention(model)
    (batch,) = pack(make_sequences(*LENGTHS), None, 999)
    ours = score(model, batch, temperature=0.7, chunk_tokens=10, chunk_vocab=20)
    theirs = own_scores(theirs_model, batch, 0.7)
    torch.testing.assert_close(ours.logprob_T, theirs[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(ours.entropy_T, theirs[1], rtol=1e-5, atol=2e-5)
    (ours.logprob_T.mean() + ours.entropy_T.mean()).backward()
    (theirs[0].mean() + theirs[1].mean()).backward()
    expected = dict(theirs_model.named_parameters())
    for name, parameter in model.named_parameters():
        grad, other = parameter.grad, expected[name].grad
        assert (grad is None) == (other is None), name
        if grad is not None:
            scale = float(other.abs().max())
            torch.testing.assert_close(grad, other, rtol=1e-3, atol=1e-5 + 2e-5 * scale)


def test_nothing_is_recorded_without_gradient(make_model, make_sequences) -> None:
    model = make_model("llama")
    use_packed_attention(model)
    (batch,) = pack(make_sequences(*LENGTHS), None, 999)
    with torch.no_grad():
        scores = score(model, batch)
    assert scores.logprob_T.grad_fn is None
    assert scores.entropy_T.grad_fn is None
    expected = score(model, batch)
    assert torch.equal(scores.logprob_T, expected.logprob_T.detach())


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
def test_adapters_are_honoured(targets, make_model, make_sequences) -> None:
    peft = pytest.importorskip("peft")
    model = make_model("llama").eval()
    use_packed_attention(model)
    config = peft.LoraConfig(target_modules=targets, r=4, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).eval()
    (batch,) = pack(make_sequences(*LENGTHS), None, 999)
    ours = score(adapted, batch)
    theirs = own_scores(adapted, batch)
    torch.testing.assert_close(ours.logprob_T, theirs[0], rtol=1e-4, atol=5e-5)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    grads = torch.autograd.grad(ours.logprob_T.mean(), trained)
    for a, b in zip(grads, torch.autograd.grad(theirs[0].mean(), trained), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 + 2e-5 * float(b.abs().max()))
    with adapted.disable_adapter():
        without = score(adapted, batch).logprob_T
        torch.testing.assert_close(without, own_scores(adapted, batch)[0], rtol=1e-4, atol=5e-5)
    assert not torch.allclose(without, ours.logprob_T, atol=1e-2)


def test_a_head_trained_whole_beside_an_adapter_is_the_one_used(make_model, make_sequences) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapted = peft.get_peft_model(make_model("llama"), config).eval()
    head = adapted.get_base_model().lm_head
    with torch.no_grad():
        head.modules_to_save["default"].weight.mul_(2.0)
    (batch,) = pack(make_sequences(*LENGTHS), None, 999)
    ours, theirs = score(adapted, batch), own_scores(adapted, batch)
    torch.testing.assert_close(ours.logprob_T, theirs[0], rtol=1e-4, atol=5e-5)
    ours.logprob_T.sum().backward()
    assert head.modules_to_save["default"].weight.grad is not None
    assert head.original_module.weight.grad is None


def test_dropout_on_an_adapted_head_is_refused(make_model) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["lm_head"], lora_dropout=0.1)
    adapted = peft.get_peft_model(make_model("llama"), config)
    with pytest.raises(ModelError, match="lora_dropout"):
        output_head(adapted)


@pytest.mark.parametrize("family", [*FAMILIES, "stablelm", "gpt_oss"])
def test_self_check_passes_models_that_are_honoured(family, make_model) -> None:
    model = make_model(family).train()
    use_packed_attention(model)
    assert check_scoring(Policy(model, TokenizerOf61())) < 5e-4
    assert model.training


def test_self_check_finds_a_trick_of_the_head(make_model) -> None:
    model = make_model("llama")
    use_packed_attention(model)
    model.lm_head.register_forward_hook(lambda module, args, out: out * 1.01)
    with pytest.raises(ModelError, match="'llama' differ from its own logits by"):
        check_scoring(Policy(model, TokenizerOf61()))


def test_self_check_finds_what_happens_to_embeddings_before_the_decoder(make_model) -> None:
    """As Inkling's of transformers 5.17, which norms them twice; weights that are one hide it."""
    model = make_model("llama")
    use_packed_attention(model)
    model.model.scale = torch.nn.Parameter(torch.ones(model.config.hidden_size))
    inner = model.forward

    def forward(input_ids, **kwargs):
        embeds = model.get_input_embeddings()(input_ids) * model.model.scale
        return inner(inputs_embeds=embeds, **kwargs)

    model.forward = forward
    with pytest.raises(ModelError, match="'llama' differ from its own logits by"):
        check_scoring(Policy(model, TokenizerOf61()))
    assert (model.model.scale == 1).all()


def test_constant_parameters_are_varied_in_float32_alone(make_model) -> None:
    """In bfloat16 adapters of 0.1 in place of zeros turned rounding into nats, with Gemma 3."""
    model = make_model("llama")
    norm, frozen = model.model.norm.weight, model.model.layers[0].input_layernorm.weight
    frozen.requires_grad_(False)
    with telling(model):
        assert len(norm.unique()) == len(norm) and (frozen == 1).all()
    with torch.autocast("cpu", torch.bfloat16), telling(model):
        assert (norm == 1).all()
    assert (norm == 1).all()


def test_self_check_in_bfloat16_finds_what_only_float32_shows(make_model) -> None:
    """A difference of 0.01 nats is rounding there."""
    model = make_model("llama")
    use_packed_attention(model)
    model.lm_head.register_forward_hook(lambda module, args, out: out * 1.01)
    with pytest.raises(ModelError, match="'llama' differ from its own logits by"):
        check_scoring(Policy(model, TokenizerOf61(), ModelConfig(autocast="bfloat16")))


class ScaledHead(torch.nn.Linear):
    """As Dory's: a learned scale of each token's logit, which begins at one."""

    def __init__(self, linear: torch.nn.Linear, name: str) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight, self.name = linear.weight, name
        setattr(self, name, torch.nn.Parameter(torch.full((linear.out_features,), 0.25)))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states) * (getattr(self, self.name) * 4.0)


def test_self_check_finds_parameters_of_the_head_that_change_nothing_yet(make_model) -> None:
    model = make_model("llama")
    use_packed_attention(model)
    model.lm_head = ScaledHead(model.lm_head, "strange")
    with pytest.raises(ModelError, match=r"more than one linear layer, lm_head\.strange"):
        check_scoring(Policy(model, TokenizerOf61()))
    model.lm_head.strange.requires_grad_(False)  # it stays as it is
    assert check_scoring(Policy(model, TokenizerOf61())) < 5e-4
    model.aside = torch.nn.Linear(
        2, 2
    )  # no part of the logits, as layers that predict further tokens
    assert check_scoring(Policy(model, TokenizerOf61())) < 5e-4


def test_a_learned_scale_of_logits_is_trained(make_model, make_sequences) -> None:
    model = make_model("llama")
    model.lm_head = ScaledHead(model.lm_head, "logit_scale")
    model.lm_head.logit_scale_factor = 4.0
    torch.nn.init.uniform_(model.lm_head.logit_scale, 0.1, 0.5)
    use_packed_attention(model)
    assert check_scoring(Policy(model, TokenizerOf61())) < 5e-4
    (sequence,) = make_sequences((5, 9))
    (packed,) = pack([sequence], None, 999)
    (score(model, packed).logprob_T.sum()).backward()
    ours = model.lm_head.logit_scale.grad.clone()
    model.zero_grad()
    ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
    logp = model(input_ids=ids, use_cache=False).logits[0, 4:-1].log_softmax(-1)
    logp.gather(1, ids[0, 5:, None]).sum().backward()
    torch.testing.assert_close(ours, model.lm_head.logit_scale.grad, rtol=1e-4, atol=1e-5)


def test_self_check_finds_short_sequences_that_are_seen_whole(make_model) -> None:
    """As Doge's within its window."""
    model = make_model("llama")

    def seen_whole(module, args, out):
        return out + 0.3 * out.mean(dim=1, keepdim=True) if out.shape[1] <= 8 else out

    model.model.layers[0].mlp.register_forward_hook(seen_whole)
    with pytest.raises(ModelError, match="not a causal language model"):
        check_scoring(Policy(model, TokenizerOf61()))


@torch.no_grad()
def test_self_check_does_not_take_rounding_for_looking_ahead(make_model) -> None:
    """Large logits, as Gemma's, in bfloat16: there the rounding depends on how many tokens there are."""
    model = make_model("llama")
    ids = torch.arange(1, 13)[None]
    config = ModelConfig(autocast="bfloat16")
    rounded = lambda module, args, out: (  # noqa: E731
        out + 2e-3 * out.shape[1] * out.sign() if torch.is_autocast_enabled("cpu") else out
    )
    model.lm_head.register_forward_hook(lambda module, args, out: out * 300)
    handle = model.model.layers[0].mlp.register_forward_hook(rounded)
    _check_causal_at(Policy(model, TokenizerOf61(), config), ids)
    handle.remove()
    model.model.layers[0].mlp.register_forward_hook(
        lambda module, args, out: out + 0.3 * out.mean(dim=1, keepdim=True)
    )
    with pytest.raises(ModelError, match="not a causal language model"):
        _check_causal_at(Policy(model, TokenizerOf61(), config), ids)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 30, 1000, 30_000])
def test_self_check_allows_for_the_rounding_of_large_logits(make_model, scale) -> None:
    """In float32 too, where kernels differ with the number of tokens: at logits of 640 log-probabilities move
    by 5e-4 nats, on some processors more. A model that looks ahead is found all the same."""
    model = make_model("llama")
    model.lm_head.weight.mul_(scale)
    check_scoring(Policy(model, TokenizerOf61()))
    ahead = lambda module, args, out: out + 1e-3 * out.mean(dim=1, keepdim=True)  # noqa: E731
    model.model.layers[0].mlp.register_forward_hook(ahead)
    with pytest.raises(ModelError, match="not a causal language model"):
        check_scoring(Policy(model, TokenizerOf61()))


@torch.no_grad()
@pytest.mark.parametrize("least", [-1e4, torch.finfo(torch.float32).min])
def test_tokens_that_are_never_said_do_not_hide_looking_ahead(make_model, least) -> None:
    """Their log-probabilities are huge, and no measure of how much rounding there is."""
    model = make_model("llama")
    never = torch.arange(61) % 3 == 0
    silence = lambda module, args, out: out.masked_fill(never, least)  # noqa: E731
    model.lm_head.register_forward_hook(silence)
    ahead = lambda module, args, out: out + 1e-3 * out.mean(dim=1, keepdim=True)  # noqa: E731
    model.model.layers[0].mlp.register_forward_hook(ahead)
    with pytest.raises(ModelError, match="not a causal language model"):
        _check_causal_at(Policy(model, TokenizerOf61()), torch.arange(1, 13)[None])


def test_self_check_finds_random_numbers_in_evaluation_mode(make_model) -> None:
    model = make_model("llama")
    noisy = lambda module, args, out: out + 0.1 * torch.randn_like(out)  # noqa: E731
    model.model.layers[0].mlp.register_forward_hook(noisy)
    with pytest.raises(ModelError, match="from one pass to the next"):
        check_scoring(Policy(model, TokenizerOf61()))


def test_self_check_finds_layers_that_mix_sequences(make_model) -> None:
    model = make_model("llama")
    use_packed_attention(model)
    mixing = lambda module, args, out: out + 0.01 * out.cumsum(dim=1)  # noqa: E731
    model.model.layers[0].mlp.register_forward_hook(mixing)
    with pytest.raises(ModelError, match="attention=padded"):
        check_scoring(Policy(model, TokenizerOf61(), ModelConfig(attention="packed")))


def test_padded_rows_are_taken_where_packed_ones_are_not_the_models(make_model, caplog) -> None:
    model, reference = make_model("llama"), make_model("llama")
    for each in (model, reference):
        use_packed_attention(each)
        mixing = lambda module, args, out: out + 0.01 * out.cumsum(dim=1)  # noqa: E731
        each.model.layers[0].mlp.register_forward_hook(mixing)
    policy = Policy(model, TokenizerOf61(), reference=lambda: nullcontext(reference))
    assert check_scoring(policy) < 5e-4
    assert not policy.shares_prompts and not packs(reference)
    assert "model.attention=padded is used" in caplog.text


def test_self_check_finds_logits_changed_after_the_head(make_model) -> None:
    model = make_model("granite")
    use_packed_attention(model)
    forward = type(model).forward

    def shifted(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = out.logits + 0.1 * torch.arange(61)
        return out

    model.forward = shifted.__get__(model)
    with pytest.raises(ModelError, match="granite"):
        check_scoring(Policy(model, TokenizerOf61()))


def test_self_check_does_not_let_nan_pass(make_model) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(ModelError, match="by nan"):
        check_scoring(Policy(model, TokenizerOf61()))
