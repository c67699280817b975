"""Puts messages into the form in which a chat template shows all of them.

Templates read thinking under one name or another, know no developer, refuse a system message, or
drop what they do not know without a word. So each *shape* of messages is rendered once with a
placeholder in every text: what does not come out again is put in another form, or refused.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from srft.data.messages import CALLS, MISSING, REASONING, check_characters, plain, written_out
from srft.data.row_errors import RowError
from srft.types import Message

_DECLARED = re.compile(r"""['"](function|parameters)['"]\s*:\s*\{""")


def sentinel(number: int) -> str:
    """A text that no user writes and every template passes through."""
    return f"SRFTmessage{number}placeholder"


@dataclass(frozen=True)
class Form:
    """How messages are put for a template: thinking under another name (None: as given), whose
    message a developer's becomes, a missing content as "", the arguments of calls as JSON text."""

    thinking: str | None
    instructions: Literal["as given", "system", "user"]
    empty: bool
    text_arguments: bool

    def applied_to(self, messages: Sequence[Message]) -> list[Message]:
        changed: list[Message] = []
        for message in messages:
            new = dict(message)
            if self.thinking:
                new = {self.thinking if k in REASONING else k: v for k, v in new.items()}
            if self.instructions != "as given" and new["role"] == "developer":
                new["role"] = "system"
            if self.empty and new["content"] is None:
                new["content"] = ""
            for key in new.keys() & CALLS:
                new[key] = _called(new[key], self.text_arguments)
            changed.append(new)
        if self.instructions == "user":
            while len(changed) > 1 and changed[0]["role"] == "system":
                text = f"{changed[0]['content']}\n\n{changed[1]['content']}"
                changed[:2] = [{**changed[1], "content": text}]
        return changed


