"""vLLM servers for the tests: started by `srft serve`, and gone when the tests are, however they end."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

_END_WITH_US = """
import os, signal, sys
sys.stdin.read()  # until whoever started this is gone
try:
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
except ProcessLookupError:
    pass
"""

logs: list[Path] = []
"""Of every server so far; conftest.py shows their ends with a test that fails."""


def free_port() -> int:
    """Below the ports that systems give to outgoing connections: the server takes it seconds later."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class ServerProcess:
    """`srft serve` on the lab's base model, in a process group of its own, so that all of it can be
    killed. A second process waits for the tests to end and does so, even if they are killed."""

    def __init__(self, folder: Path, vllm: dict[str, Any], **model: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"server-{self.port}.log"
        self.recipe = folder / f"serve-{self.port}.yaml"
        self.recipe.write_text(
            yaml.safe_dump({"model": {"path": "lab", **model}, "rollout": {"vllm": vllm}})
        )
        logs.append(self.log)
        self.start()

    def start(self) -> None:
        serve = [sys.executable, "-m", "srft.cli", "serve", str(self.recipe)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*serve, "--port", str(self.port)], stdout=log, stderr=log, start_new_session=True
            )
        self.watcher = subprocess.Popen(
            [sys.executable, "-c", _END_WITH_US, str(self.process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """All its processes; nothing where it is gone already."""
        assert self.watcher.stdin is not None
        self.watcher.stdin.close()
        self.watcher.wait()
        self.process.wait()


def ends_of_logs(lines: int = 40) -> list[tuple[str, str]]:
    """(title, last lines) of every server's log."""
    return [
        (f"log of {log.stem}", "\n".join(log.read_text(errors="replace").splitlines()[-lines:]))
        for log in logs
        if log.exists()
    ]
