"""GGUF files, as llama.cpp writes them: read by transformers into a plain float model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from srft.errors import ModelError
from srft.model.weight_files import quiet_transformers


def is_gguf(path: str | Path) -> bool:
    """Whether ``path`` is a GGUF file on this machine."""
    file = Path(path).expanduser()
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
    file = Path(path).expanduser()
    _check_rotary(file, model_config)
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


def _check_rotary(file: Path, model_config: Any) -> None:
    """Raise ModelError where the file scales rotary frequencies and transformers has not read how."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    named = [f for key, f in reader.fields.items() if key.endswith(".rope.scaling.type")]
    kinds = {str(field.contents()) for field in named} - {"none"}
    if any(tensor.name.startswith("rope_f") for tensor in reader.tensors):
        kinds.add("by factors")
    rope = getattr(model_config.get_text_config(decoder=True), "rope_parameters", None) or {}
    if kinds and rope.get("rope_type", "default") == "default":
        raise ModelError(
            f"{file} scales rotary frequencies ({', '.join(sorted(kinds))}), which transformers does not "
            "read from GGUF: its scores would be another model's. Take the model's safetensors folder"
        )
