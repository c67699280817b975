"""The shipped base model: small, loadable, mostly bare answers, with the skill to follow a trace."""

import json

import pytest
import torch
from benchmarks.lab.measure import as_table, generate, is_correct, measure_family, step_accuracy
from transformers import AutoModelForCausalLM, AutoTokenizer

from srft.lab import IN_DISTRIBUTION, base_model_path, make_problem
from srft.lab.tasks import ANSWER_MARK

N = 24  # problems per family: enough to tell the bands apart, quick on one core


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(base_model_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def problems():
    return [make_problem(f, 5, i, held_out=True) for f in IN_DISTRIBUTION for i in range(N)]


def test_the_folder_is_small_and_complete():
    sizes = {path.name: path.stat().st_size for path in base_model_path().iterdir()}
    assert sum(sizes.values()) < 10e6
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= set(sizes)
    assert {"tokenizer.json", "tokenizer_config.json", "loss_curve.json"} <= set(sizes)
    curve = json.loads((base_model_path() / "loss_curve.json").read_text())
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]


def test_special_tokens_of_model_generation_and_tokenizer_agree(model, tokenizer):
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_it_mostly_answers_at_once_and_is_seldom_right(model, tokenizer, problems):
    responses = generate(model, tokenizer, [p.prompt for p in problems])
    accuracy = sum(map(is_correct, responses, problems)) / len(problems)
    traced = sum(not r.startswith(ANSWER_MARK) for r in responses) / len(problems)
    assert 0.05 < accuracy < 0.35
    assert 0.02 < traced < 0.2


def test_given_the_first_step_it_can_go_on(model, tokenizer, problems):
    begun = [f"{p.prompt} {p.steps[0]}" for p in problems]
    responses = generate(model, tokenizer, begun)
    assert 0.7 < sum(map(is_correct, responses, problems)) / len(problems) < 1.0


def test_single_steps_are_reliable(model, tokenizer, problems):
    assert step_accuracy(model, tokenizer, problems) > 0.98


def test_measuring_repeats_exactly_and_leaves_the_random_state_alone(model, tokenizer):
    state = torch.get_rng_state()
    one, two = (measure_family(model, tokenizer, "story", 4, seed=3) for _ in range(2))
    assert one == two
    assert torch.equal(state, torch.get_rng_state())
    assert as_table({"story": one}).splitlines()[0].startswith("| family | sampled |")
