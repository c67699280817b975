"""Secrets stay out of what is written: logs, recipes, reports, model cards, error messages.

A secret is the value of an environment variable whose name says so (``HF_TOKEN``,
``WANDB_API_KEY``, ``AWS_SECRET_ACCESS_KEY``), a setting whose key says so (``api_key: ...``), the user
part of a URL, or a text of a well-known shape (``hf_...``, ``sk-...``). It is replaced by a word that
says what stood there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(
    r"(?:^|_)(?:token|secret|password|passwd|credentials?|api_?key|access_key|private_key|auth)(?:$|_)|_key$",
    re.IGNORECASE,
)
# Of this package's own settings: what these hold is no secret.
_HARMLESS = re.compile(r"token_ids?$|^(?:pad|eos|bos|unk)_token$|_tokens?_|tokens$", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abp]-[A-Za-z0-9-]{10,})\b"
)
_URL_USER = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_ASSIGNMENT = re.compile(r"(?<![\w.])((?:[\w-]+\.)*[\w-]+)=([^\s'\"]+)")
_QUERY = re.compile(
    r"([?&](?:[\w-]*_)?(?:token|key|secret|password|signature|sig)=)[^&\s'\"]+", re.I
)
_SHORTEST = 8
"""Shorter values are words that stand in any text; replacing them would blot out half of a log."""


def is_secret_name(name: str) -> bool:
    """Whether a variable or a setting of this name holds a secret."""
    return bool(_NAME.search(name.replace("-", "_"))) and not _HARMLESS.search(name)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that has no business with secrets."""
    return {name: value for name, value in environment.items() if not is_secret_name(name)}


def redact(text: str) -> str:
    """``text`` with every secret replaced."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and is_secret_name(name):
            text = text.replace(value, f"<{name}>")
    text = _SHAPES.sub("<secret>", text)
    text = _URL_USER.sub("<secret>", text)
    text = _QUERY.sub(r"\1<secret>", text)
    return _ASSIGNMENT.sub(_assignment, text)


def redact_values(values: Any, key: str = "") -> Any:
    """Plain data (dicts, lists, texts) with every secret replaced, also by the names of its keys."""
    if isinstance(values, Mapping):
        return {name: redact_values(value, str(name)) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [redact_values(value, key) for value in values]
    if isinstance(values, str):
        return "<secret>" if values and is_secret_name(key) else redact(values)
    return values


def _assignment(match: re.Match[str]) -> str:
    name, value = match[1], match[2]
    hidden = is_secret_name(name.rpartition(".")[2]) and not value.startswith("<")
    return f"{name}=<secret>" if hidden else match[0]
