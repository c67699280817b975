"""Settings of the teacher: the ``teacher`` section of a recipe."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from srft.model.model_config import DtypeName
from srft.section import Section

SHOWN = (
    "{prompt}\n\nHere is a correct solution:\n\n{solution}\n\nNow solve it yourself, step by "
    "step, in your own words."
)


FEEDBACK = (
    "{prompt}\n\nAn earlier attempt failed. What was said of it:\n\n{feedback}\n\n"
    "Now solve it correctly, step by step."
)


class TeacherConfig(Section):
    """Who scores the responses a second time, for methods that distil (docs/objective.md)."""

    path: str | None = Field(
        None,
        description="opd, gkd: the frozen teacher, a model folder, hub id or run directory; it must have "
        "the policy's tokenizer.",
    )
    server: str | None = Field(
        None,
        description="opd: instead of path, the address of a vLLM server that holds the teacher and returns "
        "the log-probabilities of prompts; for the sampled form.",
    )
    dtype: DtypeName | None = Field(
        None, description="Precision in which the teacher is held; null: as `model.dtype`."
    )
    frozen: bool = Field(
        False,
        description="sdft, sdpo, rlsd: the teacher is the policy as it was before training, "
        "instead of the live one.",
    )
    template: str = Field(
        SHOWN,
        description="sdft, sdpo, rlsd: the prompt that the teacher sees; {prompt} is the user's last words, "
        "{solution} the demonstration or the right rollout.",
    )
    feedback: str | None = Field(
        FEEDBACK,
        description="sdpo: the prompt that the teacher of a wrong rollout sees where its group has no right "
        'one; {feedback} is what a reward function noted of it with `log_extra("feedback", texts)`, and '
        "where that is empty nothing is taught. null: right rollouts alone teach.",
    )
    timeout_s: float = Field(120.0, gt=0, description="Seconds to wait for the teacher's server.")

    @field_validator("template", "feedback")
    @classmethod
    def _names_both(cls, value: str | None, info: ValidationInfo) -> str | None:
        for name in ("{prompt}", "{solution}" if info.field_name == "template" else "{feedback}"):
            if value is not None and value.count(name) != 1:
                raise ValueError(f"must hold {name} once")
        return value
