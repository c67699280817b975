"""One optimizer step: the same however the batch is cut, and nothing at all where it is not finite."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import pytest
import torch
from tests.toys import lab_model

from srft.data.packing import pack
from srft.errors import RolloutError
from srft.model.loading import load_model
from srft.model.model_config import ModelConfig
from srft.model.policy import Policy
from srft.objective.method import Progress
from srft.objective.methods import get_method
from srft.parallel.world import ALONE
from srft.trainer import update as update_module
from srft.trainer.optimization import build_optimizer, learning_rate
from srft.trainer.train_config import TrainConfig
from srft.trainer.update import update
from srft.types import TrainingSequence

WHOLE = 1_000_000


@pytest.fixture
def model(tiny_model):
    return load_model(ModelConfig(path=str(tiny_model))).double()


@pytest.fixture
def one_by_one(tiny_model):
    """The same model without shared prompts. transformers' norms round to float32 whatever the
    model's dtype: gradients of a shared prompt are rounded after they are added, and only without
    sharing does every way to cut a batch round alike."""
    return load_model(ModelConfig(path=str(tiny_model), attention="padded")).double()


@pytest.fixture
def sequences():
    """Five prompts: three rollouts each, demonstrations for all but one, one group all wrong and one
    all right (whose rollouts have no advantage where there is no demonstration)."""
    draw = random.Random(0)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(4, 40) for _ in range(draw.randint(1, most)))

    found = []
    for group in range(5):
        prompt = tokens(9)
        for i in range(3):
            right = {0: False, 1: True}.get(group, i % 2 == 0)
            found.append(TrainingSequence(prompt, tokens(12), group, False, float(right), right))
        if group != 1:
            found.append(TrainingSequence(prompt, tokens(12), group, True, 1.0, True))
    return found


def gradient(model, method, sequences, budget):
    """The gradient of one step before clipping, as one vector."""
    model = copy.deepcopy(model)
    config = TrainConfig(tokens_per_micro_batch=budget, max_grad_norm=1e30)
    optimizer = build_optimizer(model, config)
    kept = []
    optimizer.register_step_pre_hook(
        lambda *_: kept.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    )
    result = update(
        Policy(model, None),
        optimizer,
        method,
        sequences,
        config=config,
        progress=Progress(0, 1),
        step=0,
    )
    return kept[0], result


@pytest.mark.parametrize(
    "name", ["srft", "srft-official", "srft-hpt", "grpo", "sft", "luffy", "hpt"]
)
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(model, one_by_one, sequences, name):
    method = get_method(name)
    for policy, tolerance in ((one_by_one, 1e-12), (model, 1e-6)):
        whole, once = gradient(policy, method, sequences, WHOLE)
        size = whole.abs().max()
        assert size > 1e-4 and once.metrics["train/micro_batches"] == 1
        for budget, least in ((20, 2), (12, 3)):
            cut, result = gradient(policy, method, sequences, budget)
            assert result.metrics["train/micro_batches"] >= least
            assert torch.allclose(cut, whole, rtol=0, atol=tolerance * max(1.0, size))
            assert result.metrics["loss"] == pytest.approx(once.metrics["loss"], abs=1e-6)


@pytest.mark.parametrize("name", ["srft", "grpo", "sft"])
@pytest.mark.parametrize("dropout", ["auto", True, False])
def test_the_policy_that_is_scored_is_the_one_that_is_sampled(sequences, name, dropout):
    """A dropout that acts would make each token's ratio noise and the policy differ from itself."""
    model = lab_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    policy = Policy(model, None, ModelConfig(dropout=dropout))
    seen = []

    def compute_loss(method, batch, *rest):
        seen.append(batch)
        return original(method, batch, *rest)

    original = update_module.compute_loss
    optimizer = build_optimizer(model, TrainConfig())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update_module, "compute_loss", compute_loss)
        patch.setattr(update_module, "active", lambda m, t: torch.ones_like(t.is_demo_S))
        chosen = [s for s in sequences if s.is_demo] if name == "sft" else sequences
        with torch.no_grad():
            own = [policy.score(packed) for packed in pack(chosen, None, WHOLE)]
        arguments = dict(config=TrainConfig(tokens_per_micro_batch=WHOLE), progress=Progress(0, 1))
        update(policy, optimizer, get_method(name), chosen, step=0, **arguments)
    (batch,) = seen
    noisy = dropout is True or (dropout == "auto" and name == "sft")
    assert ((batch.logprob_T.detach() - own[0].logprob_T).abs().max() > 1e-2) == noisy
    if name != "sft":
        assert torch.allclose(batch.old_logprob_T, own[0].logprob_T, atol=1e-5)


