import subprocess
import sys

import pytest
from pydantic import ValidationError

from srft.data.data_config import DataConfig


def test_every_field_has_a_default_and_a_description():
    for name, field in DataConfig.model_fields.items():
        assert not field.is_required(), name
        assert field.description and len(field.description) > 20, name


def test_importing_the_config_is_light():
    script = (
        "import sys, srft.data.data_config; "
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colums": {}}, "Extra inputs"),
        ({"columns": {"question": "prompt"}}, "'prompt', 'demonstration', 'answer' or 'system'"),
        ({"eval": "x.jsonl", "eval_fraction": 0.1}, "both set"),
        ({"eval_fraction": 1.0}, "less than 1"),
        ({"train": ""}, "is empty"),
        ({"train": []}, "is an empty list"),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"overlong_prompt": "cut"}, "'drop', 'error' or 'truncate_left'"),
    ],
)
def test_wrong_settings_are_refused(options, words):
    with pytest.raises(ValidationError, match=words):
        DataConfig(**options)
