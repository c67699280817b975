"""How recipes name rewards, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from srft.rewards.registry import REWARDS
from srft.rewards.reward_config import OPTIONS, RewardConfig, RewardSpec

ROOT = Path(__file__).parents[2]


class Recipe(BaseModel):
    reward: RewardConfig = RewardConfig()


def _reward(value: Any) -> RewardConfig:
    return Recipe.model_validate({"reward": value}).reward


def test_a_name_a_mapping_a_list_and_the_full_form_say_the_same() -> None:
    full = _reward({"rewards": [{"name": "math"}]})
    assert _reward("math") == _reward({"name": "math"}) == _reward(["math"]) == full
    assert Recipe().reward == full
    assert RewardConfig.model_validate(full.model_dump()) == full


def test_options_and_limits_stand_side_by_side_in_the_short_form() -> None:
    reward = _reward({"name": "numeric", "tolerance": 1e-3, "timeout_s": 2, "workers": 3})
    assert reward.rewards[0].options() == {"tolerance": 1e-3}
    assert (reward.timeout_s, reward.workers, reward.correct_threshold) == (2.0, 3, 0.5)


def test_a_list_carries_weights_and_functions() -> None:
    reward = _reward(["math", {"name": "format", "weight": 0.2}, "my/rewards.py:short"])
    assert [spec.weight for spec in reward.rewards] == [1.0, 0.2, 1.0]
    assert reward.rewards[2].function == "my/rewards.py:short"
    assert [spec.label for spec in reward.rewards] == ["math", "format", "short"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("maths", "did you mean 'math'"),
        ("Numerc", "did you mean 'numeric'"),
        ("zzz", "there are math, exact"),
        ({"name": "math", "tolerance": 0.1}, "`tolerance` is not an option of 'math'"),
        ({"name": "math", "function": "a:b"}, "either a `name` or a `function`"),
        ({"function": "rewards.py"}, "path.py:name"),
        ({"name": "math", "arguments": {}}, "belongs to a `function`"),
        ({"name": "math", "tolerence": 0.1}, "tolerence"),
        ({"name": "numeric", "tolerance": -1}, "greater than or equal to 0"),
        ({"name": "math", "weight": 0.5}, "none is greater than correct_threshold"),
        ({"name": "math", "rewards": ["exact"]}, "put this into an item"),
        (["math", "math"], "given once"),
        ([], "at least 1"),
        ({"name": "math", "failed_demonstrations": "ignore"}, "'keep' or 'drop'"),
        (7, "RewardConfig"),
    ],
)
def test_what_is_wrong_is_refused_with_the_way_to_mend_it(value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _reward(value)


def test_every_option_is_a_field_with_a_description() -> None:
    declared = {option for verifier in REWARDS.values() for option in verifier.options}
    assert declared == set(OPTIONS)
    for model in (RewardSpec, RewardConfig):
        assert all(field.description for field in model.model_fields.values())


def test_the_config_is_light_to_import() -> None:
    code = "import sys, srft.rewards.reward_config; print({'torch', 'sympy', 'psutil'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.stdout.strip() == "set()"
