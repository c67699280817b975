"""The balance of experts is transformers' loss, over a whole step instead of one forward pass."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from tests.model.sweep import tiny as sweep
from tests.toys import lab_model, lab_tokenizer, random_sequences, tiny_model

from srft import SRFTTrainer
from srft.data.packing import pack
from srft.errors import ModelError
from srft.model.experts import Balance, balance_of
from srft.model.fast import training_mode
from srft.model.loading import prepare
from srft.model.model_config import ModelConfig
from srft.model.policy import Policy
from srft.objective.method import Progress
from srft.objective.methods import get_method
from srft.runs.files import read_jsonl
from srft.trainer.optimization import build_optimizer
from srft.trainer.train_config import TrainConfig
from srft.trainer.update import update

FAMILIES = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 3},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4},
}
LENGTHS = ((3, 30), (1, 1), (8, 9), (2, 4))


def theirs(model: torch.nn.Module, sequences: list) -> torch.Tensor:
    """transformers' own loss over all tokens of all sequences at once, no padding among them."""
    logits: list[list[torch.Tensor]] = []
    for s in sequences:
        ids = torch.tensor([[*s.prompt_ids, *s.response_ids]])
        logits.append(model.get_decoder()(input_ids=ids, output_router_logits=True).router_logits)
    layers = tuple(torch.cat([x.flatten(0, -2) for x in parts]) for parts in zip(*logits))  # noqa: B905
    balance = sys.modules[type(model).__module__].load_balancing_loss_func
    return balance(layers, layers[0].shape[-1], model.config.num_experts_per_tok)


@pytest.mark.parametrize("attention", ["auto", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_step_add_up_to_the_loss_of_transformers(family: str, attention: str) -> None:
    model = tiny_model(family, output_router_logits=True, **FAMILIES[family])
    other = copy.deepcopy(model)
    config = ModelConfig(attention=attention, router_aux_loss_coef=0.5, gradient_checkpointing=True)
    balance = balance_of(model, config)
    assert balance == Balance(0.5, model.config.num_experts_per_tok)
    prepare(model, config)
    policy = Policy(model, None, config, balance=balance)
    sequences = random_sequences(*LENGTHS)
    expected = 0.5 * theirs(other, sequences)
    expected.backward()
    for budget in (999, 20, 1):
        packs = pack(sequences, None, budget)
        with torch.no_grad():
            loads = [policy.score(packed).load for packed in packs]
        whole = type(loads[0])(
            sum(load.chosen_E for load in loads), None, sum(load.pairs for load in loads)
        )
        model.zero_grad()
        with training_mode(model, noise=False):
            parts = [balance.loss(policy.score(packed).load, whole) for packed in packs]
            sum(parts).backward()
        torch.testing.assert_close(sum(parts), expected, rtol=1e-4, atol=1e-6)
        for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
            if q.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)


# All other types of transformers have the same function; these keep its settings, or routers, elsewhere.
@pytest.mark.parametrize("kind", ["dbrx", "jetmoe", "ernie4_5_moe", "jamba"])
def test_the_loss_is_what_the_model_itself_computes(kind: str) -> None:
    model = sweep.tiny_model(kind, 272, output_router_logits=True)
    balance = balance_of(model, ModelConfig())
    (sequence,) = random_sequences((5, 20))
    ids = torch.tensor([[*sequence.prompt_ids, *sequence.response_ids]])
    with torch.no_grad():
        out = model(input_ids=ids, labels=ids, use_cache=False)
        without = model(input_ids=ids, labels=ids, use_cache=False, output_router_logits=False)
    prepare(model, ModelConfig())
    policy = Policy(model, None, ModelConfig(), balance=balance)
    (packed,) = pack([sequence], None, 999, share_prompts=policy.shares_prompts)
    with torch.no_grad():
        load = policy.score(packed).load
    assert float(balance.loss(load, load)) == pytest.approx(
        balance.coefficient * float(out.aux_loss), rel=1e-5
    )
    assert float(out.loss - without.loss) == pytest.approx(
        balance.coefficient * float(out.aux_loss), rel=1e-3
    )


def test_a_loss_of_another_kind_is_refused() -> None:
    model = sweep.tiny_model("doge", 272, is_moe=True, num_experts=16, output_router_logits=True)
    with pytest.raises(ModelError, match=r"router_aux_loss_coef=0"):
        balance_of(model, ModelConfig())


def test_it_is_a_term_of_the_step_however_the_batch_is_cut() -> None:
    found = {}
    for budget in (999, 20):
        model = lab_model("mixtral", num_local_experts=4)
        config = ModelConfig(router_aux_loss_coef=3.0)
        prepare(model, config)
        policy = Policy(model, None, config, balance=balance_of(model, config))
        train = TrainConfig(tokens_per_micro_batch=budget, max_grad_norm=1e30, learning_rate=1e-9)
        optimizer = build_optimizer(model, train)
        grads: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(
            lambda *_, m=model, g=grads: g.append(m.model.layers[0].mlp.gate.weight.grad.clone())
        )
        result = update(
            policy,
            optimizer,
            get_method("sft"),
            [s for s in random_sequences(*LENGTHS, *LENGTHS) if s.is_demo],
            config=train,
            progress=Progress(0, 1),
            step=0,
        )
        parts = {k: v for k, v in result.metrics.items() if k.startswith("loss")}
        assert result.metrics["loss"] == pytest.approx(sum(parts.values()) - parts["loss"])
        assert parts["loss/router_aux"] > 1.0
        found[budget] = (grads[0], parts["loss/router_aux"], result.metrics["train/micro_batches"])
    assert found[999][2] == 1 < found[20][2]
    assert found[999][1] == pytest.approx(found[20][1], rel=1e-4)
    torch.testing.assert_close(found[999][0], found[20][0], rtol=1e-3, atol=1e-5)


def test_who_asks_for_it() -> None:
    plain = tiny_model("mixtral", num_local_experts=4)
    asking = tiny_model("mixtral", num_local_experts=4, output_router_logits=True)
    assert balance_of(plain, ModelConfig()) is None
    assert balance_of(asking, ModelConfig()) == Balance(asking.config.router_aux_loss_coef, 2)
    assert balance_of(asking, ModelConfig(router_aux_loss_coef=0)) is None
    with pytest.raises(ModelError, match="'llama' has no load-balancing loss"):
        balance_of(tiny_model("llama"), ModelConfig(router_aux_loss_coef=0.1))
    with pytest.raises(ModelError, match=r"set model\.compile=false"):
        balance_of(asking, ModelConfig(compile=True))


def test_a_model_that_asks_for_router_logits_is_trained_and_exported_asking(recipe, tmp_path):
    model = lab_model("mixtral", num_local_experts=4, output_router_logits=True)
    trainer = SRFTTrainer(
        model=model, args=recipe(train={"steps": 1}), processing_class=lab_tokenizer()
    )
    result = trainer.train()
    (line,) = read_jsonl(result.run_dir / "metrics.jsonl")
    assert line["loss/router_aux"] > 0 and line["mismatch/abs"] < 1e-4
    assert model.config.output_router_logits
    assert '"output_router_logits": true' in (result.model_dir / "config.json").read_text()
