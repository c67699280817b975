"""Compiled layers: the same scores and gradients, one compilation for all lengths, eager sampling."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.toys import random_sequences, tiny_model, word_tokenizer
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from srft.data.packing import pack
from srft.model.adapters import add_lora
from srft.model.fast import compile_layers, prepare_compute, training_mode
from srft.model.loading import prepare
from srft.model.model_config import LoraConfig, ModelConfig
from srft.model.packed_attention import use_packed_attention
from srft.model.policy import Policy
from srft.model.scoring import score
from srft.model.scoring_check import check_scoring
from srft.rollout.embedded import EmbeddedEngine
from srft.rollout.rollout_config import RolloutConfig
from srft.types import RolloutRequest, SamplingParams

LENGTHS = (((3, 30), (1, 1), (8, 9)), ((2, 4), (9, 8), (40, 30), (12, 5)), ((5, 6), (5, 9)))


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nodes of each graph that is compiled; the graphs run as they are, without generated code."""
    torch._dynamo.reset()
    seen: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        seen.append(len(graph.graph.nodes))
        return graph.forward

    compile_it = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m, **k: compile_it(m, backend=backend, **k))
    return seen


def test_compiled_layers_compute_the_same(compilations: list[int]) -> None:
    plain = tiny_model("qwen3").train()
    use_packed_attention(plain)
    fast = copy.deepcopy(plain)
    compile_layers(fast)
    counts = []
    for lengths in LENGTHS:
        (packed,) = pack(random_sequences(*lengths), None, 999)
        for model in (plain, fast):
            model.zero_grad()
            scores = score(model, packed)
            (scores.logprob_T.sum() + scores.entropy_T.sum()).backward()
        for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4, msg=name)
        counts.append(len(compilations))
    assert len(set(counts)) == 1, f"other lengths were compiled anew: {counts}"


def test_only_scoring_is_compiled(compilations: list[int]) -> None:
    model = tiny_model("llama")
    use_packed_attention(model)
    tokenizer = word_tokenizer()
    prepare_compute(model, ModelConfig(compile=True, gradient_checkpointing=True))
    requests = [RolloutRequest((5, 6, 7), 2, 0)]
    engine = EmbeddedEngine(model, tokenizer, RolloutConfig())
    engine.use_lean = False  # the model's own forward
    engine.generate(requests, SamplingParams(max_tokens=5))
    assert not compilations
    assert check_scoring(Policy(model, tokenizer)) < 1e-4
    assert compilations
    # A copy, such as the reference of a penalty, is another model: its layers are its own.
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_input_embeddings().weight.zero_()
        other.lm_head.weight.zero_()
        (packed,) = pack(random_sequences((3, 5)), None, 999)
        assert score(other, packed).logprob_T.unique().numel() == 1
        assert score(model, packed).logprob_T.unique().numel() > 1


_COMPILE_KERNELS = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from srft.model import head_triton as head

flags = {"HAS_BIAS": True, "HAS_CAP": True, "HAS_ENTROPY": True, **head.BLOCKS}
halves = {"hidden": "*bf16", "weight": "*bf16", "out": "*bf16", "target": "*i64"}
numbers = {"scale": "fp32", "cap": "fp32", "temperature": "fp32"}
sizes = {"T", "V", "D", "first", "split_size", "hidden_stride", "weight_stride"}
for kernel in (head._sweep_kernel, head._gradient_kernel):
    types, fixed = {}, {}
    for name in kernel.arg_names:
        types[name] = (halves | numbers).get(name, "i32" if name in sizes else "*fp32")
        if name in flags:
            types[name], fixed[name] = "constexpr", flags[name]
    aligned = [i for i, n in enumerate(kernel.arg_names) if types[n][0] == "*" or "stride" in n]
    options = {k: v for k, v in head.BLOCKS.items() if k.startswith("num_")}
    done = compile(
        ASTSource(kernel, types, fixed, {(i,): [["tt.divisibility", 16]] for i in aligned}),
        target=GPUTarget("cuda", 90, 32),
        options=options,
    )
    print(done.metadata.shared, "wgmma.mma" in done.asm["ptx"])
"""


def test_the_heads_kernels_compile_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE_KERNELS], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        shared, tensor_cores = line.split()
        # What one block of an A100 may have; an H100 has more. Products must run on tensor cores.
        assert int(shared) <= 163 * 1024
        assert tensor_cores == "True"
    assert len(done.stdout.splitlines()) == 2


NOISY = {
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "word_embed_proj_dim": 32},
    "phi": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5},
    "mixtral": {"num_local_experts": 4, "router_jitter_noise": 0.5, "attention_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", [*NOISY, "adapters"])
def test_without_noise_the_policy_that_is_trained_is_the_one_that_is_sampled(
    family: str, checkpointing: bool
) -> None:
    model = tiny_model("llama" if family == "adapters" else family, **NOISY.get(family, {}))
    if family == "adapters":
        add_lora(model, LoraConfig(rank=4, dropout=0.5))
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, std=0.3) if "lora_B" in name else None
    prepare(model.eval(), ModelConfig(gradient_checkpointing=checkpointing))
    modes = [m.training for m in model.modules()]
    (packed,) = pack(random_sequences(*LENGTHS[1]), None, 999)
    with torch.no_grad():
        sampled = score(model, packed).logprob_T
    recomputed: list[int] = []
    layer = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    leaf = next(m for m in layer.modules() if next(m.children(), None) is None)
    handle = leaf.register_forward_pre_hook(lambda *_: recomputed.append(1))
    with training_mode(model, noise=False):
        quiet = score(model, packed).logprob_T
        quiet.mean().backward()
    handle.remove()
    assert len(recomputed) == 1 + checkpointing
    torch.testing.assert_close(quiet.detach(), sampled, rtol=1e-5, atol=1e-5)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with training_mode(model, noise=True):
        assert (score(model, packed).logprob_T.detach() - sampled).abs().max() > 1e-2
    assert [m.training for m in model.modules()] == modes
    assert score(model, packed).logprob_T.allclose(sampled, atol=1e-5)
