"""The analysis as one self-contained HTML page, built from the report's parts."""

from __future__ import annotations

import datetime
from functools import partial
from pathlib import Path
from typing import Any

from srft.analysis.analysis_result import AnalysisResult
from srft.report.packed_samples import pack_streams
from srft.report.page import gzip_json, page
from srft.report.report_page import MAX_BYTES
from srft.version import __version__

_SCRIPTS = ("page.js", "chart.js", "samples.js", "space.js", "analysis.js")


def write_page(result: AnalysisResult, out: Path) -> Path:
    """Writes the page to ``out``; it stays below 10 MB."""
    compared = result.models[1:]
    data: dict[str, Any] = {
        "generated": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "version": __version__,
        "base": result.models[0],
        "paths": dict(zip(result.models, result.paths, strict=True)),
        "data": result.data,
        "responses": result.responses,
        "threshold": result.threshold,
        "notes": result.notes,
        "models": compared,
        "runs": [{"name": result.models[0], "group": 0}],  # the sample browser's one source
    }
    facts = gzip_json({k: v for k, v in result.to_json().items() if k != "out"})
    room = MAX_BYTES - len(page("", _SCRIPTS, data, {"facts": facts}))
    packed = pack_streams([partial(iter, result.browsed)], 5_000, int(room * 0.68))
    data["samples"] = {"total": packed.total, "shown": packed.shown, "blocks": len(packed.blocks)}
    blocks = {"facts": facts, "index": gzip_json(packed.index)}
    blocks |= {f"samples-{i}": block for i, block in enumerate(packed.blocks)}
    title = " · ".join(result.models)
    out.write_text(page(f"{title[:90]} · srft analyze", _SCRIPTS, data, blocks), encoding="utf-8")
    return out
