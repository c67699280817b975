"""Puts data, template, style and scripts together into one self-contained HTML file."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from srft.runs.files import to_json


def page(
    title: str,
    scripts: Sequence[str],
    data: Mapping[str, Any],
    blocks: Mapping[str, bytes],
    *,
    live: str = "",
) -> str:
    """One HTML document that loads nothing from anywhere.

    scripts: names of JavaScript files in ``assets``, in order. data: read by the scripts from
    ``#data``. blocks: gzip bytes, each in an element of its own, decoded when asked for. live: the
    version of what is shown, where the page is to ask the server it came from for a newer one.

    A content security policy admits this page's own script and style by their hashes and nothing
    else, so that even a mistake in escaping could not run text that came from a model.
    """
    style = asset("page.css")
    script = "\n".join(asset(name) for name in scripts)
    source = "'self'" if live else "'none'"
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        f"img-src data:; connect-src {source}; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "title": html.escape(title),
        "policy": policy,
        "style": style,
        "script": script,
        "data": script_json({**data, "live": live}),
        "blocks": "\n".join(_block(name, content) for name, content in blocks.items()),
    }
    # One pass over the template alone: a placeholder's name inside the data stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("page.html"))


def asset(name: str) -> str:
    """Text of a file in ``srft/report/assets``."""
    return files("srft.report").joinpath("assets", name).read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element: no ``<``, ``>``, ``&``, nothing beyond ASCII.

    Infinity and NaN, which JSON does not have, become null.
    """
    text = to_json(value, ensure_ascii=True, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def gzip_json(value: Any) -> bytes:
    """Compressed JSON for a block."""
    text = to_json(value, ensure_ascii=True, separators=(",", ":"), default=str)
    return gzip.compress(text.encode(), 6, mtime=0)


def _block(name: str, content: bytes) -> str:
    text = base64.b64encode(content).decode()
    return f'<script type="application/gzip" id="{name}">{text}</script>'


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
