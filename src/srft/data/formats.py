"""Recognises the formats people already have, by their columns, and turns rows into Examples.

| format | prompt | demonstration | answer |
|---|---|---|---|
| srft | prompt | demonstration and/or demonstrations | answer |
| GSM8K | question | answer, whole | answer, after `####`, commas of thousands removed |
| RL Parquet (verl, LUFFY) | prompt | target, where it is no number | reward_model.ground_truth |
| TRL | prompt | completion | answer |
| chat | messages or conversations, up to the last assistant turn | that turn, and as in srft | answer |
| Alpaca, Dolly | instruction, then input (context) | output (response) | answer |

In all of them a text column `system` (or `system_prompt`) is the system message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from srft.data.message_forms import tools_of
from srft.data.messages import (
    MISSING,
    assistant_text,
    check_demonstrations,
    check_messages,
    check_prompt,
    check_text,
    from_text,
    is_null,
    plain,
)
from srft.data.row_errors import RowError, quoted
from srft.errors import DataError, did_you_mean, nearest
from srft.types import Example, Message

_ANSWER_MARK = re.compile(r"####[ \t]*(.+?)\s*\Z", re.DOTALL)
_NUMBER = re.compile(r"\s*[-+]?[\d,]*\.?\d+\s*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_CHAT = ("messages", "conversations")
_OWN = ("demonstration", "demonstrations")
_TURNS = "prompt, and the assistant's last turn as demonstration"
_LONGEST_PLAIN = 40  # digits of a number written without an exponent

# Names that other datasets give to the three roles, the most telling first.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem", "instruction", "query", "input", "text"),
    "demonstration": (
        *("demonstration", "demonstrations", "solution", "response", "completion", "target"),
        *("output", "reasoning", "generation", "generations", "rationale", "chosen"),
    ),
    "answer": ("answer", "ground_truth", "final_answer", "gold", "label", "expected", "result"),
}


@dataclass(frozen=True)
class Format:
    """Which column (a dotted path) holds what. ``chat``: the last assistant turn of ``prompt`` is
    a demonstration. ``marked``: the answer stands behind `####` at the end of its column.
    ``context`` is put behind the prompt. ``tools``: the column of that name declares functions."""

    name: str
    prompt: str
    demonstrations: tuple[str, ...] = ()
    answer: str | None = None
    chat: bool = False
    marked: bool = False
    system: str | None = None
    context: str | None = None
    tools: bool = False

    def roles(self) -> dict[str, str]:
        """Path of a column -> what it is used for, in words."""
        used: dict[str, str] = {}
        parts = (
            (self.prompt, _TURNS if self.chat else "prompt"),
            (self.context, "rest of the prompt"),
            (self.system, "system message"),
            *((path, "demonstration") for path in self.demonstrations),
            (self.answer, "answer"),
        )
        for path, role in parts:
            if path is not None:
                used[path] = f"{used[path]} and {role}" if path in used else role
        return used

    def describe(self, columns: Mapping[str, Any]) -> str:
        """Which of these columns (name -> a value that is not null, if any) is used for what, and
        which is not."""
        used = self.roles()
        if self.tools:  # it stays a column, for rewards too
            used["tools"] = "functions for the chat template"
        said = [f"`{path}`: {role}" for path, role in used.items()]
        heads = {*used, *(path.split(".")[0] for path in used)}
        rest = [name for name, value in columns.items() if name not in heads and not is_null(value)]
        if rest:
            said.append(f"for rewards only: {quoted(rest)}")
        line = f"columns used ({self.name}): {'; '.join(said)}"
        known = (*_SYNONYMS["demonstration"], *_CHAT)
        likely = next((name for name in known if name in rest and _is_worked(columns[name])), None)
        if likely and not self.demonstrations and not self.chat:
            role = "prompt" if likely in _CHAT else "demonstration"
            line += (
                f". No demonstrations are read; if `{likely}` holds them, set data.columns: "
                f"{{{role}: {likely}}}"
            )
        return line


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


def _is_worked(value: Any) -> bool:
    """Whether a column with this value may hold demonstrations: texts that are more than a number."""
    if isinstance(value, str):
        return not _NUMBER.fullmatch(value)
    return isinstance(plain(value), (list, Mapping))


def _detect(columns: Mapping[str, Any]) -> Format | None:
    """The format of rows with these columns (name -> first value that is not null), or None."""
    answer = _first(columns, "answer")
    graded = isinstance(columns.get("reward_model"), Mapping)
    truth = "reward_model.ground_truth" if graded else answer
    own = tuple(name for name in _OWN if name in columns)
    if "prompt" in columns:
        if own:
            return Format("srft", "prompt", own, answer or truth)
        if graded or _is_worked(columns.get("target")):
            target = ("target",) if _is_worked(columns.get("target")) else ()
            return Format("RL Parquet", "prompt", target, truth)
        if "completion" in columns:
            return Format("TRL", "prompt", ("completion",), answer)
        return Format("srft", "prompt", (), answer)
    chat = _first(columns, *_CHAT)
    if chat:
        return Format("chat", chat, own, truth, chat=True)
    if "instruction" in columns:
        worked = own or tuple(name for name in ("output", "response") if name in columns)[:1]
        if worked:
            context = _first(columns, "input", "context")
            return Format("Alpaca", "instruction", worked, truth, context=context)
    if "question" in columns and isinstance(columns.get("answer"), str):
        return Format("GSM8K", "question", ("answer",), "answer", marked=True)
    return None


def _system(columns: Mapping[str, Any]) -> str | None:
    return next((n for n in ("system", "system_prompt") if isinstance(columns.get(n), str)), None)


def _declares(tools: Any) -> bool:
    try:
        return tools_of(tools) is not None
    except RowError:
        return True


def seen_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Every column of the rows with its first value that is not null."""
    columns: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if is_null(columns.get(name)):
                columns[name] = value
    return columns


