"""Settings of the optimisation and of the run directory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from srft.objective.switches import Switches
from srft.section import Section

MOST_TOKENS = 16_384
"""In a micro-batch, where memory allows it: more are no faster."""


class TrainConfig(Section):
    """How the weights are moved."""

    steps: int = Field(
        100, ge=1, description="Training steps: rollout batches, not optimizer steps."
    )
    prompts_per_step: int = Field(16, ge=1, description="Prompts in one step.")
    demonstrations_per_step: int = Field(
        0,
        ge=0,
        description="Further prompts in one step of which the demonstrations alone are trained on, without "
        "rollouts; they come in an order of their own.",
    )
    learning_rate: float = Field(1e-6, gt=0, description="Peak learning rate.")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="adamw_8bit keeps AdamW's two moments in eight bits each (bitsandbytes): 2 bytes per "
        "weight instead of 8, for rounding in the moments. One process only.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant",
        description="Learning rate after warm-up. Linear and cosine are spread over the steps of the "
        "recipe (of each stage): a run resumed with more steps continues at the rate of the longer schedule.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from zero.")
    min_learning_rate_ratio: float = Field(
        0.0, ge=0, le=1, description="Where linear and cosine end, as a share of the peak."
    )
    weight_decay: float = Field(
        0.0, ge=0, description="AdamW's decoupled weight decay (matrices only)."
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's moment decay rates.")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(
        1.0, gt=0, description="Gradients are clipped to this global norm."
    )
    optimizer_steps_per_batch: int = Field(
        1,
        ge=1,
        description="Optimizer steps on each rollout batch. Above 1 the batch is divided by prompts (by "
        "sequences where there are fewer prompts than steps), old log-probs are computed first and clipping "
        "applies. A step in which no sequence has gradient moves nothing.",
    )
    tokens_per_micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Prompt and response tokens in one forward and backward pass. auto: at most 16384, as "
        "fit into the memory that is free (docs/planning.md); what was chosen is in the run's config.yaml. "
        "The result does not depend on it but for rounding.",
    )
    max_refill_rounds: int = Field(
        4,
        ge=0,
        description="Further rounds of prompts a method with refill (DAPO) may sample per step.",
    )
    interleave_prompts: int | None = Field(
        None,
        ge=1,
        description="ReLIFT: unsolved prompts in one supervised step; null: prompts_per_step. Where more "
        "wait than there are rows, the oldest are dropped.",
    )
    on_nonfinite: Literal["skip", "stop"] = Field(
        "skip",
        description="A step with a non-finite loss or gradient is refused; then continue or stop.",
    )
    max_nonfinite: int = Field(
        5, ge=0, description="Consecutive refused steps after which training stops in any case."
    )
    seed: int = Field(0, ge=0, description="Seed of prompts, rollouts and everything else random.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device the model runs on.")
    gradient_analysis_every: int = Field(
        0,
        ge=0,
        description="Steps between measurements of each term's gradient norm and of the cosine "
        "between the supervised and the reinforcement gradient (one more backward pass per term); "
        "0: never.",
    )

    @property
    def micro_batch_tokens(self) -> int:
        """``tokens_per_micro_batch``; where nothing has chosen yet, the most that auto chooses."""
        auto = self.tokens_per_micro_batch == "auto"
        return MOST_TOKENS if auto else int(self.tokens_per_micro_batch)

    @field_validator("betas")
    @classmethod
    def _decay(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"is {list(betas)}; each is at least 0 and less than 1")
        return betas


class RunConfig(Section):
    """Where results go and what is kept."""

    dir: str | None = Field(None, description="Run directory; null: runs/<method>-<date>.")
    checkpoint_every: int = Field(
        50, ge=0, description="Steps between checkpoints; 0: only at the end."
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="How many of the newest checkpoints are kept."
    )
    background_checkpoints: bool = Field(
        False,
        description="Write checkpoints in a thread from a copy in the host's memory, while "
        "training continues.",
    )
    samples_every: int = Field(10, ge=0, description="Steps between saved samples; 0: never.")
    samples_prompts: int = Field(
        4, ge=1, description="Prompts whose whole group is saved each time."
    )
    live: Literal["auto", "always", "never"] = Field(
        "auto", description="Live view in the terminal; auto: when the output is one."
    )
    trackers: list[Literal["wandb", "tensorboard", "trackio"]] = Field(
        default_factory=list,
        description="Trackers in addition to metrics.jsonl, each an optional install.",
    )
    export: bool = Field(True, description="Write the final model to <dir>/model.")
    export_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of the exported weights; auto: that of the source model."
    )


class Stage(Section):
    """One stage of a sequence (SFT then RL, say)."""

    method: str = Field(description="A name from the table of methods.")
    steps: int = Field(ge=1, description="Steps of this stage (at most, where plateau is set).")
    objective: Switches = Field(default_factory=Switches, description="Switches of this stage.")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate; null: train.learning_rate."
    )
    reference: Literal["base", "stage"] = Field(
        "base",
        description="What a KL term or a frozen teacher compares with: base, the policy before the first "
        "stage; stage, the policy as it was when this stage began.",
    )
    plateau: int | None = Field(
        None,
        ge=2,
        description="Leave the stage when the mean of the watched metric over this many steps is no better "
        "than over as many before them (the mean reward of rollouts; the log-probability of "
        "demonstrations where the method has none).",
    )

    @model_validator(mode="after")
    def _plateau_fits(self) -> Stage:
        if self.plateau is not None and 2 * self.plateau > self.steps:
            raise ValueError(
                f"plateau: {self.plateau} needs at least {2 * self.plateau} steps to compare two windows, "
                f"but the stage has {self.steps}; lower plateau or raise steps"
            )
        return self