def _called(value: Any, text: bool) -> Any:
    """Calls with their arguments as an object, which most templates write as JSON themselves, or as text.
    Data have either."""
    if isinstance(value, (list, tuple)):
        return [_called(call, text) for call in value]
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("function"), Mapping):
        return {**value, "function": _called(value["function"], text)}
    arguments = value.get("arguments")
    if text and isinstance(arguments, Mapping):
        return {**value, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if not text and isinstance(arguments, str):
        with suppress(ValueError):
            read = json.loads(arguments)
            check_characters(read, "`arguments` of a call")
            return {**value, "arguments": read if isinstance(read, dict) else arguments}
    return value


def all_forms() -> Iterator[Form]:
    """The form as given, then those that change it, the least first."""
    names = (None, *REASONING)
    for text, empty, name in itertools.product((False, True), (False, True), names):
        for instructions in ("as given", "system", "user"):
            yield Form(name, instructions, empty, text)


class MessageForms:
    """The forms that a template reads, found by trying. ``apply(messages, tools, whole)`` renders.

    left_out: what the template does not show, though it need not -> the first row with it.
    """

    def __init__(self, apply: Callable[[Sequence[Message], Any, bool], str]) -> None:
        self._apply = apply
        self.left_out: dict[str, str] = {}
        self._found: dict[Any, Form] = {}

    def read(
        self, messages: Sequence[Message], tools: Any, source: str, whole: bool = False
    ) -> list[Message]:
        """The messages in the form in which this template shows all of them: thinking under the name
        that it reads, a developer's message as the system's, a system message before the user's
        text. Found once for messages of the same shape. Raises RowError where no form will do, which is
        each row's own: what it holds may be the reason."""
        shape = tuple(map(_shape, messages)), bool(tools)
        if (shape, whole) not in self._found:
            self._found[shape, whole] = self._find_form(messages, tools, source, whole)
        return self._found[shape, whole].applied_to(messages)

    def _find_form(self, messages: Sequence[Message], tools: Any, source: str, whole: bool) -> Form:
        refused: list[RowError] = []
        good: list[tuple[list[str], Form]] = []
        tried: list[list[Message]] = []
        for form in all_forms():
            variant = form.applied_to(messages)
            if variant in tried:
                continue
            tried.append(variant)
            try:
                good.append((self._left_out(variant, tools, whole), form))
            except RowError as error:
                refused.append(error)
        if not good:
            raise refused[0]
        left_out, form = min(good, key=lambda found: len(found[0]))  # the first of equals
        if not whole:
            self.left_out |= {what: self.left_out.get(what, source) for what in left_out}
        return form

    def _left_out(self, messages: Sequence[Message], tools: Any, whole: bool) -> list[str]:
        """What the template does not show though it need not: thinking of earlier turns, names and
        the like. RowError where it leaves out what says something."""
        parts: list[tuple[str, bool]] = []  # what each placeholder stands for, whether it is needed

        def stand_in(name: str, needed: bool = True) -> str:
            parts.append((name, needed))
            return sentinel(len(parts) - 1)

        probe: list[Message] = []
        for number, message in enumerate(messages, start=1):
            changed = dict(message)
            of = f"the {message['role']}'s message (number {number} of {len(messages)})"
            thinks = REASONING if whole and number == len(messages) else ()
            for key, value in message.items():
                if key in CALLS:
                    changed[key] = _renamed(value, partial(stand_in, f"`{key}` of {of}"))
                elif key in ("role", "tool_call_id") or (key, message["role"]) == ("name", "tool"):
                    continue
                elif isinstance(value, str) and value:
                    name = of if key == "content" else f"`{key}` of {of}"
                    changed[key] = stand_in(name, key == "content" or key in thinks)
            probe.append(changed)
        shown = _renamed(tools, partial(stand_in, "`tools`")) if tools else tools
        text = self._apply(probe, shown, whole).lower()
        missing = [part for k, part in enumerate(parts) if sentinel(k).lower() not in text]
        for name, needed in missing:
            if needed:
                raise RowError(f"the chat template leaves out {name}; {_instead(name)}")
        return [name for name, _ in missing]


def _shape(message: Message) -> tuple[Any, ...]:
    """What decides how a template shows a message: the role, of each key whether there is text, none or
    "", and of each call what its arguments are."""
    told = (
        (k, v if v is None or v == "" else True) for k, v in sorted(message.items()) if k != "role"
    )
    return message["role"], *told, *map(_kinds, map(message.get, CALLS))


def _kinds(value: Any) -> Any:
    """Calls with the types of their arguments in place of all else: JSON of an object is one."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_kinds, value))
    if not isinstance(value, Mapping):
        return None
    function = value.get("function")
    call = _called(function if isinstance(function, Mapping) else value, False)
    return type(call.get("arguments"))


def tools_of(value: Any) -> list[Any] | None:
    """A row's ``tools`` column, where it declares functions as chat templates read them: a list of them, one,
    or JSON of either. Raises RowError where it declares some and cannot be read."""
    value = _parsed(plain(value))
    found = [value] if isinstance(value, Mapping) else value
    if not isinstance(found, list) or not found:
        return None
    found = [_parsed(item) for item in found]
    if all(map(_is_tool, found)):
        check_characters(found, "`tools`")
        return found
    if any(_is_tool(item) and not {"function", "parameters"}.isdisjoint(item) for item in found):
        number = 1 + list(map(_is_tool, found)).index(False)
        raise RowError(
            f"`tools`: number {number} of {len(found)} declares no function "
            '({"type": "function", "function": {"name": ...}}), others do; mend it or remove it'
        )
    return None


def _is_tool(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"function", "name"}.isdisjoint(value)


def _parsed(value: Any) -> Any:
    """What a text writes out that may be tools; anything else as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    found = written_out(value)
    if found is MISSING and _DECLARED.search(value):
        raise RowError("`tools` declares functions, but is not JSON; write it as a list of objects")
    return value if found is MISSING else found


def _renamed(value: Any, name: Callable[[], str]) -> Any:
    """Tools or tool calls with their functions' names changed."""
    if isinstance(value, (list, tuple)):
        return [_renamed(item, name) for item in value]
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("function"), Mapping):
        return {**value, "function": _renamed(value["function"], name)}
    return {**value, "name": name()}


def _instead(name: str) -> str:
    other = "name another one in data.chat_template"
    if any(name.startswith(f"`{key}`") for key in REASONING):
        return (
            f"write it into the content as the model is to say it (<think>...</think>), or {other}"
        )
    return other
