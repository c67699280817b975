"""The weights that engines are sent are those a saved checkpoint would hold, and ours stay as they are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tests.toys import tiny_model

from srft.errors import RolloutError
from srft.rollout.vllm_weights import MemoryFile, named_weights


def test_a_tied_head_is_sent_under_both_names():
    model = tiny_model("qwen3")
    sent = dict(named_weights(model))
    assert torch.equal(sent["lm_head.weight"], sent["model.embed_tokens.weight"])
    assert sent.keys() == model.state_dict().keys()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_names_and_shapes_are_those_of_a_saved_checkpoint(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    sent = dict(named_weights(model))
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() <= sent.keys()
    assert all(torch.equal(sent[name], tensor) for name, tensor in saved.items())


def test_weights_are_cast_on_their_way_only():
    model = tiny_model("llama")
    assert {t.dtype for _, t in named_weights(model, torch.bfloat16)} == {torch.bfloat16}
    assert model.dtype == torch.float32


def test_an_adapter_is_added_to_its_base_and_neither_changes():
    peft = pytest.importorskip("peft")
    plain = tiny_model("llama")
    names = plain.state_dict().keys()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(plain, config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sent = dict(named_weights(model))
    assert sent.keys() == names
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        other = tiny_model("llama", seed=9)
        other.load_state_dict(sent)
        assert torch.allclose(other(input_ids=ids).logits, adapted, atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(model(input_ids=ids).logits, adapted, atol=1e-2)


def test_the_file_in_memory_is_replaced_and_goes_away(tmp_path):
    file = MemoryFile(str(tmp_path))
    shared = torch.arange(4.0)
    path = file.write({"a": shared, "b": shared})
    assert torch.equal(load_file(path)["b"], shared)
    assert torch.equal(load_file(file.write({"c": shared + 1}))["c"], shared + 1)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    file.close()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_in_memory_is_removed(tmp_path):
    code = "import os, srft.rollout.vllm_weights as w; "
    code += f"w.MemoryFile({str(tmp_path)!r}); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    mine = MemoryFile(str(tmp_path))
    assert [p.name.split("-")[2] for p in tmp_path.iterdir()] == [str(os.getpid())]
    mine.close()


def test_a_folder_without_room_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(RolloutError, match="is not a folder"):
        MemoryFile(str(tmp_path / "absent"))
    file = MemoryFile(str(tmp_path))
    file.close()
    with pytest.raises(RolloutError, match="could not be written"):
        file.write({"a": torch.zeros(1)})
