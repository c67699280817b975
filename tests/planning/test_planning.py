"""Plans: counts against published sizes, traces against autograd, and hints that hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from tests.toys import random_sequences, tiny_model
from typer.testing import CliRunner

from srft.cli import app
from srft.config import load_config, parse_config
from srft.data.packing import pack
from srft.errors import ConfigError, ModelError
from srft.memory.advice import changed
from srft.memory.devices import GIB, read_cluster
from srft.memory.shape import kept_for_backward, measure_shape
from srft.model.cpu.norms import use_fast_norms
from srft.model.model_config import ModelConfig
from srft.model.packed_attention import packed_layout, run_packed, use_packed_attention
from srft.planning.plan import make_plan

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
# Sizes of published checkpoints, tied weights once.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
}


def big(**sections):
    """A 7B recipe with the embedded engine, in which nothing is left to be chosen."""
    values = {
        "model": {"path": "Qwen/Qwen2.5-7B", "gradient_checkpointing": False},
        "rollout": {"max_tokens": 1024, "max_rows": 256},
        "train": {"prompts_per_step": 64, "tokens_per_micro_batch": 16_384},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse_config(values)


def items(plan, phase):
    (found,) = (p for p in plan.memory.phases if p.name == phase)
    return {item.name: item.bytes for item in found.items}


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_are_counted_as_published(name):
    assert measure_shape(ModelConfig(path=name)).parameters == PUBLISHED[name]


def test_adapters_are_counted_as_peft_counts_them():
    pytest.importorskip("peft")
    shape = measure_shape(ModelConfig(path="Qwen/Qwen2.5-0.5B", lora={"rank": 8}))
    each = 2 * (896 + 896) + 2 * (896 + 128) + 2 * (896 + 4864) + (4864 + 896)
    assert shape.trained == 24 * 8 * each


def test_a_model_whose_code_fails_is_a_sentence(monkeypatch, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    shape = measure_shape(config)

    def fails(*_):
        raise RuntimeError("no fake tensors here\nand more")

    monkeypatch.setattr("srft.memory.shape._saved", fails)
    with pytest.raises(ModelError, match=r"cannot be planned: no fake tensors here$"):
        kept_for_backward(shape, config, torch.float32, None, 1.23)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mixtral"])
def test_what_layers_keep_is_what_autograd_saves(family, tmp_path):
    """Traced on fake tensors, against a real forward pass of more layers over packed rows."""
    model = tiny_model(family, num_hidden_layers=4)
    model.save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    # One length, so that no place is padded.
    (batch,) = pack(random_sequences(*[(5, 14)] * 8), None, 999)
    use_packed_attention(model)
    use_fast_norms(model)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def keep(tensor):
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run_packed(
            model.get_decoder(),
            batch.input_ids_N,
            batch.position_ids_N,
            packed_layout(batch.cu_seqlens),
        )
    real = sum(size for address, size in seen.items() if address not in own)
    kept = kept_for_backward(measure_shape(config), config, torch.float32, None, 1.0)
    guess = batch.num_tokens * (4 * kept.layer + kept.outside)
    # Gemma's soft-capped attention is not fused: it keeps scores, which a plan leaves out.
    assert guess == pytest.approx(real, rel=0.35 if family == "gemma2" else 0.03)


def test_shards_divide_what_is_held_and_gather_what_is_used():
    one, eight = (make_plan(big(), gpus) for gpus in ("H100-80G", "8xH100-80G"))
    weights = 4 * 7_615_616_512
    assert items(one, "train")["weights"] == weights
    assert items(one, "train")["optimizer"] == 2 * weights
    for name in ("weights", "optimizer", "gradients"):
        assert items(eight, "train")[name] == pytest.approx(items(one, "train")[name] / 8)
    assert items(eight, "generate")["replica"] == weights
    assert items(eight, "start")["weights"] == weights / 8
    assert "gathered weights" in items(eight, "train") and "replica" not in items(one, "train")


def test_four_bits_stay_whole_in_every_process_and_are_gathered_by_none():
    model = {"path": "Qwen/Qwen2.5-7B", "dtype": "bfloat16"}
    four = {**model, "lora": {"quantization": "nf4"}}
    plans = [
        make_plan(big(model=changes, rollout={"engine": "vllm"}), gpus)
        for changes in ({**model, "lora": {}}, four)
        for gpus in ("H100", "8xH100")
    ]
    (half_one, half_eight, one, eight) = (items(plan, "train") for plan in plans)
    assert eight["matrices in four bits"] == one["matrices in four bits"] > 3 * GIB
    assert eight["weights"] == pytest.approx(one["weights"] / 8)
    assert half_eight["weights"] == pytest.approx(half_one["weights"] / 8)
    assert eight["gathered weights"] < half_eight["gathered weights"] * 0.8


def test_checkpointing_adapters_and_half_precision_take_less():
    def train(**model):
        config = big(model={"path": "Qwen/Qwen2.5-7B", **model})
        return items(make_plan(config, "H100-80G"), "train")

    whole, checkpointed = train(), train(gradient_checkpointing=True)
    assert checkpointed["activations"] < whole["activations"] / 6
    lora = train(lora={"rank": 16}, dtype="bfloat16")
    assert lora["optimizer"] < whole["optimizer"] / 100
    assert lora["weights"] < 0.51 * whole["weights"]
    assert train(lora={"quantization": "nf4"}, dtype="bfloat16")["weights"] < lora["weights"] / 2


def test_further_demonstrations_are_sequences_of_a_step():
    """Two prompts of at most 100 tokens, 4 rollouts of 50 each, demonstrations of 60; 6 further ones."""
    settings = {
        "data": {"max_prompt_tokens": 100, "max_demonstration_tokens": 60},
        "rollout": {"group_size": 4, "max_tokens": 50},
        "train": {"prompts_per_step": 2, "demonstrations_per_step": 6},
    }
    step = make_plan(big(model={"path": "lab"}, **settings), "cpu-16G").case.work.step
    assert step.sequences == 2 * (4 + 1) + 6
    assert step.responses == 2 * (4 * 50 + 60) + 6 * 60
    assert step.total == 2 * 100 + 6 * 100 + step.responses
    settings["train"].pop("demonstrations_per_step")
    assert make_plan(big(model={"path": "lab"}, **settings), "cpu-16G").case.work.step.further == 0


def test_gradients_of_a_single_pass_come_as_activations_go():
    lab = {"path": "lab"}
    step = {"prompts_per_step": 2, "tokens_per_micro_batch": 65536}
    one = items(make_plan(big(model=lab, train=step), "cpu-16G"), "train")
    step["tokens_per_micro_batch"] = 2048
    many = items(make_plan(big(model=lab, train=step), "cpu-16G"), "train")
    assert "gradients" in many and "head's gradient" in many
    assert one["gradients"] < many["gradients"] < one["activations"]


def test_holes_of_the_heap_are_a_cpus_and_do_not_vanish_with_checkpointing():
    def train(gpus, **model):
        return items(make_plan(big(model={"path": "lab", **model}), gpus), "train")

    plain, checkpointed = train("cpu-16G"), train("cpu-16G", gradient_checkpointing=True)
    adapted = train("cpu-16G", lora={"target_modules": ["q_proj"]})
    assert plain["heap"] == pytest.approx(0.3 * plain["activations"])
    assert checkpointed["heap"] == plain["heap"] > checkpointed["activations"] * 0.3
    assert adapted["heap"] == plain["heap"] and adapted["activations"] < plain["activations"]
    assert "heap" not in train("H100")


def test_hints_say_what_each_setting_alone_leaves_of_the_peak():
    config = big(model={"path": "Qwen/Qwen2.5-1.5B"})
    plan = make_plan(config, "RTX4090")
    assert not plan.fits and [h.share for h in plan.hints] == sorted(h.share for h in plan.hints)
    given = {hint.setting.partition("=")[0] for hint in plan.hints}
    assert {"model.gradient_checkpointing", "train.optimizer", "model.lora.rank"} <= given
    for hint in plan.hints:
        key, _, value = hint.setting.partition("=")
        again = make_plan(changed(config, {key: yaml.safe_load(value)}), "RTX4090")
        assert again.memory.peak.bytes / again.memory.capacity == pytest.approx(hint.share)
        assert hint.share < plan.memory.peak.bytes / plan.memory.capacity
    assert make_plan(config, "B200").hints == ()


@pytest.mark.parametrize("engine", ["embedded", "vllm", "vllm-server"])
def test_no_hint_repeats_what_the_recipe_does(engine):
    done = {
        "model": {
            "path": "Qwen/Qwen2.5-7B",
            "gradient_checkpointing": True,
            "dtype": "bfloat16",
            "lora": {"rank": 8, "quantization": "nf4"},
        },
        "rollout": {"engine": engine, "free_cache": engine == "embedded"},
    }
    if engine == "vllm-server":
        done["rollout"]["servers"] = ["http://localhost:8000"]
    plan = make_plan(big(**done), "H100", assume=["memory_gib=1"])
    keys = {hint.setting.partition("=")[0] for hint in plan.hints}
    vllm = "rollout.vllm.gpu_memory_utilization"
    own = {"embedded": {"rollout.max_rows"}, "vllm": {vllm}, "vllm-server": set()}[engine]
    assert keys <= {"train.tokens_per_micro_batch", "train.optimizer"} | own


def test_what_stands_in_the_way_beside_memory_is_said():
    small = {"model": {"path": "Qwen/Qwen2.5-0.5B"}, "rollout": {"max_tokens": 40_000}}
    plan = make_plan(parse_config(small), "8xH200")
    assert not plan.fits and any("window" in problem for problem in plan.problems)


def test_devices_are_read_and_unknown_ones_named():
    assert read_cluster("8xH100", 2).size == 16
    assert read_cluster("a100-40g").memory_gib == 39.4
    assert read_cluster("2xcpu-16G").memory_gib == 8
    assert read_cluster("cpu").memory_gib * GIB > 1e8
    assert make_plan(big(), "H100", assume=["memory_gib=3"]).memory.capacity == 3 * GIB
    with pytest.raises(ConfigError, match="H100"):
        read_cluster("8xH101")
    with pytest.raises(ConfigError, match="runtime_gib"):
        make_plan(big(), "H100", assume=["mfu=0.3"])
    with pytest.raises(ConfigError, match=r"parallel\.shard"):
        make_plan(big(parallel={"shard": 4}), "8xH100")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_fits_the_devices_its_header_names(path):
    command = re.search(r"^# srft plan (\S+) --gpus (\S+)$", path.read_text(), re.MULTILINE)
    assert command and command[1] == f"recipes/{path.name}"
    plan = make_plan(load_config(path), command[2])
    assert plan.fits, [plan.problems, plan.hints]


def test_the_papers_run_has_the_papers_figures():
    config = load_config(next(p for p in RECIPES if p.stem == "paper-7b"))
    assert (config.train.prompts_per_step, config.rollout.group_size) == (128, 7)
    assert (config.rollout.max_tokens, config.data.max_prompt_tokens) == (8192, 1024)
    assert (config.train.steps, config.train.learning_rate) == (500, 1e-6)
    shape = measure_shape(config.model)
    assert shape.config.rope_parameters["rope_theta"] == 40_000
    assert shape.config.max_position_embeddings == 16_384


def test_the_command_prints_tables_or_json_and_tells_by_its_exit_code():
    runner = CliRunner()
    good = runner.invoke(app, ["plan", "model.path=Qwen/Qwen2.5-0.5B", "--gpus", "H100", "--json"])
    assert good.exit_code == 0
    data = json.loads(good.stdout)
    assert data["fits"] and data["memory"]["phases"]["train"]["items"]["weights"] == 4 * 494_032_768
    bad = runner.invoke(app, ["plan", "model.path=Qwen/Qwen2.5-7B", "--gpus", "RTX4090"])
    assert bad.exit_code == 1
    assert "does not fit" in bad.stdout and "runtime_gib" in bad.stdout
    assert "train.optimizer=adamw_8bit" in bad.stdout


def test_a_teacher_is_counted(tmp_path):
    """opd: the teacher's weights. sdft: no copy, unless its teacher is the policy of before training."""
    tiny_model("llama", num_hidden_layers=4).save_pretrained(tmp_path)
    held = measure_shape(ModelConfig(path=str(tmp_path))).parameters

    def planned(**settings):
        recipe = {"model": {"path": "Qwen/Qwen2.5-7B"}, **settings}
        return items(make_plan(parse_config(recipe), "H100-80G"), "train")

    teacher = {"path": str(tmp_path), "dtype": "bfloat16"}
    assert planned(method="opd", teacher=teacher)["teacher"] == 2 * held
    assert "reference" not in planned(method="opd", teacher=teacher)
    assert "teacher" not in planned(method="sdft") and "reference" not in planned(method="sdft")
    frozen = planned(method="sdft", teacher={"frozen": True})
    assert frozen["reference"] == frozen["weights"] > 7e9
