"""What model to train, and how it is held in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from srft.section import Section

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


ADAPTER_CONFIG = "adapter_config.json"
"""The file that makes a folder one of adapters."""


def holds_model(folder: Path) -> bool:
    """Whether ``folder`` is a model's, whole or adapters alone."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def is_lab(reference: str | Path) -> bool:
    """Whether ``reference`` is the base model that comes along: ``lab``, unless a folder of that name here
    holds a model. (`srft lab` writes into a folder ``lab``, which holds none.)"""
    return str(reference) == "lab" and not holds_model(Path("lab"))


class LoraConfig(Section):
    """Low-rank adapters (LoRA): the model's own weights stay as they are, and each adapted matrix W
    becomes W + scale B A, of which only A and B are trained."""

    rank: int = Field(16, ge=1, description="Columns of B and rows of A.")
    alpha: float = Field(
        32.0, gt=0, description="The scale is alpha / rank (alpha / sqrt(rank) with rslora)."
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of each adapter's inputs that is dropped in training, where model.dropout lets "
        "dropout act.",
    )
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Names of the adapted modules, such as [q_proj, v_proj]; all-linear: every linear "
        "layer but the output head, and those that docs/adapters.md names.",
    )
    target_parameters: list[str] = Field(
        default_factory=list,
        description="Names of adapted parameters that do not belong to a linear layer: stacks of "
        "experts, such as [mlp.experts.gate_up_proj, mlp.experts.down_proj]. Dropout must be 0.",
    )
    rslora: bool = Field(False, description="Rank-stabilised scale, alpha / sqrt(rank).")
    quantization: Literal["nf4"] | None = Field(
        None,
        description="nf4 holds the frozen matrices in four bits (QLoRA; needs `srft[qlora]`). null keeps "
        "model.dtype.",
    )
    export: Literal["merged", "adapter"] = Field(
        "merged",
        description="What the run exports: a whole model with the adapters added to its weights, or a "
        "folder with the adapters alone, which peft, transformers and vLLM put on top of the base.",
    )

    @property
    def scale(self) -> float:
        """What B A is multiplied with."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class ModelConfig(Section):
    """The policy: where its weights are and how they are loaded."""

    path: str = Field(
        "",
        description="Model name on the hub, folder with config.json and safetensors weights, GGUF file (read "
        "into floats; needs `srft[gguf]`), or `lab` for the small base model that ships with this package.",
    )
    revision: str | None = Field(
        None, description="Commit, branch or tag on the hub; null: the main branch."
    )
    tokenizer: str | None = Field(
        None, description="Name or folder of the tokenizer; null: the model's own."
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
        "CUDA device that supports it; in training on a CPU it is bfloat16 where a short measurement finds "
        "its products at least twice as fast (AMX) and the model is at least 512 wide, which the run's "
        "config.yaml then says. float32 means off.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Only for sources you trust."
    )
    use_safetensors: bool = Field(
        True,
        description="Load safetensors weights only. false also admits pickled weights, which can "
        "run code when they are opened.",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto",
        description="Keep only the input of each layer for the backward pass and recompute the rest: "
        "about a third more time for much less memory. auto: where training does not fit into the "
        "memory that is free without it.",
    )
    compile: bool = Field(
        False,
        description="Compile the layers for the update with torch.compile: less time per step, after "
        "tens of seconds of compilation at the start (docs/performance.md). On a CPU it needs a "
        "C++ compiler.",
    )
    kernels: Literal["auto", "torch"] = Field(
        "auto",
        description="auto takes the fastest for the device: on CUDA the Triton kernels of the "
        "output head for half-precision products; on AMD processors with AVX-512 oneDNN's float32 "
        "products; for float32 norms a hand-written backward pass. torch takes PyTorch's own "
        "everywhere.",
    )
    dropout: bool | Literal["auto"] = Field(
        "auto",
        description="Whether a model's training noise (dropout, adapters' dropout, router jitter) "
        "is active. auto: only in methods without rollouts, since the policy whose "
        "log-probabilities are trained on is the one that was sampled, which has no noise.",
    )
    router_aux_loss_coef: float | None = Field(
        None,
        ge=0,
        description="Coefficient of the load-balancing loss of a mixture of experts, over the "
        "whole optimizer step (one more forward pass). null: the model's own, where its "
        "config.json has output_router_logits; 0: off.",
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
    rope_length: int | None = Field(
        None,
        gt=0,
        description="For rotary embeddings that change with the length of a sequence (rope_type longrope or "
        "dynamic): the length in tokens whose frequencies every sequence gets, in training, sampling and the "
        "exported config. null: the model's own, and sequences beyond the change are refused.",
    )
    max_position_embeddings: int | None = Field(
        None,
        gt=0,
        description="Context window in tokens, replacing the model's own (the paper: 16384).",
    )
    pad_token: str | None = Field(
        None,
        description="Token used for padding where the tokenizer names none; it must be in the "
        "vocabulary. null: the tokenizer's pad token, else its end-of-sequence token.",
    )
    text_only: bool = Field(
        False,
        description="Of a checkpoint with other parts (vision, audio), train and export the text part alone, "
        "where transformers has a class for that. false: the whole checkpoint is loaded, its text part "
        "trained, and the whole exported.",
    )
    lora: LoraConfig | None = Field(
        None, description="Train low-rank adapters instead of the weights; null: train the weights."
    )

    @model_validator(mode="after")
    def _adapter_folder_can_say_it(self) -> ModelConfig:
        changed = "rope_theta" if self.rope_theta else "rope_length" if self.rope_length else None
        if self.lora and self.lora.export == "adapter" and changed:
            raise ValueError(
                f"lora.export is adapter, but a folder of adapters cannot carry the changed {changed}: "
                "whoever loads it takes the base's own. Set lora.export to merged"
            )
        return self
