"""A lab of small runs to break: starts them, and says whether two are the same run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tests.toys import save_lab_model

from srft.lab import lab_train

ROOT = Path(__file__).parents[2]
_TIMED = ("time/", "tokens_per_second", "total/seconds")


@dataclass(frozen=True)
class Trial:
    """One fault and what came of it. kind: the row of the table it belongs to."""

    kind: str
    name: str
    survived: bool
    detail: str = ""


@dataclass
class Workshop:
    """A folder with a tiny model and a recipe, and a process that runs recipes."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path = field(init=False)
    recipe: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "log"
        model = save_lab_model(self.folder / "base", initializer_range=0.02)
        data = self.folder / "train.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in lab_train(40)))
        held_out = self.folder / "eval.jsonl"
        held_out.write_text("".join(json.dumps(row) + "\n" for row in lab_train(6, 1)))
        self.recipe = self.write_recipe(
            "recipe.yaml",
            {
                "model": {"path": str(model)},
                "data": {"train": str(data), "eval": str(held_out)},
                "reward": "exact",
                "rollout": {"group_size": 3, "max_tokens": 12},
                "train": {"steps": 6, "prompts_per_step": 4, "learning_rate": 1e-3},
                "evaluation": {"every_steps": 3, "best_metric": "eval/mean_tokens"},
                "run": {"live": "never", "checkpoint_every": 2, "samples_every": 2},
            },
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        environment |= self.environment
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait(timeout=60)

    def write_recipe(self, name: str, values: Mapping[str, Any]) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(dict(values), sort_keys=False))
        return path

    def start(
        self, *arguments: str, fault: Mapping[str, Any] | None = None, pictures: bool = False
    ) -> int:
        """Starts ``srft`` and returns its process id; ``wait`` gives its exit code."""
        assert self._zygote.stdin is not None
        self.log.write_text("")
        doing = dict(fault or {})
        if not pictures and doing.get("strike", {}).get("phase") != "exporting":
            doing["no_pictures"] = {}
        request = {"argv": arguments, "log": str(self.log), "cwd": str(self.folder)}
        self._zygote.stdin.write(json.dumps({**request, "fault": doing}) + "\n")
        self._zygote.stdin.flush()
        self._pid = self._answer()["pid"]
        return self._pid

    def wait(self, limit_s: float | None = None) -> int:
        """The exit code of what was started, killed with all its processes after ``limit_s``."""
        assert self._zygote.stdout is not None
        if limit_s is not None and not select.select([self._zygote.stdout], [], [], limit_s)[0]:
            with contextlib.suppress(ProcessLookupError):  # it ended between the two calls
                os.killpg(self._pid, signal.SIGKILL)
        return self._answer()["code"]

    def train(
        self, run_dir: Path, *arguments: str, fault: Mapping[str, Any] | None = None
    ) -> tuple[int, str]:
        """Trains to the end, or to whatever end it takes: exit code and output."""
        self.start("train", str(self.recipe), f"run.dir={run_dir}", *arguments, fault=fault)
        return self.wait(), self.log.read_text(errors="replace")

    def go_on(
        self, run_dir: Path, *arguments: str, fault: Mapping[str, Any] | None = None
    ) -> tuple[int, str]:
        """What a person does after a crash: --resume, where the run had begun at all."""
        begun = ["--resume"] if (run_dir / "config.yaml").exists() else []
        return self.train(run_dir, *begun, *arguments, fault=fault)

    def _answer(self) -> dict[str, int]:
        assert self._zygote.stdout is not None
        line = self._zygote.stdout.readline()
        assert line, f"the zygote died: {self.log.read_text(errors='replace')[-2000:]}"
        return json.loads(line)


def fingerprint(run_dir: Path) -> dict[str, str]:
    """Everything that a run's outcome is, as digests: logs without what the clock decides, weights of
    the final and the best model, the newest checkpoint's tensors and state."""
    found: dict[str, str] = {}
    for name, dropped in (("metrics", _TIMED), ("evaluation", ("seconds",)), ("samples", ())):
        rows = [json.loads(line) for line in (run_dir / f"{name}.jsonl").read_bytes().splitlines()]
        kept = [{k: v for k, v in row.items() if not k.startswith(tuple(dropped))} for row in rows]
        found[name] = _digest(json.dumps(kept).encode())
    found["events"] = _digest((run_dir / "events.jsonl").read_bytes())
    for folder in ("model", "best"):
        found[folder] = _tensors(run_dir / folder)
    newest = sorted((run_dir / "checkpoints").glob("step_*"))[-1]
    for folder in ("weights", "optimizer"):
        found[f"checkpoint/{folder}"] = _tensors(newest / folder)
    return found


def _tensors(folder: Path) -> str:
    """Of every bit of every tensor, whatever their order in the files."""
    tensors: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    kinds = [(name, str(t.dtype), tuple(t.shape)) for name, t in sorted(tensors.items())]
    flat = [t.reshape(-1).view(torch.uint8) for _, t in sorted(tensors.items())]
    data = b"".join(t.numpy().tobytes() for t in flat)
    return _digest(repr(kinds).encode() + data)


def difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Names of what differs, or nothing."""
    return ", ".join(k for k in sorted({*one, *other}) if one.get(k) != other.get(k))


def clean_error(code: int, output: str, codes: set[int], words: str) -> str:
    """What is wrong with the way a command failed, or nothing: a documented exit code, one line that
    says why, no traceback."""
    if code not in codes:
        return f"exit code {code}: {output[-400:]}"
    if "Traceback" in output:
        return f"a traceback: {output[-400:]}"
    said = output.rpartition("error:")[2]
    return "" if words in said else f"says {said[-300:]!r}"


def litter(run_dir: Path) -> list[str]:
    """Unfinished files that were left behind."""
    return [str(p.relative_to(run_dir)) for p in run_dir.rglob("*") if ".writing" in p.name]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def table(trials: Iterable[Trial]) -> str:
    """Markdown: faults tried, survived and lost, by kind."""
    trials = list(trials)
    tried = Counter(trial.kind for trial in trials)
    survived = Counter(trial.kind for trial in trials if trial.survived)
    lines = ["| fault | tried | survived | lost |", "|---|---|---|---|"]
    for kind, count in tried.items():
        lines.append(f"| {kind} | {count} | {survived[kind]} | {count - survived[kind]} |")
    lost = [t for t in trials if not t.survived]
    lines += [f"\n- LOST {t.kind}, {t.name}: {t.detail}" for t in lost]
    return "\n".join(lines)
