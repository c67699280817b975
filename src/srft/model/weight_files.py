"""Weights from files into a model: whole, or of every matrix this process's part alone.

transformers builds a model without memory for its weights and then reads them tensor by tensor. Where
a parameter is a DTensor by then, it reads no more than the slice that this process holds, renamed and
fused as the architecture wants it.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.utils import logging as transformers_logging

from srft.errors import ModelError

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
Cut = Callable[[nn.Module], None]
"""Makes DTensors of the parameters of a model that has no memory for them yet."""

_PLACE = "maybe_distribute_model"
# What transformers does to a tensor from the files that can be done to its rows apart.
_BY_ROWS = ("MergeModulelist", "Concatenate", "Chunk", "Split", "Interleave")


def reader_of(model_config: Any, text_only: bool = False) -> Any:
    """The class of transformers that reads a checkpoint of this config with all its parts, or
    (``text_only``) its text part where that can be read alone."""
    multimodal, text = (a._model_mapping for a in (AutoModelForMultimodalLM, AutoModelForCausalLM))
    kind = type(model_config)
    if kind in multimodal and not (text_only and kind in text):
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM


def read_model(
    source: str, cut: Cut | None, model_config: Any, text_only: bool, **settings: Any
) -> PreTrainedModel:
    """The causal language model at ``source``. settings: of ``from_pretrained``.

    Raises ModelError where weights are missing or have another shape than the config says.
    """
    reader = reader_of(model_config, text_only)
    with _cut_before_reading(cut) as more, quiet_transformers():
        loaded: Any = reader.from_pretrained(
            source,
            config=model_config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **settings,
            **more,
        )
    model, report = loaded
    unread = sorted({*report["unexpected_keys"], *_names_left_out(Path(source), model)})
    if unread:
        logger.warning(
            "%s: %d tensors of its files have no place in %s (first: %s), and an export is without them",
            *(source, len(unread), type(model).__name__, unread[0]),
        )
    missing = sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"])
    if missing:
        raise ModelError(
            f"{source}: {len(missing)} weights are missing or of the wrong shape (first: "
            f"{missing[0]}); they would start from random numbers. Check that config.json belongs "
            "to these weights"
        )
    model.config.distributed_config = None  # what was asked of transformers; it is not the model's
    _give_parts_their_memory(model)
    return model


def precisions(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The dtype of each tensor, by its name in the model, where the model is held in ``dtype``: float32 for
    what the architecture needs so under half precision too, such as biases that choose experts."""
    plan = model._get_dtype_plan(dtype)
    patterns = [(re.compile(p.replace("*", ".*")), kept) for p, kept in plan.items()]
    return lambda name: next((kept for p, kept in patterns if p.search(name)), dtype)


def _names_left_out(folder: Path, model: PreTrainedModel) -> list[str]:
    """Names in the safetensors files of ``folder`` that the model's class says it does not read, such as
    layers that predict further tokens; not those of buffers that are computed."""
    patterns = [re.compile(p) for p in model._keys_to_ignore_on_load_unexpected or ()]
    names: set[str] = set()
    for file in folder.glob("*.safetensors") if patterns and folder.is_dir() else ():
        with safe_open(file, "pt") as opened:
            names.update(opened.keys())
    unread = {name for name in names if any(p.search(name) for p in patterns)}
    computed = ("inv_freq", "masked_bias", "attn.bias", "attention.bias")
    return sorted(name for name in unread if not name.endswith(computed))


def _give_parts_their_memory(model: nn.Module) -> None:
    """What was read without a change of dtype is a view into the whole tensor of the mapped file, which
    DCP's copy for writing in the background would copy whole, or take for memory where it begins inside."""
    views = [p for p in model.parameters() if isinstance(p, DTensor) and _is_view(p.to_local())]
    own = {id(p): nn.Parameter(_with_memory(p), p.requires_grad) for p in views}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in own:
                setattr(module, name, own[id(parameter)])


