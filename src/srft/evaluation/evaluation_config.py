"""Settings of evaluation, during training and alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from srft.data.data_config import Role
from srft.evaluation.benchmarks import resolve
from srft.section import Section


class EvaluationConfig(Section):
    """What to evaluate on, how to sample, and how often during training."""

    suites: list[str] = Field(
        default_factory=list,
        description="Suites or benchmarks by name, such as math5, ood3, lab, aime25 or gsm8k. "
        "Empty during training: the recipe's evaluation dataset.",
    )
    dataset: str | None = Field(
        None,
        description="Another dataset to evaluate on: hub id, JSONL or Parquet file, in any form "
        "that training data may have.",
    )
    columns: dict[Role, str] = Field(
        default_factory=dict, description="As `data.columns`, for `dataset`."
    )
    split: str = Field("test", description="Split of `dataset` where it comes from the hub.")
    data_dir: str | None = Field(
        None,
        description="Folder with local copies of the benchmarks. Unset: the environment variable "
        "SRFT_DATA_DIR, and the hub for what is not there.",
    )
    n: int | None = Field(
        None,
        ge=1,
        description="Samples of each problem. Unset: the benchmark's own protocol (32 for AIME "
        "and AMC, 1 for the others and for a dataset); during training 1.",
    )
    temperature: float | None = Field(
        None,
        ge=0,
        description="Sampling temperature, 0 for greedy. Unset: the protocol's, 0.6.",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus sampling: probability mass kept. 1 means off."
    )
    top_k: int = Field(
        0, ge=0, description="Number of likeliest tokens kept in sampling (top-k). 0 means off."
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="Maximum length of a response (tokens). Unset: the protocol's, 8192 (128 in the "
        "lab); during training the rollouts' own limit.",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="At most this many problems of each benchmark, and in training of each set of "
        "`data.eval`, drawn with `seed`. Results on such a part are marked.",
    )
    seed: int = Field(
        0,
        ge=0,
        description="Seed of sampling, of the order of options and of the choice under `limit`.",
    )
    system_prompt: str | None = Field(
        None,
        description="Replaces the system message of every problem; an empty string removes it. "
        "Unset: as the data has it.",
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="Coverage of the confidence intervals.")
    every_steps: int = Field(
        0, ge=0, description="Training steps between evaluations. 0: only at the end."
    )
    at_start: bool = Field(False, description="Evaluate before the first training step as well.")
    best_metric: str | None = Field(
        "accuracy",
        description="Metric by which the best checkpoint is kept, as named in metrics.jsonl "
        "without the `eval/` in front. Unset (null): no checkpoint is kept as best.",
    )
    best_mode: Literal["max", "min"] = Field(
        "max", description="Whether a larger (max) or a smaller (min) value is better."
    )

    @field_validator("suites")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        resolve(names)
        return names

    @model_validator(mode="after")
    def _one_source(self) -> EvaluationConfig:
        if self.suites and self.dataset:
            raise ValueError("give either `suites` or `dataset`, not both")
        return self
