"""Loading of a model and its tokenizer, and the dtype it computes in."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from srft.errors import ModelError
from srft.model import gguf
from srft.model.adapters import (
    add_lora,
    check_adapters,
    has_adapters,
    keep_four_bits_trainable,
    merge_adapter,
)
from srft.model.fast import prepare_compute, restorer
from srft.model.model_config import ADAPTER_CONFIG, ModelConfig, holds_model, is_lab
from srft.model.output_head import unwrap
from srft.model.packed_attention import can_pack, use_packed_attention
from srft.model.positions import override_positions
from srft.model.weight_files import Cut, read_model, reader_of
from srft.paths import local_path

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# Whose classes set the row of the padding token to zero each time they are loaded, which is a row of
# the output head too.
_FORGET_PADDING = ("youtu",)


_PROCESSORS = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)


def parameter_dtype(config: ModelConfig) -> torch.dtype:
    """The dtype parameters are held in: float32 master weights unless the config says otherwise."""
    return torch.float32 if config.dtype == "auto" else _DTYPES[config.dtype]


def autocast_dtype(config: ModelConfig, device: torch.device | str) -> torch.dtype | None:
    """The dtype of matrix products, or None where they run in the parameters' own."""
    device = torch.device(device)
    if parameter_dtype(config) != torch.float32 or config.autocast == "float32":
        return None
    if config.autocast == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bf16 else None
    return _DTYPES[config.autocast]


def compute_context(config: ModelConfig, device: torch.device | str) -> AbstractContextManager[Any]:
    """What every forward pass (scoring, sampling, the self-check) runs in: autocast or nothing.

    With float32 parameters on a GPU, matrix products are done in bfloat16 while the weights that
    the optimizer updates, norms and softmaxes keep float32. A backward pass runs outside it.
    """
    dtype = autocast_dtype(config, device)
    if dtype is None:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


def load_model(
    config: ModelConfig, device: torch.device | str = "cpu", cut: Cut | None = None
) -> PreTrainedModel:
    """The causal language model at ``config.path`` on ``device``, ready to be trained: what
    ``open_model`` reads, prepared as the recipe says. Raises ModelError."""
    model = open_model(config, device, cut)
    prepare(model, config)
    return model


def open_model(
    config: ModelConfig, device: torch.device | str = "cpu", cut: Cut | None = None
) -> PreTrainedModel:
    """The causal language model at ``config.path`` on ``device``, as transformers reads it. Adapters
    that lie at ``config.path`` themselves (a run's export) are added to the weights of their base.

    cut: says what part of each parameter is read (parallel/sharding.py); tensors are then where it
    puts them. Models whose files hold fused rows are read whole, into the host's memory.

    Raises ModelError where the path is unknown, is not a causal language model or lacks weights.
    """
    adapters = _adapter_folder(config)
    if adapters is not None:
        model = open_model(_base(config, adapters), device, cut)
        merge_adapter(model, adapters)
        return model
    model_config = _model_config(config)
    kinds = reader_of(model_config)._model_mapping
    own_code = "AutoModelForCausalLM" in (getattr(model_config, "auto_map", None) or {})
    if type(model_config) not in kinds and not (own_code and config.trust_remote_code):
        raise ModelError(
            f"{config.path}: model type {model_config.model_type!r} is not a causal language model"
            + (", but brings one as code: set model.trust_remote_code=true" if own_code else "")
        )
    override_positions(model_config, config)
    if model_config.model_type in _FORGET_PADDING:
        model_config.pad_token_id = None
    if getattr(model_config, "rescale_every", 0):
        model_config.rescale_every = (
            0  # RWKV's, which divides weights in place to sample in float16
        )
    model = _load_weights(config, model_config, device, cut)
    if cut is None:
        module: Any = model
        module.to(torch.device(device))
    keep_four_bits_trainable(model)
    return model


def prepare(model: PreTrainedModel, config: ModelConfig) -> Callable[[], None]:
    """Gives ``model`` the adapters, the attention and the kernels that the recipe asks for. What is
    returned takes all but the adapters away again (``fast.restorer``).

    Raises ModelError where it is no language model, adapters do not fit, or packed attention is
    demanded of a model that cannot have it; the model is then as it was.
    """
    _check_language_model(unwrap(model))
    if config.lora and not has_adapters(model):
        add_lora(model, config.lora, revision=config.revision)
    check_adapters(model)
    put_back = restorer(model)
    try:
        choose_attention(model, config)
        prepare_compute(model, config)
    except BaseException:
        put_back()
        raise
    return put_back


def check_lora(config: ModelConfig, given: PreTrainedModel | None) -> None:
    """Raises ModelError where a ``given`` model has adapters already, so that ``model.lora`` would make none,
    and where a folder of adapters could not say on what they were trained."""
    lora = config.lora
    if lora is None:
        return
    if given is not None and has_adapters(given) and lora.model_fields_set - {"export"}:
        raise ModelError(
            "the given model has adapters already, which would be trained on, and model.lora (peft_config) "
            "would make none: leave it out, or give the model as it is without adapters"
        )
    if lora.export == "merged":
        return
    problem = None
    if given is None and _adapter_folder(config) is not None:
        problem = f"{config.path} holds adapters itself, which are added to the weights first"
    elif given is not None and _resized(config, given):
        problem = "the given model has another vocabulary than the one it was loaded from"
    if problem is not None:
        raise ModelError(
            f"lora.export is adapter, but {problem}: whoever loads a folder of adapters takes the base as it "
            "was. Set model.lora.export to merged"
        )