def _is_view(part: Tensor) -> bool:
    return part.untyped_storage().nbytes() > part.nbytes


def _with_memory(view: DTensor) -> DTensor:
    part = view.to_local().detach().clone()
    mesh, placements = view.device_mesh, view.placements
    return DTensor.from_local(part, mesh, placements, shape=view.shape, stride=view.stride())


@contextmanager
def _cut_before_reading(cut: Cut | None) -> Iterator[dict[str, Any]]:
    """Lets ``cut`` have the model between its building and the reading of its weights, where
    transformers would distribute it by its own plan. What ``from_pretrained`` has to be told. A version
    of transformers without that place reads the model whole, which a warning says.
    """
    if cut is None:
        yield {}
        return
    reached = False

    def distribute(cls: type, model: PreTrainedModel, *_: Any) -> PreTrainedModel:
        nonlocal reached
        reached = True
        if _can_be_read_by_rows(model):
            cut(model)
        return model

    before = vars(PreTrainedModel).get(_PLACE)
    known = hasattr(PreTrainedModel, _PLACE)
    setattr(PreTrainedModel, _PLACE, classmethod(distribute))
    try:
        yield {"distributed_config": {}} if known else {}  # one of one process
        if not reached:
            logger.warning(
                "transformers %s does not call PreTrainedModel.%s, where the model is sharded: every process "
                "has read all weights into its memory. Use a version that this package was tested with",
                transformers.__version__,
                _PLACE,
            )
    finally:
        if before is None:
            delattr(PreTrainedModel, _PLACE)  # what it inherits is back
        else:
            setattr(PreTrainedModel, _PLACE, before)


def _can_be_read_by_rows(model: PreTrainedModel) -> bool:
    """Whether no tensor in the files is put together or taken apart along its rows, by which
    parameters are cut. Stacks of experts are: whole experts are read."""
    for conversion in get_model_conversion_mapping(model):
        if not isinstance(conversion, WeightConverter):
            continue  # a name alone
        for step in conversion.operations:
            kind, dim = type(step).__name__, getattr(step, "dim", None)
            stacks = kind == "MergeModulelist"
            if kind not in _BY_ROWS or dim is None or (dim == 0) != stacks:
                return False
    return True


@contextmanager
def parts_aside(model: nn.Module, device: str) -> Iterator[None]:
    """While libraries that take DTensors for tensor parallelism change the structure of ``model``:
    whole parameters without memory, which say they were on ``device``, stand in for parts."""
    aside: list[tuple[nn.Module, str, nn.Parameter]] = []
    stand_ins: dict[int, nn.Parameter] = {}  # one for tied ones
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                aside.append((module, name, parameter))
                if id(parameter) not in stand_ins:
                    empty = _without_memory(parameter, device)
                    stand_ins[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for module, name, parameter in aside:
        setattr(module, name, stand_ins[id(parameter)])
    yield
    for module, name, parameter in aside:
        parameter.requires_grad_(getattr(module, name).requires_grad)
        setattr(module, name, parameter)


def frozen_copy(model: M, of: Callable[[nn.Parameter], Tensor]) -> M:
    """A copy of ``model`` that is not trained, with what ``of`` returns in place of each parameter."""
    with torch.no_grad():
        made = {id(parameter): of(parameter) for parameter in model.parameters()}
    # deepcopy takes for a copy what its memo holds. Its own of a DTensor fails.
    memo = {
        key: new if isinstance(new, nn.Parameter) else nn.Parameter(new, False)
        for key, new in made.items()
    }
    return copy.deepcopy(model, memo).eval()


def _without_memory(like: Tensor, device: str) -> Tensor:
    if device == "meta":
        return torch.empty(like.shape, dtype=like.dtype, device=device)
    return torch.empty((), dtype=like.dtype, device=device).expand(like.shape)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars, which would stand in the way of ours, and without its report on
    loading, which becomes an error of ours."""
    verbosity, bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
