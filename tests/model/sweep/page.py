"""The table of docs/architectures.md, from the sweep's results."""

from __future__ import annotations

import platform
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.model.sweep.checks import Report
from tests.model.sweep.variants import VARIANTS

PAGE = Path(__file__).parents[3] / "docs/architectures.md"
MARK = "<!-- Below: python -m tests.model.sweep -->"
_TOLD = {
    "packed": "packed and exact",
    "padded": "padded and exact",
    "refused": "refused",
    "unbuilt": "cannot be built",
    "failed": "failed",
}


def write(found: Mapping[str, Mapping[str, Report]]) -> None:
    """Replaces what stands below the mark. found: reports by version of transformers and by type."""
    above = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(above + MARK + "\n\n" + _below(found), encoding="utf-8")


def listed() -> dict[str, set[str]]:
    """What the page says of each type, over all versions."""
    rows = re.findall(r"^\| `([^`]+)` \|(.*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    words = ("packed", "padded", "refused", "unbuilt", "failed")
    return {kind: {c.strip() for c in cells.split("|")} & set(words) for kind, cells in rows}


def _below(found: Mapping[str, Mapping[str, Report]]) -> str:
    versions = sorted(found, key=lambda version: [int(part) for part in version.split(".")])
    kinds = list(dict.fromkeys(kind for v in reversed(versions) for kind in found[v]))
    kinds.sort(key=lambda kind: (kind in VARIANTS, kind if kind not in VARIANTS else ""))
    lines = [
        f"Float32 on a CPU ({_processor()}); model types and variants that were tried of each version (an "
        "empty cell: the version does not have it, or it was not tried with it):",
        "",
    ]
    for version in versions:
        counts = Counter(map(_outcome, found[version].values()))
        told = ", ".join(f"{counts[what]} {told}" for what, told in _TOLD.items() if counts[what])
        lines.append(f"- transformers {version}: {len(found[version])}, {told}")
    heads = [f"| type | {' | '.join(versions)} | sampler | nats | gradient | |"]
    lines += ["", *heads, "|---" * (len(versions) + 5) + "|"]
    lines += [_row(kind, [found[version].get(kind) for version in versions]) for kind in kinds]
    return "\n".join(lines) + "\n"


def _outcome(report: Report | None) -> str:
    if report is None:
        return ""
    return report.rows if report.outcome == "exact" else report.outcome


def _processor() -> str:
    told = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^Model name: *(.*)$", told, re.MULTILINE)
    return found[1] if found else platform.machine()


def _row(kind: str, reports: Sequence[Report | None]) -> str:
    """Outcomes by version, the largest figures of them all, and what is to be said of the newest."""
    there = [report for report in reports if report is not None]
    figures = [item for report in there for item in report.figures.items()]
    nats = [v for k, v in figures if not k.startswith("gradient")]
    share = [v for k, v in figures if k.startswith("gradient")]
    cells = [
        f"`{kind}`",
        *map(_outcome, reports),
        _differing(there, lambda report: report.sampler),
        *(f"{max(values):.0e}" if values else "" for values in (nats, share)),
        _differing(there, _remark, "; "),
    ]
    return "| " + " | ".join(cells) + " |"


def _differing(reports: Sequence[Report], of: Callable[[Report], str], between: str = ", ") -> str:
    """What all have in common; else what each version has."""
    told = {report.version: of(report) for report in reports}
    if len(set(told.values())) == 1:
        return told.popitem()[1]
    return between.join(f"{version}: {what}" for version, what in told.items() if what)


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
