"""Checks texts and chat messages, in the forms in which datasets hold them.

Messages keep what chat templates read besides role and content (``reasoning_content``,
``tool_calls``, ``name``): the template decides what becomes of it.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from srft.data.row_errors import RowError, named_once
from srft.types import Message, Spoken

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""The names under which chat templates read an assistant's thinking."""
CALLS = ("tool_calls", "function_call")
SPOKEN = (*REASONING, *CALLS)
"""What an assistant's message may say besides its content."""

_ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function": "tool",
}
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_WRITTEN_OUT = re.compile(
    r"\s*[\[{].{0,200}?['\"](?:role|from|content|value|function|name)['\"]", re.S
)


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()


def is_null(value: Any) -> bool:
    """Whether there is nothing: None, NaN (what data frames write for it) or no such column."""
    if value is None or value is MISSING or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (float, Decimal)) and math.isnan(value)


def check_text(value: Any, name: str) -> str:
    """``value`` if it is text a tokenizer can take; RowError otherwise."""
    if value is MISSING:
        raise RowError(f"has no {name}; add it or remove the row")
    if is_null(value):
        raise RowError(f"{name} is null; write a text or remove the row")
    if not isinstance(value, str):
        raise RowError(f"{name} is of type {type(value).__name__}, not text; write it in quotes")
    if not value.strip():
        raise RowError(f"{name} is empty; write a text or remove the row")
    check_characters(value, name)
    return value


def check_characters(value: Any, name: str) -> None:
    """RowError where a text in these calls, tools or the like cannot be tokenized."""
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            check_characters(item, name)
    if not isinstance(value, str):
        return
    if "\0" in value:
        raise RowError(
            f"{name} has a NUL character at position {value.index(chr(0)) + 1}: a damaged "
            "conversion leaves these; remove it"
        )
    lone = _SURROGATE.search(value)
    if lone:
        raise RowError(
            f"{name} has half a surrogate pair (\\u{ord(lone[0]):04x}) at position "
            f"{lone.start() + 1}, which no UTF-8 text can hold; remove it"
        )


def plain(value: Any) -> Any:
    """Lists for tuples and arrays, so that data frames and arrays can be read as they are."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes, Mapping)):
        return value.tolist()
    return value


def without_fillers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table without the nulls that it holds for keys of other rows, in the column ``tools`` and in
    calls of messages: a template would write them as parameters and as arguments."""
    return {name: _unfilled(value, name == "tools") for name, value in row.items()}


def _unfilled(value: Any, filled: bool) -> Any:
    if filled or str(getattr(value, "dtype", "")) == "object":  # data frames have arrays for lists
        value = plain(value)
    if isinstance(value, Mapping):
        return {
            key: _unfilled(item, filled or key in CALLS)
            for key, item in value.items()
            if not filled or item is not None
        }
    return [_unfilled(item, filled) for item in value] if isinstance(value, list) else value


def is_message(value: Any) -> bool:
    """Whether an object has the keys of a chat message."""
    return (
        isinstance(value, dict)
        and not {"role", "from"}.isdisjoint(value)
        and not {"content", "value", *SPOKEN}.isdisjoint(value)
    )


def from_text(value: Any, wanted: Callable[[Any], bool] = is_message) -> Any:
    """The list of messages that a text writes out as JSON or as Python would, as CSV files
    and some exports hold them; anything else as it is. Raises RowError where a name stands twice in one."""
    if not isinstance(value, str) or not _WRITTEN_OUT.match(value):
        return value
    found = written_out(value)
    found = [found] if isinstance(found, dict) else found
    return found if isinstance(found, list) and found and all(map(wanted, found)) else value


def written_out(text: str) -> Any:
    """What a text says in JSON or as Python would print it; MISSING where it is neither. Raises RowError."""
    for read in (_read_json, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return MISSING


def _read_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=named_once)


def is_coded(text: str) -> bool:
    """Whether a text is a JSON object or list, or messages in a print that cannot be read back."""
    if text.strip()[:1] not in ("{", "["):
        return False
    if _WRITTEN_OUT.match(text):
        return True
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def begins_response(messages: Sequence[Message]) -> bool:
    """Whether the last message is the beginning of the assistant's, which the response goes on with."""
    return bool(messages) and messages[-1]["role"] == "assistant"


def _content(value: Any, name: str, may_be_empty: bool) -> Any:
    """The text of a message; a list of text parts ({"type": "text"}) is joined."""
    if may_be_empty and (is_null(value) or value == ""):
        return None if is_null(value) else ""
    if isinstance(value, list):
        kinds = {part.get("type") if isinstance(part, Mapping) else None for part in value}
        if value and kinds == {"text"}:
            return "".join(check_text(part.get("text"), name) for part in value)
        raise RowError(f"{name} has parts that are not text; only text is trained on")
    return check_text(value, name)


