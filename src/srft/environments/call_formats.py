"""Reading calls of tools out of what a model wrote, in the form in which its chat template writes them.

Which form that is is found by having the template write a call whose parts are known: the form that reads
them back is the one. A tokenizer that says itself how its responses are read (transformers'
``response_template``) is asked first.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srft.data.message_forms import sentinel
from srft.data.row_errors import RowError
from srft.data.turns import ToolTurns, tool_call
from srft.errors import ConfigError

_OPENED = re.compile(r"<(?:seed:)?think>|\[THINK\]")
_CLOSED = re.compile(r"</(?:seed:)?think>|\[/THINK\]")
Calls = list[dict[str, Any]]
Schemas = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CallFormat:
    """``call`` matches one call: its group ``name`` and ``arguments``, or ``json``, which holds both.
    ``argument`` matches one of the arguments (groups ``key`` and ``value``); None: they are JSON."""

    name: str
    call: re.Pattern[str]
    argument: re.Pattern[str] | None = None

    def read(self, text: str, tools: Schemas, thinks: bool = False) -> tuple[str, Calls]:
        """What stands before the first call, and the calls. A call that cannot be read is text, and so is
        all that comes after it, and what is thought of (``thinks``: the prompt has opened the thought). In
        a thought that is never closed calls count where they end the response."""
        calls: Calls = []
        begin, end = len(text), 0
        behind, closed = self._behind_thoughts(text, thinks)
        for match in self.call.finditer(text[behind:]):
            try:
                found = self._calls(match, tools)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                break
            begin = begin if calls else behind + match.start()
            end = behind + match.end()
            calls += found
        return (text[:begin], calls) if closed or not text[end:].strip() else (text, [])

    def _behind_thoughts(self, text: str, thinks: bool) -> tuple[int, bool]:
        """Where the thoughts before the first call end, and whether the last one is closed."""
        at = 0
        while call := self.call.search(text[at:]):
            opened = _OPENED.search(text[at : at + call.start()])
            if not (opened or thinks):
                break
            closed = _CLOSED.search(text, at + (opened.end() if opened and not thinks else 0))
            if closed is None:
                return at, False
            at, thinks = closed.end(), False
        return at, True

    def _calls(self, match: re.Match[str], tools: Schemas) -> Calls:
        groups = match.groupdict()
        if "python" in groups:
            return _of_python(groups["python"])
        if self.argument is not None:
            types = _types(groups["name"], tools)
            parts = self.argument.finditer(groups["arguments"])
            arguments = {p["key"]: _typed(p["value"], types.get(p["key"])) for p in parts}
            return [_checked(groups["name"], arguments)]
        if groups.get("json") is None:
            return [_checked(groups["name"], json.loads(groups["arguments"] or "{}"))]
        found = json.loads(groups["json"])
        return [read_call(one) for one in (found if isinstance(found, list) else [found])]


def _of_python(text: str) -> Calls:
    """``add(a=1, b=2), add(a=3, b=4)``: as Python's, and of literals alone."""
    calls = []
    for node in ast.parse(f"[{text}]", mode="eval").body.elts:  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call) or node.args:
            raise ValueError("a call names its arguments")
        found = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        calls.append(_checked(ast.unparse(node.func), found))
    return calls


def read_call(value: Any) -> dict[str, Any]:
    """A call as messages have it (within ``function``, or flat; its arguments as JSON, too), as templates
    read it. Raises ValueError."""
    value = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping):
        raise ValueError("a call is an object")
    return _checked(value.get("name"), value.get("arguments", value.get("parameters")) or {})