def _resized(config: ModelConfig, given: PreTrainedModel) -> bool:
    """Whether ``given`` has more rows in its embedding than its base, or fewer, as far as that is known."""
    if not given.name_or_path:
        return False
    base = config.model_copy(update={"path": given.name_or_path})
    with suppress(ModelError):
        ours, theirs = (c.get_text_config() for c in (given.config, _model_config(base)))
        return bool(ours.vocab_size != theirs.vocab_size)
    return False


def _check_language_model(model: PreTrainedModel) -> None:
    """Among what transformers reads as language models with other parts some are none."""
    try:
        embeds = model.get_input_embeddings() is not None
    except NotImplementedError:
        embeds = False
    if not embeds or not model.can_generate():
        what = "generates no text" if embeds else "embeds no tokens"
        raise ModelError(f"{type(model).__name__} {what}: it is not a causal language model")


def source_dtype(config: ModelConfig) -> torch.dtype | None:
    """The precision that the files at ``config.path`` say they have, to which an export goes back."""
    if gguf.is_gguf(config.path):
        return None  # blocks of few bits, which no export goes back to
    adapters = _adapter_folder(config)
    dtype = _model_config(config if adapters is None else _base(config, adapters)).dtype
    return dtype if isinstance(dtype, torch.dtype) else None


def processor_files(config: ModelConfig, model: PreTrainedModel) -> dict[str, str]:
    """What prepares images or sounds for the other parts of ``model``, where it has some: text of each file
    by its name, as it lies beside the weights."""
    if model.config.get_text_config(decoder=True) is model.config:
        return {}
    adapters = _adapter_folder(config)
    config = config if adapters is None else _base(config, adapters)
    source = _source(config.path or str(model.name_or_path))
    found = {}
    for name in _PROCESSORS:
        with suppress(OSError):  # there is none
            file = cached_file(source, name, revision=config.revision or "main")
            if file is not None:
                found[name] = Path(file).read_text(encoding="utf-8")
    return found


def _adapter_folder(config: ModelConfig) -> Path | None:
    folder = local_path(config.path) if config.path else None
    return folder if folder is not None and (folder / ADAPTER_CONFIG).is_file() else None


def _base(config: ModelConfig, adapters: Path) -> ModelConfig:
    settings = json.loads((adapters / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{adapters / ADAPTER_CONFIG} names no base model: set base_model_name_or_path there"
        )
    revision = settings.get("revision") or config.revision
    return config.model_copy(update={"path": str(base), "revision": revision, "lora": None})


def _check_folder(path: str) -> None:
    """Raises ModelError where ``path`` is a folder here that holds no model."""
    folder = local_path(path)
    if not folder.is_dir() or is_lab(path) or holds_model(folder):
        return
    hint = (
        "point model.path at a folder that save_pretrained (or a training run's export) has written"
    )
    if trained := _trained_in(folder):
        hint = f"the model of this run is {trained}"
    raise ModelError(f"{folder} holds no config.json: {hint}")


def _trained_in(folder: Path) -> Path | None:
    """The model that a run in ``folder`` has exported."""
    return next(filter(holds_model, (folder / "model", folder / "best")), None)


def _model_config(config: ModelConfig) -> Any:
    if not config.path:
        raise ModelError("no model given: set model.path to a hub name or a folder")
    _check_folder(config.path)
    with _clear(
        f"cannot read a model configuration from {config.path!r}",
        "Check model.path (a folder, or a name on the hub that this machine can reach); models "
        "that bring their own code need model.trust_remote_code=true",
    ):
        found = AutoConfig.from_pretrained(
            _source(config.path),
            **gguf.settings(config.path),
            revision=config.revision or "main",
            trust_remote_code=config.trust_remote_code,
        )
        if gguf.is_gguf(config.path):
            gguf.complete(config.path, found)
        return found


@contextmanager
def _clear(what: str, hint: str) -> Iterator[None]:
    """Errors of the libraries as ModelErrors. Of every kind: a damaged file is answered with a
    TypeError, an AttributeError or (by tokenizers) with Exception itself."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {_first_line(error)} {hint}") from error


def resolved_config(config: ModelConfig) -> tuple[str, Any]:
    """Where the model is (folder or hub name), and its configuration as the recipe changes it.

    Raises ModelError where it cannot be read.
    """
    model_config = _model_config(config)
    override_positions(model_config, config)
    return _source(config.path), model_config


def _source(path: str) -> str:
    """What transformers is given: a folder, a hub name, or the lab's base model for ``lab``."""
    folder = local_path(path)
    if is_lab(path):
        from srft.lab import base_model_path

        return str(base_model_path())
    if gguf.is_gguf(path):
        return str(folder.parent)  # and beside it gguf.settings
    return str(folder) if folder.exists() else path


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."


def _load_weights(
    config: ModelConfig, model_config: Any, device: torch.device | str, cut: Cut | None
) -> PreTrainedModel:
    hint = "Check that the weights are complete and belong to config.json"
    if config.use_safetensors:
        hint += "; only safetensors are read (model.use_safetensors=false for a source you trust)"
    with _clear(f"cannot load the weights of {config.path!r}", hint):
        if gguf.is_gguf(config.path):
            return gguf.read(config.path, model_config, parameter_dtype(config))
        return read_model(
            _source(config.path),
            cut,
            model_config,
            config.text_only,
            revision=config.revision or "main",
            dtype=parameter_dtype(config),
            use_safetensors=True if config.use_safetensors else None,
            trust_remote_code=config.trust_remote_code,
            **_quantization(config, device),
        )


def _quantization(config: ModelConfig, device: torch.device | str) -> dict[str, Any]:
    """What transformers is told in order to hold the frozen matrices in four bits."""
    if config.lora is None or config.lora.quantization is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            "model.lora.quantization=nf4 needs bitsandbytes: pip install 'srft[qlora]', or leave "
            "quantization out and set model.dtype=bfloat16"
        )
    compute = autocast_dtype(config, device) or parameter_dtype(config)
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.lora.quantization,
            bnb_4bit_compute_dtype=compute,
            # Scales quantized too: 4.1 bits a number in place of 4.5. The CPU kernels compile anew for
            # every shape of them, which takes longer than it saves.
            bnb_4bit_use_double_quant=torch.device(device).type != "cpu",
        ),
        "device_map": {"": torch.device(device)},
    }


