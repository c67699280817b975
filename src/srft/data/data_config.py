"""What the data of a run is: where it is read from and how it becomes tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from srft.section import Section

Role = Literal["prompt", "demonstration", "answer", "system"]

DEFAULT_PROMPT_TEMPLATE = "{prompt}\n"


class DataConfig(Section):
    """The ``data`` section of a recipe. See docs/data.md for formats and policies."""

    train: str | list[str] = Field(
        "lab",
        description="Training data: a hub dataset id, a local folder, a .jsonl, .json, .parquet or "
        ".csv file, `lab` or `lab-hard` for the built-in tasks, `reasoning-gym:FAMILY?size=2000` for "
        "generated ones, or a list of these (concatenated).",
    )
    subset: str | None = Field(
        None,
        description="Name of the hub dataset's configuration, such as `main` for GSM8K; of a local "
        "folder, one that its README.md describes, a subfolder, or `default` for the folder as it is.",
    )
    split: str | None = Field(
        None,
        description="Split of the hub dataset or local folder to train on; null means `train` "
        "where there is one. A single file has no splits.",
    )
    limit: int | None = Field(
        None, ge=1, description="Read the first `limit` rows of each training source (rows)."
    )
    eval: str | list[str] | dict[str, str] | None = Field(
        None,
        description="Evaluation data: a source as in `train`, a list of sources, or a mapping from "
        "a name of your choice to a source. null: see `eval_fraction`.",
    )
    eval_subset: str | None = Field(
        None, description="As `subset`, for `eval`; null means the value of `subset`."
    )
    eval_split: str | None = Field(
        None, description="As `split`, for `eval`; null means `test` where there is one."
    )
    eval_columns: dict[Role, str] | None = Field(
        None,
        description="As `columns`, for `eval`; null means the value of `columns`, {} that all are "
        "detected.",
    )
    eval_limit: int | None = Field(
        None, ge=1, description="Read the first `eval_limit` rows of each evaluation source (rows)."
    )
    eval_fraction: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Share of the training rows held out for evaluation (0 to 1, at least one row "
        "when above 0), drawn with `seed`. Only without `eval`.",
    )
    seed: int = Field(
        0,
        ge=0,
        description="Seed of the held-out rows and of the lab's problems. Apart from train.seed, so "
        "that runs with several seeds see the same data.",
    )
    columns: dict[Role, str] = Field(
        default_factory=dict,
        description="Which of your columns holds the `prompt`, the `demonstration`, the `answer` "
        "and the `system` message; dotted paths such as `reward_model.ground_truth` reach inside. "
        "Columns not named here are detected.",
    )
    invalid_rows: Literal["error", "drop"] = Field(
        "error",
        description="Rows that cannot be used: `error` stops and lists them, `drop` leaves them "
        "out and logs how many.",
    )
    shuffle: bool = Field(
        True, description="Draw prompts in a new seeded order each epoch; false: in file order."
    )
    system_prompt: str | None = Field(
        None,
        description="System message put before every prompt that has none of its own. null: none.",
    )
    chat_template: str = Field(
        "auto",
        description="`auto`: the tokenizer's chat template, or plain text if it has none; `none`: "
        "plain text (`prompt_template`); anything else: path of a Jinja chat template.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Variables handed to the chat template, such as `enable_thinking: false` or a "
        "fixed `date_string`.",
    )
    prompt_is_rendered: bool | None = Field(
        None,
        description="true: a text prompt that holds control tokens (`<|im_start|>`) is complete and "
        "is used as it stands, without a template; false: control tokens in prompts are text; null: "
        "they are text, and it is an error where most prompts hold some.",
    )
    prompt_template: str = Field(
        DEFAULT_PROMPT_TEMPLATE,
        description="Plain text around a prompt where no chat template is used; must hold "
        "`{prompt}` exactly once. The demonstration or rollout follows directly after it.",
    )
    eos_token: str | None = Field(
        None,
        description="Token that ends a response. null: the token the chat template ends an "
        "assistant turn with, else the tokenizer's eos_token.",
    )
    max_prompt_tokens: int | None = Field(
        1024, ge=1, description="Longest prompt, template included (tokens). null: no limit."
    )
    overlong_prompt: Literal["drop", "error", "truncate_left"] = Field(
        "drop",
        description="Prompts above the limit: `drop` leaves the row out; `error` stops; "
        "`truncate_left` keeps the last `max_prompt_tokens` tokens (a leading BOS stays).",
    )
    max_demonstration_tokens: int | None = Field(
        8192,
        ge=1,
        description="Longest demonstration, its end token included (tokens). null: no limit.",
    )
    overlong_demonstration: Literal["drop", "truncate", "error"] = Field(
        "drop",
        description="Demonstrations above the limit: `drop` leaves this demonstration out and "
        "keeps the prompt; `truncate` keeps the first tokens, without an end token, so that "
        "stopping there is not learned; `error` stops.",
    )

    @field_validator("prompt_template")
    @classmethod
    def _has_one_placeholder(cls, value: str) -> str:
        if value.count("{prompt}") != 1:
            raise ValueError(
                f"holds `{{prompt}}` {value.count('{prompt}')} times; it must hold it exactly once,"
                f" for example {DEFAULT_PROMPT_TEMPLATE!r}"
            )
        return value

    @field_validator("train", "eval")
    @classmethod
    def _names_something(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("is empty; give a file, a folder, a hub dataset id or `lab`")
        if isinstance(value, (list, dict)) and not value:
            raise ValueError("is an empty list; give at least one source")
        return value

    @model_validator(mode="after")
    def _one_kind_of_evaluation(self) -> DataConfig:
        if self.eval is not None and self.eval_fraction > 0:
            raise ValueError(
                "`eval` and `eval_fraction` are both set; remove one: `eval` names other data, "
                "`eval_fraction` holds out a share of the training rows"
            )
        return self