def test_sharing_prompts_computes_fewer_tokens_and_the_same_gradient(model, one_by_one, sequences):
    shared, one = gradient(model, get_method("srft"), sequences, WHOLE)
    plain, other = gradient(one_by_one, get_method("srft"), sequences, WHOLE)
    assert one.metrics["train/tokens"] < other.metrics["train/tokens"]
    assert torch.allclose(shared, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["srft", "grpo", "dr-grpo"])
def test_leaving_out_what_has_no_gradient_changes_nothing(one_by_one, sequences, name, monkeypatch):
    model, method = one_by_one, get_method(name)
    short, result = gradient(model, method, sequences, WHOLE)
    assert result.metrics["train/sequences_skipped"] > 0
    monkeypatch.setattr(
        update_module, "active", lambda method, table: torch.ones_like(table.is_demo_S)
    )
    everything, result = gradient(model, method, sequences, WHOLE)
    assert result.metrics["train/sequences_skipped"] == 0
    assert torch.allclose(short, everything, rtol=0, atol=1e-13)


def test_a_batch_without_any_signal_is_no_step(model, sequences):
    equal = [s for s in sequences if s.group == 1]
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.1))
    result = update(
        Policy(model, None),
        optimizer,
        get_method("grpo"),
        equal,
        config=TrainConfig(),
        progress=Progress(0, 1),
        step=0,
    )
    assert result.refused is None and result.metrics["train/tokens"] == 0
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_refused_and_kept(model, sequences, tmp_path, poison):
    config = TrainConfig()
    optimizer = build_optimizer(model, config)
    arguments = dict(config=config, progress=Progress(0, 1), refused_dir=tmp_path)
    update(Policy(model, None), optimizer, get_method("srft"), sequences, step=0, **arguments)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    hook = model.model.layers[0].register_forward_hook(lambda m, i, o: o * poison)
    result = update(
        Policy(model, None), optimizer, get_method("srft"), sequences, step=7, **arguments
    )
    hook.remove()
    assert result.refused
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    for key, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, state["state"][key][name])
    saved = torch.load(tmp_path / "step_000007.pt", weights_only=True)
    assert [tuple(s["response_ids"]) for s in saved["sequences"]] == [
        s.response_ids for s in sequences
    ]


def test_a_later_optimizer_step_that_is_not_finite_leaves_the_earlier_ones(model, sequences):
    """And their figures: the weights have moved, and it is said."""
    config = TrainConfig(optimizer_steps_per_batch=2)
    optimizer = build_optimizer(model, config)
    after = []

    def break_down(*_):
        after.append(copy.deepcopy(model.state_dict()))
        model.model.layers[0].register_forward_hook(lambda m, i, o: o * float("nan"))

    optimizer.register_step_post_hook(break_down)
    result = update(
        Policy(model, None), optimizer, get_method("srft"), sequences,
        config=config, progress=Progress(0, 1), step=0,
    )  # fmt: skip
    assert result.refused and result.made == len(after) == 1
    assert "nan" in result.said(1) and "1 optimizer step on it came before" in result.said(1)
    assert math.isfinite(result.metrics["loss"] + result.metrics["train/gradient_norm"])
    assert result.metrics["train/tokens"] > 0
    assert all(torch.equal(v, after[0][k]) for k, v in model.state_dict().items())


