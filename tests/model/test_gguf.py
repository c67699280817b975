"""A GGUF file as the model: read into floats, trained, exported as any other."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.model.sweep.checks import _reward, exported_gap, own_logits
from tests.model.sweep.tiny import tiny_model
from transformers import AutoModelForCausalLM

from srft import SRFTConfig, SRFTTrainer
from srft.errors import ModelError
from srft.evaluation.open_model import find_model, open_weights, weights_digest
from srft.model.gguf import complete
from srft.model.loading import load_model, load_tokenizer, source_dtype
from srft.model.model_config import ModelConfig
from srft.rollout.serve import server_command
from srft.terminal import Terminal

gguf = pytest.importorskip("gguf", reason="GGUF files need the package gguf")

VOCABULARY = 261
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _gguf_name(name: str) -> str:
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, end = name.rpartition(".")
    if stem in outer:
        return f"{outer[stem]}.{end}"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{_NAMES[part]}.{end}"


def _byte_tokens() -> list[str]:
    """GPT-2's letters for the 256 bytes, three tokens that control, and two merged ones."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return [*bytes_to_unicode().values(), "<|endoftext|>", "<|im_start|>", "<|im_end|>", "Ġt", "Ġa"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A file in which every matrix is of blocks of eight bits, and the model that it holds."""
    model = tiny_model("qwen2", VOCABULARY, intermediate_size=64)
    file = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    _write(model, file)
    return file, model


def _write(model, file: Path, more: Mapping[str, str | int] | None = None) -> None:
    config = model.config
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(VOCABULARY)
    for name, value in (more or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"qwen2.{name}", value)
    tokens = _byte_tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["Ġ t", "Ġ a"])
    writer.add_token_types([1] * 256 + [3] * 3 + [1] * 2)
    writer.add_eos_token_id(256)
    writer.add_pad_token_id(257)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if tensor.dim() == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(values, kind)
            tensor.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
            writer.add_tensor(_gguf_name(name), packed, raw_dtype=kind)
        else:
            writer.add_tensor(_gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_it_is_the_model_that_was_written(written):
    file, model = written
    config = ModelConfig(path=str(file))
    loaded = load_model(config)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    torch.testing.assert_close(own_logits(loaded, range(2, 50)), own_logits(model, range(2, 50)))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    tokenizer = load_tokenizer(config)
    assert tokenizer.eos_token_id == 256
    assert tokenizer.decode(tokenizer("two and three").input_ids) == "two and three"
    assert source_dtype(config) is None


def test_a_source_like_any_other(written, tmp_path):
    file, _ = written
    source = find_model(file)
    assert source.config.path == str(file) and source.name == "tiny.Q8_0"
    before = weights_digest(source)
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    assert weights_digest(find_model(copy)) == before
    copy.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert weights_digest(find_model(copy)) != before


def test_a_server_gets_it_as_a_folder_of_floats(written, tmp_path, monkeypatch):
    file, model = written
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    command, _ = server_command(SRFTConfig(model={"path": str(file)}), "127.0.0.1", 8000)
    folder = Path(command[command.index("--model") + 1])
    plain = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(own_logits(plain, range(2, 50)), own_logits(model, range(2, 50)))
    assert server_command(SRFTConfig(model={"path": str(file)}), "127.0.0.1", 8000)[0] == command


@pytest.mark.parametrize("lora", [None, {"rank": 4}, {"rank": 4, "export": "adapter"}])
def test_it_is_trained_and_exported_as_safetensors(written, tmp_path, lora):
    file, model = written
    rows = [
        {"prompt": f"{a}+{b}=", "demonstration": str(a + b), "answer": str(a + b)}
        for a, b in ((2, 3), (4, 5), (11, 3), (7, 7))
    ]
    config = SRFTConfig(
        model={"path": str(file), "lora": lora},
        rollout={"group_size": 2, "max_tokens": 5},
        train={"steps": 2, "prompts_per_step": 2, "learning_rate": 1e-2, "device": "cpu"},
        reward={"failed_demonstrations": "keep"},
        run={"dir": str(tmp_path / "run"), "checkpoint_every": 1},
    )
    trainer = SRFTTrainer(
        train_dataset=rows, reward_funcs=_reward, args=config, console=Terminal(quiet=True)
    )
    result = trainer.train()
    ids = range(2, 30)
    trained = own_logits(trainer.model.eval(), ids)
    assert (trained - own_logits(model, ids)).abs().max() > 1e-3
    if lora is None or "export" not in lora:
        assert exported_gap(trainer, result.model_dir) < 1e-5
        plain = AutoModelForCausalLM.from_pretrained(result.model_dir)
        assert not hasattr(plain.config, "quantization_config") and plain.dtype == torch.float32
    for place in (result.model_dir, *sorted((tmp_path / "run/checkpoints").glob("step_*"))[-1:]):
        again = find_model(place)
        torch.testing.assert_close(
            own_logits(open_weights(again), ids), trained, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"rope.scaling.type": "yarn"}, "scales rotary frequencies .yarn"),
        ({"rope.dimension_count": 4}, "rope.dimension_count 4 .it takes 8"),
        ({"attention.key_length": 16}, "attention.key_length 16"),
    ],
)
def test_what_transformers_does_not_read_and_has_no_place_is_refused(said, named, tmp_path):
    file = tmp_path / "other.gguf"
    _write(tiny_model("qwen2", VOCABULARY, intermediate_size=64), file, said)
    with pytest.raises(ModelError, match=named):
        load_model(ModelConfig(path=str(file)))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rms_norm_eps": 0.01},
    ],
)
def test_what_transformers_does_not_read_is_written_into_the_config(changes, tmp_path, monkeypatch):
    """Here it would; of Starcoder2 it reads no rotary base, of Falcon another epsilon."""
    from transformers.integrations import ggml

    for key in ("rope.freq_base", "attention.layer_norm_rms_epsilon"):
        monkeypatch.delitem(ggml.GGUF_CONFIG_MAPPING["qwen2"], key)
    model = tiny_model("qwen2", VOCABULARY, intermediate_size=64, **changes)
    file = tmp_path / "other.gguf"
    _write(model, file)
    loaded = load_model(ModelConfig(path=str(file)))
    torch.testing.assert_close(own_logits(loaded, range(2, 50)), own_logits(model, range(2, 50)))


