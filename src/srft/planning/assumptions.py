"""What a plan takes for granted: every figure that the recipe and the model's config do not hold."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srft.errors import ConfigError
from srft.planning.devices import Device


class Assumptions(BaseModel):
    """Defaults are for GPUs; :func:`assume` knows those of a CPU."""

    model_config = ConfigDict(extra="forbid")

    prompt_tokens: float = Field(256, gt=0, description="mean prompt, tokens")
    response_share: float = Field(
        0.5, gt=0, le=1, description="mean rollout as a share of rollout.max_tokens"
    )
    demonstration_tokens: float | None = Field(
        None, gt=0, description="mean demonstration, tokens; none: as long as a mean rollout"
    )
    skipped_share: float = Field(
        0.0, ge=0, lt=1, description="share of sequences without gradient, which are not computed"
    )
    runtime_gib: float = Field(
        1.2, ge=0, description="context, libraries and communication buffers of a process, GiB"
    )
    fragmentation: float = Field(
        1.08, ge=1, description="allocated memory over what live tensors need"
    )
    heap_holes: float = Field(
        0.0,
        ge=0,
        description="memory between tensors that the C library cannot give away again, over what all "
        "layers keep for a backward pass, were all weights trained and nothing computed again",
    )
    training_mfu: float = Field(
        0.40, gt=0, le=1, description="share of the device's peak that training reaches"
    )
    prefill_mfu: float = Field(0.50, gt=0, le=1, description="the same for prompts in generation")
    decode_bandwidth: float = Field(
        0.60, gt=0, le=1, description="share of the memory bandwidth that decoding reaches"
    )
    decode_us_per_layer: float | None = Field(
        None,
        ge=0,
        description="time a decoding step takes per layer beside memory and arithmetic, microseconds; "
        "none: 8 for vLLM, 250 for the embedded engine on a GPU, 60 on a CPU",
    )
    update_bandwidth: float = Field(
        0.60, gt=0, le=1, description="share of the memory bandwidth that the optimizer reaches"
    )
    link_share: float = Field(
        0.70, gt=0, le=1, description="share of link and network speed that transfers reach"
    )
    network_gbs: float = Field(
        50.0, gt=0, description="network between nodes, 10^9 bytes a second for each device"
    )
    overlap: float = Field(
        0.70, ge=0, le=1, description="share of computing time behind which gathering can hide"
    )
    score_seconds: float = Field(
        0.02, ge=0, description="verifying one rollout, seconds of one worker"
    )
    server_devices: int | None = Field(
        None,
        ge=1,
        description="devices of the vLLM servers, beside those that train; none: one a server and "
        "tensor-parallel part",
    )
    memory_gib: float | None = Field(None, gt=0, description="device memory; none: the table's")
    tflops: float | None = Field(None, gt=0, description="peak of the device; none: the table's")
    bandwidth_gbs: float | None = Field(None, gt=0, description="to its memory; none: the table's")
    link_gbs: float | None = Field(None, gt=0, description="within a node; none: the table's")


# Shares for a CPU were set from benchmarks/planning.py, those for GPUs are assumed: none was measured.
_CPU = {
    "runtime_gib": 0.12,
    "fragmentation": 1.03,
    "heap_holes": 0.30,
    "training_mfu": 0.58,
    "prefill_mfu": 0.30,
    "decode_bandwidth": 0.50,
    "update_bandwidth": 0.50,
    "overlap": 0.0,
    "score_seconds": 0.001,
}


def assume(device: Device, overrides: Sequence[str] = ()) -> Assumptions:
    """The assumptions for ``device`` with ``key=value`` overrides.

    Raises ConfigError for an unknown key or a wrong value.
    """
    values: dict[str, object] = dict(_CPU) if device.is_cpu else {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or key not in Assumptions.model_fields:
            known = ", ".join(Assumptions.model_fields)
            raise ConfigError(f"--assume {override!r}: write key=value; keys: {known}")
        values[key] = yaml.safe_load(value)
    try:
        return Assumptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--assume {first['loc'][0]}: {first['msg']}") from error
