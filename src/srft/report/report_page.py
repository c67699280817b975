"""The report of one or several runs: one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from srft.report.gather import gather_curves, gather_summary
from srft.report.packed_samples import pack_samples
from srft.report.page import gzip_json, page
from srft.runs.files import write_whole
from srft.runs.reading import read_runs
from srft.runs.run_dir import RunDir

SCRIPTS = ("page.js", "chart.js", "report.js", "samples.js")

MAX_BYTES = 10_000_000
"""Size the file stays below."""


def write_report(
    run_dirs: Sequence[Path | str],
    out: Path | str | None = None,
    *,
    max_samples: int = 5_000,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Writes the report and returns where it is: ``out``, or ``report.html`` in the (first) run.

    run_dirs: run directories, finished or still training; runs that differ only in their seed are
    shown as one method with a band. max_samples: prompt groups in the sample browser over all
    runs; where more were saved, or they would not fit into ``max_bytes``, an even choice is shown
    and the page says so.

    Raises:
        DataError: no run directory given, or one of them is none.
    """
    target = Path(out) if out else RunDir(Path(run_dirs[0] if run_dirs else ".")).report
    text = render_report(run_dirs, max_samples=max_samples, max_bytes=max_bytes)
    write_whole(target, text)  # whoever has the file open never sees half of it
    return target


def render_report(
    run_dirs: Sequence[Path | str],
    *,
    max_samples: int = 5_000,
    max_bytes: int = MAX_BYTES,
    live: str = "",
) -> str:
    """The report as text. ``live``: what the server it is for (``watch.py``) answers at ``/version``
    as long as nothing has changed; "" for a file.

    Raises:
        DataError: no run directory given, or one of them is none.
    """
    runs = read_runs(run_dirs)
    summary = gather_summary(runs)
    curves = gzip_json(gather_curves(runs))
    title = " · ".join(dict.fromkeys(run.name for run in runs))
    fixed = len(page("", SCRIPTS, summary, {"curves": curves}))
    # Base64 takes four characters for three bytes; the index is part of what must fit.
    room = max(0, int((max_bytes - fixed) * 0.74))
    packed = pack_samples(runs, max_samples, int(room * 0.92))
    summary["samples"] = {
        "total": packed.total,
        "shown": packed.shown,
        "blocks": len(packed.blocks),
    }
    blocks = {"curves": curves, "index": gzip_json(packed.index)}
    blocks |= {f"samples-{i}": block for i, block in enumerate(packed.blocks)}
    return page(f"{title[:90]} · srft", SCRIPTS, summary, blocks, live=live)