def test_rollouts_of_another_model_move_no_weight_whichever_optimizer_step_they_are_for(
    model, sequences
):
    config, method = TrainConfig(optimizer_steps_per_batch=2), get_method("grpo")
    policy, rollouts = Policy(model, None), [s for s in sequences if not s.is_demo]
    parts = list(update_module._parts(policy, method, rollouts, config, 0))
    first = {g for packed in parts[0].packs for g in packed.index.sequences.group_S.tolist()}

    def sampled(sequence, apart):
        table, _ = update_module.prepare(method, [sequence])
        (packed,) = pack([sequence], table, WHOLE)
        with torch.no_grad():
            logprobs = policy.score(packed).logprob_T.tolist()
        off = 0.0 if sequence.group in first else apart
        return replace(sequence, sampler_logprobs=tuple(p - off for p in logprobs))

    def train(apart):
        found = [sampled(s, apart) for s in rollouts]
        optimizer = build_optimizer(model, config)
        return update(
            policy, optimizer, method, found,
            config=config, progress=Progress(0, 1), step=0, max_mismatch=1e-3,
        )  # fmt: skip

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RolloutError, match="The weights were not changed"):
        train(apart=0.1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert train(apart=0.0).made == 2


def test_a_figure_that_no_term_reads_refuses_the_step_too(model, sequences, monkeypatch):
    score = Policy.score

    def broken(policy, packed, against=None):
        scores = score(policy, packed, against)
        entropy_T = scores.entropy_T.detach().clone()
        entropy_T[0] = float("nan")
        return replace(scores, entropy_T=entropy_T)

    monkeypatch.setattr(Policy, "score", broken)
    before = copy.deepcopy(model.state_dict())
    result = update(
        Policy(model, None), build_optimizer(model, TrainConfig()), get_method("sft"), sequences,
        config=TrainConfig(), progress=Progress(0, 1), step=0,
    )  # fmt: skip
    assert math.isfinite(result.metrics["loss"] + result.metrics["train/gradient_norm"])
    assert result.refused and "entropies" in result.refused
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_is_known_before_the_update_is_of_the_old_policy_and_by_kind(model, sequences):
    table, _ = update_module.prepare(get_method("srft"), sequences)
    (packed,) = pack(sequences, table, WHOLE)
    policy = Policy(model, None)
    with torch.no_grad():
        old = policy.score(packed)
        old = replace(old, logprob_T=old.logprob_T - 1, entropy_T=old.entropy_T + 1)
        batch = update_module.forward(policy, packed, old)
    assert torch.equal(batch.old_logprob_T, old.logprob_T)
    assert torch.equal(batch.old_entropy_T, old.entropy_T)

    demo_T = packed.index.sequences.is_demo_S[packed.index.sequence_T]
    entropy_T = torch.where(demo_T, 3.0, 2.0).double()
    before = update_module.look_before(get_method("srft"), [(packed.index, entropy_T)])
    assert before.entropy == (3.0, 2.0)


def test_several_steps_divide_by_prompts_and_cover_every_sequence(model, sequences):
    config = TrainConfig(optimizer_steps_per_batch=2)
    parts = list(
        update_module._parts(Policy(model, None), get_method("srft"), sequences, config, 0)
    )
    assert len(parts) == 2
    groups = [{g for p in part.packs for g in p.index.sequences.group_S.tolist()} for part in parts]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == set(range(5)) - {1}  # group 1 has no signal


@pytest.mark.parametrize(("prompts", "steps"), [(1, 4), (3, 4), (2, 8), (1, 1), (4, 4)])
def test_as_many_optimizer_steps_are_made_as_were_asked_for(model, prompts, steps):
    """With fewer prompts than steps sequences are divided by themselves, in equal shares."""
    rollouts = [
        TrainingSequence((5, 6), (7, 8 + i), group, False, float(i % 2), bool(i % 2))
        for group in range(prompts)
        for i in range(8)
    ]
    config, method = TrainConfig(optimizer_steps_per_batch=steps), get_method("dr-grpo")
    parts = list(update_module._parts(Policy(model, None), method, rollouts, config, 0))
    rows = [sum(len(p.rows) for p in part.packs) for part in parts]
    assert rows == [prompts * 8 // steps] * steps
    optimizer = build_optimizer(model, config)
    made = []
    optimizer.register_step_post_hook(lambda *_: made.append(1))
    result = update(
        Policy(model, None), optimizer, method, rollouts,
        config=config, progress=Progress(0, 1), step=0,
    )  # fmt: skip
    assert result.made == len(made) == steps


def test_a_step_in_which_nothing_has_gradient_has_no_load_of_experts():
    part = update_module._Part({}, [], [])
    assert update_module._loads([part], [], ALONE) == []


def test_a_gradient_analysis_does_not_change_what_dropout_draws(sequences):
    chosen = [s for s in sequences if s.is_demo]
    weights = []
    for every in (0, 1):
        model = lab_model("gpt2", resid_pdrop=0.5)
        config = TrainConfig(gradient_analysis_every=every, learning_rate=1e-2)
        optimizer = build_optimizer(model, config)
        torch.manual_seed(3)
        arguments = dict(config=config, progress=Progress(0, 1), step=0)
        policy = Policy(model, None, ModelConfig(dropout=True))
        result = update(policy, optimizer, get_method("sft"), chosen, **arguments)
        assert ("gradient/norm/demo_sft" in result.metrics) == bool(every)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_learning_rates_by_hand():
    constant = TrainConfig(learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(s, 10, 1.0, constant) for s in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1, 1, 1]
    linear = TrainConfig(schedule="linear", min_learning_rate_ratio=0.2)
    assert [learning_rate(s, 5, 1.0, linear) for s in range(5)] == pytest.approx(
        [1, 0.8, 0.6, 0.4, 0.2]
    )
    cosine = TrainConfig(schedule="cosine", warmup_steps=2)
    assert [learning_rate(s, 7, 2.0, cosine) for s in (0, 1, 2, 4, 6)] == pytest.approx(
        [1.0, 2.0, 2.0, 1.0, 0.0]
    )


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_gradients_are_clipped_to_the_global_norm_and_no_further(model, sequences, share):
    whole, _ = gradient(model, get_method("srft"), sequences, WHOLE)
    limit = share * float(whole.norm())
    config = TrainConfig(max_grad_norm=limit)
    optimizer = build_optimizer(model, config)
    kept = []
    optimizer.register_step_pre_hook(lambda *_: kept.append(flat_gradient(model)))
    result = update(
        Policy(model, None), optimizer, get_method("srft"), sequences,
        config=config, progress=Progress(0, 1), step=0,
    )  # fmt: skip
    # As PyTorch does it by itself.
    for parameter, piece in zip(
        model.parameters(), whole.split([p.numel() for p in model.parameters()]), strict=True
    ):
        parameter.grad = piece.view_as(parameter).clone()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    assert torch.allclose(kept[0], flat_gradient(model), rtol=1e-6, atol=1e-12)
    assert float(kept[0].norm()) == pytest.approx(min(1.0, share) * float(whole.norm()), rel=1e-3)
    # What is logged is the norm before clipping.
    assert result.metrics["train/gradient_norm"] == pytest.approx(float(norm), rel=1e-6)


def test_weight_decay_acts_on_matrices_and_on_nothing_else(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, TrainConfig(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kinds = {p.ndim for p in model.parameters()}
    assert kinds == {1, 2}, "the model has to have norms and matrices"
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim == 2 else 1.0
        assert torch.allclose(parameter, before[name] * factor, rtol=1e-12, atol=0), name


def test_the_old_policy_is_scored_as_it_was_sampled_without_noise(sequences, monkeypatch):
    noisy = lab_model("llama", attention_dropout=0.5).train()
    policy = Policy(noisy, None, ModelConfig(dropout=True))
    compared = []
    forward = update_module.forward

    def spy(policy, packed, old, *args):
        batch = forward(policy, packed, old, *args)
        noisy.eval()
        with torch.no_grad():
            quiet = policy.score(packed)
        noisy.train()
        compared.append(
            (
                torch.equal(old.logprob_T, quiet.logprob_T),
                torch.equal(batch.logprob_T, quiet.logprob_T),
            )
        )
        return batch

    monkeypatch.setattr(update_module, "forward", spy)
    config = TrainConfig(learning_rate=1e-30, optimizer_steps_per_batch=2)
    update(
        policy, build_optimizer(noisy, config), get_method("grpo"), sequences,
        config=config, progress=Progress(0, 1), step=0,
    )  # fmt: skip
    assert len(compared) == 2
    assert all(old for old, _ in compared), "the old log-probabilities are those of evaluation"
    assert not any(new for _, new in compared), "training itself is with dropout here"
