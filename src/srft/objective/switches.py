"""The switches of the objective: every choice on which the readings of the paper differ."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Switches(BaseModel):
    """Set in a recipe under ``objective:``; what is not set there is the method's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sft_coefficient: float = Field(0.5, ge=0, description="c in w_SFT = c exp(sign * H) (Eq. 8).")
    rl_coefficient: float = Field(0.1, ge=0, description="c in w_RL = c exp(H) (Eq. 11).")
    sft_entropy_sign: Literal[-1, 0, 1] = Field(
        -1, description="Sign of H in w_SFT: -1 paper, +1 released code, 0 a fixed weight."
    )
    rl_entropy_sign: Literal[-1, 0, 1] = Field(1, description="Sign of H in w_RL; 0: fixed.")
    entropy_level: Literal["token", "sequence", "batch"] = Field(
        "token", description="Over what H is averaged before the exponential."
    )
    weight_cap: float | None = Field(None, gt=0, description="Upper bound on w_SFT and w_RL.")
    clip_low: float = Field(0.2, ge=0, description="Ratio is clipped below at 1 - clip_low.")
    clip_high: float = Field(0.2, ge=0, description="Ratio is clipped above at 1 + clip_high.")
    average: Literal["token", "sequence", "constant"] = Field(
        "token", description="Mean over tokens, mean of sequence means, or sum over a constant length."
    )
    constant_length: int = Field(1024, ge=1, description="L of average: constant, in tokens.")
    normalize_std: bool = Field(True, description="Divide advantages by the group's spread (Eq. 7).")
    demos_in_group: bool = Field(
        True, description="Demonstrations enter the group's mean and spread (Eq. 6, 7)."
    )
