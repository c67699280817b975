"""How many of the mutations in ``mutants.py`` the tests notice.

    python -m tests.mutants [--jobs 2] [--only trainer/update.py] [--results build/mutants.jsonl]

Run it from the repository's root (``make mutants``). The tree is copied to a temporary folder; each mutant
is made there and its tests run in a forked process that has the libraries loaded already. A mutant is
caught where a test fails or does not end; its tests have to pass on the tree as it is. Results are kept
under a digest of the mutant, its module and its tests: what is started again goes on, and after a change
only what it touches is tried again. The exit code is 0 where at least 90 % are caught.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]
WANTED = 0.9
LIMIT_S = 900.0
_LIBRARIES = (
    "pytest",
    "hypothesis",
    "torch",
    "transformers",
    "peft",
    "safetensors.torch",
    "scipy.special",
)


@dataclass(frozen=True)
class Task:
    """What one process does: run ``tests`` on the tree, with ``mutant`` made where there is one."""

    mutant: Mutant | None
    tests: tuple[str, ...]

    @property
    def key(self) -> str:
        made = (
            ""
            if self.mutant is None
            else f"{self.mutant.file}\0{self.mutant.old}\0{self.mutant.new}"
        )
        paths = [ROOT / "tests" / test for test in self.tests]
        paths += [] if self.mutant is None else [ROOT / "src/srft" / self.mutant.file]
        digest = hashlib.sha256(made.encode())
        for path in paths:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:20]

    @property
    def title(self) -> str:
        return self.mutant.title if self.mutant else f"unchanged: {' '.join(self.tests)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--only", default="", help="files whose path begins so")
    parser.add_argument("--results", type=Path, default=ROOT / "build/mutants.jsonl")
    given = parser.parse_args()
    chosen = [mutant for mutant in mutants() if mutant.file.startswith(given.only)]
    known = _read(given.results)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    whole = [Task(None, tests) for tests in dict.fromkeys(mutant.tests for mutant in chosen)]
    changed = [Task(mutant, mutant.tests) for mutant in chosen]
    with tempfile.TemporaryDirectory() as place:
        for task, code, seconds in _run(
            [t for t in (*whole, *changed) if t.key not in known], given.jobs, Path(place)
        ):
            known[task.key] = code
            if code not in (0, 1) and code > 0:
                continue  # nothing was tried: the log says why
            with given.results.open("a") as file:
                file.write(json.dumps({"key": task.key, "code": code, "title": task.title}) + "\n")
            print(f"{_verdict(task, code):9} {seconds:5.0f} s  {task.title}", flush=True)
    return _summary(whole, changed, known)


def _read(path: Path) -> dict[str, int]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["key"]: record["code"] for record in map(json.loads, lines)}


def _verdict(task: Task, code: int) -> str:
    """pytest's exit codes: 0 all passed, 1 some failed; less than 0 a signal, that of the limit too."""
    if task.mutant is None:
        return "passes" if code == 0 else "FAILS"
    return "SURVIVED" if code == 0 else "caught" if code == 1 or code < 0 else f"ERROR {code}"


def _summary(whole: list[Task], changed: list[Task], known: dict[str, int]) -> int:
    broken = {task.tests for task in whole if known[task.key] != 0}
    judged = [task for task in changed if task.tests not in broken]
    verdicts = {task: _verdict(task, known[task.key]) for task in judged}
    caught, total = Counter[str](), Counter[str]()
    for task, verdict in verdicts.items():
        assert task.mutant is not None
        total[task.mutant.room] += 1
        caught[task.mutant.room] += verdict == "caught"
    print("\n| room | mutants | caught |\n|---|---:|---:|")
    for room in total:
        print(f"| `{room}/` | {total[room]} | {caught[room]} |")
    share = caught.total() / max(1, total.total())
    print(f"| all | {total.total()} | {caught.total()} ({share:.1%}) |\n")
    for task, verdict in verdicts.items():
        if verdict != "caught":
            print(f"{verdict}: {task.title}")
    for tests in broken:
        print(f"not judged, since they fail on the tree as it is: {' '.join(tests)}")
    return 0 if share >= WANTED and not broken else 1


def _run(tasks: list[Task], jobs: int, place: Path) -> Iterator[tuple[Task, int, float]]:
    """(task, exit code, seconds) as they end; each in a tree of its own."""
    if not tasks:
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # as conftest.py, which is read after the libraries
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    free = [_copy(place / f"tree{number}") for number in range(min(jobs, len(tasks)))]
    waiting, running = list(reversed(tasks)), {}
    while waiting or running:
        while waiting and free:
            task, tree = waiting.pop(), free.pop()
            running[_start(task, tree)] = (task, tree, time.monotonic())
        for pid, (task, tree, begun) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del running[pid]
                free.append(tree)
                _restore(task, tree)
                code = os.waitstatus_to_exitcode(status)
                if code > 1 or (code and task.mutant is None):
                    print(tree.with_suffix(".log").read_text()[-2000:])
                yield task, code, time.monotonic() - begun
            elif time.monotonic() - begun > LIMIT_S:
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.1)


def _copy(tree: Path) -> Path:
    """The files that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    return tree


def search_path(tree: Path, paths: list[str]) -> list[str]:
    """Where modules are found: the tree's in place of ours. The environment, which ``make`` builds inside of
    the repository, stays."""
    ours = (ROOT, ROOT / "src")
    kept = (path for path in paths if path and Path(path).resolve() not in ours)
    return [str(tree / "src"), str(tree), *kept]


def _restore(task: Task, tree: Path) -> None:
    if task.mutant is not None:
        path = Path("src/srft") / task.mutant.file
        shutil.copy(ROOT / path, tree / path)


def _start(task: Task, tree: Path) -> int:
    """The process that has made the mutant and runs its tests."""
    if task.mutant is not None:
        path = tree / "src/srft" / task.mutant.file
        source = path.read_text()
        assert source.count(task.mutant.old) == 1, task.title
        path.write_text(source.replace(task.mutant.old, task.mutant.new))
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        log = os.open(tree.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for source_fd, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source_fd, target)
        os.chdir(tree)
        # The tree's own package and tests in place of ours, for this process and those it starts.
        for name in [name for name in sys.modules if name.partition(".")[0] in ("srft", "tests")]:
            del sys.modules[name]
        sys.path[:] = search_path(tree, sys.path)
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not vllm and not gpu"]
        code = int(pytest.main([*options, *(f"tests/{test}" for test in task.tests)]))
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
