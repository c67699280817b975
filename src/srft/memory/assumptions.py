"""What a plan takes for granted: every figure that the recipe and the model's config do not hold."""

from __future__ import annotations

from collections.abc import Sequence

import yaml
from pydantic import Field, ValidationError

from srft.errors import ConfigError
from srft.memory.devices import Cluster
from srft.section import Section


class Assumptions(Section):
    """Defaults are for GPUs; :func:`assume` knows those of a CPU."""

    prompt_tokens: int = Field(
        512, gt=0, description="longest prompt, tokens, where data.max_prompt_tokens is unset"
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
        description="fragmentation: memory between tensors that the C library cannot reuse, over what all "
        "layers keep for a backward pass, were all weights trained and nothing computed again",
    )
    memory_gib: float | None = Field(
        None, gt=0, description="memory of a device; unset: the table's"
    )


# Set from benchmarks/planning.py; those of GPUs are assumed: none was measured.
_CPU = {"runtime_gib": 0.12, "fragmentation": 1.03, "heap_holes": 0.30}


def assume(cluster: Cluster, overrides: Sequence[str] = ()) -> Assumptions:
    """The assumptions for ``cluster`` with ``key=value`` overrides.

    Raises ConfigError for an unknown key or a wrong value.
    """
    values: dict[str, object] = dict(_CPU) if cluster.is_cpu else {}
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
