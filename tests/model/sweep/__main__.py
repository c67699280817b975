"""The sweep over every causal language model of the installed transformers, and those with other parts.

    python -m tests.model.sweep                     # all that is missing in the results, then the table
    python -m tests.model.sweep qwen3 gemma3_text   # these, anew
    path/to/other/bin/python -m tests.model.sweep --no-page           # with another transformers, first

Each model type has a process of its own and a time limit. Results are kept line by line, so that a
sweep that was stopped goes on where it was, and say which transformers they are of: the table has a
column for each version among them.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from tests.model.sweep import page
from tests.model.sweep.checks import Report, examine
from tests.model.sweep.tiny import architectures, multimodal
from tests.model.sweep.variants import VARIANTS

LIMIT_S = 900.0  # a type takes a few seconds, on a machine that has nothing else to do


def isolated(kind: str, quick: bool = False, limit_s: float = LIMIT_S) -> Report:
    """``examine`` in a process forked from this one, which has everything imported."""
    with tempfile.TemporaryDirectory() as folder:
        return _isolated(kind, quick, limit_s, Path(folder))


def _isolated(kind: str, quick: bool, limit_s: float, folder: Path) -> Report:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(kind, folder, quick, theirs), daemon=True)
    process.start()
    theirs.close()
    report = Report(kind, "failed", failures={"process": f"took more than {limit_s:.0f} s"})
    try:
        if ours.poll(limit_s):
            report = ours.recv()
    except EOFError:
        process.join()
        report.failures = {"process": f"ended with exit code {process.exitcode}"}
    process.kill()
    process.join()
    return report


def _warm_up() -> None:
    """Once what every process would do first: half of its time. What is there by then no process need
    look through for garbage."""
    with tempfile.TemporaryDirectory() as folder:
        examine("llama", Path(folder))
    gc.freeze()


def _child(kind: str, folder: Path, quick: bool, pipe) -> None:
    import os
    import warnings

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    pipe.send(examine(kind, folder, quick))


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="model types; none: all without a result")
    parser.add_argument("--results", type=Path, default=Path("sweep.jsonl"))
    parser.add_argument("--quick", action="store_true", help="without training")
    parser.add_argument(
        "--no-page", action="store_true", help="leave docs/architectures.md as it is"
    )
    chosen = parser.parse_args()
    _warm_up()
    chosen.results.touch()
    every = [*architectures(), *VARIANTS, *multimodal()]
    known = _read(chosen.results).get(transformers.__version__, {})
    for kind in chosen.kinds or [k for k in every if k not in known]:
        begin = time.perf_counter()
        report = isolated(kind, chosen.quick or kind in VARIANTS)
        with chosen.results.open("a") as file:
            file.write(report.as_json() + "\n")
        told = report.failures or report.reason[:200] or f"{max(report.figures.values()):.1e}"
        sys.stdout.write(
            f"{kind:26} {report.outcome:8} {report.rows:7} {report.sampler:9} "
            f"{time.perf_counter() - begin:5.1f} s {told}\n"
        )
        sys.stdout.flush()
    found = _read(chosen.results)
    needed = {*architectures(), *VARIANTS}
    if not chosen.no_page and found.get(transformers.__version__, {}).keys() >= needed:
        page.write(found)


def _read(results: Path) -> dict[str, dict[str, Report]]:
    """The last result of each type, by version of transformers."""
    found: dict[str, dict[str, Report]] = {}
    for line in results.read_text().splitlines():
        report = Report(**json.loads(line))
        found.setdefault(report.version, {})[report.kind] = report
    return found


if __name__ == "__main__":
    main()
