"""Tools that a model may call while it responds: the ``environment`` section of a recipe."""

from __future__ import annotations

from pydantic import Field, field_validator

from srft.section import Section


class EnvironmentConfig(Section):
    """Functions and environments of your own, on the contract of TRL's ``tools`` and
    ``environment_factory`` (docs/environments.md)."""

    tools: tuple[str, ...] = Field(
        (),
        description="Functions that the model may call: `path.py:name` or `package.module:name`.",
    )
    factory: str | dict[str, str] | None = Field(
        None,
        description="A class whose public methods are tools (`path.py:Class`), one object for each rollout, "
        "set back by `reset`; or several by the names that rows hold in a column `environment`.",
    )
    max_turns: int | None = Field(
        16,
        ge=1,
        description="Turns of the model in one response at most: calls of tools in the last of them are "
        "not made; null: as many as rollout.max_tokens, which counts all tokens of a response, holds.",
    )
    timeout_s: float | None = Field(
        30.0,
        gt=0,
        description="Maximum wall-clock seconds of one call of a tool, after which the model is told that it "
        "did not answer; null: no limit.",
    )

    @field_validator("tools", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value
