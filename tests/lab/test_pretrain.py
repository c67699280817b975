"""The pre-training loop in small: it learns, repeats exactly, and saves what tools can load."""

import io
import json
from dataclasses import replace

import pytest
import torch
from benchmarks.lab.pretrain import Packer, Recipe, batch_loss, build_model, learning_rate, pretrain
from benchmarks.lab.tokenizer import TOKEN_ID
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

SMALL = Recipe(updates=40, rows=4, warmup=5, hidden=64, layers=1, intermediate=64, decay_share=0.2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_few_updates_lower_the_loss_and_the_saved_model_loads(tmp_path):
    torch.manual_seed(0)
    first = batch_loss(build_model(SMALL), Packer(SMALL).batch()).item()
    curve = pretrain(tmp_path, SMALL, console=Console(file=io.StringIO()))
    assert curve[-1]["loss"] < first - 0.3
    assert json.loads((tmp_path / "loss_curve.json").read_text()) == curve
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == model.config.vocab_size


def test_the_same_seed_gives_the_same_weights(tmp_path):
    recipe = replace(SMALL, updates=5)
    for name in ("one", "two"):
        torch.manual_seed(len(name))  # the caller's random state must not matter
        pretrain(tmp_path / name, recipe, console=Console(file=io.StringIO()))
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_a_packed_document_scores_as_it_does_alone():
    model = build_model(SMALL).eval()
    batch = Packer(SMALL).batch()
    starts = (batch.positions[0] == 0).nonzero().flatten().tolist()
    span = slice(starts[1], starts[2])  # the second document of the first row
    with torch.no_grad():
        packed = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions
        ).logits[0, span]
        alone = model(input_ids=batch.ids[:1, span]).logits[0]
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


def test_rows_are_well_filled():
    packer = Packer(Recipe())
    filled = [(packer.batch().ids != TOKEN_ID["<pad>"]).float().mean() for _ in range(5)]
    assert sum(filled) / 5 > 0.9


def test_the_rate_warms_up_holds_and_decays_to_zero():
    recipe = Recipe(updates=1000, warmup=100, decay_share=0.4, lr=1.0)
    assert learning_rate(recipe, 0) == pytest.approx(0.01)
    assert learning_rate(recipe, 300) == 1.0
    assert learning_rate(recipe, 800) == pytest.approx(0.5)
    assert learning_rate(recipe, 999) == pytest.approx(1 / 400)