def choose_attention(model: PreTrainedModel, config: ModelConfig) -> None:
    """Packed attention where the config and the model's architecture allow it.

    Raises ModelError where it is demanded and cannot be had.
    """
    if config.attention == "padded":
        return
    if can_pack(model):
        use_packed_attention(model)
    elif config.attention == "packed":
        raise ModelError(
            f"{config.path}: attention of model type {model.config.model_type!r} cannot run packed "
            "rows: set model.attention to padded or auto"
        )


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, with an end-of-sequence and a padding token, padding on the left (as
    generation needs it).

    The padding token is ``config.pad_token``, else the tokenizer's own, else its end-of-sequence
    token: padding is always masked, so which token it is changes no result.

    Raises ModelError where it cannot be read or has no end-of-sequence token.
    """
    name = config.tokenizer or config.path
    if config.tokenizer is None and _trained_in(local_path(config.path)):
        _check_folder(config.path)
    with _clear(
        f"cannot load a tokenizer from {name!r}",
        "Check that model.path is a folder or a hub name that this machine can reach; a model "
        "that comes without a tokenizer needs model.tokenizer",
    ):
        tokenizer = AutoTokenizer.from_pretrained(
            _source(name),
            **gguf.settings(name),
            revision=(config.revision if config.tokenizer is None else None) or "main",
            trust_remote_code=config.trust_remote_code,
        )
        # Some damage shows only when a text is tokenized, or an id is asked for.
        tokenizer(["a b"], add_special_tokens=False)
        tokenizer.decode([0])
        max(tokenizer.get_vocab().values())
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {name!r} has no end-of-sequence token, so a response would never "
            "end: set eos_token in its tokenizer_config.json"
        )
    if config.pad_token is not None:
        if config.pad_token not in tokenizer.get_vocab():
            raise ModelError(
                f"model.pad_token {config.pad_token!r} is not in the vocabulary of {name!r}: "
                "choose a token that is, or leave it out"
            )
        tokenizer.pad_token = config.pad_token
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError where the tokenizer can produce ids the model has no embedding for.

    A larger embedding than vocabulary is usual (it is rounded up for speed) and fine.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"the tokenizer has token ids up to {highest} but the model embeds only {rows}: they "
            "do not match. Use the model's own tokenizer (leave model.tokenizer out)"
        )


def check_same_tokenizer(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, place: str
) -> None:
    """Raise ModelError where a token id does not mean the same text to both."""
    here, there = ours.get_vocab(), theirs.get_vocab()
    if here == there:
        return
    odd = next(token for token in [*here, *there] if here.get(token) != there.get(token))
    raise ModelError(
        f"{place}: its tokenizer is not the policy's ({len(there)} and {len(here)} tokens; {odd!r} is "
        f"{there.get(odd)} there and {here.get(odd)} here). A teacher scores the policy's own tokens: use "
        "one of the same family"
    )


def first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity, or None."""
    for name, tensor in tensors.items():
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # this rank's shard
        if not local.isfinite().all():
            return name
    return None


def check_finite_weights(model: Any, path: str | None) -> None:
    """Raise ModelError where a parameter holds NaN or infinity."""
    odd = first_not_finite(dict(model.named_parameters()))
    if odd is not None:
        raise ModelError(
            f"{path or 'the model'}: weight {odd} holds non-finite numbers: the run that "
            "wrote it had diverged, or the file is damaged. Use an earlier checkpoint or another copy"
        )
