"""Recognises the formats people already have, by their columns, and turns rows into Examples.

| format | prompt | demonstration | answer |
|---|---|---|---|
| srft | prompt | demonstration and/or demonstrations | answer |
| GSM8K | question | answer, whole | answer, after `####`, commas removed |
| RL Parquet (verl, LUFFY) | prompt | target | reward_model.ground_truth |
| TRL | prompt | completion | answer |
| chat | messages or conversations, up to the last assistant turn | that turn | answer |
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from srft.data.row_errors import RowError
from srft.errors import DataError, did_you_mean
from srft.types import Example, Message

ROLES = ("system", "user", "assistant")
_ROLE_ALIASES = {"human": "user", "gpt": "assistant", "model": "assistant"}
_ANSWER_MARK = re.compile(r"####[ \t]*(.+?)\s*\Z", re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")

# Names that other datasets give to the three roles, the most telling first.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem", "instruction", "query", "input", "text"),
    "demonstration": (
        *("demonstration", "demonstrations", "solution", "response", "completion", "target"),
        *("output", "reasoning", "generation", "generations", "rationale", "chosen"),
    ),
    "answer": ("answer", "ground_truth", "final_answer", "gold", "label", "expected", "result"),
}


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()


@dataclass(frozen=True)
class Format:
    """Which column (a dotted path) holds what. ``chat``: the last assistant turn of ``prompt`` is
    the demonstration. ``marked``: the answer stands behind `####` at the end of its column."""

    name: str
    prompt: str
    demonstrations: tuple[str, ...] = ()
    answer: str | None = None
    chat: bool = False
    marked: bool = False

    def consumed(self, columns: Iterable[str]) -> set[str]:
        """The columns of the row that are in the Example's own fields, so not in ``columns``.

        A column of which only a part is used (``reward_model.ground_truth``) is not among them.
        """
        used = {self.prompt, *self.demonstrations, self.answer}
        return {column for column in columns if column in used}


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """The value at ``path`` (a column, or a dotted path into one; numbers index lists), or MISSING.

    A column whose name itself has dots wins over the path.
    """
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, (list, tuple)) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def _first(columns: Mapping[str, Any], *names: str) -> str | None:
    return next((name for name in names if name in columns), None)


def _detect(columns: Mapping[str, Any]) -> Format | None:
    """The format of rows with these columns (name -> first value that is not null), or None."""
    answer = _first(columns, "answer")
    graded = isinstance(columns.get("reward_model"), Mapping)
    truth = "reward_model.ground_truth" if graded else answer
    if "prompt" in columns:
        own = tuple(name for name in ("demonstration", "demonstrations") if name in columns)
        if own:
            return Format("srft", "prompt", own, answer or truth)
        if graded or "target" in columns:
            target = ("target",) if "target" in columns else ()
            return Format("RL Parquet", "prompt", target, truth)
        if "completion" in columns:
            return Format("TRL", "prompt", ("completion",), answer)
        return Format("srft", "prompt", (), answer)
    chat = _first(columns, "messages", "conversations")
    if chat:
        return Format("chat", chat, (), truth, chat=True)
    if "question" in columns and isinstance(columns.get("answer"), str):
        return Format("GSM8K", "question", ("answer",), "answer", marked=True)
    return None


def choose_format(
    rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str] | None, source: str
) -> Format:
    """The format of ``rows``, with the user's ``data.columns`` on top.

    Raises DataError where the format is unknown (the message proposes the ``data.columns`` line) or
    where a named column is in no row.
    """
    columns: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if columns.get(name) is None:
                columns[name] = value
    mapping = dict(mapping or {})
    found = _detect(columns)
    if found is not None and found.marked and "answer" not in mapping:
        texts = (row.get("answer") for row in rows)
        if not any(isinstance(text, str) and "####" in text for text in texts):
            found = None  # question and answer, but not GSM8K: which is which must be said
    if found is None:
        if "prompt" not in mapping:
            raise DataError(_unknown_format(columns, rows, source))
        own = tuple(name for name in ("demonstration", "demonstrations") if name in columns)
        found = Format("columns", mapping["prompt"], own, _first(columns, "answer"))
    return _override(found, mapping, rows, columns, source)


def _override(
    found: Format,
    mapping: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Any],
    source: str,
) -> Format:
    unknown = sorted(set(mapping) - {"prompt", "demonstration", "answer"})
    if unknown:
        raise DataError(
            f"data.columns names {_quoted(unknown)}; it maps `prompt`, `demonstration` and `answer`"
        )
    for role, path in mapping.items():
        if all(lookup(row, path) is MISSING for row in rows):
            hint = did_you_mean(path, _paths(columns), ".")
            raise DataError(
                f"{source}: data.columns.{role}: no row has a column `{path}`{hint} Columns found: "
                f"{_quoted(columns)}"
            )
    if "prompt" in mapping and mapping["prompt"] != found.prompt:
        found = replace(found, prompt=mapping["prompt"], chat=False)
    if "demonstration" in mapping:
        found = replace(found, demonstrations=(mapping["demonstration"],), chat=False)
    if "answer" in mapping:
        path = mapping["answer"]
        demonstrations = found.demonstrations if found.marked else ()
        if demonstrations == (path,) and "demonstration" not in mapping:
            # The user says that `answer` is the answer: then it is no worked text.
            found = replace(found, demonstrations=())
        found = replace(found, answer=path, marked=False)
    return found


def _quoted(names: Iterable[str]) -> str:
    listed = [f"`{name}`" for name in names]
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return (", ".join(listed[:20]) + more) or "none"


def _paths(columns: Mapping[str, Any], depth: int = 2) -> list[str]:
    """Column names and, of columns that hold objects, the dotted names inside."""
    names: list[str] = []
    for name, value in columns.items():
        names.append(str(name))
        if isinstance(value, Mapping) and depth > 1:
            names += [f"{name}.{inner}" for inner in _paths(value, depth - 1)]
    return names


def _unknown_format(
    columns: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], source: str
) -> str:
    free = _paths(columns)
    proposed: dict[str, str] = {}
    for role in ("answer", "demonstration", "prompt"):
        path = _nearest(role, free)
        if path is not None:
            proposed[role] = path
            free.remove(path)
    ordered = {role: proposed[role] for role in _SYNONYMS if role in proposed}
    if "prompt" not in ordered:
        ordered = {"prompt": "<your prompt column>", **ordered}
    line = ", ".join(f"{role}: {path}" for role, path in ordered.items())
    reason = ""
    if {"question", "answer"} <= columns.keys():
        reason = " (GSM8K's format needs `#### N` at the end of `answer`; no row has it)"
    return (
        f"{source}: unknown format{reason}. Columns found: {_quoted(columns)}. Needed: `prompt`, "
        "and as you have them `demonstration` and `answer`. If your columns mean this, set\n"
        f"  data.columns: {{{line}}}"
    )


def _nearest(role: str, names: Sequence[str]) -> str | None:
    """The column that most likely plays ``role``: by a name known from elsewhere, then by
    likeness."""
    last = {name.lower().rpartition(".")[2]: name for name in reversed(names)}
    for synonym in _SYNONYMS[role]:
        if synonym in last:
            return last[synonym]
    for synonym in _SYNONYMS[role]:
        near = get_close_matches(synonym, list(last), n=1, cutoff=0.75)
        if near:
            return last[near[0]]
    return None


def to_example(row: Mapping[str, Any], form: Format, source: str) -> Example:
    """One row as an Example. Raises RowError saying what is wrong and how to mend it."""
    value = lookup(row, form.prompt)
    demonstrations: list[str] = []
    if form.chat:
        turns = check_messages(value, f"`{form.prompt}`")
        if turns and turns[-1]["role"] == "assistant":
            demonstrations.append(turns[-1]["content"])
            turns = turns[:-1]
        prompt = check_prompt(turns, f"`{form.prompt}`")
    else:
        prompt = check_prompt(value, f"`{form.prompt}`")
    for path in form.demonstrations:
        demonstrations += check_demonstrations(lookup(row, path), f"`{path}`")
    answer = None
    if form.answer is not None:
        answer = _answer(lookup(row, form.answer), f"`{form.answer}`", form.marked)
    consumed = form.consumed(row)
    columns = {str(name): item for name, item in row.items() if name not in consumed}
    return Example(prompt, tuple(demonstrations), answer, columns, source)


def check_text(value: Any, name: str) -> str:
    """``value`` if it is text a tokenizer can take; RowError otherwise."""
    if value is MISSING:
        raise RowError(f"has no {name}; add it or remove the row")
    if value is None:
        raise RowError(f"{name} is null; write a text or remove the row")
    if not isinstance(value, str):
        raise RowError(f"{name} is of type {type(value).__name__}, not text; write it in quotes")
    if not value.strip():
        raise RowError(f"{name} is empty; write a text or remove the row")
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
    return value


def _plain(value: Any) -> Any:
    """Lists for tuples and arrays, so that data frames and arrays can be read as they are."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes, Mapping)):
        return value.tolist()
    return value