def names_prompt(rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str]) -> bool:
    """Whether a column of the rows is the prompt: by ``data.columns``, or in a format that is known."""
    return "prompt" in mapping or _recognised(rows, seen_columns(rows), mapping) is not None


def _recognised(
    rows: Sequence[Mapping[str, Any]], columns: dict[str, Any], mapping: Mapping[str, str]
) -> Format | None:
    if "target" in columns:  # one that is a number may stand among texts
        worked = (row["target"] for row in rows if _is_worked(row.get("target")))
        columns["target"] = next(worked, columns["target"])
    found = _detect(columns)
    if found is not None and found.marked and "answer" not in mapping:
        texts = (row.get("answer") for row in rows)
        if not any(isinstance(text, str) and "####" in text for text in texts):
            return None  # question and answer, but not GSM8K: which is which must be said
    return found


def choose_format(
    rows: Sequence[Mapping[str, Any]], mapping: Mapping[str, str] | None, source: str
) -> Format:
    """The format of ``rows``, with the user's ``data.columns`` on top.

    Raises DataError where the format is unknown (the message proposes the ``data.columns`` line) or
    where a named column is in no row.
    """
    columns, mapping = seen_columns(rows), dict(mapping or {})
    found = _recognised(rows, columns, mapping)
    if found is None:
        if "prompt" not in mapping:
            raise DataError(_unknown_format(columns, rows, source))
        own = tuple(name for name in _OWN if name in columns)
        found = Format("data.columns", mapping["prompt"], own, _first(columns, "answer"))
    tools = "tools" in columns and any(_declares(row.get("tools")) for row in rows)
    found = replace(found, system=_system(columns), tools=tools)
    return _override(found, mapping, rows, columns, source)


def _override(
    found: Format,
    mapping: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Any],
    source: str,
) -> Format:
    unknown = sorted(set(mapping) - {"prompt", "demonstration", "answer", "system"})
    if unknown:
        raise DataError(
            f"data.columns names {quoted(unknown)}; it maps `prompt`, `demonstration`, `answer` and "
            "`system`"
        )
    for role, path in mapping.items():
        if all(lookup(row, path) is MISSING for row in rows):
            hint = did_you_mean(path, _paths(columns), ".")
            raise DataError(
                f"{source}: data.columns.{role}: no row has a column `{path}`{hint} Columns found: "
                f"{quoted(columns)}"
            )
    if "prompt" in mapping and mapping["prompt"] != found.prompt:
        path = mapping["prompt"]
        found = replace(found, prompt=path, chat=path in _CHAT, context=None)
    if "system" in mapping:
        found = replace(found, system=mapping["system"])
    if "demonstration" in mapping:
        found = replace(found, demonstrations=(mapping["demonstration"],), chat=False)
    if "answer" in mapping:
        path = mapping["answer"]
        demonstrations = found.demonstrations
        if path in demonstrations and "demonstration" not in mapping:
            # The user says that it is the answer: then it is no worked text.
            rest = tuple(name for name in demonstrations if name != path)
            found = replace(found, demonstrations=rest)
        found = replace(found, answer=path, marked=False)
    return found


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
        f"{source}: unknown format{reason}. Columns found: {quoted(columns)}. Needed: `prompt`, "
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
        near = nearest(synonym, last, cutoff=0.75)
        if near:
            return last[near[0]]
    return None


