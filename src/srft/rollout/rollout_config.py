"""How rollouts are sampled: the ``rollout`` section of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from srft.section import Section

if TYPE_CHECKING:
    from srft.types import SamplingParams


# Refused but for these, which mean off (and stand in recipes of older runs).
_TRUNCATIONS = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}


MOST_ROWS = 256
"""Of rollouts side by side, where memory allows it."""


class VLLMConfig(Section):
    """vLLM's own settings: of the engine in this process, and of a server that ``srft serve``
    starts. Where nothing is set, what the recipe and the device ask for."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of vLLM's weights; auto: float32 on a CPU, bfloat16 on a GPU.",
    )
    gpu_memory_utilization: float = Field(
        0.4,
        gt=0,
        le=1,
        description="Share of a GPU's memory for vLLM's weights and key/value cache. Leave the rest "
        "to training where both are on the same GPU; 0.9 suits a server that has the GPU to itself.",
    )
    kv_cache_gb: float | None = Field(
        None,
        gt=0,
        description="Size of the key/value cache in GB instead of a share of the memory; unset: 1 "
        "on a CPU, `gpu_memory_utilization` on a GPU.",
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        description="GPUs (or CPU processes) that share one copy of the model in vLLM.",
    )
    max_model_len: int | None = Field(
        None,
        ge=2,
        description="Longest prompt and response together, in tokens; unset: the longest prompt of "
        "the run's data and the longest response (`srft serve`: the model's window).",
    )
    max_batched_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens in one forward pass of vLLM; unset: 8192, and never less than one whole "
        "sequence, so that no prompt is cut into chunks.",
    )
    enforce_eager: bool | None = Field(
        None,
        description="Run the model as written, without compiling or capturing it: starts faster, "
        "generates slower on GPUs; unset: true on a CPU.",
    )
    sleep: bool = Field(
        True,
        description="In this process and on a GPU: release vLLM's memory while training.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further engine arguments, by vLLM's names, such as {quantization: fp8, "
        "block_size: 32}.",
    )


class ServerConfig(Section):
    """How running vLLM servers are spoken to (``rollout.engine: vllm-server``)."""

    in_flight: int = Field(256, ge=1, description="Maximum concurrent requests to each server.")
    timeout_s: float = Field(
        1800.0,
        gt=0,
        description="Longest wait for one completion, in seconds; a server that takes longer is "
        "dropped and the request goes to another one.",
    )
    connect_timeout_s: float = Field(
        10.0, gt=0, description="Longest wait for a connection or a health check, in seconds."
    )
    update_timeout_s: float = Field(
        600.0, gt=0, description="Longest wait for one transfer of weights, in seconds."
    )
    wait_s: float = Field(
        600.0,
        ge=0,
        description="How long to wait, in seconds, at the start until every server answers, and "
        "later for any server when none is left.",
    )
    check_every_s: float = Field(
        5.0, gt=0, description="Seconds between two checks of a dropped server."
    )
    attempts: int = Field(
        4, ge=1, description="How many times a request is tried before the run ends with an error."
    )
    transfer: Literal["auto", "memory", "nccl"] = Field(
        "auto",
        description="How weights reach the servers: `memory` (a file in shared memory: servers on "
        "this machine), `nccl` (GPU to GPU, also over the network), auto: nccl where the "
        "trainer's weights are on a GPU.",
    )
    shared_memory: str = Field(
        "/dev/shm", description="Folder in memory for the transfer `memory`."
    )
    nccl_host: str | None = Field(
        None,
        description="Address of the trainer that servers on other machines can reach; unset: "
        "this machine's own.",
    )


