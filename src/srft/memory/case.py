"""All that memory is computed from: a recipe on given devices, counted and traced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from srft.config import SRFTConfig
from srft.evaluation.open_model import find_model
from srft.memory.assumptions import Assumptions
from srft.memory.devices import Cluster
from srft.memory.phases import Case
from srft.memory.shape import kept_for_backward, measure_shape
from srft.memory.work import Layout, Lengths, Work, measure_work, read_layout
from srft.model.loading import parameter_dtype
from srft.objective.method import Method
from srft.objective.methods import get_method


def build_case(
    config: SRFTConfig,
    cluster: Cluster,
    assumed: Assumptions,
    lengths: Lengths | None = None,
    model_config: Any = None,
) -> Case:
    """``lengths``: those of the data, where it is at hand; else the recipe's limits. ``model_config``: of
    a model that is given, in place of the one at ``model.path``.

    Raises:
        ConfigError: a parallel section that does not divide the devices.
        ModelError: the model's config cannot be read.
    """
    shape, layout = measure_shape(config.model, model_config), read_layout(config, cluster)
    work = _work(config, layout, assumed, shape.window, lengths)
    # FSDP2 casts what it gathers, so layers run in that dtype throughout; autocast casts inputs.
    inside = layout.gather if layout.world > 1 else layout.weights
    kept = kept_for_backward(shape, config.model, inside, layout.autocast, work.step.padding)
    made = kept
    if config.model.lora and assumed.heap_holes:
        whole = config.model.model_copy(update={"lora": None})
        made = kept_for_backward(shape, whole, inside, layout.autocast, work.step.padding)
    teacher = _teacher_bytes(config) / layout.shard
    return Case(config, cluster, layout, work, shape, kept, made, teacher, assumed)


def with_settings(case: Case, config: SRFTConfig, lengths: Lengths | None) -> Case:
    """The same model on the same devices, cut up as ``config`` says."""
    work = _work(config, case.layout, case.assumed, case.shape.window, lengths)
    return replace(case, config=config, work=work)


def _work(
    config: SRFTConfig,
    layout: Layout,
    assumed: Assumptions,
    window: int | None,
    lengths: Lengths | None,
) -> Work:
    return measure_work(config, _methods(config), layout, assumed, window, lengths)


def _methods(config: SRFTConfig) -> list[Method]:
    longest = config.rollout.max_tokens
    return [
        get_method(stage.method, stage.objective, longest_response=longest)
        for stage in config.resolved_stages
    ]


def _teacher_bytes(config: SRFTConfig) -> float:
    """Of the model that ``teacher.path`` names, where a method learns from one."""
    if config.teacher.path is None or all(m.teacher != "model" for m in _methods(config)):
        return 0.0
    dtype = config.teacher.dtype or config.model.dtype
    model = find_model(config.teacher.path).config.model_copy(update={"dtype": dtype})
    return measure_shape(model).parameters * parameter_dtype(model).itemsize
