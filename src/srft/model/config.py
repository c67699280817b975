"""What model to train, and how it is held in memory."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


class ModelConfig(BaseModel):
    """The policy: where its weights are and how they are loaded."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        "",
        description="Model name on the hub, folder with config.json and safetensors weights, or `lab` "
        "for the small base model that ships with this package.",
    )
    revision: str | None = Field(
        None, description="Commit, branch or tag on the hub; none takes the main branch."
    )
    tokenizer: str | None = Field(
        None, description="Name or folder of the tokenizer; none takes the model's own."
    )
    dtype: DtypeName = Field(
        "auto",
        description="Dtype parameters are held in. auto is float32: at learning rates around 1e-6 "
        "an update is smaller than the spacing of bfloat16 numbers and would be rounded away. "
        "bfloat16 halves memory and is right for adapters and for evaluation; float16 for "
        "evaluation only (no loss scaling is done).",
    )
    autocast: DtypeName = Field(
        "auto",
        description="Dtype of matrix products when parameters are float32. auto is bfloat16 on a "
        "CUDA device that supports it and off on a CPU (where it is slower); float32 means off.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Only for sources you trust."
    )
    use_safetensors: bool = Field(
        True,
        description="Load safetensors weights only. false also admits pickled weights, which can "
        "run code when they are opened.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep only the input of each layer for the backward pass and compute the rest "
        "again: about a third more time for much less memory.",
    )
    attention: Literal["auto", "packed", "padded"] = Field(
        "auto",
        description="packed runs sequences end to end in one row without padding; padded runs them "
        "as a right-padded batch and works with every model; auto takes packed where the model's "
        "attention can be replaced, padded elsewhere.",
    )
    rope_theta: float | None = Field(
        None,
        gt=0,
        description="Base of the rotary position embedding, replacing the model's own (the paper "
        "takes 40000 for Qwen2.5-Math, made with 10000).",
    )
    max_position_embeddings: int | None = Field(
        None,
        gt=0,
        description="Context window in tokens, replacing the model's own (the paper: 16384).",
    )
    pad_token: str | None = Field(
        None,
        description="Token used for padding where the tokenizer names none; it must be in the "
        "vocabulary. None takes the tokenizer's pad token, else its end-of-sequence token.",
    )
