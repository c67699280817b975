"""``srft plan``: what a recipe needs on given devices, what does not fit, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from srft.config import SRFTConfig
from srft.errors import ConfigError
from srft.objective.methods import get_method
from srft.planning.advice import Mend, Verdict, changed, mends
from srft.planning.assumptions import Assumptions
from srft.planning.assumptions import assume as read_assumptions
from srft.planning.devices import Cluster, Device, measured_cpu, read_cluster
from srft.planning.memory import Case, Memory, plan_memory
from srft.planning.shape import ModelShape, kept_for_backward, measure_shape
from srft.planning.times import Times, plan_times
from srft.planning.work import measure_work, read_layout


@dataclass(frozen=True)
class Plan:
    """A recipe on a cluster. ``mends`` is empty where it fits; ``problems`` are sentences."""

    config: SRFTConfig
    cluster: Cluster
    case: Case
    memory: Memory
    time: Times
    mends: tuple[Mend, ...]
    problems: tuple[str, ...]

    @property
    def shape(self) -> ModelShape:
        return self.case.shape

    @property
    def fits(self) -> bool:
        return self.memory.fits and not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers (bytes, seconds, tokens), for --json."""
        shape, layout, work = self.shape, self.case.layout, self.case.work
        counted = asdict(replace(shape, config=None))
        del counted["config"]
        return {
            "fits": self.fits,
            "problems": list(self.problems),
            "cluster": asdict(self.cluster),
            "processes": {
                "world": layout.world,
                "replicate": layout.replicate,
                "shard": layout.shard,
            },
            "model": counted,
            "work": {
                "tokens_per_step": work.usual.total * layout.world,
                "micro_batch_tokens": work.micro_batch,
                "micro_batches": work.micro_batches,
                "longest_sequence": work.longest,
            },
            "memory": {
                "capacity_bytes": self.memory.capacity,
                "peak_bytes": self.memory.peak.bytes,
                "peak_phase": self.memory.peak.name,
                "rows": self.memory.rows,
                "phases": {
                    p.name: {
                        "bytes": p.bytes,
                        "items": {i.name: i.bytes for i in p.items},
                    }
                    for p in self.memory.phases
                },
            },
            "time": {
                "seconds_per_step": self.time.seconds,
                "tokens_per_second": self.time.tokens_per_second,
                "seconds_per_run": self.time.seconds * self.config.total_steps,
                "parts": {p.name: p.seconds for p in self.time.parts},
            },
            "mends": [asdict(mend) for mend in self.mends],
            "assumptions": self.case.assumed.model_dump(),
        }


def make_plan(config: SRFTConfig, gpus: str, *, nodes: int = 1, assume: Sequence[str] = ()) -> Plan:
    """Plan ``config`` on ``gpus`` (see ``devices.read_cluster``) with ``assume`` as key=value.

    Raises:
        ConfigError: an unknown device or assumption, or a parallel section that does not divide
            the devices.
        ModelError: the model's config cannot be read.
    """
    cluster = read_cluster(gpus, nodes)
    assumed = read_assumptions(cluster.device, assume)
    cluster = replace(cluster, device=_device(cluster.device, assumed))
    shape = measure_shape(config.model)
    case = build_case(config, cluster, shape, assumed)
    memory = plan_memory(case)
    problems = tuple(_problems(case, memory))
    found: tuple[Mend, ...] = ()
    if not memory.fits or problems:
        found = mends(config, cluster, _mended(config, cluster, assumed))
    return Plan(config, cluster, case, memory, plan_times(case, memory.rows), found, problems)


def build_case(
    config: SRFTConfig, cluster: Cluster, shape: ModelShape, assumed: Assumptions
) -> Case:
    layout = read_layout(config, cluster)
    longest = config.rollout.max_tokens
    methods = [
        get_method(stage.method, stage.objective, longest_response=longest)
        for stage in config.resolved_stages
    ]
    work = measure_work(config, methods, layout, assumed, shape.window)
    # FSDP2 casts what it gathers, so layers run in that dtype throughout; autocast casts inputs.
    inside = layout.gather if layout.world > 1 else layout.weights
    kept = kept_for_backward(shape, config.model, inside, layout.autocast, work.worst.padding)
    made = kept
    if config.model.lora and assumed.heap_holes:
        whole = config.model.model_copy(update={"lora": None})
        made = kept_for_backward(shape, whole, inside, layout.autocast, work.worst.padding)
    return Case(config, cluster.device, layout, work, shape, kept, made, assumed)


def _device(device: Device, assumed: Assumptions) -> Device:
    given = {
        key: getattr(assumed, key)
        for key in ("memory_gib", "tflops", "bandwidth_gbs", "link_gbs")
        if getattr(assumed, key) is not None
    }
    device = replace(device, **given)
    if device.is_cpu and not (device.tflops and device.bandwidth_gbs):
        device = replace(measured_cpu(device), **given)
    return device


def _problems(case: Case, memory: Memory) -> list[str]:
    """What stands in the way beside the sum of bytes."""
    found = []
    window, limit = case.shape.window, case.config.rollout.max_tokens
    if window is not None and limit >= window and case.work.worst.group:
        found.append(
            f"rollouts of {limit:,} tokens do not fit the model's window of {window:,}: lower "
            "rollout.max_tokens, or set model.max_position_embeddings (with a model.rope_theta that "
            "reaches so far)"
        )
    if case.work.worst.group and not memory.rows:
        key = (
            "rollout.cache_tokens" if case.samples_itself else "rollout.vllm.gpu_memory_utilization"
        )
        found.append(f"the engine's cache does not hold one sequence: raise {key}")
    per_step = case.config.train.prompts_per_step
    if per_step < case.layout.world:
        found.append(
            f"{case.layout.world} processes share {per_step} prompts: raise train.prompts_per_step"
        )
    return found


def _mended(
    config: SRFTConfig, cluster: Cluster, assumed: Assumptions
) -> Callable[[Mapping[str, Any]], Verdict]:
    """How a recipe with changed settings does."""
    counted: dict[str, ModelShape] = {}

    def judge(settings: Mapping[str, Any]) -> Verdict:
        other = changed(config, settings)
        key = other.model.model_dump_json()
        if key not in counted:
            counted[key] = measure_shape(other.model)
        try:
            case = build_case(other, cluster, counted[key], assumed)
        except ConfigError:
            return Verdict(float("inf"), ("impossible",))
        memory = plan_memory(case)
        return Verdict(memory.peak.bytes / memory.capacity, tuple(_problems(case, memory)))

    return judge
