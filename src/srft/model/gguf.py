"""GGUF files, as llama.cpp writes them: read by transformers into a plain float model."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from srft.errors import ModelError
from srft.model.positions import rotary_settings
from srft.model.weight_files import quiet_transformers
from srft.paths import local_path


def is_gguf(path: str | Path) -> bool:
    """Whether ``path`` is a GGUF file on this machine."""
    file = local_path(path)
    return file.suffix == ".gguf" and file.is_file()


def settings(path: str | Path) -> dict[str, str]:
    """What ``from_pretrained`` of a config, a tokenizer or a model is told beside the file's folder.

    Raises ModelError where the library that reads such files is missing."""
    if not is_gguf(path):
        return {}
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{path}: GGUF files need the package gguf: pip install 'srft[gguf]'")
    return {"gguf_file": Path(path).name}


def read(path: str, model_config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model in ``path`` with every block of few bits as numbers of ``dtype``: a model like any other,
    which is trained and saved whole.

    Raises ModelError where weights are missing."""
    file = local_path(path)
    more: dict[str, Any] = {}
    kind = getattr(transformers, "GgufConfig", None)  # older versions know no other way
    if kind is not None:
        more["quantization_config"] = kind(gguf_file=file.name, dequantize=True)
    with quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            config=model_config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which is refused below, by name
            **settings(path),
            **more,
        )
    model, report = loaded
    missing = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if missing:
        raise ModelError(
            f"{path}: {len(missing)} weights are missing or of the wrong shape (first: {missing[0]}): "
            "transformers does not read every architecture from GGUF; take the safetensors folder"
        )
    # It says of itself that it is quantized, which would keep it from being trained and saved.
    model.is_quantized, model.hf_quantizer = False, None
    for name in ("quantization_config", "quantization_method"):
        for holder in (model, model.config):
            vars(holder).pop(name, None)
    model.config.name_or_path = model.name_or_path = str(file)
    return model


_EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "rms_norm_eps")
# What transformers reads of some architectures and not of others: names in the file and in configs.
_ATTRIBUTES = {
    "attention.layer_norm_epsilon": _EPSILONS,
    "attention.layer_norm_rms_epsilon": _EPSILONS,
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
}
# The largest Gemmas, by their layers: they scale attention otherwise, which no key of a file says.
_SCALED = (("gemma2", 46), ("gemma3", 62))


def complete(path: str, model_config: Any) -> None:
    """Writes into ``model_config``, as transformers has read it, what else the file says.

    Raises ModelError where that has no place there: the scores would be another model's."""
    from gguf import GGUFReader

    file = local_path(path)
    reader = GGUFReader(file)
    kind = str(reader.fields["general.architecture"].contents())
    own = f"{kind}."
    said = {
        key.removeprefix(own): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(own)
    }
    text = model_config.get_text_config(decoder=True)
    ropes = list(rotary_settings(text))
    if len(ropes) == 1 and "rope.freq_base" in said:
        ropes[0]["rope_theta"] = said["rope.freq_base"]
    window = said.get("attention.sliding_window")
    if window and window < said.get("context_length", 0) and hasattr(text, "sliding_window"):
        text.sliding_window = window
    for key, names in _ATTRIBUTES.items():
        for name in names:
            if key in said and hasattr(text, name):
                setattr(text, name, said[key])
    unread = _unread(said, text, ropes)
    if (kind, said.get("block_count")) in _SCALED:
        unread.append("its scale of attention")
    scaling = said.get("rope.scaling.type", "none")
    if any(tensor.name.startswith("rope_f") for tensor in reader.tensors):
        scaling = "by factors"
    if scaling != "none" and all(rope["rope_type"] == "default" for rope in ropes):
        unread.append(f"how it scales rotary frequencies ({scaling})")
    if unread:
        raise ModelError(
            f"{file}: transformers does not read {', '.join(unread)} from GGUF files of {kind!r}: its scores "
            "would be another model's. Take the model's safetensors folder"
        )


def _unread(said: Mapping[str, Any], text: Any, ropes: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the file says otherwise than the config, and cannot be written into it."""
    heads = getattr(text, "num_attention_heads", None)
    sizes: set[Any] = {getattr(text, name, None) for name in ("head_dim", "global_head_dim")} - {
        None
    }
    if not sizes and heads:
        sizes = {text.hidden_size // heads}
    turned = {
        int(size * rope.get("partial_rotary_factor", 1.0)) for size in sizes for rope in ropes
    }
    known: dict[str, set[Any]] = {
        "attention.key_length": sizes,
        "rope.dimension_count": turned | ({getattr(text, "rotary_dim", None)} - {None}),
        "expert_used_count": {getattr(text, "num_experts_per_tok", None)} - {None},
    }
    return [
        f"{key} {said[key]} (it takes {', '.join(map(str, sorted(values)))})"
        for key, values in known.items()
        if key in said and values and said[key] not in values
    ]