def _content(value: Any, name: str) -> str:
    """The text of a message; a list of text parts ({"type": "text"}) is joined."""
    if isinstance(value, list):
        kinds = {part.get("type") if isinstance(part, Mapping) else None for part in value}
        if value and kinds == {"text"}:
            return "".join(check_text(part.get("text"), name) for part in value)
        raise RowError(f"{name} has parts that are not text; only text is trained on")
    return check_text(value, name)


def check_messages(value: Any, name: str) -> list[dict[str, str]]:
    """Chat messages as ``{"role", "content"}``, also from ShareGPT's ``from`` and ``value``."""
    if value is MISSING or value is None:
        check_text(value, name)
    value = _plain(value)
    if not isinstance(value, list):
        raise RowError(
            f"{name} is of type {type(value).__name__}, not a list of messages "
            '{"role": "user", "content": ...}'
        )
    messages: list[dict[str, str]] = []
    for number, message in enumerate(value, start=1):
        here = f"{name}: message {number}"
        if not isinstance(message, Mapping):
            raise RowError(
                f"{here} is of type {type(message).__name__}; a message is "
                '{"role": "user", "content": ...}'
            )
        role = message.get("role", message.get("from"))
        role = _ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
        if role not in ROLES:
            raise RowError(f"{here} has the role {role!r}; roles are {', '.join(ROLES)}")
        text = _content(_plain(message.get("content", message.get("value"))), f"{here} (content)")
        messages.append({"role": role, "content": text})
    return messages


