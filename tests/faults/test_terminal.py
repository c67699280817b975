"""Texts of models and of data command no terminal."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from rich.markdown import Markdown
from rich.markup import escape
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from tests.faults.fuzz import nasty_text

from srft.cli import main
from srft.runs.files import to_json
from srft.terminal import Terminal, guard, visible
from srft.trainer.live import LiveView
from srft.trainer.train_config import RunConfig

PACKAGE = Path(__file__).parents[2] / "src/srft"
COMMANDS = {
    "title": "\x1b]0;owned\x07",
    "title, C1": "\x9d0;owned\x9c",
    "clear": "\x1b[2J\x1b[H",
    "clear, C1": "\x9b2J",
    "clipboard": "\x1b]52;c;b3duZWQ=\x07",
    "reset": "\x1bc",
    "report": "\x1b[6n",
    "colour": "\x1b[8;31m",
    "link": "\x1b]8;;https://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "bell": "\x07",
    "backspace": "right\x08\x08\x08\x08\x08wrong",
    "overwrite": "right\rwrong",
    "page": "\x0b\x0c",
    "delete": "\x7f",
    "right to left": "\u202egnorw\u202c \u2066x\u2069 \u200f",
    "line separator": "\u2028\u2029\x85",
    "half a pair": "\ud800",
    "null": "\x00",
}
ALL = " ".join(COMMANDS.values())


def commands_in(shown: str) -> set[str]:
    """What in a terminal's input is no text; colours and cursor moves of rich's own are left out."""
    rich_s = r"\x1b\[(?:[\d;]*m|\?25[lh]|\d*[AGK]|H)"
    left = re.sub(rich_s, "", shown.replace("\n", ""))
    kinds = {"Cc", "Cs", "Zl", "Zp"}
    turns = {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI"}
    return {
        c for c in left if unicodedata.category(c) in kinds or unicodedata.bidirectional(c) in turns
    }


def terminal(**options) -> tuple[Terminal, io.StringIO]:
    said = io.StringIO()
    return Terminal(file=said, force_terminal=True, width=200, **options), said


RENDERABLES = {
    "text": lambda text: text,
    "rich text": Text,
    "markup": lambda text: f"[bold]{escape(text)}[/]",
    "markdown": Markdown,
    "panel": lambda text: Panel(text, title=escape(text), subtitle=Text(text)),
    "repr": lambda text: [text],
}


@pytest.mark.parametrize("kind", RENDERABLES)
@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_is_printed_commands_nothing(kind, name):
    console, said = terminal()
    console.print(RENDERABLES[kind](f"before {COMMANDS[name]} after"))
    console.print(
        RENDERABLES[kind](f"before {COMMANDS[name]} after"), soft_wrap=True, highlight=False
    )
    shown = said.getvalue()
    assert not commands_in(shown) and "before" in shown and "owned\x07" not in shown
    shown.encode()


def test_tables_and_live_views_command_nothing(tmp_path):
    console, said = terminal()
    table = Table(title=escape(ALL), caption=Text(ALL))
    table.add_column(Text(ALL))
    table.add_row(escape(ALL))
    console.print(table)
    with LiveView(
        tmp_path / "run\x1b]0;owned\x07", 3, 0, RunConfig(live="always"), console
    ) as live:
        live.note(ALL)
        live.phase(ALL)
        live.update(1, 3, {"reward/mean": 0.5})
        print(ALL)
    with Progress(console=console) as bars:
        bars.add_task(escape(ALL))
    shown = said.getvalue().replace("\r\x1b[2K", "")  # how rich redraws a line
    assert not commands_in(shown) and "owned" in shown


def test_colours_of_rich_s_own_stay():
    console, said = terminal(color_system="standard")
    console.print("[red]x[/] plain", Text("y", style="bold"))
    assert said.getvalue() == "\x1b[31mx\x1b[0m plain \x1b[1my\x1b[0m\n"


def test_plain_texts_are_shown_as_they_are():
    for text in (
        "tab\there\n",
        "\u4f60\u597d \U0001f600 \u05e9\u05dc\u05d5\u05dd e\u0301",
        "\\x1b[31m",
        "a\\b",
    ):
        assert visible(text) == text
        console, said = terminal(markup=False, highlight=False)
        console.print(text)
        assert (
            said.getvalue().strip() == text.strip().replace("\t", "     ")[: len(said.getvalue())]
        )


def test_escapes_are_right_inside_of_json():
    values = {"text": ALL.replace("\ud800", ""), "\x9b": ["\u202e"]}
    assert json.loads(visible(json.dumps(values, ensure_ascii=False))) == values
    written = to_json(values)
    assert json.loads(written) == values and visible(written) == written


@pytest.mark.parametrize("seed", range(5))
def test_texts_at_random(seed):
    draw = random.Random(seed)
    for _ in range(60):
        text = nasty_text(draw) + chr(
            draw.choice([*range(32), *range(127, 160), *range(0x2000, 0x2070)])
        )
        console, said = terminal(markup=False)
        console.print(text)
        console.print(Text(text))
        assert not commands_in(said.getvalue()), text


# -- a command in a process of its own ---------------------------------------------------------------

PROGRAM = """
import logging, sys, warnings
from srft.terminal import guard
guard(); guard()
text = {text!r}
logging.getLogger("srft.data").warning("log %s", text)
logging.getLogger("another.library").warning("log %s", text)
warnings.warn(text)
print("print", text)
sys.stdout.writelines([text])
print("tqdm \\r 50% \\x1b[A\\x1b[32mgreen\\x1b[0m", file=sys.stderr)
raise RuntimeError(text)
"""


def test_logs_warnings_prints_and_tracebacks_command_nothing(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "canary-of-a-key")
    text = ALL + " canary-of-a-key"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(text=text)], capture_output=True,
        env={"PYTHONPATH": str(PACKAGE.parent), "MY_API_KEY": "canary-of-a-key", "PYTHONUTF8": "1"},
    )  # fmt: skip
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 1 and "RuntimeError" in err and "Traceback" in err
    assert "\r 50% \x1b[A\x1b[32mgreen\x1b[0m" in err  # a progress bar of a library's
    for shown in (out, err.replace("\r 50%", "").replace("\x1b[A", "")):
        assert not commands_in(shown.replace("\r", "")) and "owned" in shown
    logs = [line for line in err.splitlines() if line.startswith("log ")]
    assert len(logs) == 2 and not any("\x1b" in line or "canary" in line for line in logs)


def test_commands_show_what_data_and_recipes_hold_as_escapes(tmp_path, capsys):
    evil = "\x1b]0;owned\x07\x9b2J\u202e"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": evil, "demonstration": evil, "answer": evil}) + "\n")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"prompt": 5, evil: evil}) + "\n")
    for arguments in (
        ["train", "--dry-run", f"data.train={rows}", "model.path=lab", f"run.name={evil}"],
        ["train", f"data.train={rows}", f"model.path=/no/{evil}"],
        ["train", f"data.train={bad}", "model.path=lab"],
        ["train", f"{evil}=5", "data.train=lab"],
        ["plan", f"model.path=/no/{evil}", "data.train=lab"],
        ["data", "check", f"data.train={rows}", "model.path=lab"],
        ["reward", "check", str(bad), "--reward", "exact"],
        ["report", str(tmp_path / evil.replace("/", ""))],
        ["compare", str(tmp_path / evil), str(tmp_path)],
        ["eval", f"/no/{evil}", "--suite", "lab"],
        ["analyze", f"/no/{evil}", "--data", str(rows)],
        [evil],
    ):
        with contextlib.suppress(SystemExit):
            main(arguments)
        said = capsys.readouterr()
        for shown in (said.out, said.err):
            assert not commands_in(shown), (arguments, shown)


def test_every_console_of_ours_is_a_terminal():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Console"):
                raise AssertionError(
                    f"{path.relative_to(PACKAGE)}:{node.lineno}: use srft.terminal.Terminal"
                )


def test_guarding_twice_guards_once(capsys):
    guard()
    first = sys.stdout, sys.stderr
    guard()
    assert (sys.stdout, sys.stderr) == first
    print("\x1b]0;x\x07")
    logging.getLogger("srft.x").warning("\x1b[31m")
    assert capsys.readouterr().out == "\\u001b]0;x\\u0007\n"
