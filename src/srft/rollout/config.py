"""How rollouts are sampled: the ``rollout`` section of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from srft.types import SamplingParams


class RolloutConfig(BaseModel):
    """Settings of the engine that generates rollouts, and of the sampling itself."""

    model_config = ConfigDict(extra="forbid")

    engine: Literal["embedded", "generate"] = Field(
        "embedded",
        description="What generates: `embedded` (this package's sampler over the model that is "
        "being trained; falls back to `generate`, with a warning, for a model it cannot drive) or "
        "`generate` (transformers' own generation; slower, any causal language model).",
    )
    group_size: int = Field(8, ge=1, description="Rollouts per prompt (G in the paper), a count.")
    temperature: float = Field(
        1.0, ge=0.0, description="Logits are divided by this before sampling; 0 means greedy."
    )
    top_p: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Sample among the smallest set of tokens whose probability reaches this; "
        "1 means all tokens.",
    )
    top_k: int = Field(
        0, ge=0, description="Sample among this many most probable tokens; 0 means all tokens."
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
    max_rows: int = Field(
        256, ge=1, description="Most rollouts decoded side by side, in rows of the batch."
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
        description="Most prompt tokens, padding included, in one forward pass over prompts.",
    )
    free_cache: bool = Field(
        False,
        description="Give the cache's memory back after every call instead of keeping it for the "
        "next one: slower, and leaves room for training on the same accelerator.",
    )
    check: bool = Field(
        True,
        description="At start-up, compare a few greedily sampled tokens with a plain forward pass.",
    )

    def sampling_params(self) -> SamplingParams:
        """The same settings as the engines take them."""
        from srft.types import SamplingParams

        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.max_tokens,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
        )
