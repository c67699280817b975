"""The table of docs/architectures.md, from the sweep's results."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import transformers
from tests.model.sweep.checks import Report

PAGE = Path(__file__).parents[3] / "docs/architectures.md"
MARK = "<!-- Below: python -m tests.model.sweep -->"
_SAMPLERS = {"embedded": "embedded", "generate": "generate", "": ""}


def write(reports: Mapping[str, Report], kinds: Iterable[str]) -> None:
    """Replaces what stands below the mark."""
    above = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(above + MARK + "\n\n" + _below(reports, list(kinds)), encoding="utf-8")


def listed() -> dict[str, str]:
    """Outcome of each type on the page."""
    rows = re.findall(r"^\| `([^`]+)` \| (\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def _below(reports: Mapping[str, Report], kinds: list[str]) -> str:
    counts: dict[str, int] = {}
    for kind in kinds:
        found = reports[kind]
        what = f"{found.rows} and exact" if found.outcome == "exact" else found.outcome
        counts[what] = counts.get(what, 0) + 1
    told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    lines = [
        f"transformers {transformers.__version__}, float32 on a CPU ({_processor()}): {len(kinds)} model "
        f"types and variants, {told}.",
        "",
        "| type | | rows | sampler | nats | gradient | |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(reports[kind]) for kind in kinds]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    told = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^Model name: *(.*)$", told, re.MULTILINE)
    return found[1] if found else platform.machine()


def _row(report: Report) -> str:
    nats = [v for k, v in report.figures.items() if not k.startswith("gradient")]
    share = [v for k, v in report.figures.items() if k.startswith("gradient")]
    figures = [f"{max(values):.0e}" if values else "" for values in (nats, share)]
    cells = [
        f"`{report.kind}`",
        report.outcome,
        report.rows,
        _SAMPLERS[report.sampler],
        *figures,
        _remark(report),
    ]
    return "| " + " | ".join(cells) + " |"


def _remark(report: Report) -> str:
    """Why it is refused or could not be built; else how it is sampled and what is refused of it."""
    if report.failures:
        return _short("; ".join(f"{k}: {v}" for k, v in report.failures.items()))
    if report.outcome != "exact":
        return _short(report.reason)
    found = []
    for note in report.notes:
        if note.startswith("prompts of different"):
            found.append(
                "each prompt length apart" + (", without a cache" if "a cache" in note else "")
            )
        elif note.startswith(("lora", "gradient checkpointed")):
            found.append(note)
    return _short("; ".join(dict.fromkeys(found)))


def _short(text: str) -> str:
    text = re.sub(r"/\S+/", "", re.sub(r"\s+", " ", text)).replace("|", "/")
    text = text.partition(". Was it started")[0]
    if len(text) > 260:
        text = text[:260].rsplit(" ", 1)[0] + " …"
    return text
