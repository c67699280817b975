"""How a run is spread over processes: the ``parallel`` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from srft.section import Section


class ParallelConfig(Section):
    """Several processes, started by torchrun, Slurm or anything else that sets torchrun's variables.
    One process reads none of this but the time-out's absence: it is the same loop with a world of one."""

    replicate: int = Field(
        1,
        ge=1,
        description="Number of copies of the sharded model. Processes = replicate x shard; with "
        "several nodes, one copy a node keeps the gathering of weights inside it.",
    )
    shard: int | None = Field(
        None,
        ge=1,
        description="Processes that share one copy (FSDP2); null: all / replicate. 1 is plain "
        "data parallelism.",
    )
    reshard_after_forward: bool = Field(
        True,
        description="Free the gathered weights of a layer after its forward pass and gather them "
        "again for the backward pass: less memory, half again as much traffic.",
    )
    gather_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision in which weights are gathered and layers compute; the weights that the "
        "optimizer moves keep theirs. auto: that of autocast (model.autocast).",
    )
    reduce_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision in which gradients are summed over processes."
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto",
        description="Communication backend between processes; auto: nccl on GPUs, gloo on CPUs.",
    )
    timeout_s: float = Field(
        1800.0,
        gt=0,
        description="Seconds that a process waits for the others before the run ends and names "
        "the missing one. Set it above the longest time by which generating or verifying may "
        "differ between processes.",
    )
