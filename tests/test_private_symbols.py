"""Private symbols of other packages that this one relies on: each is named here, and each exists.

A new version of torch, transformers, peft or vLLM that drops one fails here first, by name.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.toys import tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import moe

SOURCE = Path(__file__).parent.parent / "src/srft"


def _mkldnn(name: str) -> bool:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch without oneDNN")
    return hasattr(torch.ops.mkldnn, name)


def _checkpointed() -> PreTrainedModel:
    model = tiny_model("llama")
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def _vllm_registry() -> bool:
    factory = pytest.importorskip("vllm.distributed.weight_transfer.factory")
    return isinstance(factory.WeightTransferEngineFactory._registry, dict)


def _peft_wrapper() -> bool:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_parameters=["mlp.experts.gate_up_proj"], target_modules=[])
    model = peft.get_peft_model(tiny_model("mixtral", num_local_experts=4), config)
    return any(hasattr(m, "_did_swap_in_out_features") for m in model.modules())


def _set_attention() -> bool:
    config = tiny_model("llama").config
    config._attn_implementation_internal = "eager"
    return config._attn_implementation == "eager"


KNOWN: dict[str, Callable[[], bool]] = {
    # torch
    "_buffers": lambda: "_buffers" in vars(nn.Linear(1, 1)),
    "_cdata": lambda: isinstance(torch.zeros(1).untyped_storage()._cdata, int),
    "_compiled_call_impl": lambda: nn.Linear(1, 1)._compiled_call_impl is None,
    "_foreach_add": lambda: torch._foreach_add([torch.ones(1)], [torch.ones(1)])[0].item() == 2,
    "_forward_hooks": lambda: "_forward_hooks" in vars(nn.Linear(1, 1)),
    "_forward_pre_hooks": lambda: "_forward_pre_hooks" in vars(nn.Linear(1, 1)),
    "_is_amx_tile_supported": lambda: isinstance(torch.cpu._is_amx_tile_supported(), bool),
    "_is_avx512_bf16_supported": lambda: isinstance(torch.cpu._is_avx512_bf16_supported(), bool),
    "_linear_pointwise": lambda: _mkldnn("_linear_pointwise"),
    "_orig_mod": lambda: hasattr(torch.compile(nn.Linear(1, 1)), "_orig_mod"),
    "_parameters": lambda: "_parameters" in vars(nn.Linear(1, 1)),
    "_reorder_linear_weight": lambda: _mkldnn("_reorder_linear_weight"),
    "_subclasses": lambda: hasattr(torch._subclasses.fake_tensor, "FakeTensorMode"),
    # transformers
    "_can_use_grouped_mm": lambda: callable(moe._can_use_grouped_mm),
    "_attn_implementation": _set_attention,
    "_attn_implementation_internal": _set_attention,
    "_can_set_attn_implementation": lambda: tiny_model("llama")._can_set_attn_implementation(),
    "_can_record_outputs": lambda: (
        "router_logits" in tiny_model("mixtral").get_decoder()._can_record_outputs
    ),
    "_get_dtype_plan": lambda: tiny_model("llama")._get_dtype_plan(torch.bfloat16) == {},
    "_gradient_checkpointing_func": lambda: (
        "_gradient_checkpointing_func" in vars(_checkpointed().model)
    ),
    "_keys_to_ignore_on_load_unexpected": lambda: hasattr(
        PreTrainedModel, "_keys_to_ignore_on_load_unexpected"
    ),
    "_model_mapping": lambda: (
        type(tiny_model("llama").config) in AutoModelForCausalLM._model_mapping
    ),
    "_no_split_modules": lambda: "LlamaDecoderLayer" in tiny_model("llama")._no_split_modules,
    "_require_grads_hook": lambda: hasattr(_checkpointed(), "_require_grads_hook"),
    "_supports_sdpa": lambda: tiny_model("llama")._supports_sdpa is True,
    "_supports_flash_attn": lambda: tiny_model("llama")._supports_flash_attn is True,
    # no underscore, but no documented place either: where weights are cut before they are read
    "maybe_distribute_model": lambda: callable(PreTrainedModel.maybe_distribute_model),
    # peft
    "_did_swap_in_out_features": _peft_wrapper,
    # vLLM
    "_registry": _vllm_registry,
}
NO_SYMBOLS = {"_exit", "_replace", "_T", "_config", "_s"}
"""Of the standard library; endings of names (tensors, parts of a config, settings in seconds)."""


def _defined(tree: ast.AST) -> Iterator[str]:
    """Names that this package gives to functions, classes, variables and attributes of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        yield part.id
                    elif isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self":
                        yield part.attr


def _used(tree: ast.AST) -> Iterator[str]:
    """Attributes, imported names, and strings that could name an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("srft"):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_private_symbol_that_is_used_is_named() -> None:
    trees = [ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")]
    own = {name for tree in trees for name in _defined(tree)}
    used = {name for tree in trees for name in _used(tree) if name.isidentifier()}
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    foreign = private - own - NO_SYMBOLS
    assert foreign == {name for name in KNOWN if name.startswith("_")}
    assert set(KNOWN) <= used


@pytest.mark.parametrize("name", KNOWN)
def test_it_exists(name: str) -> None:
    assert KNOWN[name]()