def check_prompt(value: Any, name: str) -> str | tuple[Message, ...]:
    """A prompt: text, or messages of which the last is the user's."""
    if isinstance(value, str) or value is None or value is MISSING:
        return check_text(value, name)
    if not isinstance(_plain(value), list):
        raise RowError(f"{name} is of type {type(value).__name__}, neither text nor chat messages")
    messages = check_messages(value, name)
    if not messages:
        raise RowError(f"{name} has no messages; write at least the user's")
    if not any(message["role"] == "user" for message in messages):
        raise RowError(f"{name} has no message of the user; write the question as one")
    if messages[-1]["role"] != "user":
        raise RowError(
            f"{name} ends with a message of the {messages[-1]['role']}; it must end with the "
            "user's. Move the assistant's last message to `demonstration`, or name the column "
            "`messages`"
        )
    if any(message["role"] == "system" for message in messages[1:]):
        raise RowError(f"{name} has a system message after the first place; put it first")
    return tuple(messages)


def _assistant_text(value: Any, name: str) -> str:
    """One demonstration: text, or a list with the one message of the assistant."""
    if not isinstance(value, list):
        return check_text(value, name)
    messages = check_messages(value, name)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = ", ".join(message["role"] for message in messages)
        raise RowError(
            f"{name} has the messages ({roles}); a demonstration is one message of the assistant, "
            "several demonstrations are a list of texts or of such lists"
        )
    return messages[0]["content"]


def check_demonstrations(value: Any, name: str) -> list[str]:
    """No, one or several demonstrations: null, text, messages, or a list of several of these."""
    value = _plain(value)
    if value is None or value is MISSING:
        return []
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        return [check_text(value, name)]
    if value and all(isinstance(item, Mapping) for item in value):
        return [_assistant_text(value, name)]
    return [
        _assistant_text(_plain(item), f"{name} number {number}")
        for number, item in enumerate(value, start=1)
    ]


def _answer(value: Any, name: str, marked: bool) -> str | None:
    value = _plain(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value is MISSING or (isinstance(value, float) and math.isnan(value)):
        if marked:
            check_text(None, name)
        return None
    if isinstance(value, (bool, int, float)):
        return str(value)
    if not isinstance(value, str):
        raise RowError(
            f"{name} is of type {type(value).__name__}; an answer is one text or number. Name the "
            "column that holds it, for example data.columns: {answer: reward_model.ground_truth}"
        )
    text = check_text(value, name)
    if not marked:
        return text
    after = _ANSWER_MARK.search(text[text.rfind("####") :]) if "####" in text else None
    if after is None:
        raise RowError(
            f"{name} has no `#### N` at its end; add the final answer behind `####`, or say what "
            "the column is: data.columns: {prompt: question, answer: answer}"
        )
    return after[1].strip().replace(",", "")