def test_a_window_that_transformers_does_not_read_is_written_into_the_config(tmp_path):
    """As in files of Phi-3."""
    model = tiny_model("qwen2", VOCABULARY, intermediate_size=64)
    file = tmp_path / "other.gguf"
    _write(model, file, {"attention.sliding_window": 8})
    config = tiny_model("phi3", VOCABULARY, sliding_window=None).config
    complete(str(file), config)
    assert config.sliding_window == 8


def test_weights_of_another_shape_are_named(tmp_path):
    file = tmp_path / "other.gguf"
    model = tiny_model("qwen2", VOCABULARY, intermediate_size=64)
    model.config.intermediate_size = 32
    _write(model, file)
    with pytest.raises(ModelError, match=r"of the wrong shape .first: .*mlp"):
        load_model(ModelConfig(path=str(file)))


def test_what_is_no_gguf_file_is_told_so(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but no more")
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        load_model(ModelConfig(path=str(broken)))
    with pytest.raises(ModelError, match="GGUF file"):
        find_model(tmp_path / "missing.gguf")


@pytest.mark.slow
@pytest.mark.skipif("SRFT_GGUF_DIR" not in os.environ, reason="SRFT_GGUF_DIR names no folder")
def test_a_real_file():
    files = sorted(Path(os.environ["SRFT_GGUF_DIR"]).glob("SmolLM2*.gguf"))
    config = ModelConfig(path=str(files[0]))
    model, tokenizer = load_model(config), load_tokenizer(config)
    reader = gguf.GGUFReader(files[0])
    stored = next(t for t in reader.tensors if t.name == "blk.3.ffn_up.weight")
    expected = gguf.quants.dequantize(stored.data, stored.tensor_type)
    assert torch.equal(model.model.layers[3].mlp.up_proj.weight, torch.from_numpy(expected))
    ids = tokenizer("The capital of France is").input_ids
    assert tokenizer.decode(own_logits(model, ids)[-1].argmax()) == " Paris"
