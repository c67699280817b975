"""Faults of several processes and of rollout servers: the tests of those rooms, counted here."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from tests.faults.runs import ROOT, Trial

SUITES = {
    "training process killed or stalled": (
        "tests/distributed/test_checkpoints.py",
        "killed or stalls",
    ),
    "rollout server killed, slow, restarted or wrong": ("tests/rollout/test_vllm_servers.py", ""),
    "verifier hung, killed or out of memory": ("tests/rewards/test_pool.py", ""),
    "reward function that never returns": ("tests/rewards/test_deadline.py", ""),
    "non-finite number, or alarm": ("tests/faults/test_numerical.py", ""),
    "two processes in one folder": ("tests/runs/test_lock.py", ""),
    "two runs in one folder": ("tests/trainer/test_one_writer.py", ""),
    "verifier process that was taken over": ("tests/faults/test_containment.py", ""),
    "secret, pickle, code in a folder": ("tests/faults/test_security.py", ""),
    "text that commands the terminal": ("tests/faults/test_terminal.py", ""),
    "text that a verifier could read in part": ("tests/rewards/test_quantities.py", ""),
    "interval on few problems": ("tests/evaluation/test_statistics.py", "interval"),
}


def suite_trials() -> Iterator[Trial]:
    """A trial for each test."""
    for kind, (path, words) in SUITES.items():
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            chosen = ["-k", words] if words else []
            subprocess.run(
                [sys.executable, "-m", "pytest", "-q", path, *chosen, f"--junitxml={report}"],
                cwd=ROOT, stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            for case in ElementTree.parse(report).iter("testcase"):
                bad = [child for child in case if child.tag in ("failure", "error")]
                if any(child.tag == "skipped" for child in case):
                    continue
                detail = bad[0].get("message", "")[:300] if bad else ""
                yield Trial(kind, str(case.get("name")), not bad, detail)
