"""Runs of ``srft`` by the dozen, each a process of its own that may be killed.

``python -m tests.faults.zygote`` imports the libraries once and forks a process for each line of JSON on
its standard input, so a run costs a fraction of a second instead of an interpreter's start:

    {"argv": ["train", "recipe.yaml"], "log": "FILE", "cwd": "FOLDER", "fault": {...}}

It answers ``{"pid": ...}`` and, when the process has ended, ``{"code": ...}`` (minus the signal's number
where a signal ended it). ``fault`` is what is done to the process from inside (``_FAULTS``); the
product knows nothing of it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

_LOADED = (
    *(
        "srft.cli",
        "srft.cli_measure",
        "srft.cli_train",
        "srft.trainer.trainer",
        "srft.evaluation.run",
    ),
    *(
        "srft.report.plots",
        "srft.report.report_page",
        "srft.planning.plan",
        "srft.analysis.analyze",
    ),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "scipy.stats", "pyarrow.parquet"),
    *("transformers.models.qwen3.modeling_qwen3", "transformers.models.llama.modeling_llama"),
)
"""What commands import when they need it, and would otherwise import in every process."""


def main() -> None:
    for name in _LOADED:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(request)
        _say({"pid": pid})
        _say({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})


def _say(answer: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _child(request: dict[str, Any]) -> None:
    code = 1
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.chdir(request["cwd"])
        sys.argv = ["srft", *request["argv"]]
        for name, options in request.get("fault", {}).items():
            _FAULTS[name](**options)
        from srft.cli import main as command

        command(request["argv"])
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:  # noqa: BLE001 - a forked child must not unwind into the loop above
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The end of an interpreter, without what the parent registered.
        import atexit

        atexit._run_exitfuncs()
        os._exit(code)


# -- what is done to a process from inside -------------------------------------------------------


def _on_phase(act: Callable[[str, int], None]) -> None:
    """Calls ``act(phase, n)`` when a run enters a phase for the n-th time (from 1)."""
    from srft.rewards.scorer import ScoringSession
    from srft.trainer.live import LiveView

    seen: Counter[str] = Counter()

    def entered(name: str) -> None:
        seen[name] += 1
        act(name, seen[name])

    phase, results = LiveView.phase, ScoringSession.results

    def noted(self: LiveView, name: str) -> None:
        entered(name.split()[0])
        phase(self, name)

    def scored(self: ScoringSession) -> Any:
        entered("scoring")
        return results(self)

    LiveView.phase = noted  # type: ignore[method-assign]
    ScoringSession.results = scored  # type: ignore[method-assign]


def _no_pictures() -> None:
    """Without pictures: one takes longer than the run itself and belongs to none of it."""
    import srft.cli_train
    import srft.report.plots

    srft.cli_train.plot_run = srft.report.plots.plot_run = lambda run_dir: None


def _trace(path: str) -> None:
    """Writes the time at which each phase is entered."""
    file = open(path, "w")  # noqa: PTH123, SIM115 - open until the process ends

    def note(name: str, number: int) -> None:
        file.write(json.dumps([name, number, time.monotonic()]) + "\n")
        file.flush()

    note("starting", 1)
    _on_phase(note)


def _strike(phase: str, number: int, delay_s: float, signal_name: str, group: bool = False) -> None:
    """Sends itself a signal ``delay_s`` after it has entered ``phase`` for the ``number``-th time;
    ``group``: to its children as well, as a scheduler does."""
    code = signal.Signals[signal_name]

    def shoot() -> None:
        if group:
            import psutil

            for child in psutil.Process().children(recursive=True):
                child.send_signal(code)
        os.kill(os.getpid(), code)

    def act(name: str, n: int) -> None:
        if (name, n) == (phase, number):
            if delay_s <= 0:
                shoot()
            else:
                threading.Timer(delay_s, shoot).start()

    act("starting", 1)
    _on_phase(act)


def _clock(seed: int) -> None:
    """``time.time`` jumps by up to a day, backwards as often as forwards, at every look."""
    draw = random.Random(seed)
    real = time.time
    time.time = lambda: real() + draw.uniform(-86_400, 86_400)


def _file_size(limit: int) -> None:
    """No file may grow beyond ``limit`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _kill_workers(count: int, nursery: bool = False) -> None:
    """Kills the verifier worker (or the process that forks them) of the first ``count`` items, once
    for each."""
    from srft.rewards import pool

    attempt = pool._Slot._attempt
    struck: set[bytes] = set()

    def attempted(self: Any, payload: bytes) -> Any:
        if payload not in struck and len(struck) < count:
            struck.add(payload)
            self._worker()
            mother = self._state.nursery._process.pid
            os.kill(mother if nursery else self._pid, signal.SIGKILL)
        return attempt(self, payload)

    pool._Slot._attempt = attempted  # type: ignore[method-assign]


def _immutable(folder: str, number: int) -> None:
    """Makes ``folder`` immutable when the ``number``-th training step begins: nothing can be made or
    renamed in it, not even by root."""
    import subprocess

    def act(name: str, n: int) -> None:
        if (name, n) == ("training", number):
            subprocess.run(["chattr", "+i", folder], check=True)

    _on_phase(act)


_FAULTS: dict[str, Callable[..., None]] = {
    "no_pictures": _no_pictures,
    "trace": _trace,
    "strike": _strike,
    "clock": _clock,
    "file_size": _file_size,
    "kill_workers": _kill_workers,
    "immutable": _immutable,
}


if __name__ == "__main__":
    main()