def to_example(row: Mapping[str, Any], form: Format, source: str) -> Example:
    """One row as an Example. Raises RowError saying what is wrong and how to fix it."""
    name = f"`{form.prompt}`"
    value = from_text(lookup(row, form.prompt))
    demonstrations: list[str] = []
    if form.chat:
        value = check_messages(value, name)
        if value and value[-1]["role"] == "assistant":
            demonstrations.append(assistant_text(value[-1]))
            value = value[:-1]
    prompt = check_prompt(value, name, prefill=form.prompt not in _CHAT)
    if form.context is not None and isinstance(prompt, str):
        context = lookup(row, form.context)
        if isinstance(context, str) and context.strip():
            prompt = f"{prompt}\n\n{check_text(context, f'`{form.context}`')}"
    if form.system is not None:
        prompt = _with_system(prompt, lookup(row, form.system), f"`{form.system}`")
    for path in form.demonstrations:
        demonstrations += check_demonstrations(lookup(row, path), f"`{path}`")
    consumed = form.roles()
    columns = {str(name): item for name, item in row.items() if name not in consumed}
    answers: tuple[str, ...] = ()
    if form.answer is not None:
        truth = lookup(row, form.answer)
        answers = answer_texts(truth, f"`{form.answer}`", form.marked)
        columns |= index_column(truth, columns)
    answer = answers[0] if answers else None
    return Example(prompt, tuple(demonstrations), answer, columns, source, answers[1:])


def _with_system(
    prompt: str | tuple[Message, ...], value: Any, name: str
) -> str | tuple[Message, ...]:
    """The prompt with the system message that stands in a column of its own."""
    if is_null(value) or value == "":
        return prompt
    system: Message = {"role": "system", "content": check_text(value, name)}
    if isinstance(prompt, str):
        return (system, {"role": "user", "content": prompt})
    if prompt[0]["role"] != "system":
        return (system, *prompt)
    if prompt[0]["content"] != system["content"]:
        raise RowError(f"has a system message in the conversation and another in {name}; keep one")
    return prompt


def answer_texts(value: Any, name: str, marked: bool = False) -> tuple[str, ...]:
    """Ground truths as texts, of which any is right: none, one, or several from a list."""
    value = plain(value)
    values = value if isinstance(value, list) else [value]
    texts = (answer_text(one, name, marked) for one in values)
    return tuple(dict.fromkeys(text for text in texts if text is not None))


def index_column(value: Any, columns: Mapping[str, Any]) -> dict[str, int]:
    """A ground truth that is a number beside options, as the column ``answer_index`` (MMLU-Pro's name
    for it): as text, 2 could be the option "2" as well."""
    value = plain(value)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or value != value // 1 or not {"options", "choices"} & columns.keys():
        return {}
    return {"answer_index": int(value)}


def answer_text(value: Any, name: str, marked: bool = False) -> str | None:
    """A ground truth as text, None where there is none. Numbers are written out: 1e-05 as 0.00001,
    and 3.0, to which data frames turn a 3 beside a null, as 3. ``marked``: it stands behind `####`.
    """
    if is_null(value):
        if marked:
            check_text(None, name)
        return None
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, (float, Decimal)):
        return _written_out(value)
    if not isinstance(value, str):
        raise RowError(
            f"{name} is of type {type(value).__name__}; an answer is a text, a number or a list of "
            "these. Name the column that holds it, for example data.columns: {answer: "
            "reward_model.ground_truth}"
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
    return _THOUSANDS.sub("", after[1].strip())


def _written_out(value: float | Decimal) -> str:
    if math.isinf(value):
        return str(value)
    text = format(Decimal(repr(value)) if isinstance(value, float) else value, "f")
    if isinstance(value, float):
        text = text.removesuffix(".0")
    return text if len(text) <= _LONGEST_PLAIN else str(value)
