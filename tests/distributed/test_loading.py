"""Each process reads its own parts of a model, and they are the parts of the model."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.distributed import work
from tests.distributed.ranks import finish, on_ranks, start
from tests.toys import tiny_model

from srft.model.adapters import add_lora, save_adapter
from srft.model.model_config import LoraConfig

# A family, what its config and the recipe's section add, the share of it that a process of three reads.
CASES = {
    "tied": ("qwen3", {}, {"rope_theta": 40000.0}, 1 / 3),
    "halves": ("gemma2", {}, {"dtype": "bfloat16"}, 1 / 3),
    "experts": ("mixtral", {"num_local_experts": 6}, {}, 1 / 3),
    "too-few-experts": ("mixtral", {"num_local_experts": 4}, {}, 0.08),
    "fused-rows": ("hrm_text", {}, {}, 0.0),
    "adapters": ("llama", {}, {"lora": {"rank": 4}}, 1 / 3),
    "from-adapters": ("llama", {}, {}, 1 / 3),
    "copies": ("llama", {}, {}, 1.0),
}


def make_model(name: str, folder: Path) -> Path:
    """A model in several files, in float32."""
    family, changes, _, _ = CASES[name]
    model = tiny_model(family, **changes)
    model.save_pretrained(folder / "model", max_shard_size="30KB")
    if name != "from-adapters":
        return folder / "model"
    add_lora(model, LoraConfig(rank=2), base=str(folder / "model"))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter)
    (folder / "adapters").mkdir()
    save_adapter(model, folder / "adapters")
    return folder / "adapters"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """By rank, of each case what ``work.load`` returns."""
    cases = {}
    for name, (_, _, settings, _) in CASES.items():
        folder = make_model(name, tmp_path_factory.mktemp(name))
        cases[name] = ({"path": str(folder), **settings}, 3 if name == "copies" else 1)
    return on_ranks(work.load_all, 3, cases)


@pytest.mark.parametrize("name", CASES)
def test_parts_that_are_read_are_those_of_the_whole_model(name, loaded):
    for one, parts, copied, figures in (found[name] for found in loaded):
        for other in (parts, copied):
            assert one["dtypes"] == other["dtypes"]
            assert one["tied"] == other["tied"]
            assert one["tensors"].keys() == other["tensors"].keys()
            for key, values in one["tensors"].items():
                assert numpy.array_equal(values, other["tensors"][key]), key
        assert one["trained"] == parts["trained"]
        # Of a tied pair one counts; adapters are made, not read.
        size = sum(v.size for k, v in one["tensors"].items() if "lora" not in k and k != "logits")
        assert figures["read"] / size == pytest.approx(CASES[name][3], abs=0.07)
    assert one["tied"] == (name in ("tied", "halves"))


@pytest.mark.parametrize("fault", ["not-finite", "missing"])
def test_a_fault_in_the_parts_of_one_process_is_said_once(tmp_path, fault, tiny_model):
    file = tmp_path / "model.safetensors"
    tensors = load_file(tiny_model / file.name)
    name = "model.layers.1.mlp.up_proj.weight"
    if fault == "missing":
        del tensors[name]
    else:
        tensors[name][-1, -1] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    recipe = {"model": {"path": str(tmp_path)}, "train": {"steps": 1}}
    said = [o.error.splitlines()[0] for o in finish(start(work.load_policy, 2, recipe))]
    (error,) = [line for line in said if line.startswith("ModelError")]
    assert name in error
    assert ("non-finite" in error) == (fault == "not-finite")
    assert sum(line.startswith("PeerError") for line in said) == 1
