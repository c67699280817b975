"""The report while training goes on: a server on this machine alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from srft.report.report_page import render_report
from srft.runs.reading import read_runs
from srft.runs.run_dir import RunDir


class ReportServer(ThreadingHTTPServer):
    """Serves the report of ``run_dirs`` at ``url``; the page reloads itself when a run has changed.

    Listens on 127.0.0.1 only, and answers only requests addressed to that name, so that no other
    web page can read it through the browser. ``port`` 0 takes a free one.

    Raises:
        DataError: no run directory given, or one of them is none.
        OSError: the port is in use.
    """

    daemon_threads = True

    def __init__(
        self, run_dirs: Sequence[Path | str], port: int = 0, max_samples: int = 1_000
    ) -> None:
        read_runs(run_dirs)  # a wrong path is an error now, not a broken page later
        super().__init__(("127.0.0.1", port), _Handler)
        self._run_dirs = [Path(path) for path in run_dirs]
        self._max_samples = max_samples
        self._lock = threading.Lock()
        self._page: tuple[str, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def version(self) -> str:
        """Changes when a file of a run has changed."""
        state = []
        for folder in self._run_dirs:
            run = RunDir(folder)
            logs = (run.metrics, run.evaluation, run.samples, run.events)
            for path in (run.config, run.environment, *logs):
                stat = path.stat() if path.exists() else None
                state.append((str(path), stat and (stat.st_size, stat.st_mtime_ns)))
        return hashlib.sha256(repr(state).encode()).hexdigest()[:16]

    def report(self) -> str:
        """The page for the present state of the files, made anew only when they have changed."""
        with self._lock:
            version = self.version()
            if self._page is None or self._page[0] != version:
                text = render_report(self._run_dirs, max_samples=self._max_samples, live=version)
                self._page = (version, text)
            return self._page[1]


class _Handler(BaseHTTPRequestHandler):
    server: ReportServer

    def do_GET(self) -> None:
        host = self.headers.get("Host", "")
        if host not in (
            f"127.0.0.1:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            self.send_error(403, "Only requests to 127.0.0.1 are answered")
        elif self.path == "/":
            self._answer(self.server.report(), "text/html; charset=utf-8")
        elif self.path == "/version":
            self._answer(self.server.version(), "text/plain; charset=utf-8")
        elif self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            self.send_error(404)

    def _answer(self, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests every second are not worth a line in the terminal."""