def _either(message: Mapping[str, Any], *names: str) -> Any:
    """The first of these that is not null: merged schemas hold both names, one of them null."""
    return next((m for name in names if not is_null(m := message.get(name))), None)


def check_messages(value: Any, name: str) -> list[dict[str, Any]]:
    """Chat messages with ``role``, ``content`` and what else they hold, also from ShareGPT's
    ``from`` and ``value``."""
    if is_null(value):
        check_text(value, name)
    value = plain(from_text(value))
    if not isinstance(value, list):
        raise RowError(
            f"{name} is of type {type(value).__name__}, not a list of messages "
            '{"role": "user", "content": ...}'
        )
    return [_message(item, f"{name}: message {k}") for k, item in enumerate(value, start=1)]


def _message(message: Any, here: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RowError(
            f"{here} is of type {type(message).__name__}; a message is "
            '{"role": "user", "content": ...}'
        )
    role = _either(message, "role", "from")
    role = _ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise RowError(f"{here} has the role {role!r}; roles are {', '.join(ROLES)}")
    more = {
        key: plain(item)
        for key, item in message.items()
        if key not in ("role", "from", "content", "value") and not is_null(item)
    }
    more = {key: item for key, item in more.items() if key not in SPOKEN or item}
    for key in REASONING:
        if key in more:
            check_text(more[key], f"{here} ({key})")
    for key, item in more.items():
        check_characters([key, item], f"{here} ({key})")
    speaks = role == "tool" or (role == "assistant" and not more.keys().isdisjoint(SPOKEN))
    content = plain(_either(message, "content", "value"))
    return {"role": role, "content": _content(content, f"{here} (content)", speaks), **more}


def check_prompt(value: Any, name: str, prefill: bool = True) -> str | tuple[Message, ...]:
    """A prompt: text, or messages that end with the user's or a tool's; with ``prefill`` also with
    the beginning of the assistant's, which responses go on with."""
    value = from_text(value)
    if isinstance(value, str) or is_null(value):
        return check_text(value, name)
    if not isinstance(plain(value), list):
        raise RowError(f"{name} is of type {type(value).__name__}, neither text nor chat messages")
    messages = check_messages(value, name)
    if not messages:
        raise RowError(f"{name} has no messages; write at least the user's")
    if not any(message["role"] == "user" for message in messages):
        raise RowError(f"{name} has no message of the user; write the question as one")
    last = messages[-1]
    prefilled = prefill and begins_response(messages) and last.keys().isdisjoint(SPOKEN)
    if last["role"] not in ("user", "tool") and not prefilled:
        raise RowError(
            f"{name} ends with a message of the {last['role']}; it must end with the "
            "user's. Move the assistant's last message to `demonstration`, or name the column "
            "`messages`"
        )
    if any(message["role"] == "system" for message in messages[1:]):
        raise RowError(f"{name} has a system message after the first place; put it first")
    return tuple(messages)


def assistant_text(message: Mapping[str, Any]) -> str:
    """A demonstration from the assistant's message; see ``Spoken``."""
    text = message["content"] or ""
    return text if message.keys() <= {"role", "content"} else Spoken(text, (message,))


def turns_text(messages: Sequence[Mapping[str, Any]], name: str) -> str:
    """A demonstration from turns of the assistant with what tools answered between them."""
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        return assistant_text(messages[0])
    roles = [message["role"] for message in messages]
    called = [not message.keys().isdisjoint(CALLS) for message in messages]
    follows = [
        role == "tool" and (before == "tool" or calls) if role != "assistant" else before == "tool"
        for role, before, calls in zip(roles[1:], roles, called, strict=False)
    ]
    if not roles or roles[0] != "assistant" or roles[-1] != "assistant" or not all(follows):
        raise RowError(
            f"{name} has the messages ({', '.join(roles)}); a demonstration is one message of the "
            "assistant, or several with the tools' messages after each that has tool_calls; several "
            "demonstrations are a list of texts or of such lists"
        )
    return Spoken(messages[-1]["content"] or "", messages)


def _assistant_text(value: Any, name: str) -> str:
    """One demonstration: text, or a list with the one message of the assistant."""
    if isinstance(value, Spoken):
        check_characters([value, value.messages], name)
        return value
    value = from_text(value)
    if not isinstance(value, list):
        return check_text(value, name)
    return turns_text(check_messages(value, name), name)


def check_demonstrations(value: Any, name: str) -> list[str]:
    """No, one or several demonstrations: null, text, messages, or a list of several of these."""
    value = from_text(plain(value))
    if is_null(value):
        return []
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return [_assistant_text(value, name)]
    if value and all(isinstance(item, Mapping) for item in value):
        return [_assistant_text(value, name)]
    return [
        _assistant_text(plain(item), f"{name} number {number}")
        for number, item in enumerate(value, start=1)
    ]
