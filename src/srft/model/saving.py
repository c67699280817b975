"""A model, its tokenizer and further files as a folder, whole or not at all."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from srft.errors import CheckpointError
from srft.model.adapters import adapter_base, has_adapters, merged_weights, save_adapter
from srft.model.weight_files import precisions, quiet_transformers
from srft.paths import local_path


def save_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    files: Mapping[str, str] | None = None,
    adapters_only: bool = False,
    tensors: Mapping[str, torch.Tensor] | None = None,
    end_token_ids: Sequence[int] = (),
) -> Path:
    """Write weights (safetensors), config, generation config and tokenizer to ``folder``, whole
    or not at all, so that ``AutoModelForCausalLM.from_pretrained(folder)`` loads it.

    dtype: precision of the written weights; None keeps the model's. files: further text files by
    name, such as a model card. Adapters are added to the weights; with ``adapters_only`` they are
    written as peft writes them, in the precision they are trained in. tensors: what is written, by
    name, where the model does not hold it whole: of adapters, as peft names them. end_token_ids: all
    tokens at which whoever generates is to stop; none keeps the model's own.

    Everything goes to a temporary folder beside it, is flushed to disk and renamed; a folder that holds an
    earlier model and nothing else is replaced. Where it holds more, the files are put among what is there,
    one by one. Returns the folder.

    Raises:
        CheckpointError: the disk is full or not writable, what was written is not the whole model, or
            ``folder`` is the base's of adapters written alone; a folder that was there is untouched.
    """
    folder = Path(folder)
    place = folder.resolve()
    base = adapter_base(model) if adapters_only else None
    if base is not None and local_path(base).resolve() == place:
        raise CheckpointError(
            f"{folder}: is where the base of these adapters lies, which they would take the place of, and "
            "without which they are of no use: save them elsewhere"
        )
    whole = not _others(place)
    temporary = place.with_name(f".writing-{place.name}") if whole else place / ".writing-model"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)  # what a process killed here has left
        temporary.mkdir()
        with _savable_generation_config(model, end_token_ids) as ends, quiet_transformers():
            if adapters_only:
                save_adapter(model, temporary, tensors)
                if ends is not None:  # those of the base, which carries them, may be fewer
                    ends.save_pretrained(temporary)
            else:
                _save_weights(model, temporary, dtype, tensors)
                _check_written(model, temporary)
        tokenizer.save_pretrained(temporary)
        for name, text in (files or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        (put_in_place if whole else _put_among)(temporary, place)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: the model could not be written ({error}). Free space or make the folder "
            "writable; a training run then writes it with --resume"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_written(model: Any, folder: Path) -> None:
    """Raise CheckpointError where the files lack a tensor of the model, or hold another or of another
    shape: reads them into a model without memory."""
    _, report = type(model).from_pretrained(
        folder, device_map="meta", ignore_mismatched_sizes=True, output_loading_info=True
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        raise CheckpointError(
            f"{folder}: the written files are not the whole model ({wrong}), so they were discarded. This "
            "is a bug in this package or in transformers; the run's checkpoints are intact"
        )


@contextmanager
def _savable_generation_config(
    model: Any, end_token_ids: Sequence[int]
) -> Iterator[GenerationConfig | None]:
    """The generation config as it is written: with all tokens that end a text, and without settings
    that transformers refuses to write, so that no finished run is lost to them."""
    own = getattr(model, "generation_config", None)
    if own is None:
        yield None
        return
    model.generation_config = savable = _savable(own)
    if end_token_ids:
        ends = list(end_token_ids)
        savable.eos_token_id = ends[0] if len(ends) == 1 else ends
    try:
        yield savable
    finally:
        model.generation_config = own


def _savable(own: GenerationConfig) -> GenerationConfig:
    """What samples (a temperature, say) has to say so, and what steers beams to search by them."""
    without_beams = {"do_sample": True, "early_stopping": None, "length_penalty": None}
    for changes in ({}, {"do_sample": True}, without_beams):
        savable = copy.deepcopy(own)
        for name, value in changes.items():
            setattr(savable, name, value)
        with suppress(ValueError):
            savable.validate(strict=True)
            return savable
    return GenerationConfig(**{k: v for k, v in own.to_dict().items() if k.endswith("token_id")})


def _save_weights(
    model: Any,
    folder: Path,
    dtype: torch.dtype | None,
    tensors: Mapping[str, torch.Tensor] | None,
) -> None:
    adapted = has_adapters(model)
    if tensors is None and not adapted and dtype in (None, model.dtype):
        model.save_pretrained(folder)
        return
    dtype = dtype or model.dtype
    # What is saved is a plain model with the merged weights: its class knows nothing of adapters.
    plain = _without_weights(model) if adapted else model
    held = model.state_dict().values() if tensors is None else tensors.values()
    own = {tensor.data_ptr() for tensor in held}
    precision = precisions(plain, dtype)
    cast: dict[str, torch.Tensor] = {}
    by_address: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for name, tensor in merged_weights(model) if tensors is None else tensors.items():
        written = tensor.to(precision(name)) if tensor.is_floating_point() else tensor
        if tensor.data_ptr() in own:
            # Tied weights stay one tensor, which is then written once.
            written = by_address.setdefault((tensor.data_ptr(), tensor.shape), written)
        cast[name] = written
    plain.save_pretrained(folder, state_dict=cast)
    # save_pretrained writes the dtype of the model it was called on.
    config = copy.deepcopy(plain.config)
    config.dtype = dtype
    config.save_pretrained(folder)


def _without_weights(model: Any) -> Any:
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._attn_implementation = "eager"  # parts beside the text know no other by name
    with torch.device("meta"):
        plain = type(model)(config)
    plain.generation_config = model.generation_config
    return plain


_MODEL_FILES = (
    *("config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.*", "additional_chat_templates", "vocab.*", "merges.txt"),
    *("*.model", "*processor*.json", "README.md"),
)
_WEIGHTS = (
    *("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"),
    *("adapter_model.safetensors", "adapter_config.json"),
)


def _others(folder: Path) -> list[Path]:
    """What lies in ``folder`` and is no file of a model."""
    inside = list(folder.iterdir()) if folder.is_dir() else []
    return [p for p in inside if not any(map(p.match, (*_MODEL_FILES, *_WEIGHTS)))]


def _put_among(temporary: Path, folder: Path) -> None:
    """Flush to the disk and move file by file into ``folder``, whose older weights are removed."""
    for path in temporary.rglob("*"):
        fsync(path)
    written = {path.name for path in temporary.iterdir()}
    for old in (path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        if old.name not in written:
            old.unlink()
    for path in temporary.iterdir():
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)
    fsync(folder)


def put_in_place(temporary: Path, folder: Path) -> None:
    """Flush to the disk and rename over ``folder``. A full folder cannot be renamed over, so the
    old one steps aside first; should the machine stop between the two renames, it is still there
    under ``.old``."""
    for path in [*temporary.rglob("*"), temporary]:
        fsync(path)
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def fsync(path: Path) -> None:
    """Flushes one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