def _checked(name: Any, arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call has a name and arguments by name")
    return tool_call(name.strip(), arguments)


def _types(name: str, tools: Schemas) -> dict[str, Any]:
    """Types of a tool's parameters, from its JSON schema."""
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name.strip():
            properties = function.get("parameters", {}).get("properties", {})
            return {key: value.get("type") for key, value in properties.items()}
    return {}


def _typed(text: str, kind: Any) -> Any:
    """An argument that is written without quotes: text where the tool takes text, else JSON if it is."""
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _form(name: str, call: str, argument: str | None = None) -> CallFormat:
    return CallFormat(name, re.compile(call, re.S), argument and re.compile(argument, re.S))  # type: ignore[arg-type]


_NAME = r"(?P<name>[^\s<>{}\[\]|]+)"
FORMATS = (
    _form("Hermes, Qwen", r"\n?<tool_call>\s*(?P<json>\{.*?\})\s*</tool_call>\s*"),
    _form(
        "Qwen3-coder",
        rf"\n?<tool_call>\s*<function={_NAME}>(?P<arguments>.*?)</function>\s*</tool_call>\s*",
        r"<parameter=(?P<key>[^>]+)>\n?(?P<value>.*?)\n?</parameter>",
    ),
    _form(
        "GLM",
        rf"\n?<tool_call>\s*{_NAME}\s*(?P<arguments>(?:<arg_key>.*?)?)\s*</tool_call>\s*",
        r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
    ),
    _form(
        "DeepSeek",
        r"(?:<\uff5ctool▁calls▁begin\uff5c>)?\s*<\uff5ctool▁call▁begin\uff5c>(?:function<\uff5ctool▁sep\uff5c>)?"
        rf"{_NAME}(?:\n```json\n|<\uff5ctool▁sep\uff5c>)(?P<arguments>\{{.*?\}})(?:\n```)?<\uff5ctool▁call▁end\uff5c>"
        r"\s*(?:<\uff5ctool▁calls▁end\uff5c>)?",
    ),
    _form(
        "gpt-oss",
        r"(?:<\|channel\|>commentary )?to=functions\.(?P<name>[\w.-]+)[^{]*?<\|message\|>"
        r"(?P<arguments>\{.*?\})\s*(?=<\||\Z)",
    ),
    _form("Mistral", r"\[TOOL_CALLS\]\s*(?P<json>\[.*\])\s*\Z"),
    _form(
        "Mistral", rf"\[TOOL_CALLS\]{_NAME}(?:\[ARGS\])?(?P<arguments>\{{.*?\}})\s*(?=\[TOOL_|\Z)"
    ),
    _form("LFM", r"<\|tool_call_start\|>\[(?P<python>.*?)\]<\|tool_call_end\|>"),
    _form(  # JSON without arguments is an answer
        "Llama",
        r"\A\s*(?:<\|python_tag\|>)?\s*(?P<json>\{(?=.*\"(?:parameters|arguments)\"\s*:).*\})\s*\Z",
    ),
)

_PROBE = tool_call("probe", {"first": sentinel(2), "second": 2})
_PROBE_SCHEMA = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {
                "first": {"type": "string", "description": "d"},
                "second": {"type": "integer", "description": "d"},
            },
        },
    },
}
Reader = Callable[[Sequence[int], Sequence[int], Schemas], dict[str, Any]]
"""``(response ids, ids before it, tools) -> the assistant's message``, ``tool_calls`` in it where it
calls tools."""


def reader(turns: ToolTurns) -> Reader:
    """Who reads this template's calls.

    Raises:
        ConfigError: the template does not write calls, or in no form that is known.
    """
    tokenizer, stop = turns.template.tokenizer, turns.call_end
    if getattr(tokenizer, "response_template", None) is not None:
        return lambda ids, before, tools: _own(tokenizer, ids, before, tools)
    form = format_of(turns)

    def read(ids: Sequence[int], before: Sequence[int], tools: Schemas) -> dict[str, Any]:
        text = tokenizer.decode(list(ids), skip_special_tokens=False).removesuffix(stop)
        prompt = tokenizer.decode(list(before[-16:]), skip_special_tokens=False).rstrip()
        opened = [match.end() for match in _OPENED.finditer(prompt)][-1:]
        content, calls = form.read(text, tools, opened == [len(prompt)])
        plain = turns.template.controls.pattern.sub("", content)
        message = {"role": "assistant", "content": plain.strip() if calls else plain}
        return message | ({"tool_calls": calls} if calls else {})

    return read


def _own(tokenizer: Any, ids: Sequence[int], before: Sequence[int], tools: Schemas) -> Any:
    """As the tokenizer's ``response_template`` says; text where it cannot be read so."""
    try:
        message = dict(tokenizer.parse_response(list(ids), prefix=list(before), tools=list(tools)))
        calls = [read_call(call) for call in message.pop("tool_calls", None) or ()]
    except (ValueError, TypeError, KeyError, AttributeError):
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        return {"role": "assistant", "content": text}
    content = (message.get("content") or "").removesuffix(tokenizer.eos_token or "")
    message = {**message, "role": "assistant", "content": content}
    return message | ({"tool_calls": calls} if calls else {})


def format_of(turns: ToolTurns) -> CallFormat:
    """The form in which a template writes calls. Raises ConfigError."""
    template = turns.template
    asked = {"role": "user", "content": sentinel(0)}
    text = ""
    for arguments in (_PROBE["function"]["arguments"], json.dumps(_PROBE["function"]["arguments"])):
        call = tool_call("probe", {}) | {"function": {"name": "probe", "arguments": arguments}}
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        try:
            text = template.apply([asked, said], [_PROBE_SCHEMA], whole=True)
        except RowError:
            continue
        # Behind the question and its end: the header of the turn stays, whatever it is.
        text = text.rpartition(sentinel(0))[2]
        text = text.rpartition(turns.call_end)[0] or text
        for form in FORMATS:
            for begin in (0, *(m.end() for m in re.finditer(r"[>\]\n]", text))):
                if form.read(text[begin:], [_PROBE_SCHEMA])[1] == [_PROBE]:
                    return form
    raise ConfigError(
        f"tools: {template.description} writes calls in a form that is not known here: {text!r}. Give the "
        "tokenizer a response_template (transformers' response parsing), or name another template in "
        "data.chat_template"
    )