class RolloutConfig(Section):
    """Settings of the engine that generates rollouts, and of the sampling itself."""

    engine: Literal["embedded", "generate", "vllm", "vllm-server"] = Field(
        "embedded",
        description="What generates: `embedded` (this package's sampler over the model that is "
        "being trained; falls back to `generate`, with a warning, for a model it cannot drive), "
        "`generate` (transformers' own generation; slower, any causal language model), `vllm` "
        "(vLLM in this process) or `vllm-server` (vLLM servers that are already running: `servers`).",
    )
    servers: tuple[str, ...] = Field(
        (),
        description="Addresses of vLLM servers, such as http://127.0.0.1:8000, each started with "
        "`srft serve` and the same recipe.",
    )
    vllm: VLLMConfig = Field(default_factory=VLLMConfig, description="vLLM's own settings.")
    server: ServerConfig = Field(
        default_factory=ServerConfig, description="How to communicate with vLLM servers."
    )
    ahead: Literal[0, 1] = Field(
        0,
        description="1: make the next step's rollouts while this step is trained on, with weights "
        "one update old; needs the engine vllm-server. Sets `objective.importance_cap` to 2 unless "
        "the recipe sets it.",
    )
    group_size: int = Field(8, ge=1, description="Rollouts per prompt (G in the paper), a count.")
    temperature: float = Field(
        1.0, ge=0.0, description="Logits are divided by this before sampling; 0 means greedy."
    )
    max_tokens: int = Field(
        256, ge=1, description="Longest response, in tokens, stop token included."
    )
    stop: tuple[str, ...] = Field(
        (),
        description="Strings that end a response. The text is cut before the first of them; the "
        "tokens keep it.",
    )
    stop_token_ids: tuple[int, ...] = Field(
        (),
        description="Token ids that end a response, besides the end-of-sequence ids of the model's "
        "generation config and of the tokenizer.",
    )
    max_rows: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Maximum number of rollouts decoded at once (rows of the batch). auto: at most 256, as "
        "fit into the memory that is free (docs/planning.md); what was chosen is in the run's config.yaml.",
    )
    cache_tokens: int | None = Field(
        None,
        ge=1,
        description="Upper bound of the key/value cache, in token slots (one slot holds the keys "
        "and values of one token in every layer: 2 x layers x key/value heads x head size x bytes "
        "per number). A row takes longest prompt + max_tokens slots, and a quarter more when there "
        "are more rollouts than rows. Unset: as many slots as max_rows rows need.",
    )
    prefill_tokens: int = Field(
        8192,
        ge=1,
        description="Maximum prompt tokens, padding included, in one forward pass over prompts.",
    )
    free_cache: bool = Field(
        False,
        description="Release the cache's memory after every call instead of keeping it for the "
        "next one: slower, and leaves room for training on the same accelerator.",
    )
    check: bool = Field(
        True,
        description="At start-up, compare the log-probabilities of a few sampled tokens with those "
        "of the trainer's own forward pass, and refuse to train where they differ.",
    )

    max_mismatch: float | None = Field(
        None,
        gt=0,
        description="Largest mean difference between the engine's and the trainer's log-probabilities of a "
        "step's rollouts (`mismatch/abs`, nats), beyond which the run stops before its weights move. null: "
        "what rounding explains, 0.001 where both compute in float32, 0.1 where one does in half precision "
        "(docs/rollouts.md). Not with ahead=1, whose rollouts are by older weights.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_the_whole_distribution(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        cut = [name for name, off in _TRUNCATIONS.items() if values.get(name, off) != off]
        if cut:
            raise ValueError(
                f"{' and '.join(cut)}: rollouts are sampled from the whole distribution, because that "
                "is what the trainer scores them under: from a truncated one the engine's "
                "log-probabilities are renormalised, the trainer's are not, and importance weights "
                "are biased. Leave it out; evaluation has evaluation.top_p and evaluation.top_k"
            )
        return {key: value for key, value in values.items() if key not in _TRUNCATIONS}

    @field_validator("servers")
    @classmethod
    def _addresses(cls, servers: tuple[str, ...]) -> tuple[str, ...]:
        cleaned = tuple(url.rstrip("/") for url in servers)
        for url in cleaned:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is not an address; write it as http://host:port")
        if len(set(cleaned)) < len(cleaned):
            raise ValueError("a server is named twice")
        return cleaned

    @model_validator(mode="after")
    def _servers_belong_to_their_engine(self) -> RolloutConfig:
        if self.engine == "vllm-server" and not self.servers:
            raise ValueError(
                "engine is vllm-server but servers is empty; name at least one, such as "
                "servers=[http://127.0.0.1:8000]"
            )
        if self.servers and self.engine != "vllm-server":
            raise ValueError(
                f"servers are named but engine is {self.engine}; set it to vllm-server"
            )
        if self.ahead and self.engine != "vllm-server":
            raise ValueError(
                f"ahead is 1 but engine is {self.engine}, which cannot sample while the model is "
                "trained; set engine=vllm-server"
            )
        return self

    @property
    def rows(self) -> int:
        """``max_rows``; where nothing has chosen yet, the most that auto chooses."""
        return MOST_ROWS if self.max_rows == "auto" else self.max_rows

    def sampling_params(self) -> SamplingParams:
        """The same settings as the engines take them."""
        from srft.types import SamplingParams

        return SamplingParams(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
        )
