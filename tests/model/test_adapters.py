"""Adapters: what is trained, what the base is, and what the two make together."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from srft.data.packing import pack
from srft.errors import ModelError
from srft.model.adapters import (
    add_lora,
    check_adapters,
    frozen_reference,
    has_adapters,
    merged_weights,
)
from srft.model.loading import load_model
from srft.model.model_config import LoraConfig, ModelConfig
from srft.model.packed_attention import use_packed_attention
from srft.model.saving import save_model
from srft.model.scoring import score

peft = pytest.importorskip("peft")

# bitsandbytes quantizes blocks of 64 numbers, and on a CPU wants rows by the 32.
BLOCKS = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 64}
LENGTHS = [(5, 7), (3, 9), (6, 2)]


def adapted(model, **settings):
    """The model with adapters that already say something."""
    add_lora(model, LoraConfig(rank=4, **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.2)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 23).view(2, 10)).logits


def test_only_the_adapters_have_a_gradient(make_model, make_sequences):
    model = adapted(make_model("qwen3"))
    use_packed_attention(model)
    (batch,) = pack(make_sequences(*LENGTHS), None, 999)
    scores = score(model, batch)
    (scores.logprob_T.sum() + scores.entropy_T.sum()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name


def test_new_adapters_change_nothing_and_leave_the_head_alone(make_model):
    model = make_model("llama").eval()
    before = logits(model)
    add_lora(model, LoraConfig(rank=4))
    assert torch.equal(logits(model), before)
    adapted_names = {n.split(".lora_")[0] for n, _ in model.named_parameters() if ".lora_" in n}
    assert len(adapted_names) == 2 * 7
    assert not any("lm_head" in name or "embed" in name for name in adapted_names)


HALVES = {
    "llama": ("llama", {}, {}),
    "transposed": ("gpt2", {}, {}),
    "experts": (
        "mixtral",
        {},
        {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
}


@pytest.mark.parametrize("name", HALVES)
def test_adapters_beside_half_precision_are_float32_and_small_updates_move_them(
    name, make_model, make_sequences
):
    """An update of 2e-5 is below the spacing of bfloat16 numbers of 0.1, and was rounded away."""
    family, shape, settings = HALVES[name]
    model = adapted(make_model(family, **shape).to(torch.bfloat16), **settings)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if n not in trained} == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    (batch,) = pack(make_sequences(*LENGTHS), None, 999)
    use_packed_attention(model)
    score(model, batch).logprob_T.sum().backward()
    assert all(p.grad is not None for p in trained.values())
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=2e-5, weight_decay=0.0, fused=True)
    optimizer.step()
    # Of experts that no token went to, nothing moves.
    moved = [(p != before[n])[p.grad != 0].float().mean() for n, p in trained.items()]
    assert min(moved) > 0.99
    merged = dict(merged_weights(model))
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}
    plain = make_model(family, **shape).to(torch.bfloat16).eval()
    plain.load_state_dict(merged)
    assert (logits(plain) - logits(model.eval())).abs().float().mean() < 0.1  # 1 without adapters


def test_adapters_beside_half_precision_keep_no_float32_copies_of_their_inputs(make_model):
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    model = adapted(make_model("llama").to(torch.bfloat16)).train()
    layer = model.model.layers[0].mlp.up_proj
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = layer(torch.ones(5, layer.in_features, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert {t.dtype for t in kept if not isinstance(t, torch.nn.Parameter)} == {torch.bfloat16}


def test_the_reference_is_the_base_under_the_adapters(make_model):
    model = make_model("llama").eval()
    base = copy.deepcopy(model)
    add_lora(model, LoraConfig(rank=4, dropout=0.5))
    reference = frozen_reference(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    model.train()
    with reference() as frozen:
        assert frozen is model  # no copy
        assert torch.equal(logits(frozen), logits(base))
    assert model.training
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".lora_" in n
    }
    assert not torch.allclose(logits(model.eval()), logits(base), atol=1e-2)


@pytest.mark.parametrize("what", ["trained", "pissa", "norms too"])
def test_the_reference_is_a_copy_where_the_base_under_the_adapters_is_another_policy(
    what, make_model
):
    drawn = {"init_lora_weights": "pissa"} if what == "pissa" else {}
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], **drawn)
    model = peft.get_peft_model(make_model("llama"), settings).eval()
    trained = [p for n, p in model.named_parameters() if ".lora_B." in n]
    with torch.no_grad():
        if what == "trained":
            trained[0].fill_(0.1)
        if what == "norms too":
            trained = [p.requires_grad_(True) for n, p in model.named_parameters() if "norm" in n]
        before = logits(model)
        reference = frozen_reference(model)
        for parameter in trained:
            parameter.add_(0.5)
    with reference() as frozen:
        assert torch.equal(logits(frozen), before)
        assert not any(p.requires_grad for p in frozen.parameters())
    assert not torch.allclose(logits(model), before, atol=1e-2)


def test_what_is_frozen_of_an_adapter_stays_frozen_after_the_reference(make_model):
    model = adapted(make_model("llama"))
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with frozen_reference(model)():
        pass
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before


def test_the_reference_of_a_whole_model_is_a_copy_of_it(make_model):
    model = make_model("llama").eval()
    before = logits(model)
    reference = frozen_reference(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    with reference() as frozen:
        assert torch.equal(logits(frozen), before)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi", "gpt2"])
def test_merged_weights_make_the_same_model_without_adapters(family, make_model):
    plain = make_model(family)
    model = adapted(copy.deepcopy(plain), alpha=8, rslora=True)
    merged = dict(merged_weights(model))
    assert list(merged) == list(plain.state_dict())
    plain.load_state_dict(merged)
    difference = (logits(plain.eval()) - logits(model)).abs().max()
    assert difference < 2e-5


def test_merged_weights_of_a_plain_model_are_its_own(make_model):
    model = make_model("qwen3")
    own = model.state_dict()
    merged = dict(merged_weights(model))
    assert merged.keys() == own.keys()
    assert all(merged[name].data_ptr() == own[name].data_ptr() for name in own)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("only", [False, True])
def test_an_export_is_the_model_that_was_trained(
    family, only, make_model, make_tokenizer, tmp_path
):
    tokenizer = make_tokenizer(eos_token="<eos>", pad_token="<pad>")
    save_model(make_model(family), tokenizer, tmp_path / "base")
    model = load_model(ModelConfig(path=str(tmp_path / "base"), lora=LoraConfig(rank=4)))
    assert has_adapters(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.2)
    model.eval()
    folder = save_model(model, tokenizer, tmp_path / "out", adapters_only=only)
    assert (folder / "adapter_model.safetensors").is_file() == only
    for loaded in (
        AutoModelForCausalLM.from_pretrained(folder),
        load_model(ModelConfig(path=str(folder))),
    ):
        assert (logits(loaded.eval()) - logits(model)).abs().max() < 2e-5
    ours = load_model(ModelConfig(path=str(folder)))
    assert not has_adapters(ours)
    assert ours.state_dict().keys() == make_model(family).state_dict().keys()


def test_an_export_in_another_precision_rounds_the_sum_once(make_model, make_tokenizer, tmp_path):
    model = adapted(make_model("qwen3"))
    expected = {n: t.to(torch.bfloat16) for n, t in merged_weights(model)}
    folder = save_model(model, make_tokenizer(), tmp_path / "out", dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("targets", "word"),
    [(["q_prj"], "q_proj"), (["embed_tokens"], "embed_tokens"), (["lm_head"], "head")],
)
def test_targets_that_cannot_be_are_refused(targets, word, make_model):
    with pytest.raises(ModelError, match=word):
        add_lora(make_model("llama"), LoraConfig(target_modules=targets))


def test_other_kinds_of_adapters_are_refused(make_model):
    dora = peft.LoraConfig(target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ModelError, match="DoRA"):
        check_adapters(peft.get_peft_model(make_model("llama"), dora))
    whole = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match="lm_head"):
        check_adapters(peft.get_peft_model(make_model("llama"), whole))


def test_a_folder_of_adapters_cannot_carry_a_changed_rotary_base():
    with pytest.raises(ValueError, match="merged"):
        ModelConfig(path="x", rope_theta=40000, lora={"export": "adapter"})


@pytest.fixture
def four_bit(make_model, make_tokenizer, tmp_path):
    """A model in four bits with adapters, and the folder it came from."""
    pytest.importorskip("bitsandbytes")
    tokenizer = make_tokenizer(eos_token="<eos>", pad_token="<pad>")
    save_model(make_model("llama", **BLOCKS), tokenizer, tmp_path / "base")
    model = load_model(ModelConfig(path=str(tmp_path / "base"), lora={"quantization": "nf4"}))
    assert model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.uint8
    return model.eval(), tokenizer


def test_the_gradient_through_four_bits_is_that_of_the_rounded_weights(
    four_bit, make_model, make_sequences
):
    model, _ = four_bit
    rounded = make_model("llama", **BLOCKS)
    rounded.load_state_dict(dict(merged_weights(model)))
    add_lora(rounded, LoraConfig())
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if ".lora_" in name:
                model.get_parameter(name).copy_(parameter.normal_(0.0, 0.1))
    (batch,) = pack(make_sequences(*LENGTHS), None, 999)
    logits(model)  # a pass in evaluation mode comes first, as rollouts do
    for one in (model, rounded):
        use_packed_attention(one)
        score(one.train(), batch).logprob_T.mean().backward()
    for name, parameter in rounded.named_parameters():
        if ".lora_" in name:
            torch.testing.assert_close(
                model.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bits_learn_keep_their_base_and_are_exported_whole(
    dtype, four_bit, make_model, make_sequences, tmp_path
):
    model, tokenizer = four_bit
    near = 1e-4
    if dtype == "bfloat16":
        lora, near = {"quantization": "nf4"}, 0.5
        model = load_model(ModelConfig(path=str(tmp_path / "base"), dtype=dtype, lora=lora)).eval()
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    untouched = logits(model)
    reference = frozen_reference(model)
    (batch,) = pack(make_sequences(*LENGTHS), None, 999)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    first = score(model.train(), batch).logprob_T.mean()
    (-first).backward()
    optimizer.step()
    assert score(model.eval(), batch).logprob_T.mean() > first + 0.01
    with reference() as frozen:
        assert torch.equal(logits(frozen), untouched)
    loaded = AutoModelForCausalLM.from_pretrained(save_model(model, tokenizer, tmp_path / "out"))
    assert type(loaded.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert (logits(loaded.eval()) - logits(model)).abs().max() < near


def test_four_bits_without_their_library_say_what_to_install(
    make_model, make_tokenizer, tmp_path, monkeypatch
):
    tokenizer = make_tokenizer(eos_token="<eos>", pad_token="<pad>")
    save_model(make_model("llama"), tokenizer, tmp_path / "base")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"srft\[qlora\]"):
        load_model(ModelConfig(path=str(tmp_path / "base"), lora={"quantization": "nf4"}))
